"""Whether tokens are drawn as the distributions say that they came from. Pure; every p-value is two-sided.

Three ways to tell, of which none needs to know the sampler: how likely the tokens were on the whole (surprisal), where
each stands in its cumulated distribution (place), and how far draws that should be independent agree (twins).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLASSES = 32  # of tokens that are about as likely as each other …
NATS = 0.75  # … which is within so much of log-probability
TILTS = (-8.0, 60.0)  # between these is looked for the tilt; 0 is as declared, -1 evenly, +60 as good as greedy
ROUNDS = 60  # of Newton's method, which takes six or so
NORMAL = NormalDist()


@dataclass(frozen=True)
class Draws:
    """Tokens that were drawn one after the other, and what their distributions say of each. All of one length."""

    logprob: Array
    entropy: Array
    variance: Array  # of the log-probability of what may be drawn
    by_likelihood: Array  # the place in the cumulated distribution, likeliest first: uniform if the sampler is healthy
    by_id: Array  # the same, in the order of ids
    likeliest: NDArray[np.bool_]
    shares: Array  # (tokens, CLASSES): the probability of each class …
    levels: Array  # … and its mean log-probability, less that of the whole

    @staticmethod
    def of(scores: NDArray[Any], tokens: NDArray[np.int64], chance: NDArray[Any]) -> Draws:
        """Of processed logits (tokens, vocabulary); `chance` (tokens, 2) is uniform, and settles where a place is."""
        logits = scores.astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        weights = np.exp(shifted)
        logprobs = shifted - np.log(weights.sum(1, keepdims=True))
        shares = np.exp(logprobs)
        finite = np.where(shares > 0, logprobs, 0.0)
        entropy = -(shares * finite).sum(1)
        variance = (shares * (finite + entropy[:, None]) ** 2).sum(1)
        rows = np.arange(len(tokens))
        own, chosen = shares[rows, tokens][:, None], tokens[:, None]
        earlier = np.arange(shares.shape[1]) < chosen
        before = np.where((shares > own) | ((shares == own) & earlier), shares, 0.0).sum(1)
        return Draws(
            logprobs[rows, tokens],
            entropy,
            variance,
            before + chance[:, 0] * own[:, 0],
            np.where(earlier, shares, 0.0).sum(1) + chance[:, 1] * own[:, 0],
            own[:, 0] >= shares.max(1),
            *_classes(shares, finite, entropy, variance),
        )

    @staticmethod
    def together(parts: Iterable[Draws]) -> Draws:
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Draws(*(np.concatenate(column) for column in columns))

    def __len__(self) -> int:
        return len(self.logprob)


def _classes(shares: Array, logprobs: Array, entropy: Array, variance: Array) -> tuple[Array, Array]:
    """The distribution of the log-probability in few numbers, with its exact mean and variance."""
    tokens = len(shares)
    place = np.minimum(-logprobs / NATS, CLASSES - 1).astype(np.int64) + CLASSES * np.arange(tokens)[:, None]
    mass = np.bincount(place.ravel(), shares.ravel(), tokens * CLASSES).reshape(tokens, CLASSES).astype(np.float64)
    total = np.bincount(place.ravel(), (shares * logprobs).ravel(), tokens * CLASSES).reshape(tokens, CLASSES)
    levels: Array = np.where(mass > 0, total / np.where(mass > 0, mass, 1) + entropy[:, None], 0.0)
    kept = (mass * levels**2).sum(1)
    # A distribution that is nearly even falls into one class: two halves then stand for it.
    one = kept <= variance / 2
    mass[one], levels[one] = 0.0, 0.0
    mass[one, :2], levels[one, 0], levels[one, 1] = 0.5, np.sqrt(variance[one]), -np.sqrt(variance[one])
    scale = np.sqrt(np.divide(variance, kept, out=np.ones(tokens), where=~one & (kept > 0)))
    return mass, levels * scale[:, None]


@dataclass(frozen=True)
class Surprisal:
    """How likely the tokens were, against how likely such tokens are: z is above 0 where they were too likely."""

    z: float
    p: float
    tilt: float  # drawn as from p ** (1 + tilt)

    @property
    def temperature(self) -> float:
        """The temperature that they look drawn with, for one that is declared as 1."""
        return 1 / (1 + self.tilt) if self.tilt > -1 else math.inf


def surprisal(draws: Draws) -> Surprisal:
    """z = sum(log p + H) / sqrt(sum Var), with a p-value that knows how skewed that sum is.

    Where most tokens are nearly certain, a few unlikely ones make the sum, and by the normal distribution a healthy
    sampler would be called ill ten times too often: hence the saddlepoint approximation (Lugannani and Rice).
    """
    total, variance = float((draws.logprob + draws.entropy).sum()), float(draws.variance.sum())
    if variance <= 0:
        return Surprisal(0.0, 1.0, 0.0)
    z = total / math.sqrt(variance)
    tilt, cumulant, spread, found = _tilt(draws, total)
    if not found:
        return Surprisal(z, min(1.0, 2 * math.exp(min(0.0, cumulant - tilt * total))), tilt)
    if abs(z) < 1e-2:
        return Surprisal(z, 2 * NORMAL.cdf(-abs(z)), tilt)
    w = math.sqrt(max(0.0, 2 * (tilt * total - cumulant)))
    v = abs(tilt) * math.sqrt(spread)
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    tail = math.erfc(w / math.sqrt(2)) / 2 + (density * (1 / v - 1 / w) if w > 0 and v > 0 else 0.0)
    return Surprisal(z, min(1.0, 2 * max(0.0, tail)), tilt)


def _tilt(draws: Draws, total: float) -> tuple[float, float, float, bool]:
    """Where the sum is expected to be what it is: the tilt, cumulant and variance there, and whether it is in reach."""
    low, high = TILTS
    tilt = 0.0
    for _ in range(ROUNDS):
        cumulant, mean, spread = _cumulants(draws, tilt)
        if abs(mean - total) <= 1e-9 * max(1.0, abs(total)):
            break
        low, high = (tilt, high) if mean < total else (low, tilt)
        step = tilt + (total - mean) / spread if spread > 0 else math.nan
        tilt = step if low < step < high else (low + high) / 2
    return tilt, cumulant, spread, spread > 0 and abs(mean - total) <= 1e-3 * math.sqrt(spread)


def _cumulants(draws: Draws, tilt: float) -> tuple[float, float, float]:
    """Of the sum of log p + H under p ** (1 + tilt): generating function, mean, variance."""
    exponents = np.where(draws.shares > 0, tilt * draws.levels, -np.inf)
    highest = exponents.max(1)
    weights = draws.shares * np.exp(exponents - highest[:, None])
    sums = weights.sum(1)
    means = (weights * draws.levels).sum(1) / sums
    squares = (weights * draws.levels**2).sum(1) / sums
    return float((np.log(sums) + highest).sum()), float(means.sum()), float((squares - means**2).sum())


def temperature_in_sight(draws: Draws, alpha: float, power: float = 0.9) -> float:
    """The highest temperature below a declared one of 1 that the surprisal finds with this power; 0: none."""
    variance = float(draws.variance.sum())
    if variance <= 0:
        return 0.0
    return 1 / (1 + (NORMAL.inv_cdf(1 - alpha / 2) + NORMAL.inv_cdf(power)) / math.sqrt(variance))


def uniform(places: Array) -> tuple[float, float]:
    """Kolmogorov's distance of these from evenly spread, and its p-value."""
    count = len(places)
    ordered = np.sort(places)
    steps = np.arange(count)
    distance = float(max(((steps + 1) / count - ordered).max(), (ordered - steps / count).max()))
    scaled = (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count)) * distance
    if scaled < 0.3:  # where the series converges slowly to 1
        return distance, 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101))
    return distance, min(1.0, max(0.0, 2 * math.fsum(terms)))


