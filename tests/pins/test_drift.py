"""Statistics of a pin against now: by hand, and against whole distributions."""

from __future__ import annotations

import math
from array import array
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.inputs import GREEDY
from harness.pins.drift import (
    EXACT_REPEAT,
    Drift,
    compare,
    default_floor,
    floor,
    fragility,
    measure,
    nondeterminism,
    pooled,
)
from harness.pins.pin import Floor, Lane, Pin, Replayed
from harness.record import Completion, Request, Step, TargetFacts, Text

Numbers = NDArray[np.float64]
TOP = 20


def step(*logprobs: float, ids: tuple[int, ...] | None = None, chosen: int = 0, max_logit: float = 27.0) -> Step:
    """Log-probabilities of ids 0, 1 …, the likeliest first, unless told otherwise."""
    return Step(logprobs[chosen], ids or tuple(range(len(logprobs))), logprobs, max_logit)


def of_probabilities(*probabilities: float, ids: tuple[int, ...] | None = None) -> Step:
    return step(*map(math.log, probabilities), ids=ids)


def log_softmax(logits: Numbers) -> Numbers:
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: Numbers = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def recorded(logprobs: Numbers, token: int) -> Step:
    """As a run records it: float32, the 20 likeliest."""
    top = np.argsort(-logprobs, kind="stable")[:TOP]
    kept = logprobs.astype(np.float32)
    return Step(float(kept[token]), array("i", top.tolist()), array("f", kept[top].tolist()), 27.0)


def test_the_change_of_each_log_probability_that_the_pin_recorded() -> None:
    drift = compare([step(-0.5, -1.5, -3.0)], [step(-0.4, -1.9, -3.0)])

    assert drift.squares == pytest.approx([(0.01 + 0.16) / 3])
    assert drift.gap == pytest.approx([0.1 + 0.4])
    assert drift.logprob == pytest.approx([0.1])
    assert drift.largest == pytest.approx(0.4)
    assert drift.flips == ()


def test_an_id_that_is_no_longer_recorded_changed_by_the_least_that_is_possible() -> None:
    pinned = step(-0.5, -1.5, -9.0, ids=(7, 8, 9))
    now = step(-0.5, -3.0, -4.0, ids=(7, 5, 6))

    # 8 is at most as likely as the last, at -4; 9 may well be where it was.
    assert compare([pinned], [now]).squares == pytest.approx([2.5**2 / 3])


def test_the_pinned_token_is_known_wherever_it_stands() -> None:
    pinned = step(-0.5, -1.5, ids=(7, 8))
    now = Step(-6.0, (5, 6), (-0.4, -2.0), 27.0)

    drift = compare([pinned], [now], ids=[7])

    assert drift.squares == pytest.approx([(5.5**2 + 0.5**2) / 2])
    assert drift.logprob == pytest.approx([-5.5])


def test_what_the_model_rules_out_on_both_sides_did_not_change() -> None:
    ruled_out = step(-0.1, -2.4, -math.inf)

    drift = compare([ruled_out], [ruled_out])

    assert (drift.squares, drift.gap, drift.largest) == ((0.0,), (0.0,), 0.0)
    assert drift.kl == pytest.approx([0.0])
    assert drift.nonfinite is None


def test_a_flip_has_the_margin_of_the_pin() -> None:
    drift = compare([step(-0.3, -0.8, -3.0), step(-0.1, -4.0)], [step(-0.5, -0.6, -3.0, ids=(1, 0, 2)), step(-0.1, -4)])

    (flip,) = drift.flips
    assert (flip.index, flip.pinned, flip.now) == (0, 0, 1)
    assert flip.margin == pytest.approx(0.5)
    assert (flip.pinned_logprob, flip.now_logprob) == (-0.3, -0.5)


def test_the_order_of_a_tie_is_no_flip() -> None:
    assert compare([step(-0.5, -1.0)], [step(-0.7, -0.7, ids=(1, 0))]).flips == ()


def test_nothing_is_compared_from_the_first_number_that_is_none() -> None:
    nan = step(math.nan, math.nan)

    drift = compare([step(-0.5, -1.5)] * 3, [step(-0.5, -1.5), nan, nan])

    assert (drift.nonfinite, drift.tokens) == (1, 1)
    assert compare([step(-0.5, -1.5)], [step(-0.5, -1.5, max_logit=math.inf)]).nonfinite == 0


def replayed(pin_ids: tuple[int, ...], now_ids: tuple[int, ...], steps: list[Step], text: str = "t") -> Replayed:
    pin = Pin("colors", "default", "d", (1, 2), pin_ids, "eos", "t", tuple(step(-0.1, -2.5) for _ in pin_ids))
    request = Request(Text(text="a"), GREEDY)
    tokens = ("t",) * len(now_ids)
    now = Completion(request, "a", (1, 2), now_ids, tokens, text, "length", precision="bfloat16", pads=3)
    return Replayed(pin, now, steps, TargetFacts("m"))


