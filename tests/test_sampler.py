"""The tests of the sampler are tested by simulation: healthy samplers seldom fail, broken ones are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.sampler import (
    Drawn,
    Draws,
    Findings,
    across_rows,
    across_seeds,
    examine,
    holm,
    surprisal,
    temperature_in_sight,
    uniform,
)

pytestmark = pytest.mark.slow  # thousands of draws

WORDS, STATES = 40, 60
ROWS, SEEDS, STEPS = 8, 2, 32  # 512 tokens
ALPHA = 0.001
Model = tuple[Any, Any]  # logits of each state, and the state that each word leads to
Choose = Callable[[Any, Any, Any], Any]  # cumulated probabilities, random numbers, generator -> words


def mixed(rng: Any) -> Model:
    """From nearly even to nearly certain."""
    logits = rng.normal(size=(STATES, WORDS)) * rng.uniform(0.3, 9, STATES)[:, None]
    return logits, rng.integers(0, STATES, (STATES, WORDS))


def peaked(rng: Any) -> Model:
    """Nearly every word is certain: a few others make the whole surprisal, whose sum is very skewed."""
    logits = rng.normal(size=(STATES, WORDS))
    logits[:, 0] += rng.uniform(7, 9, STATES)
    return logits, rng.integers(0, STATES, (STATES, WORDS))


def even(rng: Any) -> Model:
    return rng.normal(size=(STATES, WORDS)) * 0.1, rng.integers(0, STATES, (STATES, WORDS))


def derailing(rng: Any) -> Model:
    """One unlikely word leads from certainty into a long stretch of chance."""
    half = STATES // 2
    logits = rng.normal(size=(STATES, WORDS))
    logits[:half, 0] += 7
    following = rng.integers(half, STATES, (STATES, WORDS))
    following[:half, 0] = rng.integers(0, half, half)
    following[half:, :4] = rng.integers(0, half, (half, 4))
    return logits, following


def shares(logits: Any) -> Any:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def healthy(cumulated: Any, numbers: Any, rng: Any) -> Any:
    return (numbers[:, None] > cumulated).sum(1).clip(max=WORDS - 1)


def sampled(model: Model, rng: Any, choose: Choose = healthy, drawn_from: Any = None, numbers: Any = None) -> Findings:
    """What is found of a sampler; `drawn_from` are other logits than the declared ones."""
    logits, following = model
    cumulated = shares(logits if drawn_from is None else drawn_from).cumsum(1)
    count = ROWS * SEEDS
    state = np.zeros(count, int)
    words, states = np.zeros((count, STEPS), int), np.zeros((count, STEPS), int)
    for step in range(STEPS):
        chance = rng.random(count) if numbers is None else numbers(rng, count)
        states[:, step] = state
        words[:, step] = choose(cumulated[state], chance, rng)
        state = following[state, words[:, step]]
    draws = Draws.of(logits[states.ravel()], words.ravel(), rng.random((count * STEPS, 2)))
    return examine([one(draws, words, number) for number in range(count)])


def one(draws: Draws, words: Any, number: int) -> Drawn:
    part = slice(number * STEPS, (number + 1) * STEPS)
    own = Draws(*(column[part] for column in vars(draws).values()))
    return Drawn(0, number // ROWS, number % ROWS, tuple(words[number].tolist()), own)


# --- false alarms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [mixed, peaked, even, derailing])
def test_healthy_samplers_seldom_fail(kind: Callable[[Any], Model]) -> None:
    """A rate of 5 % and of 1 % is kept to within three standard errors of what is counted, so that 0.1 % is, too."""
    rng = np.random.default_rng(1)
    model, runs = kind(rng), 250
    smallest = np.array([sampled(model, rng).smallest for _ in range(runs)])
    for alpha in (0.05, 0.01):
        assert (smallest <= alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert (smallest <= ALPHA).sum() <= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [mixed, peaked, even, derailing])
def test_one_healthy_sampler_in_a_thousand_fails(kind: Callable[[Any], Model]) -> None:
    rng = np.random.default_rng(2)
    model, runs = kind(rng), 8000
    alarms = sum(sampled(model, rng).smallest <= ALPHA for _ in range(runs))
    assert alarms <= runs * ALPHA + 3 * math.sqrt(runs * ALPHA)


def test_by_the_normal_distribution_a_peaked_model_would_fail_too_often() -> None:
    """300 tokens with a chance of 1 in 100 each: three unlikely ones on average, and Poisson's tail is long."""
    logits = np.log(np.array([[0.99, 0.005, 0.005]])).repeat(300, 0)
    exact = 1 - sum(math.exp(-3) * 3**k / math.factorial(k) for k in range(11))  # at least 11 unlikely ones
    words = np.array([1] * 11 + [0] * 289)
    found = surprisal(Draws.of(logits, words, np.zeros((300, 2))))
    assert found.z == pytest.approx(-8 / math.sqrt(300 * 0.01 * 0.99), abs=0.01)
    assert math.erfc(-found.z / math.sqrt(2)) < exact / 30
    assert exact / 3 < found.p < 3 * exact
    # Lugannani and Rice in closed form, as it is for a binomial: w from the divergence, v from the odds.
    rate, seen = 0.01, 11 / 300
    w = math.sqrt(600 * (seen * math.log(seen / rate) + (1 - seen) * math.log((1 - seen) / (1 - rate))))
    v = math.log(seen / (1 - seen) * (1 - rate) / rate) * math.sqrt(300 * seen * (1 - seen))
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    assert found.p == pytest.approx(math.erfc(w / math.sqrt(2)) + 2 * density * (1 / v - 1 / w), rel=1e-6)


