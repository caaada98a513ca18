"""How two completions differ, and whether rounding alone explains it. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.record import Completion

# Mantissa bits kept after the leading one.
MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7}
# Of a number of that type, the last place: a flip between two logits can come from one rounding of each.
ULPS = 2
# The fp32 noise over batch size, attention and prefill is 1e-5 nats; a hundred times that is still far
# below any change of weights that was measured (the smallest, an epsilon of a norm, is 1.4e-3).
FLOAT32_MARGIN = 1e-3
SHOWN = 8  # tokens before the difference, and from it on


def ulp(precision: str, magnitude: float) -> float:
    """The spacing of numbers of this type near `magnitude`."""
    if not magnitude or not math.isfinite(magnitude):
        return 0.0
    return 2.0 ** (math.floor(math.log2(abs(magnitude))) - MANTISSA[precision])


@dataclass(frozen=True)
class Difference:
    """Where two completions first part, and by how little it could have gone the other way."""

    index: int
    margin: float | None  # nats between the two tokens; None when one is outside the other's recorded top-k
    tolerance: float  # the margin that rounding alone can overturn
    precision: str
    cause: Literal["tokens", "length"]

    @property
    def is_rounding(self) -> bool:
        return self.margin is not None and self.margin <= self.tolerance

    @property
    def is_harmless(self) -> bool:
        """Rounding, in a lane where rounding may change tokens: in float32 it was never seen to."""
        return self.is_rounding and self.precision != "float32"

    @property
    def sentence(self) -> str:
        rule = f"{ULPS} ulp of {self.precision}" if self.precision != "float32" else "float32 noise"
        if self.margin is None:
            return f"the other token is outside the recorded top-k: more than {rule} ({self.tolerance:.3g} nats)"
        relation = "within" if self.is_rounding else "above"
        return f"margin {self.margin:.3g} nats, {relation} {rule} ({self.tolerance:.3g} nats)"


def first_difference(reference: Completion, other: Completion) -> Difference | None:
    """The first index where the token ids differ; None when they are equal."""
    if reference.ids == other.ids:
        return None
    shorter = min(len(reference.ids), len(other.ids))
    index = next((i for i in range(shorter) if reference.ids[i] != other.ids[i]), shorter)
    precision = coarser(reference.precision, other.precision)
    return Difference(
        index=index,
        margin=_margin(reference, other, index),
        tolerance=_tolerance(reference, other, index, precision),
        precision=precision,
        cause="tokens" if index < shorter else "length",
    )


def agree(reference: Completion, other: Completion) -> bool:
    """The same tokens; below float32, up to a flip that rounding explains."""
    difference = first_difference(reference, other)
    return difference is None or difference.is_harmless


def coarser(*precisions: str) -> str:
    return min(precisions, key=lambda name: MANTISSA[name])


def _margin(reference: Completion, other: Completion, index: int) -> float | None:
    """Nats by which each side prefers its own token to the other's: the larger of the two views.

    A flip is rounding only if both sides saw a near-tie; a side that is sure of its token was changed by more.
    """
    # Beam search and speculative decoding record no steps: then the other side's view has to do.
    pairs = [(a, b) for a, b in ((reference, other), (other, reference)) if a.steps]
    views = [_gap(own, its, index) for own, its in pairs]
    known = [view for view in views if view is not None]
    return max(known) if known and len(known) == len(views) else None


def _gap(own: Completion, other: Completion, index: int) -> float | None:
    if index >= len(own.steps) or index >= len(other.ids):
        return None
    step = own.steps[index]
    if other.ids[index] not in step.top_ids:
        return None
    return abs(step.logprob - step.top_logprobs[step.top_ids.index(other.ids[index])])


def _tolerance(reference: Completion, other: Completion, index: int, precision: str) -> float:
    if precision == "float32":
        return FLOAT32_MARGIN
    logits = [side.steps[index].max_logit for side in (reference, other) if index < len(side.steps)]
    return ULPS * ulp(precision, max((abs(logit) for logit in logits), default=0.0))


def draw(difference: Difference, **sides: Completion) -> tuple[str, ...]:
    """The tokens around the difference, an aligned line a side, and a caret below the first that differs.

    Aligned by the cells that characters take on a terminal. How many there are is known where they are shown:
    `harness.reports.drawing` finds these lines again and fits them.
    """
    index, names = difference.index, max(map(len, sides))
    words = [[*map(repr, side.tokens), f"<{side.finish}>"] for side in sides.values()]
    start, end = max(0, index - SHOWN), index + SHOWN
    heads = _columns([told[start:index] for told in words])
    prefix = "… " if start else ""
    lines = [
        f"{name:<{names}}  {prefix}{head}{' '.join(told[index:end])}{' …' if len(told) > end else ''}"
        for name, head, told in zip(sides, heads, words, strict=True)
    ]
    margin = "" if difference.margin is None else f", margin {difference.margin:.3g} nats"
    column = names + 2 + len(prefix) + _cells(heads[0])
    return (*lines, f"{' ' * column}^ token {index}{margin}")


def _columns(sides: Sequence[Sequence[str]]) -> list[str]:
    """Each side's words on a line, every word below that of the other side."""
    widths = [max(map(_cells, words)) for words in zip(*sides, strict=True)]
    rows = [zip(words, widths, strict=True) for words in sides]
    return ["".join(word + " " * (width - _cells(word) + 1) for word, width in row) for row in rows]


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