def test_a_prompt_against_its_pin() -> None:
    likeliest = step(-0.1, -2.5, -4.0)

    drift = measure(replayed((0, 0, 0), (0, 2), [likeliest] * 3, text=" "))

    assert (drift.name, drift.precision, drift.pads) == ("colors@default", "bfloat16", 3)
    assert (drift.prompt_ids_equal, drift.tokens_equal, drift.finish_equal) == (True, False, False)
    assert (drift.pinned_length, drift.length, drift.empty) == (3, 2, True)
    assert drift.shortfall == pytest.approx(3.9)
    assert drift.pinned_shortfall == 0.0
    assert not drift.ends_elsewhere


def test_the_beginning_of_the_pin_ends_elsewhere() -> None:
    drift = measure(replayed((0, 0, 0), (0, 0), [step(-0.1, -2.5)] * 3))

    assert drift.ends_elsewhere
    assert drift.shortfall is None


def test_processed_scores_are_compared_where_they_are_given() -> None:
    both = ([of_probabilities(0.5, 0.5)], [of_probabilities(0.75, 0.25)])

    assert measure(replayed((0,), (0,), [step(-0.1, -2.5)]), both).processed == pytest.approx((0.25,))


def drift_of(logprob: tuple[float, ...], kl: tuple[float, ...] = ()) -> Drift:
    size = len(logprob)
    return Drift(squares=(0.04,) * size, kl=kl or (0.1,) * size, gap=(0.3,) * size, logprob=logprob, largest=0.5)


def test_pooled_over_prompts() -> None:
    sums = pooled([drift_of((-0.1, -0.3), kl=(2.0, 0.4)), drift_of((0.1,), kl=(1.0,)), Drift()])

    assert (sums.prompts, sums.tokens) == (2, 3)
    assert sums.rms == pytest.approx(0.2)
    assert sums.kl == pytest.approx(3.4 / 3)
    assert sums.gap == pytest.approx(0.3)
    assert sums.bias == pytest.approx((-0.2 + 0.1) / 2)
    assert sums.error == pytest.approx(math.sqrt(0.045) / math.sqrt(2))
    assert sums.perplexity_ratio == pytest.approx(math.exp(0.1))
    assert (sums.first_kl, sums.tail_kl) == pytest.approx((1.5, 0.4))
    assert sums.top1 == 1.0


def test_nothing_compared_says_nothing() -> None:
    sums = pooled([Drift()])

    assert sums.tokens == 0
    assert math.isnan(sums.rms)
    assert math.isnan(sums.top1)


def test_the_floor_is_the_most_of_any_change() -> None:
    still = compare([step(-0.5, -1.5)], [step(-0.5, -1.5)])
    moved = compare([step(-0.5, -1.5)], [step(-0.4, -1.5)])

    found = floor({EXACT_REPEAT: [still], "another batch": [moved], "no cache": [still]})

    assert found.rms == pytest.approx(math.sqrt(0.01 / 2))
    assert found.gap == pytest.approx(0.1)
    assert found.kl > 0
    assert found.measured == (EXACT_REPEAT, "another batch", "no cache")


def test_an_exact_repeat_that_moves_is_told() -> None:
    still = compare([step(-0.5, -1.5)], [step(-0.5, -1.5)])
    moved = compare([step(-0.5, -1.5)], [step(-0.5 + 1e-7, -1.5)])

    assert nondeterminism({EXACT_REPEAT: [still], "another batch": [moved]}) == ""
    assert "an exact repeat moved 1 of 2 prompts" in nondeterminism({EXACT_REPEAT: [still, moved]})


@pytest.mark.parametrize(
    ("pinned", "now", "rms"),
    [
        (("float32", "none"), ("float32", "none"), 1e-4),
        (("float32", "none"), ("bfloat16", "none"), 0.14),
        (("bfloat16", "none"), ("float32", "none"), 0.14),
        (("bfloat16", "none"), ("bfloat16", "none"), 0.15),
        (("float16", "none"), ("float16", "none"), 0.02),
        (("float32", "nf4"), ("float32", "nf4"), 0.15),
        (("float32", "none"), ("float32", "int8"), 0.15),
    ],
)
def test_floors_before_they_are_measured(pinned: tuple[str, str], now: tuple[str, str], rms: float) -> None:
    lanes = [Lane("cpu", dtype, level, "sdpa", "any") for dtype, level in (pinned, now)]

    found = default_floor(*lanes)

    assert (found.rms, found.measured) == (rms, ())


def test_fragility_is_the_number_of_flips_to_expect() -> None:
    # Tokens whose two likeliest lie this far apart, under noise of the gap with this deviation: how often they swap.
    random = np.random.default_rng(3)
    margins = random.exponential(1.0, 400)
    steps = [step(-0.1, -0.1 - margin) for margin in margins]
    swaps = (random.normal(0, 0.2, (2_000, 400)) > margins).sum(1).mean()

    assert fragility(steps, Floor(0.1, 0.001, 0.2)) == pytest.approx(swaps, rel=0.05)
    assert fragility([step(-1.0, -1.0)], Floor(0.1, 0.001, 0.2)) == NormalDist().cdf(0)
    assert fragility(steps, Floor(0.0, 0.0, 0.0)) == 0.0
    assert fragility([step(-0.1)], Floor(0.1, 0.001, 0.2)) == 0.0
