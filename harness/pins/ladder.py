"""From identical to broken: the level of what moved, by rules that a user can read and set. Pure.

A rule that decides is told as one sentence with its numbers. To add one: a limit, a function, a place in `judge`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Literal

from pydantic import Field

from harness.divergence import FLOAT32_MARGIN, ulp
from harness.inputs import Frozen
from harness.pins.drift import NOT_QUANTIZED, Drift, Flip, Pooled, pooled
from harness.pins.pin import Floor, Lane

ROUNDING = 1e-6  # of all probability: what float32 makes of the same scores after all processors
Level = Literal["identical", "noise", "drift", "changed", "broken"]
QUIET: tuple[Level, ...] = ("identical", "noise")


class Limits(Frozen):
    """Where one level ends and the next begins. The floor is what the lane moves by itself."""

    noise_rms: float = Field(1.5, gt=0, description="Noise, all prompts: RMS change of log-probabilities, × floor.")
    noise_kl: float = Field(2.0, gt=0, description="Noise, all prompts: mean KL, × floor.")
    prompt_noise_rms: float = Field(2.0, gt=0, description="Noise, each prompt: RMS change, × floor.")
    prompt_noise_kl: float = Field(5.0, gt=0, description="Noise, each prompt: mean KL, × floor.")
    # At 3 one prompt in 2,500 raised a false alarm (simulated: normal noise, margins of a real model), at 4 none.
    noise_margin: float = Field(4.0, ge=0, description="Noise: margin of a prompt's first flip, × floor of the gap …")
    noise_ulps: float = Field(2.0, ge=0, description="… or so many units in the last place of the largest logit.")
    noise_margin_float32: float = Field(FLOAT32_MARGIN, ge=0, description="The same in float32, in nats.")
    full_length: int = Field(48, ge=1, description="Means over fewer tokens vary more: their limits are widened.")
    drift_kl: float = Field(0.01, ge=0, description="Drift: mean KL, in nats a token.")
    drift_top1: float = Field(0.97, ge=0, le=1, description="Drift: share of tokens whose likeliest stays the same.")
    drift_margin: float = Field(0.5, ge=0, description="Drift: margin of any flip, in nats.")
    drift_stops: float = Field(0.85, ge=0, le=1, description="Drift: share of prompts that stop for the same reason.")
    drift_length: float = Field(0.1, ge=0, description="Drift: change of the mean length, relative.")
    bias_errors: float = Field(4.0, gt=0, description="Changed: mean change of log-probability, in standard errors.")
    processed: float = Field(3.0, gt=0, description="Changed: processed scores move so many times as far as raw ones.")
    broken_first_kl: float = Field(1.0, ge=0, description="Broken: KL at the first token, in nats …")
    broken_first_times: float = Field(5.0, ge=1, description="… and so many times that of the other tokens.")
    broken_margin: float = Field(6.0, gt=0, description="Broken: margin of a flip, × RMS change of the gap …")
    broken_gap: float = Field(5.0, gt=0, description="… where that is beyond so many times its floor.")


@dataclass(frozen=True)
class Ruler:
    """What a change is held against."""

    floor: Floor
    limits: Limits = field(default_factory=Limits)
    storage_rounding: float = 0.0  # nats by which a stored log-probability may be off
    exact: bool = False  # float32 on the same torch: tokens have to be equal
    tokens: bool = True  # of the free run; else only the distributions on the pin's path count

    @property
    def rms(self) -> float:
        return max(self.floor.rms, self.storage_rounding)

    @property
    def kl(self) -> float:
        # What was rounded when it was stored does not add up to 1 any more, and shows in KL in the first order.
        return max(self.floor.kl, self.storage_rounding / 4)

    @property
    def gap(self) -> float:
        return max(self.floor.gap, self.storage_rounding)


@dataclass(frozen=True)
class Judgement:
    """The level, the rule that decided, and its numbers."""

    level: Level
    rule: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_quiet(self) -> bool:
        return self.level in QUIET


def is_exact(lane: Lane, pinned: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether not one token may differ: float32, not quantized, and the same torch on the same hardware as then."""
    plain = lane.dtype == "float32" and lane.quantization in NOT_QUANTIZED
    return plain and all(pinned.get(name) == now.get(name) for name in ("torch", "cpu", "devices"))


def judge_one(drift: Drift, ruler: Ruler) -> Judgement:
    """One prompt."""
    return _judged([drift], ruler, alone=True)


def judge(drifts: Sequence[Drift], ruler: Ruler) -> Judgement:
    """All prompts of a test together, which shows what is too small to be seen on one."""
    return _judged(drifts, ruler, alone=False)