# --- power -----------------------------------------------------------------------------------------------------------


def greedy(cumulated: Any, numbers: Any, rng: Any) -> Any:
    return np.diff(cumulated, axis=1, prepend=0).argmax(1)


def first_half(rng: Any, count: int) -> Any:
    return rng.random(count) / 2


def one_for_all_rows(rng: Any, count: int) -> Any:
    return np.tile(np.repeat(rng.random(SEEDS), ROWS)[:, None], 1).ravel()[:count]


def one_for_all_seeds(rng: Any, count: int) -> Any:
    return np.tile(rng.random(ROWS), SEEDS)


def power(test: str | None, runs: int = 60, warmer: float = 1.0, **sampler: Any) -> float:
    """The share of broken samplers that are found, by this test or by any."""
    rng = np.random.default_rng(3)
    model = (rng.normal(size=(STATES, WORDS)) * 2, rng.integers(0, STATES, (STATES, WORDS)))
    if warmer != 1:
        sampler["drawn_from"] = model[0] / warmer
    found = [sampled(model, rng, **sampler) for _ in range(runs)]
    return sum((one.smallest if test is None else one.p[test]) <= ALPHA for one in found) / runs


def test_another_temperature_is_found() -> None:
    """1.0 drawn as 0.9 needs some 600 of these tokens; 0.8 is found nearly always, and so is a higher one."""
    assert power("surprisal", warmer=0.8) >= 0.95
    assert power("surprisal", warmer=1.25) >= 0.95
    assert power(None, warmer=1.0) == 0


def test_temperature_in_sight_is_found_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(1, WORDS)).repeat(512, 0) * 2
    words = np.zeros(512, int)
    smaller = temperature_in_sight(Draws.of(logits, words, np.zeros((512, 2))), ALPHA)
    assert 0.8 < smaller < 0.95
    cumulated = shares(logits / smaller).cumsum(1)
    found = [
        surprisal(Draws.of(logits, healthy(cumulated, rng.random(512), rng), np.zeros((512, 2)))) for _ in range(300)
    ]
    assert 0.82 <= np.mean([one.p <= ALPHA for one in found]) <= 0.97
    assert np.mean([one.temperature for one in found]) == pytest.approx(smaller, abs=0.02)


def test_greedy_in_place_of_sampling_is_found() -> None:
    assert power("surprisal", runs=5, choose=greedy) == 1
    assert power("by_likelihood", runs=5, choose=greedy) == 1
    assert power("seeds", runs=5, choose=greedy) == 1
    assert power("rows", runs=5, choose=greedy) == 1


def test_a_generator_that_gives_the_first_half_only_is_found() -> None:
    assert power("by_id", runs=5, numbers=first_half) == 1


def test_the_same_numbers_for_every_row_are_found_and_so_is_a_seed_that_is_stuck() -> None:
    assert power("rows", runs=5, numbers=one_for_all_rows) == 1
    assert power("seeds", runs=5, numbers=one_for_all_rows) == 0
    assert power("seeds", runs=5, numbers=one_for_all_seeds) == 1
    assert power("rows", runs=5, numbers=one_for_all_seeds) == 0


def test_a_filter_that_nobody_declared_is_found() -> None:
    """top_p 0.8 at work although the whole distribution is declared."""
    rng = np.random.default_rng(5)
    logits, following = rng.normal(size=(STATES, WORDS)) * 2, rng.integers(0, STATES, (STATES, WORDS))
    probable = shares(logits)
    order = np.argsort(-probable, 1)
    before = np.take_along_axis(probable, order, 1).cumsum(1) - np.take_along_axis(probable, order, 1)
    cut = np.zeros_like(logits)
    np.put_along_axis(cut, order, np.where(before >= 0.8, -1e9, 0.0), 1)
    found = [sampled((logits, following), rng, drawn_from=logits + cut) for _ in range(20)]
    assert all(one.smallest <= ALPHA and one.surprisal.z > 0 for one in found)


