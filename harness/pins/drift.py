"""How far the model has moved from a pin: token by token, over one prompt, over all of them. Pure arithmetic.

Of a distribution only the likeliest ids are recorded. An id that the other side did not record is at most as likely
there as the last one that it did record: the change is taken to be the least that this allows, so that no number here
is larger than the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, stdev

from harness.pins.pin import Floor, Lane, Replayed
from harness.record import Step
from harness.steps import distance, kl_at_least, lowest, minus, recorded

EXACT_REPEAT = "exact repeat"  # the name of the change that is none at all
_NORMAL = NormalDist()

# What a lane is taken to move by itself until it was measured: by the types that are compared. Measured for float32
# and bfloat16 on one small model; for float16 those of bfloat16, scaled to its rounding. The gap stands for a flip's
# margin, too; two units in the last place stand beside it, and 1e-3 nats in float32.
DEFAULT_FLOORS: Mapping[tuple[str, str], Floor] = {
    ("float32", "float32"): Floor(1e-4, 1e-6, 1e-4),
    ("bfloat16", "bfloat16"): Floor(0.15, 2.5e-3, 0.15),
    ("bfloat16", "float32"): Floor(0.14, 2.2e-3, 0.14),
    ("float16", "float16"): Floor(0.02, 4e-5, 0.02),
    ("float16", "float32"): Floor(0.02, 4e-5, 0.02),
    ("bfloat16", "float16"): Floor(0.15, 2.5e-3, 0.15),
}
QUANTIZED = DEFAULT_FLOORS["bfloat16", "bfloat16"]
NOT_QUANTIZED = ("", "none", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Flip:
    """A token of the pin's path at which another one is the likeliest now."""

    index: int
    pinned: int  # the likeliest then …
    now: int  # … and now
    pinned_logprob: float  # of each on its own side
    now_logprob: float
    margin: float  # nats by which the pin preferred its own
    max_logit: float


@dataclass(frozen=True)
class Drift:
    """One prompt: what it is like now against its pin, on the pin's tokens. Numbers a token, in nats."""

    name: str = ""
    precision: str = "float32"
    pads: int = 0
    padding: str = ""
    batch_size: int = 1
    prompt_ids_equal: bool = True
    tokens_equal: bool = True  # of the free run
    finish_equal: bool = True
    pinned_length: int = 0
    length: int = 0
    empty: bool = False  # the answer now, where the pin has one
    squares: tuple[float, ...] = ()  # mean square of the change of the top log-probabilities
    kl: tuple[float, ...] = ()
    gap: tuple[float, ...] = ()  # change of the distance of the pin's two likeliest
    logprob: tuple[float, ...] = ()  # change, of the pinned token
    distance: tuple[float, ...] = ()  # total variation, raw …
    processed: tuple[float, ...] = ()  # … and after all processors, where that was recorded
    largest: float = 0.0  # change of any log-probability
    max_logit: float = 0.0  # of all tokens: rounding is as large as it
    flips: tuple[Flip, ...] = ()
    nonfinite: int | None = None  # the first token whose scores are NaN or infinite now; none are compared from there
    pinned_shortfall: float = 0.0  # nats by which the pin's tokens fell short of the likeliest, at most
    shortfall: float | None = None  # the same of the token with which the free run leaves the pin's
    ends_elsewhere: bool = False  # one text is the beginning of the other

    @property
    def tokens(self) -> int:
        return len(self.kl)


@dataclass(frozen=True)
class Pooled:
    """Several prompts together; NaN where there is nothing to say it from."""

    prompts: int
    tokens: int
    rms: float  # of the change of the top log-probabilities
    kl: float  # mean
    gap: float  # RMS of the change of the gap
    largest: float
    bias: float  # mean change of the pinned tokens' log-probability, by prompt …
    error: float  # … and its standard error
    top1: float  # share of tokens at which the likeliest is the same
    perplexity_ratio: float  # of the pinned texts: now over then
    first_kl: float  # at the first token
    tail_kl: float  # at all others
    distance: float
    processed: float