def padded_only(drifts: Iterable[Drift], ruler: Ruler) -> bool:
    """Whether padded rows were damaged, most of them, while those without padding only show noise."""
    same = [drift for drift in drifts if drift.prompt_ids_equal and drift.tokens]
    padded, others = [drift for drift in same if drift.pads], [drift for drift in same if not drift.pads]
    hit = [drift for drift in padded if _above_noise([drift], pooled([drift]), ruler, alone=True)]
    if not others or 2 * len(hit) <= len(padded):
        return False
    if any(_above_noise([drift], pooled([drift]), ruler, alone=True) for drift in others):
        return False
    return pooled(hit).rms > ruler.limits.broken_gap * ruler.rms


def is_biased(sums: Pooled, ruler: Ruler) -> bool:
    """Whether the pinned tokens became likelier, or less likely, all alike: a scale was changed.

    Rounding alone makes the pin's choices less likely, by about as much as the KL is; that is no bias.
    """
    if sums.gap <= ruler.gap or abs(sums.bias) <= ruler.limits.noise_kl * ruler.kl:
        return False
    return _deviation(sums) > ruler.limits.bias_errors


def raw_is_noise(drifts: Sequence[Drift], ruler: Ruler) -> bool:
    """Whether the raw scores alone show no more than noise."""
    sums = pooled(drifts)
    any_tokens = replace(ruler, exact=False)
    return not is_biased(sums, ruler) and not _above_noise(drifts, sums, any_tokens, alone=len(drifts) == 1)


def is_processed_otherwise(drifts: Sequence[Drift], ruler: Ruler) -> bool:
    """Whether what is made of raw scores changed, although they show no more than noise."""
    sums = pooled(drifts)
    taken = ruler.tokens and any(_takes_otherwise(drift, sums.tokens, ruler) for drift in drifts)
    return raw_is_noise(drifts, ruler) and bool(taken or _processed(sums, ruler))


def _judged(drifts: Sequence[Drift], ruler: Ruler, alone: bool) -> Judgement:
    sums = pooled(drifts)
    numbers = _numbers(drifts, sums, ruler)
    if rule := _broken(drifts, sums, ruler, alone):
        return Judgement("broken", rule, numbers)
    if rule := _of_another_kind(drifts, sums, ruler):
        return Judgement("changed", rule, numbers)
    if _identical(drifts, ruler):
        return Judgement("identical", _identity(sums, ruler), numbers)
    above = _above_noise(drifts, sums, ruler, alone)
    if not above and (rule := _processed(sums, ruler)):
        return Judgement("changed", rule, numbers)
    if not alone and is_biased(sums, ruler):
        return Judgement("changed", _bias(sums), numbers)
    if not above:
        return Judgement("noise", _noise(drifts, sums, ruler, alone), numbers)
    if beyond := _beyond_drift(drifts, sums, ruler, alone):
        return Judgement("changed", f"{beyond[0]}; above noise: {above[0]}", numbers)
    return Judgement("drift", f"above noise: {above[0]}; yet {_small(drifts, sums, ruler)}", numbers)


def _broken(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler, alone: bool) -> str:
    limits = ruler.limits
    for drift in drifts:
        if drift.nonfinite is not None:
            return f"{drift.name}: scores are NaN or infinite at token {drift.nonfinite}"
        if drift.empty and ruler.tokens and not _is_a_close_call(drift, sums.tokens, ruler):
            return f"{drift.name}: the answer is empty"
    if sums.first_kl > limits.broken_first_kl and sums.first_kl >= limits.broken_first_times * sums.tail_kl:
        return (
            f"first-token KL {sums.first_kl:.3g} > {limits.broken_first_kl:g} nat, "
            f"and >= {limits.broken_first_times:g} × {sums.tail_kl:.3g} of the tokens after it"
        )
    if not alone and padded_only(drifts, ruler):
        count = sum(drift.pads > 0 for drift in drifts)
        return f"only padded rows are damaged ({count} of {len(drifts)} are padded); the others show noise"
    margin = _largest_margin(drifts)
    if margin > limits.broken_margin * sums.gap and sums.gap > limits.broken_gap * ruler.gap:
        return (
            f"a flip at margin {margin:.3g} > {limits.broken_margin:g} × {sums.gap:.3g}, the RMS change of the gap, "
            f"itself > {limits.broken_gap:g} × floor {ruler.gap:.3g}"
        )
    return ""


