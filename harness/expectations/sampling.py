"""What chance may change: seeds, the order of a batch, several sequences for one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt

from harness.divergence import draw, first_difference
from harness.expectations.content import quote
from harness.expectations.invariance import PaddingInvariant
from harness.expectations.shorthand import Written
from harness.record import Batch, Completion, Request, Returned, Verdict
from harness.wording import counted

SEEDS = 3  # how many are compared, the generation's own among them
NARROWING = ("temperature", "top_k", "top_p", "min_p")  # what makes sampling choose among few tokens


class Seeded(Written):
    """Sampled with the same seed in the same batch, the tokens are the same."""

    catches: ClassVar[tuple[str, ...]] = ("D3", "D6")
    runs: StrictInt = Field(2, ge=2, le=50, description="How often the batch is sampled; every time for real.")
    batch_order: Literal["any", "same", "different"] | None = Field(
        None,
        description="What another order of the rows makes of the tokens: different (one generator draws for all, "
        "as in transformers), same (each row has a generator), any (only recorded). Unset: not looked at.",
    )
    across_seeds: StrictBool = Field(
        False, description=f"{SEEDS} seeds do not all give the same tokens: sampling is really on."
    )

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        _, batched = PaddingInvariant().needs(request, peers)  # the same batch, so that it is generated once
        return (batched,)

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        first, *others = completions
        if not _samples(first):
            return ()
        request = first.request
        further = [request.replace(repeat=run) for run in range(1, self.runs)]
        if self.batch_order:
            further.append(request.replace(layout=_moved(request.layout)))
        in_doubt = self.batch_order == "different" and any(
            other.request.layout != request.layout and other.ids == first.ids for other in others
        )
        if self.across_seeds or in_doubt:
            further += [_with_seed(request, request.generation.seed + step) for step in range(1, SEEDS)]
        return further

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        first, *others = completions
        if not _samples(first):
            return Verdict("skipped", "the effective generation config does not sample: greedy search needs no seed")
        again = [other for other in others if other.request.repeat]
        seeds = [other for other in others if other.request.generation != first.request.generation]
        moved = [other for other in others if other.request.layout != first.request.layout]
        parts = [_repeats(first, again)]
        if self.across_seeds:
            parts.append(_seeds(first, seeds))
        if self.batch_order:
            parts.append(_order(self.batch_order, first, moved[0], seeds))
        numbers = {name: value for part in parts for name, value in part.numbers.items()}
        worst = next((part for status in ("failed", "skipped") for part in parts if part.status == status), None)
        if worst:
            return Verdict(worst.status, worst.reason, numbers, worst.details)
        return Verdict("passed", "; ".join(part.reason for part in parts), numbers)


def _samples(completion: Completion) -> bool:
    return bool(completion.generation_config.get("do_sample"))


def _moved(layout: Any) -> Batch:
    """Every row one place on: in reversed order, the middle row would draw the same numbers as before."""
    rows = layout.rows
    return Batch((*rows[1:], rows[0]), layout.padding, layout.attention_mask)


def _with_seed(request: Request, seed: int) -> Request:
    return request.replace(generation=request.generation.model_copy(update={"seed": seed}))


def _repeats(first: Completion, again: Sequence[Completion]) -> Verdict:
    seed, runs = first.request.generation.seed, len(again) + 1
    numbers: dict[str, float | int | str] = {"seed": seed, "runs": runs}
    for run, other in enumerate(again, start=2):
        difference = first_difference(first, other)
        if difference is not None:
            reason = f"run {run} of {runs} with seed {seed} differs from the first at token {difference.index}"
            remedy = (
                "remedy  something draws beside the seeded generator: dropout (call model.eval()), a sampler of its own"
            )
            details = (*draw(difference, first=first, again=other), remedy)
            return Verdict("failed", reason, numbers | {"index": difference.index}, details)
    return Verdict("passed", f"{runs} runs with seed {seed}: the same tokens", numbers)


def _seeds(first: Completion, others: Sequence[Completion]) -> Verdict:
    seeds = [one.request.generation.seed for one in (first, *others)]
    listed = f"seeds {', '.join(map(str, seeds))}"
    if any(other.ids != first.ids for other in others):
        return Verdict("passed", f"{listed}: not all the same", {"seeds": len(seeds)})
    config = first.generation_config
    narrow = ", ".join(f"{name} {config[name]}" for name in NARROWING if name in config)
    remedy = f"remedy  raise temperature, top_k or top_p, or let it write more (effective: {narrow or 'all unset'})"
    reason = f"{listed} all give the same {counted(first.new_tokens)}: sampling is as good as greedy search here"
    return Verdict("failed", reason, {"seeds": len(seeds)}, (f"output  {quote(first.text)}", remedy))


def _order(declared: str, first: Completion, moved: Completion, seeds: Sequence[Completion]) -> Verdict:
    """The same tokens prove nothing about the order where every seed gives them."""
    difference = first_difference(first, moved)
    found = "same" if difference is None else "different"
    numbers = {"batch_order": found}
    reason = f"with the rows in another order the tokens are {'the same' if found == 'same' else 'different'}"
    if declared in ("any", found):
        return Verdict("passed", reason, numbers)
    if difference is not None:
        reason = f"with the rows in another order the tokens differ at token {difference.index}"
        remedy = (
            "remedy  transformers draws for all rows from one generator: sample prompt by prompt, with a seed for each"
        )
        return Verdict("failed", reason, numbers, (*draw(difference, first=first, moved=moved), remedy))
    if all(other.ids == first.ids for other in seeds):
        shows = f"{len(seeds) + 1} seeds give the same tokens as well, so that the order has nothing to show here"
        return Verdict("skipped", f"{reason}, but {shows}", numbers)
    remedy = "remedy  each row has a generator of its own, it seems: then declare batch_order: same"
    return Verdict("failed", f"{reason}, and other seeds do change them", numbers, (remedy,))


class Returns(Written):
    """So many sequences come back for the prompt."""

    value_field: ClassVar[str] = "sequences"
    catches: ClassVar[tuple[str, ...]] = ("X5", "X6")
    sequences: StrictInt = Field(ge=1, description="How many.")
    distinct: StrictBool = Field(False, description="No two have the same tokens.")
    ordered: StrictBool = Field(False, description="Beam search: their scores descend, the best comes first.")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        returned = completion.returned
        count = len(returned) or 1  # of several only are they all recorded
        numbers: Mapping[str, float | int | str] = {"sequences": count}
        if count != self.sequences:
            remedy = f"remedy  write num_return_sequences: {self.sequences} in the generation of this test"
            came = f"{counted(count, 'sequence')} came back, not {self.sequences}"
            return Verdict("failed", came, numbers, (remedy,))
        scores = [one.score for one in returned if one.score is not None]
        if self.ordered and len(scores) < len(returned):
            return Verdict("error", "sampled sequences have no scores: take num_beams, or leave `ordered` out", numbers)
        problem = (self.distinct and _twins(returned)) or (self.ordered and _disorder(scores))
        if problem:
            listed = tuple(f"{place}  {_shown(one)}" for place, one in enumerate(returned))
            return Verdict("failed", problem, numbers, listed)
        words = [word for word, asked in (("distinct", self.distinct), ("best first", self.ordered)) if asked]
        return Verdict("passed", ", ".join((counted(count, "sequence"), *words)), numbers)


def _twins(returned: Sequence[Returned]) -> str:
    ids = [one.ids for one in returned]
    twin = next((place for place, one in enumerate(ids) if one in ids[:place]), None)
    if twin is None:
        return ""
    return (
        f"sequences {ids.index(ids[twin])} and {twin} have the same tokens: raise temperature or top_k, or take beams"
    )


def _disorder(scores: Sequence[float]) -> str:
    for place, (better, worse) in enumerate(pairwise(scores)):
        if not better >= worse:  # NaN is no order either
            return (
                f"the scores do not descend from sequence {place} to {place + 1}: sort them before you take the first"
            )
    return ""


def _shown(one: Returned) -> str:
    return quote(one.text) if one.score is None else f"{one.score:.4f}  {quote(one.text)}"