def measure(replayed: Replayed, processed: tuple[Sequence[Step], Sequence[Step]] | None = None) -> Drift:
    """One prompt against its pin; `processed`: the same steps after all processors, then and now."""
    pin, now = replayed.pin, replayed.now
    parted = _parted(pin.ids, now.ids)
    return replace(
        compare(pin.steps, replayed.steps, pin.ids),
        name=pin.name,
        precision=now.precision,
        pads=now.pads,
        padding=now.padding,
        batch_size=now.batch_size,
        prompt_ids_equal=pin.prompt_ids == now.prompt_ids,
        tokens_equal=pin.ids == now.ids,
        finish_equal=pin.finish == now.finish,
        pinned_length=len(pin.ids),
        length=len(now.ids),
        empty=bool(pin.text.strip()) and not now.text.strip(),
        processed=tuple(distance(own, its) for own, its in zip(*processed, strict=False)) if processed else (),
        shortfall=_shortfall(replayed.steps, now.ids, parted),
        ends_elsewhere=pin.ids != now.ids and parted is None,
    )


def compare(pinned: Sequence[Step], now: Sequence[Step], ids: Sequence[int] = ()) -> Drift:
    """Two recordings of the same tokens; `ids`, where given, are these tokens."""
    bad = next((index for index, step in enumerate(now) if not is_finite(step)), None)
    known: Sequence[int | None] = ids or [None] * len(now)
    triples = list(zip(pinned, now[:bad], known, strict=False))
    changes = [_changes(*triple) for triple in triples]
    logprob = tuple(minus(step.logprob, own.logprob) for own, step, _ in triples)
    return Drift(
        squares=tuple(math.fsum(change * change for change in one) / (len(one) or 1) for one in changes),
        kl=tuple(kl_at_least(*triple) for triple in triples),
        gap=tuple(minus(one[0], one[1]) if len(one) > 1 else 0.0 for one in changes),
        logprob=logprob,
        distance=tuple(distance(own, step) for own, step, _ in triples),
        largest=max((abs(change) for one in (*changes, logprob) for change in one), default=0.0),
        max_logit=max((abs(step.max_logit) for step in now[:bad]), default=0.0),
        flips=tuple(flip for index, (own, step, _) in enumerate(triples) if (flip := _flip(index, own, step))),
        nonfinite=bad,
        pinned_shortfall=max((step.top_logprobs[0] - step.logprob for step in pinned), default=0.0),
    )


def is_finite(step: Step) -> bool:
    """A log-probability may be minus infinity, for an id that the model rules out; a largest logit may not."""
    values = (step.logprob, *step.top_logprobs)
    return math.isfinite(step.max_logit) and not any(math.isnan(value) or value == math.inf for value in values)


def pooled(drifts: Iterable[Drift]) -> Pooled:
    """All tokens alike, but for the bias: its unit is the prompt."""
    some = [drift for drift in drifts if drift.tokens]
    tokens = sum(drift.tokens for drift in some)
    flips = sum(len(drift.flips) for drift in some)
    biases = [_mean(drift.logprob) for drift in some]
    return Pooled(
        prompts=len(some),
        tokens=tokens,
        rms=math.sqrt(_mean(_joined(some, lambda drift: drift.squares))),
        kl=_mean(_joined(some, lambda drift: drift.kl)),
        gap=math.sqrt(_mean([change * change for change in _joined(some, lambda drift: drift.gap)])),
        largest=max((drift.largest for drift in some), default=math.nan),
        bias=_mean(biases),
        error=stdev(biases) / math.sqrt(len(biases)) if len(biases) > 1 and math.isfinite(sum(biases)) else math.nan,
        top1=1 - flips / tokens if tokens else math.nan,
        perplexity_ratio=_exp(-_mean(_joined(some, lambda drift: drift.logprob))),
        first_kl=_mean([drift.kl[0] for drift in some]),
        tail_kl=_mean(_joined(some, lambda drift: drift.kl[1:])),
        distance=_mean(_joined(some, lambda drift: drift.distance)),
        processed=_mean(_joined(some, lambda drift: drift.processed)),
    )