# --- each statistic by hand ------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_draw() -> None:
    """Probabilities 1/2, 1/4, 1/4 and one cut off; the draw is the third word, which comes after the second."""
    scores = np.log(np.array([[0.25, 0.5, 0.25, 1.0]]))
    scores[0, 3] = -np.inf
    draws = Draws.of(scores, np.array([2]), np.array([[0.5, 0.25]]))
    assert draws.logprob[0] == pytest.approx(-math.log(4))
    assert draws.entropy[0] == pytest.approx(1.5 * math.log(2))
    assert draws.variance[0] == pytest.approx(0.25 * math.log(2) ** 2)
    assert draws.by_likelihood[0] == pytest.approx(0.75 + 0.25 / 2)
    assert draws.by_id[0] == pytest.approx(0.75 + 0.25 / 4)
    assert not draws.likeliest[0]
    assert draws.shares.sum() == pytest.approx(1)
    assert (draws.shares * draws.levels).sum() == pytest.approx(0)
    assert (draws.shares * draws.levels**2).sum() == pytest.approx(draws.variance[0])


def test_classes_of_words_keep_mean_and_variance_of_the_log_probability() -> None:
    scores = np.random.default_rng(7).normal(size=(30, 500)) * np.linspace(0.01, 8, 30)[:, None]
    draws = Draws.of(scores, np.zeros(30, int), np.zeros((30, 2)))
    logprobs = np.log(shares(scores))
    variance = (shares(scores) * logprobs**2).sum(1) - (shares(scores) * logprobs).sum(1) ** 2
    assert (draws.shares * draws.levels).sum(1) == pytest.approx(np.zeros(30), abs=1e-9)
    assert (draws.shares * draws.levels**2).sum(1) == pytest.approx(variance, rel=1e-6)


def test_places_of_a_healthy_sampler_are_even() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(20_000, 5))
    draws = Draws.of(logits, healthy(shares(logits).cumsum(1), rng.random(20_000), rng), rng.random((20_000, 2)))
    for places in (draws.by_likelihood, draws.by_id):
        assert np.histogram(places, 10, (0, 1))[0] / 2000 == pytest.approx(np.ones(10), abs=0.1)


def test_kolmogorov() -> None:
    distance, p = uniform(np.array([0.1, 0.2, 0.3, 0.4]))
    assert distance == pytest.approx(0.6)
    assert 0.05 < p < 0.10  # tables for four values: 10 % at 0.564, 5 % at 0.624
    evenly = (np.arange(1000) + 0.5) / 1000
    assert uniform(evenly) == (pytest.approx(0.0005), 1.0)
    assert uniform(evenly / 2)[1] < 1e-100
    # 1.358 / sqrt(n) is the 5 % point of many values.
    many = (np.arange(100_000) + 0.5) / 100_000
    assert uniform(np.clip(many - 1.358 / math.sqrt(100_000), 0, 1))[1] == pytest.approx(0.05, abs=0.001)


def test_twins() -> None:
    """Two of three words likely as 1/2 agree with the first text: 1/4; alone, that is its p-value."""

    def drawn(seed: int, row: int, *words: int) -> Drawn:
        logits = np.zeros((3, 2))
        return Drawn(0, seed, row, words, Draws.of(logits, np.array(words), np.zeros((3, 2))))

    first = drawn(0, 0, 1, 0, 1)
    pair = across_seeds([first, drawn(1, 0, 1, 0, 0)])
    assert (pair.pairs, pair.same, pair.p) == (1, 0, pytest.approx(1 / 4))
    assert across_rows([first, drawn(1, 0, 1, 0, 0)]).p == 1  # there is no pair
    # Three equal ones, 1/8 each for two pairs: c (1 - log c) with c = 1/64.
    same = across_rows([first, drawn(0, 1, 1, 0, 1), drawn(0, 2, 1, 0, 1)])
    assert (same.pairs, same.same) == (2, 2)
    assert same.p == pytest.approx((1 + math.log(64)) / 64)


def test_holm() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {"a": 0.06, "b": 0.03, "c": 0.06}
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_where_nothing_can_be_drawn_nothing_is_told() -> None:
    scores = np.full((10, 3), -np.inf)
    scores[:, 1] = 0
    draws = Draws.of(scores, np.ones(10, int), np.full((10, 2), 0.5))
    found = surprisal(draws)
    assert (found.z, found.p) == (0, 1)
    assert temperature_in_sight(draws, ALPHA) == 0
