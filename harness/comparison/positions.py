"""What two sides hold at each token of the same continuation, by their whole distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.comparison.measured import Replay
from harness.record import Distributions

Logits = NDArray[np.float32]
Numbers = NDArray[np.float64]
Pair = tuple[Numbers, Numbers]  # the baseline's and the candidate's


class _Token(NamedTuple):
    """One token of a `Replay`."""

    kl: float
    baseline_top: int
    top: int
    baseline_margin: float
    margin: float
    baseline_logprob: float
    logprob: float
    processed_distance: float
    processed_top1: bool


def replayed(baseline: Distributions, own: Distributions, ids: Sequence[int]) -> Replay:
    """Token by token, as far as both sides go.

    Where one side has more logits (rows that pad its embeddings), only the ids that both have are compared: a
    probability of zero against the tiny one of a padding row would be an infinite divergence that means nothing.
    """
    width = min(baseline.vocabulary, own.vocabulary)
    tokens = []
    for step, forced in zip(range(min(baseline.steps, own.steps)), ids, strict=False):
        raw = _widened(baseline.raw(step), own.raw(step), width)
        processed = _widened(baseline.processed(step), own.processed(step), width)
        with np.errstate(invalid="ignore"):  # a side of nothing but -inf or NaN has NaN for its numbers
            tokens.append(_token(raw, processed, forced))
    return Replay(**{name: tuple(getattr(token, name) for token in tokens) for name in _Token._fields})


def _widened(baseline: Logits, own: Logits, width: int) -> Pair:
    return baseline[:width].astype(np.float64), own[:width].astype(np.float64)


def _token(raw: Pair, processed: Pair, forced: int) -> _Token:
    baseline, own = raw
    expected, found = _log_softmax(baseline), _log_softmax(own)
    # The first of equals: a tie is the same token everywhere, and no margin is negative.
    baseline_top, top = int(baseline.argmax()), int(own.argmax())
    likely, possible = (np.exp(_log_softmax(side)) for side in processed)
    return _Token(
        kl=_divergence(expected, found),
        baseline_top=baseline_top,
        top=top,
        baseline_margin=float(baseline[baseline_top] - baseline[top]),
        margin=float(own[top] - own[baseline_top]),
        baseline_logprob=float(expected[forced]),
        logprob=float(found[forced]),
        processed_distance=float(np.abs(likely - possible).sum() / 2),
        processed_top1=bool(processed[0].argmax() == processed[1].argmax()),
    )


def _log_softmax(logits: Numbers) -> Numbers:
    shifted = logits - logits.max()
    normalised: Numbers = shifted - np.log(np.exp(shifted).sum())
    return normalised


def _divergence(expected: Numbers, found: Numbers) -> float:
    """KL(expected || found) of two log-softmaxes."""
    weights = np.exp(expected)
    some = weights > 0  # what has no probability adds nothing, however unlikely the other side holds it
    if not some.all():
        weights, expected, found = weights[some], expected[some], found[some]
    # Rounding of equals can fall below zero by an ulp; NaN stays NaN.
    return max(float(weights @ (expected - found)), 0.0)