@dataclass(frozen=True)
class Drawn:
    """One sequence: where it comes from, its tokens and what they say."""

    prompt: int
    seed: int
    row: int  # of the batch
    ids: tuple[int, ...]
    draws: Draws


@dataclass(frozen=True)
class Twins:
    """How far sequences agree that have the same prompt and are to be independent of each other."""

    pairs: int
    same: int  # pairs that agree all the way
    p: float


def across_seeds(drawn: Sequence[Drawn]) -> Twins:
    """The same row of the batch under one seed and the others."""
    return _twins(drawn, lambda one: (one.prompt, one.row))


def across_rows(drawn: Sequence[Drawn]) -> Twins:
    """The same prompt in one row and the others, under one seed."""
    return _twins(drawn, lambda one: (one.prompt, one.seed))


def _twins(drawn: Sequence[Drawn], key: Any) -> Twins:
    """That another sequence goes along with the first for so long has a probability, which is itself a p-value.

    They are independent of each other, given the first: Fisher's sum makes one of them all.
    """
    groups: dict[Any, list[Drawn]] = {}
    for one in drawn:
        groups.setdefault(key(one), []).append(one)
    surprise, pairs, same = 0.0, 0, 0
    for first, *others in groups.values():
        for other in others:
            length = _common(first.ids, other.ids)
            surprise -= float(first.draws.logprob[:length].sum())
            pairs += 1
            same += first.ids == other.ids
    return Twins(pairs, same, _gamma_tail(pairs, max(0.0, surprise)))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def _gamma_tail(shape: int, value: float) -> float:
    """How likely the sum of so many exponentials is to be at least this."""
    if not shape or value <= 0:
        return 1.0
    logs = [power * math.log(value) - value - math.lgamma(power + 1) for power in range(shape)]
    highest = max(logs)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(one - highest) for one in logs))


@dataclass(frozen=True)
class Findings:
    """All tests of one sampler. `p` holds them corrected for their number (Holm): one below alpha is an alarm."""

    surprisal: Surprisal
    by_likelihood: float  # Kolmogorov's distance
    by_id: float
    across_seeds: Twins
    across_rows: Twins
    p: dict[str, float]

    @property
    def smallest(self) -> float:
        return min(self.p.values())


TESTS = 5


def examine(drawn: Sequence[Drawn]) -> Findings:
    draws = Draws.together(one.draws for one in drawn)
    likely, (by_likelihood, p_likelihood), (by_id, p_id) = (
        surprisal(draws),
        uniform(draws.by_likelihood),
        uniform(draws.by_id),
    )
    seeds, rows = across_seeds(drawn), across_rows(drawn)
    alone = {"seeds": seeds.p, "rows": rows.p, "surprisal": likely.p, "by_likelihood": p_likelihood, "by_id": p_id}
    return Findings(likely, by_likelihood, by_id, seeds, rows, holm(alone))


def holm(alone: dict[str, float]) -> dict[str, float]:
    """p-values that may be read as if each test were the only one."""
    corrected, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(alone.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(alone) - place) * p))
        corrected[name] = highest
    return {name: corrected[name] for name in alone}