def _of_another_kind(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler) -> str:
    """What no rounding does, however small the numbers."""
    others = [drift.name for drift in drifts if not drift.prompt_ids_equal]
    if others:
        return f"prompt ids differ in {_some(others)}"
    if not ruler.tokens:
        return ""
    for drift in drifts:
        if not drift.tokens and not drift.tokens_equal:
            return f"{drift.name}: tokens differ, and no scores tell noise from change"
        if drift.ends_elsewhere:
            return f"{drift.name}: the same tokens, yet {drift.length} of them, not {drift.pinned_length}"
        if drift.tokens_equal and not drift.finish_equal:
            return f"{drift.name}: the same tokens, yet it stops for another reason"
        if rule := _takes_otherwise(drift, sums.tokens, ruler):
            return rule
    return ""


def _takes_otherwise(drift: Drift, tokens: int, ruler: Ruler) -> str:
    """The likeliest was taken then, and now a token that is clearly not."""
    allowed = _margin(drift.precision, drift.max_logit, tokens, ruler)
    if not drift.pinned_shortfall <= allowed < (drift.shortfall or 0.0):
        return ""
    return (
        f"{drift.name}: a token was taken that is {drift.shortfall:.3g} nats below the likeliest, "
        f"where the pin took the likeliest (to {allowed:.3g} nats): scores are processed otherwise"
    )


def _identical(drifts: Sequence[Drift], ruler: Ruler) -> bool:
    return all(
        drift.largest <= ruler.storage_rounding and ((drift.tokens_equal and drift.finish_equal) or not ruler.tokens)
        for drift in drifts
    ) and not _processed(pooled(drifts), ruler)


def _above_noise(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler, alone: bool) -> list[str]:
    """What exceeds noise, the plainest first."""
    found = _exceeding(sums, ruler, alone)
    unequal = [drift.name for drift in drifts if not (drift.tokens_equal and drift.finish_equal)]
    if ruler.exact and ruler.tokens and unequal:
        found.append(f"tokens differ in {_some(unequal)}, in float32 on the same torch")
    if not alone:
        for drift in drifts:
            found += [f"{drift.name}: {sentence}" for sentence in _exceeding(pooled([drift]), ruler, alone=True)]
    for drift in drifts:
        first = drift.flips[0] if drift.flips else None
        if first and first.margin > (allowed := _allowed(drift, first, sums.tokens, ruler)):
            found.append(f"{drift.name}: first flip at margin {first.margin:.3g} > {allowed:.3g} nats")
    return found


def _exceeding(sums: Pooled, ruler: Ruler, alone: bool) -> list[str]:
    if not sums.tokens:
        return []
    rms, kl = noise_times(sums.tokens, ruler.limits, alone)
    found = []
    if not sums.rms <= rms * ruler.rms:
        found.append(f"RMS {sums.rms:.3g} > {rms:.3g} × floor {ruler.rms:.3g} nats")
    if not sums.kl <= kl * ruler.kl:
        found.append(f"KL {sums.kl:.3g} > {kl:.3g} × floor {ruler.kl:.3g} nats")
    return found


def noise_times(tokens: int, limits: Limits, alone: bool) -> tuple[float, float]:
    """How many times the floor is noise, of RMS and of KL: over so many tokens, of one prompt alone or of several."""
    widened = _widened(tokens, limits)
    # KL is of the order of a square: what widens its mean by so much widens the RMS by the root of it.
    if alone:
        return limits.prompt_noise_rms * math.sqrt(widened), limits.prompt_noise_kl * widened
    return limits.noise_rms * math.sqrt(widened), limits.noise_kl * widened


def _widened(tokens: int, limits: Limits) -> float:
    return max(1.0, math.sqrt(limits.full_length / max(tokens, 1)))


def _allowed(drift: Drift, flip: Flip, tokens: int, ruler: Ruler) -> float:
    return _margin(drift.precision, flip.max_logit, tokens, ruler)


def _margin(precision: str, height: float, tokens: int, ruler: Ruler) -> float:
    """The largest margin that noise can overturn: the largest of many normal numbers is the larger the more there are.

    A fixed number of deviations would raise the more false alarms the larger a suite is.
    """
    limits = ruler.limits
    noise = max(limits.noise_margin, math.sqrt(2 * math.log(max(tokens, 1)))) * ruler.gap
    rounding = limits.noise_margin_float32 if precision == "float32" else limits.noise_ulps * ulp(precision, height)
    return max(noise, rounding)


def _is_a_close_call(drift: Drift, tokens: int, ruler: Ruler) -> bool:
    return bool(drift.flips) and drift.flips[0].margin <= _allowed(drift, drift.flips[0], tokens, ruler)