def floor(by_change: Mapping[str, Sequence[Drift]]) -> Floor:
    """The most that the lane moved, under any of these changes that are none."""
    seen = [sums for drifts in by_change.values() if (sums := pooled(drifts)).tokens]
    return Floor(
        rms=max((sums.rms for sums in seen), default=0.0),
        kl=max((sums.kl for sums in seen), default=0.0),
        gap=max((sums.gap for sums in seen), default=0.0),
        measured=tuple(by_change),
    )


def nondeterminism(by_change: Mapping[str, Sequence[Drift]]) -> str:
    """A sentence where not even an exact repeat gave the same numbers, or ""."""
    repeats = by_change.get(EXACT_REPEAT, ())
    moved = [drift for drift in repeats if drift.largest > 0 or not drift.tokens_equal or drift.nonfinite is not None]
    if not moved:
        return ""
    return (
        f"the lane itself is nondeterministic: an exact repeat moved {len(moved)} of {len(repeats)} prompts, "
        f"log-probabilities by up to {max(drift.largest for drift in moved):.3g} nats"
    )


def default_floor(pinned: Lane, now: Lane) -> Floor:
    """Before it was measured; of two lanes, for the nearest one where there is no pin."""
    if {pinned.quantization, now.quantization} - set(NOT_QUANTIZED):
        return QUANTIZED
    first, second = sorted((pinned.dtype, now.dtype))
    return DEFAULT_FLOORS.get((first, second), QUANTIZED)


def fragility(steps: Iterable[Step], floor: Floor) -> float:
    """How many flips the lane's own noise is to be expected to make: P(noise > margin), summed over the tokens."""
    if not floor.gap:
        return 0.0
    margins = [step.top_logprobs[0] - step.top_logprobs[1] for step in steps if len(step.top_logprobs) > 1]
    return math.fsum(_NORMAL.cdf(-margin / floor.gap) for margin in margins)


def _changes(pinned: Step, now: Step, token: int | None = None) -> list[float]:
    """Of each log-probability that the pin recorded; the pinned token is known now wherever it stands."""
    its, last = recorded(now, token), lowest(now)
    return [
        minus(its.get(one, min(value, last)), value)
        for one, value in zip(pinned.top_ids, pinned.top_logprobs, strict=True)
    ]


def _flip(index: int, pinned: Step, now: Step) -> Flip | None:
    top, its = pinned.top_ids[0], now.top_ids[0]
    known = recorded(now)
    # One that shares the first place now has not lost it: in 16 bits ties are frequent, and their order means nothing.
    if known.get(top) == now.top_logprobs[0]:
        return None
    before = recorded(pinned).get(its, lowest(pinned))
    return Flip(
        index=index,
        pinned=int(top),
        now=int(its),
        pinned_logprob=float(pinned.top_logprobs[0]),
        now_logprob=float(now.top_logprobs[0]),
        margin=float(pinned.top_logprobs[0] - before),
        max_logit=pinned.max_logit,
    )


def _shortfall(steps: Sequence[Step], ids: Sequence[int], parted: int | None) -> float | None:
    if parted is None or parted >= len(steps) or not is_finite(steps[parted]):
        return None
    step = steps[parted]
    known = recorded(step)
    return float(step.top_logprobs[0] - known.get(ids[parted], lowest(step)))


def _parted(ids: Sequence[int], others: Sequence[int]) -> int | None:
    """The first place at which two texts hold different tokens."""
    return next((index for index, (one, its) in enumerate(zip(ids, others, strict=False)) if one != its), None)


def _joined(drifts: Iterable[Drift], part: Callable[[Drift], Sequence[float]]) -> list[float]:
    return [value for drift in drifts for value in part(drift)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
