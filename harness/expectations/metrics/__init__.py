"""How close the output comes to references: text metrics through `evaluate`, per prompt or over all of them.

What they compute stands in `scores`; this module is what suites say, and imports nothing heavy.
"""

from __future__ import annotations

import difflib
import itertools
import json
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import itemgetter
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, StrictBool, StrictStr, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harness.errors import CannotRun
from harness.expectations.content import Texts, quote
from harness.expectations.shorthand import Written
from harness.inputs import Frozen, Number
from harness.record import Completion, Request, Verdict
from harness.wording import counted

HUB = "hub:"
MOST = {"min": "least", "max": "most"}
WORST = 3  # prompts that a failed verdict over a set shows
SHOWN_REFERENCES = 3
EXAMPLE = "{name: chrf, min: 40, references: the text to come close to}"


@dataclass(frozen=True)
class Own:
    """A metric that comes with the harness."""

    highest: Mapping[str, float]  # by key of its result; the first key is the one that counts
    words: bool = False  # whether it may normalise: case, punctuation, articles
    arguments: bool = False  # whether sacrebleu takes some
    longest: int | None = None  # characters of a text that are looked at: beyond, it would take seconds


OWN: Mapping[str, Own] = {
    "exact_match": Own({"exact_match": 1}, words=True),
    "token_f1": Own({"token_f1": 1, "precision": 1, "recall": 1}, words=True),
    "edit_distance": Own({"edit_distance": math.inf, "normalized": 1}, longest=30_000),
    "rouge_l": Own({"rouge_l": 1, "precision": 1, "recall": 1}, longest=100_000),
    "chrf": Own({"chrf": 100}, arguments=True, longest=50_000),
    "bleu": Own({"bleu": 100}, arguments=True, longest=100_000),
}


def is_file(name: str) -> bool:
    return not name.startswith(HUB) and (name.endswith(".py") or "/" in name)


def label(name: str) -> str:
    """What sentences call it: a file by its name without the folder, a metric of the Hub without its owner."""
    return name.removeprefix(HUB).replace(os.sep, "/").rsplit("/", 1)[-1].removesuffix(".py")


@dataclass(frozen=True)
class Output:
    """What came back for one prompt, and what it is to come close to; white space at the ends does not count."""

    completion: Completion
    references: tuple[str, ...]

    @property
    def length(self) -> int:
        return max(len(text.strip()) for text in (self.completion.text, *self.references))

    def cut(self, longest: int | None) -> tuple[str, list[str]]:
        """Both sides as a metric gets them."""
        text, *references = (text.strip()[:longest] for text in (self.completion.text, *self.references))
        return text, references

    def lines(self, indent: str = "") -> tuple[str, ...]:
        """Both sides as a reader gets them."""
        shown = [f"{indent}reference  {quote(text)}" for text in self.references[:SHOWN_REFERENCES]]
        more = len(self.references) - SHOWN_REFERENCES
        and_more = [f"{indent}           and {more} more"] if more > 0 else []
        return (f"{indent}output     {quote(self.completion.text)}", *shown, *and_more)


