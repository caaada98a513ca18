"""Statistics of a comparison, each with a 95 % confidence interval. The independent unit is the prompt.

Tokens of one prompt resemble each other, so every interval comes from how prompts differ from each other:
means and their differences by the studentised bootstrap over prompts; shares by Wilson's interval on the number of
independent tokens that their spread over prompts amounts to; quantiles by the interval of the share of tokens below
them. All of it is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Groups = Sequence[Sequence[float]]  # a group is one prompt: a number a token
Sums = tuple[Numbers, Numbers]  # of each prompt: the sum of its numbers, and how many tokens they are of

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
NORMAL = NormalDist().inv_cdf(1 - TAIL)
POWER = 0.8  # with as many prompts as are asked for, so often it can really be told
RESAMPLES = 2_000
NUMBERS_AT_ONCE = 2_000_000  # of resampled prompts: bounds the memory
# Below, too many resamples hold one prompt only for the bootstrap to say anything, and Student's interval is taken.
UNITS_TO_RESAMPLE = 5
# Numbers that are all equal show no spread. From here on more than half of all prompts have that number, at this
# confidence (0.5 ** 6 < TAIL), and it is taken for the mean of all; below, nothing is claimed.
UNITS_TO_BE_EQUAL = 6
# How alike the tokens of one prompt are taken to be where the sample cannot show it, as a correlation. Measured for
# agreement on the top token: 0.001 (bf16) to 0.01 (int8).
ASSUMED_CORRELATION = 0.05
ASSUMED_WEIGHT = 5  # so many of the rarer outcomes weigh as much as that assumption
ROUNDING = 1e-12  # a spread below this, relative to the numbers, is none …
NO_SPREAD = 1e-6  # … and a resample's, relative to the sample's


@dataclass(frozen=True)
class Interval:
    """A statistic and where its true value lies, at 95 % confidence; a bound that cannot be given is None."""

    value: float
    low: float | None
    high: float | None
    units: int  # independent ones: prompts, or repetitions of a timing

    def below(self, limit: float) -> bool | None:
        """Whether the true value is at most the limit; None: cannot tell."""
        if self.high is not None and self.high <= limit:
            return True
        return False if self.low is not None and self.low > limit else None

    def above(self, limit: float) -> bool | None:
        """Whether the true value is at least the limit; None: cannot tell."""
        if self.low is not None and self.low >= limit:
            return True
        return False if self.high is not None and self.high < limit else None


def mean(groups: Groups) -> Interval:
    """Over all tokens: longer prompts weigh more."""
    return _contrast(_sums(_nonempty(groups)))


def difference(groups_a: Groups, groups_b: Groups) -> Interval:
    """The mean of a minus the mean of b, on the same prompts in the same order."""
    pairs = [(a, b) for a, b in zip(groups_a, groups_b, strict=True) if len(a) and len(b)]
    return _contrast(_sums([a for a, _ in pairs]), _sums([b for _, b in pairs]))


def share(groups: Sequence[Sequence[bool]]) -> Interval:
    """Of all tokens, those for which it is true."""
    hits, tokens = _sums(_nonempty(groups))
    total = tokens.sum()
    value = float(hits.sum() / total) if total else math.nan
    low, high = _wilson(value, _independent(hits, tokens), len(tokens))
    return Interval(value, low, high, len(tokens))


def quantile(groups: Groups, level: float) -> Interval:
    """Over all tokens of all prompts; a bound is None where the sample holds too few tokens beyond the quantile."""
    kept = _nonempty(groups)
    values, prompts = _pooled(kept)
    if np.isnan(values).any() or not len(values):
        return Interval(math.nan, None, None, len(kept))
    # Nothing lies between two infinities.
    value = float(np.quantile(values, level, method="linear" if np.isfinite(values).all() else "higher"))
    tokens = np.array([len(group) for group in kept], np.float64)
    below = np.bincount(prompts[values <= value], minlength=len(kept)).astype(np.float64)
    low, high = _wilson(level, _independent(below, tokens), len(kept))
    if low is None or high is None:
        return Interval(value, None, None, len(kept))
    ordered, first, last = np.sort(values), math.floor(low * len(values)) - 1, math.ceil(high * len(values))
    return Interval(
        value,
        float(ordered[first]) if first >= 0 else None,
        float(ordered[last]) if last < len(values) else None,
        len(kept),
    )


def median(groups: Groups) -> Interval:
    return quantile(groups, 0.5)


def maximum(groups: Groups) -> Interval:
    """The largest number seen: no sample says how much larger one can get."""
    values, _ = _pooled(kept := _nonempty(groups))
    value = float(values.max()) if len(values) else math.nan
    return Interval(value, None if math.isnan(value) else value, None, len(kept))


def perplexity(nats: Sequence[float], lengths: Sequence[int]) -> Interval:
    """Of texts, of which each has so many nats and so many tokens, or bytes."""
    return _mapped(_contrast((_array(nats), _array(lengths))), _exp)


def perplexity_ratio(own: Sequence[float], baseline: Sequence[float], lengths: Sequence[int]) -> Interval:
    """How many times the baseline's perplexity: nats of the same texts, and their lengths in tokens or bytes."""
    return _mapped(_contrast((_array(own) - _array(baseline), _array(lengths))), _exp)


