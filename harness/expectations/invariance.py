"""What must not change the tokens: repeating, padding, batching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt

from harness.divergence import Difference, agree, draw, first_difference
from harness.expectations.shorthand import Suspect, Written
from harness.expectations.suspects import suspects
from harness.record import Batch, Completion, Request, Text, Verdict
from harness.wording import counted

# Neighbours for a test that has too few prompts of its own. Of very unequal length, so that a batch is ragged
# whatever the prompt; the longest comes first because even a batch of two must pad the prompt in question.
FILLERS = (
    Text(
        text="The ship left the harbour before dawn, while the town was still asleep and the lamps along the quay "
        "burned low. On deck the mate counted barrels of water, sacks of flour and coils of rope, and wrote each "
        "number in a small book that he kept inside his coat, because the captain trusted no memory but ink."
    ),
    Text(text="Water boils at"),
    Text(text="A list of the four seasons, in the order in which they follow one another: spring,"),
    Text(text="Once"),
    Text(text="def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n"),
    Text(text="The opposite of cold is"),
    Text(text="Dear colleagues, thank you all for coming to the meeting this morning. The first point on our list is"),
)


class Deterministic(Written):
    """Generating again gives exactly the same tokens."""

    value_field: ClassVar[str] = ""
    catches: ClassVar[tuple[str, ...]] = ("D1", "D4", "D7")
    runs: StrictInt = Field(2, ge=2, le=50, description="How often it is generated; every time for real.")
    fresh_process: StrictBool = Field(False, description="The last run is made in a new process.")
    allow_rounding: StrictBool = Field(
        False,
        description="Accept a flip that 2 ulp of a 16-bit type explain (repeats of one shape are exact otherwise).",
    )

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        runs = [request.replace(layout="alone", repeat=repeat) for repeat in range(self.runs)]
        if self.fresh_process:
            runs[-1] = runs[-1].replace(fresh_process=True)
        return tuple(runs)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        first, *others = completions
        where = ", the last in a fresh process" if self.fresh_process else ""
        numbers: dict[str, float | int | str] = {"runs": len(completions)}
        for run, other in enumerate(others, start=2):
            difference = first_difference(first, other)
            if difference is None:
                continue
            numbers |= numbers_of(difference)
            if difference.is_harmless and self.allow_rounding:
                continue
            process = " in a fresh process" if other.request.fresh_process else ""
            reason = (
                f"run {run} of {len(completions)}{process} differs from the first at token {difference.index}"
                f"{_sampled(first)} ({difference.sentence})"
            )
            return Verdict("failed", reason, numbers, draw(difference, first=first, again=other))
        same = "the same tokens but for rounding" if "margin" in numbers else "the same tokens"
        return Verdict("passed", f"{len(completions)} runs{where}: {same}", numbers)


def _sampled(completion: Completion) -> str:
    """Sampling is the first thing to suspect, above all when the suite did not ask for it."""
    if not completion.generation_config.get("do_sample"):
        return ""
    if completion.request.generation.do_sample is None:
        return "; the model's own generation config switches sampling on (say do_sample: false)"
    return "; do_sample is true"


class PaddingInvariant(Written):
    """Padded in a ragged batch, the prompt gives the same tokens as alone."""

    value_field: ClassVar[str] = ""
    catches: ClassVar[tuple[str, ...]] = ("P1", "P2", "P4", "P7", "P8", "P9", "P11", "P13")
    side: Literal["left", "right", "shipped"] = Field(
        "left",
        description="left; right; or shipped: the side of the tokenizer (or model.padding_side), as a pipeline pads.",
    )
    attention_mask: StrictBool = Field(True, description="false: leave the mask out, as careless code does.")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        rows = (*_distinct(peers), *FILLERS[:1])
        batch = Batch(rows, self.side, self.attention_mask)
        return (request.replace(layout="alone"), request.replace(layout=batch))

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        alone, padded = completions
        side = f"{padded.padding}-padded" if padded.padding else "in a batch"
        shipped = " (the tokenizer's side as shipped)" if self.side == "shipped" else ""
        mask = "" if self.attention_mask else " without an attention mask"
        how = f"{side}{shipped} by {padded.pads} tokens in a batch of {padded.batch_size}{mask}"
        if padded.pads == 0:
            return Verdict("error", "the row was not padded: every other row of the batch is shorter", {"pads": 0})
        return same(alone, padded, how, {"pads": padded.pads, "batch_size": padded.batch_size})

    def suspects(self, completions: Sequence[Completion]) -> Sequence[Suspect]:
        return suspects(*completions)


class BatchInvariant(Written):
    """Generated in batches of these sizes, the prompt gives the same tokens as alone."""

    value_field: ClassVar[str] = ""
    catches: ClassVar[tuple[str, ...]] = ("D2", "Q1")
    sizes: tuple[Annotated[StrictInt, Field(ge=1, le=64)], ...] = Field(
        (1, 4), min_length=1, description="Batch sizes, each from 1 to 64."
    )

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        layouts = [_batch(request, peers, size) for size in self.sizes if size > 1]
        return (request.replace(layout="alone"), *(request.replace(layout=layout) for layout in layouts))

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        alone, *batched = completions
        verdicts = [
            same(alone, other, f"in a batch of {other.batch_size}", {"batch_size": other.batch_size})
            for other in batched
        ]
        failed = [verdict for verdict in verdicts if verdict.status == "failed"]
        if failed:
            return failed[0]
        rounded = [verdict for verdict in verdicts if "margin" in verdict.numbers]
        if rounded:
            return rounded[0]
        return Verdict("passed", f"the same tokens in batches of {', '.join(map(str, self.sizes))}")

    def suspects(self, completions: Sequence[Completion]) -> Sequence[Suspect]:
        alone, *batched = completions
        return suspects(alone, next(other for other in batched if not agree(alone, other)))


def _batch(request: Request, peers: Sequence[Request], size: int) -> Batch:
    """The chunk of the test's prompts that holds this one, so that one batch serves all of its rows.

    The last chunk is filled up with the built-in neighbours.
    """
    prompts = _distinct(peers)
    start = prompts.index(request.prompt) // size * size
    chunk = prompts[start : start + size]
    others = [text for text in FILLERS if text not in chunk]
    padding = [others[i % len(others)] for i in range(size - len(chunk))]
    return Batch((*chunk, *padding))


def _distinct(peers: Sequence[Request]) -> tuple[Text, ...]:
    return tuple(dict.fromkeys(peer.prompt for peer in peers))


def same(alone: Completion, other: Completion, how: str, numbers: Mapping[str, Any] = MappingProxyType({})) -> Verdict:
    """Equal tokens; in 16-bit and quantized lanes, equal up to a flip that rounding explains."""
    difference = first_difference(alone, other)
    if difference is None:
        return Verdict("passed", f"the same {counted(alone.new_tokens)} alone and {how}", numbers)
    numbers = {**numbers, **numbers_of(difference)}
    if difference.is_harmless:
        reason = f"{how}, the tokens part at {difference.index} by rounding alone: {difference.sentence}"
        return Verdict("passed", reason, numbers)
    reason = f"{how}, the tokens differ from those alone at token {difference.index}: {difference.sentence}"
    sides = {"alone": alone, "padded" if other.pads else "batched": other}
    return Verdict("failed", reason, numbers, draw(difference, **sides))


def numbers_of(difference: Difference) -> dict[str, float | int | str]:
    found: dict[str, float | int | str] = {"index": difference.index, "tolerance": difference.tolerance}
    if difference.margin is not None:
        found["margin"] = difference.margin
    return found