def _processed(sums: Pooled, ruler: Ruler) -> str:
    """Raw scores show noise; whether those after all processors do, too."""
    if math.isnan(sums.processed):
        return ""
    allowed = (
        ruler.limits.processed
        * _widened(sums.tokens, ruler.limits)
        * max(sums.distance, ruler.storage_rounding, ROUNDING)
    )
    if sums.processed <= allowed:
        return ""
    return (
        f"raw scores show noise, processed ones do not: they moved by {sums.processed:.3g} of all probability, "
        f"raw ones by {sums.distance:.3g}"
    )


def _beyond_drift(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler, alone: bool) -> list[str]:
    limits, flips = ruler.limits, sum(len(drift.flips) for drift in drifts)
    found = []
    if not sums.kl <= limits.drift_kl:
        found.append(f"KL {sums.kl:.3g} > {limits.drift_kl:g} nats a token")
    if flips > max(1.0, (1 - limits.drift_top1) * sums.tokens):  # one flip is no share
        found.append(f"top-1 agreement {sums.top1:.3f} < {limits.drift_top1:g}")
    if (margin := _largest_margin(drifts)) > limits.drift_margin:
        found.append(f"a flip at margin {margin:.3g} > {limits.drift_margin:g} nats")
    if ruler.tokens and not alone:
        found += _other_endings(drifts, limits)
    return found


def _other_endings(drifts: Sequence[Drift], limits: Limits) -> list[str]:
    """Stops and lengths of the free runs; of few prompts, only what their spread does not explain."""
    found = []
    stops = sum(drift.finish_equal for drift in drifts)
    if len(drifts) - stops > max(1.0, (1 - limits.drift_stops) * len(drifts)):
        found.append(f"only {stops} of {len(drifts)} prompts stop for the same reason")
    changes = [drift.length - drift.pinned_length for drift in drifts]
    before = sum(drift.pinned_length for drift in drifts) / len(drifts)
    mean = fmean(changes)
    error = stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.inf
    if abs(mean) > max(limits.drift_length * before, 2 * error):
        found.append(f"mean length changed by {mean:+.1f} tokens of {before:.1f}")
    return found


def _deviation(sums: Pooled) -> float:
    """The bias in standard errors; of few prompts, as many as are as rare under a normal distribution (Wallace)."""
    if not sums.error > 0:
        return math.inf if sums.error == 0 and sums.bias else 0.0
    freedom = sums.prompts - 1
    ratio = sums.bias / sums.error
    return math.sqrt(freedom * math.log1p(ratio * ratio / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)


def _largest_margin(drifts: Iterable[Drift]) -> float:
    return max((flip.margin for drift in drifts for flip in drift.flips), default=0.0)


def _bias(sums: Pooled) -> str:
    return (
        f"mean change of log-probability {sums.bias:+.3g} nats, {_deviation(sums):.1f} standard errors from 0: "
        "all tokens moved alike"
    )


def _identity(sums: Pooled, ruler: Ruler) -> str:
    if not sums.tokens:
        return "tokens equal; no scores are recorded"
    return f"{'tokens and ' if ruler.tokens else ''}log-probabilities equal (to {ruler.storage_rounding:.1g} nats)"


def _noise(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler, alone: bool) -> str:
    rms, kl = noise_times(sums.tokens, ruler.limits, alone)
    flips = [drift.flips[0].margin for drift in drifts if drift.flips]
    told = f"RMS {sums.rms:.3g} <= {rms:.3g} × floor {ruler.rms:.3g}, KL {sums.kl:.3g} <= {kl:.3g} × {ruler.kl:.3g}"
    return f"{told}; {f'first flips at margins <= {max(flips):.3g} nats' if flips else 'no flip'}"


def _small(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler) -> str:
    limits = ruler.limits
    return (
        f"KL {sums.kl:.3g} <= {limits.drift_kl:g}, top-1 agreement {sums.top1:.3f}, "
        f"flips at margins <= {_largest_margin(drifts):.3g} nats"
    )


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} prompts ({names[0]}, …)"


def _numbers(drifts: Sequence[Drift], sums: Pooled, ruler: Ruler) -> dict[str, float]:
    numbers: dict[str, float] = {
        "prompts": len(drifts),
        "compared_tokens": sums.tokens,
        "rms": sums.rms,
        "rms_floor": ruler.rms,
        "kl": sums.kl,
        "kl_floor": ruler.kl,
        "gap": sums.gap,
        "gap_floor": ruler.gap,
        "top1": sums.top1,
        "flips": sum(len(drift.flips) for drift in drifts),
        "largest_margin": _largest_margin(drifts),
        "perplexity_ratio": sums.perplexity_ratio,
        "bias": sums.bias,
        "tokens_differ": sum(not drift.tokens_equal for drift in drifts),
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