def outcome_difference(passed_a: Sequence[bool], passed_b: Sequence[bool]) -> Interval:
    """By how much more of the same checks a passes than b: Bonett and Price's interval of paired proportions."""
    pairs = list(zip(passed_a, passed_b, strict=True))
    count = len(pairs)
    only_a, only_b = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    if count < 2:
        return Interval((only_a - only_b) / count if count else math.nan, None, None, count)
    share_a, share_b = (only_a + 1) / (count + 2), (only_b + 1) / (count + 2)
    centre = share_a - share_b
    half = NORMAL * math.sqrt((share_a + share_b - centre**2) / (count + 2))
    return Interval((only_a - only_b) / count, max(centre - half, -1.0), min(centre + half, 1.0), count)


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and largest of some repetitions."""
    return float(np.median(samples)), float(np.min(samples)), float(np.max(samples))


def speed_ratio(samples_a: Sequence[float], samples_b: Sequence[float]) -> Interval:
    """The median of a over the median of b: repetitions of two timings."""
    units = min(len(samples_a), len(samples_b))
    if not units:
        return Interval(math.nan, None, None, 0)
    value = float(np.median(samples_a) / np.median(samples_b))
    if units < 2:
        return Interval(value, None, None, units)
    random = np.random.default_rng(0)
    medians = [
        np.median(random.choice(_array(samples), (RESAMPLES, len(samples))), axis=1)
        for samples in (samples_a, samples_b)
    ]
    low, high = np.quantile(medians[0] / medians[1], [TAIL, 1 - TAIL])
    return Interval(value, float(low), float(high), units)


def paired_speed_ratio(samples_a: Sequence[float], samples_b: Sequence[float]) -> Interval:
    """The median of a over b, of timings that were taken in turns: what slows the machine slows both."""
    ratios = _array(samples_a) / _array(samples_b)
    if not len(ratios):
        return Interval(math.nan, None, None, 0)
    value = float(np.median(ratios))
    if len(ratios) < 2:
        return Interval(value, None, None, len(ratios))
    medians = np.median(np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(medians, [TAIL, 1 - TAIL])
    return Interval(value, float(low), float(high), len(ratios))


def prompts_needed(interval: Interval, limit: float) -> int | None:
    """How many such prompts would tell on which side of the limit the value is; None where that is not known."""
    if interval.below(limit) is not None or interval.above(limit) is not None:
        return interval.units
    if not math.isfinite(interval.value) or interval.value == limit:
        return None
    if interval.low is interval.high is None:
        return UNITS_TO_BE_EQUAL if 2 <= interval.units < UNITS_TO_BE_EQUAL else None
    bound = interval.low if limit < interval.value else interval.high
    if bound is None:
        return None
    # An interval that just reaches the limit will do so in half of all samples: a margin for the other half.
    margin = 1 + NormalDist().inv_cdf(POWER) / NORMAL
    ratio = margin * (bound - interval.value) / (limit - interval.value)
    return max(math.ceil(interval.units * ratio**2), interval.units + 1)


def _nonempty(groups: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [group for group in groups if len(group)]


def _array(numbers: Sequence[float]) -> Numbers:
    return np.asarray(numbers, np.float64)


def _pooled(groups: Groups) -> tuple[Numbers, NDArray[np.int64]]:
    """All numbers, and the prompt of each."""
    values = np.concatenate([_array(group) for group in groups]) if groups else np.empty(0)
    return values, np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def _sums(groups: Groups) -> Sums:
    return np.array([_array(group).sum() for group in groups]), np.array([float(len(group)) for group in groups])


def _estimate(*sides: Sums) -> tuple[Numbers, Numbers]:
    """The mean of the first side less that of the second, and its standard error by the linearised prompts."""
    value = error = np.zeros(())
    for sign, (sums, counts) in zip((1, -1), sides, strict=False):
        total = counts.sum(axis=-1)
        average = sums.sum(axis=-1) / total
        value = value + sign * average
        error = error + sign * (sums - average[..., None] * counts) / total[..., None]
    units = counts.shape[-1]
    return value, np.sqrt((error**2).sum(axis=-1) * units / (units - 1))


def _contrast(*sides: Sums) -> Interval:
    """The mean of one side, or the first's less the second's, over the same prompts."""
    units = len(sides[0][0])
    if not units:
        return Interval(math.nan, None, None, 0)
    with np.errstate(invalid="ignore"):
        value = float(
            sum(sign * sums.sum() / counts.sum() for sign, (sums, counts) in zip((1, -1), sides, strict=False))
        )
    if not math.isfinite(value):  # one infinite token makes the mean of all infinite
        known = None if math.isnan(value) else value
        return Interval(value, known, known, units)
    if units < 2:
        return Interval(value, None, None, units)
    error = float(_estimate(*sides)[1])
    size = max(float(np.abs(sums).sum() / counts.sum()) for sums, counts in sides)
    if error <= ROUNDING * size:
        known = value if units >= UNITS_TO_BE_EQUAL else None
        return Interval(value, known, known, units)
    least, largest = _student_ratios(value, error, *sides)
    return Interval(value, value - largest * error, value - least * error, units)


def _student_ratios(value: float, error: float, *sides: Sums) -> tuple[float, float]:
    """Between which values the statistic's distance from the truth lies, in standard errors."""
    units = len(sides[0][0])
    symmetric = student(1 - TAIL, units - 1)
    if units < UNITS_TO_RESAMPLE:
        return -symmetric, symmetric
    random = np.random.default_rng(0)
    step = max(1, NUMBERS_AT_ONCE // units)
    ratios = []
    for start in range(0, RESAMPLES, step):
        chosen = random.integers(0, units, (min(step, RESAMPLES - start), units))
        values, errors = _estimate(*((sums[chosen], counts[chosen]) for sums, counts in sides))
        distances, known = values - value, errors > NO_SPREAD * error
        endless = np.where(np.abs(distances) > NO_SPREAD * error, np.copysign(np.inf, distances), 0.0)
        ratios.append(np.where(known, distances / np.where(known, errors, 1.0), endless))
    ordered = np.sort(np.concatenate(ratios))
    cut = int(TAIL * RESAMPLES)
    least, largest = float(ordered[cut]), float(ordered[-1 - cut])
    # Where nearly all prompts are equal, many a resample has no spread at all.
    return (least if math.isfinite(least) else -symmetric), (largest if math.isfinite(largest) else symmetric)


def _independent(hits: Numbers, tokens: Numbers) -> float:
    """How many independent tokens a share over these prompts is worth."""
    units, total = len(tokens), tokens.sum()
    if units < 2:
        return 0.0
    value = hits.sum() / total
    assumed = 1 + ((tokens**2).sum() / total - 1) * ASSUMED_CORRELATION
    rarer = min(hits.sum(), total - hits.sum())
    if rarer == 0:
        return float(total / assumed)
    error = ((hits - value * tokens) ** 2).sum() * units / (units - 1) / total**2
    measured = max(error * total / (value * (1 - value)), 1.0)
    shown = rarer - 1  # one alone says nothing of how they gather
    blended = (shown * measured + ASSUMED_WEIGHT * assumed) / (shown + ASSUMED_WEIGHT)
    return float(total / max(measured, blended))


def _wilson(value: float, count: float, units: int) -> tuple[float | None, float | None]:
    """Wilson's interval of a share, with Student's factor for the few units that its spread is known from."""
    if units < 2:
        return None, None
    weight = student(1 - TAIL, units - 1) ** 2 / count
    centre = (value + weight / 2) / (1 + weight)
    half = math.sqrt(weight * value * (1 - value) + weight**2 / 4) / (1 + weight)
    # At 0 and 1 the bound on that side is exact; rounding must not move it inside.
    return (0.0 if value == 0 else centre - half), (1.0 if value == 1 else centre + half)


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's distribution, for a probability above 0.5."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if (1 + _student_within(middle, freedom)) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(high)


def _student_within(angle: float, freedom: int) -> float:
    """The probability of |t| <= sqrt(freedom) tan(angle): a finite sum for whole degrees of freedom."""
    odd = freedom % 2
    # Terms cos^(odd + 2k) with factors 2·4… / 3·5… where odd, 1·3… / 2·4… where even.
    steps = np.arange(1, freedom // 2)
    factors = (2 * steps - 1 + odd) / (2 * steps + odd) * math.cos(angle) ** 2
    terms = 1 + float(np.cumprod(factors).sum())
    if not odd:
        return math.sin(angle) * terms
    return 2 / math.pi * (angle + (math.sin(angle) * math.cos(angle) * terms if freedom > 1 else 0.0))


def _mapped(interval: Interval, function: Callable[[float], float | None]) -> Interval:
    low = None if interval.low is None else function(interval.low)
    high = None if interval.high is None else function(interval.high)
    value = function(interval.value)
    return Interval(math.inf if value is None else value, low, high, interval.units)


def _exp(nats: float) -> float | None:
    """None where it is too large for a number."""
    try:
        return math.exp(nats)
    except OverflowError:
        return None
