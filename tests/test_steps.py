"""Bounds on how far two recorded steps are apart: by hand, and against whole distributions."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.record import Step
from harness.steps import distance, kl_at_least

Numbers = NDArray[np.float64]


def of_probabilities(*probabilities: float, ids: tuple[int, ...] | None = None) -> Step:
    logprobs = tuple(map(math.log, probabilities))
    return Step(logprobs[0], ids or tuple(range(len(logprobs))), logprobs, 27.0)


def log_softmax(logits: Numbers) -> Numbers:
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: Numbers = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def as_recorded(logprobs: Numbers, token: int, top: int = 20) -> Step:
    """As a run records it: float32, the likeliest only."""
    likeliest = np.argsort(-logprobs, kind="stable")[:top]
    kept = logprobs.astype(np.float32)
    return Step(float(kept[token]), array("i", likeliest.tolist()), array("f", kept[likeliest].tolist()), 27.0)


def test_kl_by_hand_with_one_bucket_for_the_rest() -> None:
    kl = kl_at_least(of_probabilities(0.5, 0.3), of_probabilities(0.4, 0.2))

    assert kl == pytest.approx(0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.4))


def test_kl_of_ids_that_are_not_recorded_any_more() -> None:
    pinned, now = of_probabilities(0.6, 0.3, ids=(1, 2)), of_probabilities(0.5, 0.1, ids=(3, 4))

    # Two ids with 0.9 then have at most 2 × 0.1 now.
    assert kl_at_least(pinned, now) == pytest.approx(0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8))


def test_an_id_that_only_lost_its_place_is_no_kl_at_least() -> None:
    pinned, now = of_probabilities(0.5, 0.1, ids=(1, 2)), of_probabilities(0.5, 0.4, ids=(1, 3))

    assert kl_at_least(pinned, now) == pytest.approx(0.0, abs=1e-12)  # 2 may still have its 0.1


@pytest.mark.parametrize("spread", [0.003, 0.1, 1.0, 3.0])
def test_kl_is_close_to_that_of_whole_distributions_and_never_above(spread: float) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 4, (200, 3_000))
    logprobs, others = log_softmax(logits), log_softmax(logits + random.normal(0, spread, logits.shape))
    whole = (np.exp(logprobs) * (logprobs - others)).sum(-1)

    found = [
        kl_at_least(as_recorded(own, 0), as_recorded(its, 0), 0) for own, its in zip(logprobs, others, strict=True)
    ]

    assert all(kl <= true * (1 + 1e-6) + 1e-9 for kl, true in zip(found, whole, strict=True))
    assert np.mean(found) > 0.5 * whole.mean()


def test_equal_steps_have_no_divergence_to_the_last_bit() -> None:
    logprobs = log_softmax(np.random.default_rng(2).normal(0, 4, (50, 500)))

    assert {kl_at_least(as_recorded(one, 3), as_recorded(one, 3), 3) for one in logprobs} == {0.0}


def test_what_is_left_of_one_is_not_taken_for_a_change() -> None:
    """One in a million is outside the recorded ids, and everything recorded is off by what float32 rounds."""
    shares = [0.6, 0.3, 0.1 - 1.6e-6]
    then, now = (
        Step(math.log(0.6), array("i", [1, 2, 3]), array("d", [math.log(share) + shift for share in shares]), 20.0)
        for shift in (0.0, 2e-7)
    )
    assert kl_at_least(then, now, 1) < 1e-11  # at most the square of the shift, and not the square over 1.6e-6


def test_distance_is_total_variation() -> None:
    # 0.1 less, 0.1 less, and 0.2 more for the rest.
    assert distance(of_probabilities(0.5, 0.3), of_probabilities(0.4, 0.2)) == pytest.approx(0.2)
    assert distance(of_probabilities(0.6, 0.4, ids=(1, 2)), of_probabilities(0.9, 0.1, ids=(3, 4))) <= 1.0


@pytest.mark.parametrize("change", [0.001, 0.3, 3.0])
def test_the_recorded_top_never_claims_too_much(change: float) -> None:
    random = np.random.default_rng(0)
    closest = []
    for _ in range(200):
        logits = random.normal(0, 3, 60)
        expected, found = log_softmax(logits), log_softmax(logits + random.normal(0, change, 60))
        exact = float(np.exp(expected) @ (expected - found))
        bounds = [kl_at_least(as_recorded(expected, 0, top), as_recorded(found, 0, top)) for top in (1, 5, 20, 60)]
        assert all(0 <= bound <= exact * (1 + 1e-4) + 1e-9 for bound in bounds)
        assert bounds[-1] == pytest.approx(exact, rel=1e-3)
        closest.append(bounds[2] / exact)

    assert np.mean(closest) > 0.5  # the top 20 of 60 hold the greater part


def test_a_bound_by_hand() -> None:
    one = Step(math.log(0.7), (4, 2), (math.log(0.7), math.log(0.2)), 1.0)
    other = Step(math.log(0.5), (4, 9), (math.log(0.5), math.log(0.4)), 1.0)

    # Only the id 4 is in both; 0.3 and 0.5 are left.
    assert kl_at_least(one, other) == pytest.approx(0.7 * math.log(1.4) + 0.3 * math.log(0.6))


def test_two_sides_that_share_no_id_may_be_the_same_for_all_that_is_known() -> None:
    one, other = (Step(math.log(0.1), (token,), (math.log(0.1),), 1.0) for token in (1, 2))

    assert kl_at_least(one, other) == 0.0


def test_float32_rounding_of_nearly_everything_is_no_divergence() -> None:
    certain = Step(0.0, array("i", [1]), array("f", [-1e-9]), 1.0)
    nearly = Step(0.0, array("i", [1]), array("f", [-2e-7]), 1.0)

    assert kl_at_least(certain, nearly) < 1e-6
    assert kl_at_least(nearly, certain) < 1e-6