class Metric(Written):
    """The score that a metric gives the output, or all outputs of the test, for coming close to references."""

    name: StrictStr = Field(
        description=f"{', '.join(OWN)}; a file of your own, ./name.py, with a subclass of evaluate.Metric; "
        "or hub:name, whose code is fetched from the Hub."
    )
    references: Texts | None = Field(
        None, description="One text or a list, of which the closest counts; {column} is filled in from the row."
    )
    min: Number | None = Field(None, description="At least this score. chrf and bleu go up to 100, most others to 1.")
    max: Number | None = Field(None, description="At most this score: for edit_distance, where less is better.")
    over: Literal["prompt", "set"] = Field(
        "prompt", description="prompt: a score for each prompt. set: one score over all prompts of the test."
    )
    key: StrictStr | None = Field(
        None, description="Which of the metric's results counts, such as recall; its main one when left out."
    )
    normalize: StrictBool | None = Field(
        None,
        description="Case, punctuation and the articles a, an, the do not count. Of exact_match (false when left "
        "out) and token_f1 (true when left out).",
    )
    arguments: dict[StrictStr, Any] = Field(
        default_factory=dict, description="Further arguments of the metric, such as {word_order: 2} of chrf."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        names = handler.resolve_ref_schema(schema)["properties"]["name"]
        names["anyOf"] = [{"enum": list(OWN)}, {"type": "string", "pattern": r"^hub:.|/|\.py$"}]
        names.pop("type", None)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, (dict, cls)):
            return value
        raise ValueError(f"expected a mapping such as {EXAMPLE}")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in OWN or is_file(name) or (name.startswith(HUB) and label(name)):
            return name
        close = difflib.get_close_matches(name.lower(), OWN, n=1)
        hint = f"did you mean '{close[0]}'? There are" if close else "there are"
        others = f"a file of your own as ./name.py, one from the Hub as hub:{label(name) or 'name'}"
        raise ValueError(f"no metric is called '{name}'; {hint}: {', '.join(OWN)}; {others}")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both: the score that is wanted")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        own = OWN.get(self.name)
        if self.normalize is not None and not (own and own.words):
            able = " and ".join(name for name, one in OWN.items() if one.words)
            raise ValueError(f"{self.label} does not normalize; {able} do")
        if own:
            self._fits(own)
        return self

    def _fits(self, own: Own) -> None:
        if self.references is None:
            raise ValueError(f"{self.name} compares with references; write `references:`, a text or a list")
        if self.arguments and not own.arguments:
            raise ValueError(f"{self.name} takes no arguments")
        key = self.key or next(iter(own.highest))
        if key not in own.highest:
            raise ValueError(f"{self.name} gives no '{key}'; there are: {', '.join(own.highest)}")
        for word, bound in self._bounds.items():
            if not 0 <= bound <= own.highest[key]:
                raise ValueError(f"{word}: {bound} is out of reach: {key} is between 0 and {own.highest[key]:g}")

    def __hash__(self) -> int:
        arguments = json.dumps(self.arguments, sort_keys=True, default=str)
        return hash((self.name, self.references, self.min, self.max, self.over, self.key, self.normalize, arguments))

    @property
    def label(self) -> str:
        return label(self.name)

    @property
    def over_set(self) -> bool:
        return self.over == "set"

    @property
    def _bounds(self) -> dict[str, float]:
        return {word: bound for word, bound in (("min", self.min), ("max", self.max)) if bound is not None}

    def located(self, folder: str) -> Self:
        if not is_file(self.name):
            return self
        return self.model_copy(update={"name": os.path.abspath(os.path.join(folder, self.name))})

    @property
    def files(self) -> tuple[str, ...]:
        return (self.name,) if is_file(self.name) else ()

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        return self.judge_set([(self, completions)])

    def judge_set(self, prompts: Sequence[tuple[Metric, Sequence[Completion]]]) -> Verdict:
        """The verdict over all prompts; each comes as the metric with its row filled in, and its completions."""
        outputs = [Output(completions[0], metric.references or ()) for metric, completions in prompts]
        try:
            score = self._score(outputs)
        except Exception as error:
            return self._broken(error)
        if not math.isfinite(score):
            return Verdict("error", f"metric {self.label} gives {score}, which is no score")
        numbers: dict[str, float | int | str] = {"metric": score, **self._bounds}
        if self.over_set:
            numbers["prompts"] = len(outputs)
        if self._meets(score):
            return Verdict("passed", self._reason(score, outputs), numbers)
        return Verdict("failed", self._reason(score, outputs), numbers, self._details(score, outputs))

    def _score(self, outputs: Sequence[Output]) -> float:
        return float(_computing().score(self.name, self._pairs(outputs), **self._how))

    def _each_score(self, outputs: Sequence[Output]) -> list[float]:
        return list(_computing().each_score(self.name, self._pairs(outputs), **self._how))

    def _pairs(self, outputs: Sequence[Output]) -> list[tuple[str, list[str]]]:
        return [output.cut(self._longest) for output in outputs]

    @property
    def _how(self) -> dict[str, Any]:
        normalize = {} if self.normalize is None else {"normalize": self.normalize}
        arguments = self.arguments | normalize
        return {"key": self.key or "", "lower_is_better": self.min is None, "arguments": arguments}

    def _broken(self, error: Exception) -> Verdict:
        what, *more = str(error).splitlines() or [""]
        how = ":" if isinstance(error, CannotRun) else f" failed: {type(error).__name__}:"
        return Verdict("error", f"metric {self.label}{how} {what}", details=tuple(more))

    @property
    def _longest(self) -> int | None:
        return OWN[self.name].longest if self.name in OWN else None

    def _meets(self, score: float) -> bool:
        return (self.min is None or score >= self.min) and (self.max is None or score <= self.max)

    def _reason(self, score: float, outputs: Sequence[Output]) -> str:
        over = f" over {counted(len(outputs), 'prompt')}" if self.over_set else ""
        wanted = " and ".join(f"at {MOST[word]} {bound}" for word, bound in self._bounds.items())
        longest = self._longest
        was_cut = longest is not None and any(output.length > longest for output in outputs)
        note = f" (only the first {longest:,} characters of a text count)" if was_cut else ""
        key = f" {self.key}" if self.key and self.key != self.label else ""
        return f"{self.label}{key} {_shown(score, self._bounds.values())}{over}{note}, {wanted} wanted"

    def _details(self, score: float, outputs: Sequence[Output]) -> tuple[str, ...]:
        hint = self._hint(outputs)
        if not self.over_set:
            return (*hint, *outputs[0].lines())
        too_low = self.min is not None and score < self.min
        try:
            alone = sorted(zip(self._each_score(outputs), outputs, strict=True), key=itemgetter(0), reverse=not too_low)
        except Exception:  # some metrics are about many outputs only
            return hint
        worst = [
            (f"{self.label} {_shown(found, ())} at {quote(output.completion.request.prompt.last)}", *output.lines("  "))
            for found, output in alone[:WORST]
        ]
        return (*hint, *itertools.chain(*worst))

    def _hint(self, outputs: Sequence[Output]) -> tuple[str, ...]:
        """What a reader who expects `Paris.` to be `Paris` should write."""
        if self.name != "exact_match" or self.normalize or not self.min:
            return ()
        if self.model_copy(update={"normalize": True})._score(outputs) < self.min:
            return ()
        return ("hint       with `normalize: true`, case, punctuation and articles do not count, and it is met",)


def _shown(score: float, bounds: Collection[float]) -> str:
    """Rounded, but never onto a bound that it does not reach."""
    rounded = round(score, 3)
    return str(score if rounded in bounds and score not in bounds else rounded).removesuffix(".0")


class Metrics(Frozen):
    """Scores of text metrics: one, or a list of them; each has its own verdict."""

    # The field that a list, or one alone, goes to.
    list_field: ClassVar[str] = "metrics"
    metrics: tuple[Metric, ...] = Field(min_length=1, description="The metrics.")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core_schema))
        several = full["properties"]["metrics"]
        return {"description": full["description"], "anyOf": [several["items"], several]}

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return {"metrics": value if isinstance(value, list) else [value]}

    def members(self) -> Mapping[str, Metric]:
        """Each metric by its name; numbered where a name comes again."""
        named: dict[str, Metric] = {}
        for metric in self.metrics:
            name = f"metric-{metric.label}"
            others = (f"{name}-{number}" for number in itertools.count(2))
            named[name if name not in named else next(other for other in others if other not in named)] = metric
        return named


def _computing() -> Any:
    """What computes metrics. It imports evaluate, and so libraries that log what concerns nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return import_module("harness.expectations.metrics.computing")
    finally:
        logging.disable(before)
