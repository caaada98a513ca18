"""What must hold. An expectation is a frozen model whose fields are its YAML arguments, and two pure methods.

To add one: write it in a file of its family, and add one line to TABLE. The suite's schema, `harness lint`
and the docs know it from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field, create_model

from harness.expectations.configuration import BareCall, EffectiveConfig
from harness.expectations.content import Contains, Equals, JsonSchema, NotContains, Regex
from harness.expectations.invariance import BatchInvariant, Deterministic, PaddingInvariant
from harness.expectations.invariants import Invariants
from harness.expectations.metrics import Metrics
from harness.expectations.output import NoRepetition, NotEmpty, NothingAfterEos
from harness.expectations.pinned import Pinned
from harness.expectations.processing import ProcessorOrder
from harness.expectations.prompting import PromptPipeline
from harness.expectations.sampler import Sampler
from harness.expectations.sampling import Returns, Seeded
from harness.expectations.shorthand import Suspect, Written
from harness.expectations.stopping import Finish, NewTokens, StopsAtEos, StopString, Truncated
from harness.inputs import Frozen, Number
from harness.record import Completion, Request, Verdict


@runtime_checkable
class Expectation(Protocol):
    """The whole of what an expectation must know how to do. `Written` has what most leave as it is."""

    catches: ClassVar[tuple[str, ...]]
    not_for: ClassVar[Mapping[str, str]]

    @property
    def over_set(self) -> bool:
        """Judged once over all prompts of its test, by `judge_set`."""

    def located(self, folder: str) -> Expectation:
        """With paths of files, which are relative to the suite's folder, made whole."""

    @property
    def files(self) -> tuple[str, ...]:
        """What else the verdict depends on, once it is located."""

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        """The requests whose completions `judge` is to see, in that order.

        `request` is the prompt in question; `peers` are all prompts of the same test, `request` among them.
        """

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        """Further requests that follow from the answers so far; () when there is no more to ask."""

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        """The verdict on those completions. Pure: never touches a model."""

    def suspects(self, completions: Sequence[Completion]) -> Sequence[Suspect]:
        """What may be the cause when it failed."""


@runtime_checkable
class Group(Protocol):
    """One word of the suite that stands for several expectations, each with a verdict of its own."""

    def members(self) -> Mapping[str, Expectation]:
        """The expectations by the name that reports show."""


class OverSet(Expectation, Protocol):
    """An expectation about all prompts of a test together."""

    def judge_set(self, prompts: Sequence[tuple[Expectation, Sequence[Completion]]]) -> Verdict:
        """The verdict; for each prompt the expectation with its row filled in, and its completions."""


TABLE: Mapping[str, type[Frozen]] = {
    "deterministic": Deterministic,
    "seeded": Seeded,
    "sampler": Sampler,
    "padding_invariant": PaddingInvariant,
    "batch_invariant": BatchInvariant,
    "invariants": Invariants,
    "prompt": PromptPipeline,
    "config": EffectiveConfig,
    "bare_call": BareCall,
    "processor_order": ProcessorOrder,
    "stops_at_eos": StopsAtEos,
    "finish": Finish,
    "stop_string": StopString,
    "nothing_after_eos": NothingAfterEos,
    "truncated": Truncated,
    "new_tokens": NewTokens,
    "returns": Returns,
    "not_empty": NotEmpty,
    "no_repetition": NoRepetition,
    "contains": Contains,
    "not_contains": NotContains,
    "regex": Regex,
    "equals": Equals,
    "json_schema": JsonSchema,
    "metric": Metrics,
    "pinned": Pinned,
}


class _Expect(Frozen):
    """What must hold for every prompt of the test."""

    pass_rate: Number | None = Field(
        None, gt=0, le=1, description="Judge the test as a whole: this share of its prompts must meet everything."
    )

    def expectations(self) -> dict[str, Expectation]:
        """The expectations that were written, by name, in the order of the table."""
        written = {name: value for name in TABLE if (value := getattr(self, name)) is not None}
        return {
            member: expectation
            for name, value in written.items()
            for member, expectation in (value.members() if isinstance(value, Group) else {name: value}).items()
        }


if TYPE_CHECKING:
    Expect = _Expect
else:
    Expect = create_model(
        "Expect",
        __base__=_Expect,
        __doc__=_Expect.__doc__,
        **{name: (kind | None, Field(None, description=kind.__doc__.split("\n")[0])) for name, kind in TABLE.items()},
    )


def fill(expectation: Expectation, row: Mapping[str, Any]) -> Expectation:
    """The expectation with {column} replaced by the row's values, wherever it holds text."""
    if not row or not isinstance(expectation, Written):
        return expectation
    fields = {name: expectation.filled(name, row) for name in type(expectation).model_fields}
    return expectation.model_copy(update=fields)
