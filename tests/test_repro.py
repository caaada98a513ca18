"""Failures made smaller: no model is needed to see that."""

from __future__ import annotations

from typing import Any

import pytest

from harness.repro import RUNS, Output, Pinned, Reproduction, Scores, Side, Weights, minimise

GREEDY = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 30, "repetition_penalty": 1.2}
PROMPT = tuple(range(10, 30))
OTHERS = tuple((50 + n,) * (3 + n) for n in range(6))


def side(name: str = "alone", rows: Any = (PROMPT,), arguments: Any = GREEDY, **fields: Any) -> Side:
    return Side(name, rows, 0, arguments, **fields)


def pair(**fields: Any) -> Reproduction:
    rows = (*OTHERS[:2], PROMPT, *OTHERS[2:])
    return Reproduction(Weights("model"), (side(), side("in a batch", rows, row=2, **fields)))


class Failing:
    """Says whether a made-up model fails, and keeps what it was asked."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.asked: list[Reproduction] = []

    def __call__(self, candidate: Reproduction) -> bool:
        self.asked.append(candidate)
        return bool(self.rule(*candidate.sides))


def test_only_what_the_failure_needs_is_left() -> None:
    """It takes token 11, a neighbour that begins with 54, ids 13 and 21 of the prompt and the penalty."""

    def needs(alone: Side, batch: Side) -> bool:
        neighbour = any(row[0] == 54 for place, row in enumerate(batch.rows) if place != batch.row)
        prompt = {13, 21} <= {*batch.prompt} and alone.prompt == batch.prompt
        return neighbour and prompt and batch.length >= 12 and "repetition_penalty" in batch.arguments

    fails = Failing(needs)
    small = minimise(pair(), fails)

    alone, batch = small.sides
    assert batch.rows == ((13, 21, 29), (54,))
    assert (alone.rows, alone.row, batch.row) == (((13, 21, 29),), 0, 0)
    for left in (alone, batch):
        assert left.arguments == {"do_sample": False, "max_new_tokens": 12, "repetition_penalty": 1.2}
    assert len(fails.asked) <= RUNS


def test_every_step_was_run_and_the_same_is_done_every_time() -> None:
    def needs(alone: Side, batch: Side) -> bool:
        return len(batch.rows) > 2 and 13 in batch.prompt

    first, again = Failing(needs), Failing(needs)
    small = minimise(pair(), first)

    assert small in first.asked
    assert minimise(pair(), again) == small
    assert again.asked == first.asked


@pytest.mark.parametrize("runs", [0, 1, 7])
def test_it_is_never_run_more_often_than_allowed(runs: int) -> None:
    fails = Failing(lambda *sides: True)
    small = minimise(pair(), fails, runs)

    assert len(fails.asked) == runs
    assert small == (fails.asked[-1] if runs else pair())


def test_what_cannot_be_made_smaller_stays() -> None:
    assert minimise(pair(), lambda _: False) == pair()


def test_sampling_is_never_left_to_the_models_own_config() -> None:
    small = minimise(pair(), lambda _: True)

    assert [made.arguments for made in small.sides] == [{"do_sample": False, "max_new_tokens": 1}] * 2
    assert small.sides[1].rows == ((29,),)


def test_the_argument_that_is_compared_stays() -> None:
    static = pair(arguments=GREEDY | {"cache_implementation": "static", "repetition_penalty": 1.3})
    alone, batch = minimise(static, lambda _: True).sides

    assert alone.arguments == {"do_sample": False, "max_new_tokens": 1, "repetition_penalty": 1.2}
    assert batch.arguments == {**alone.arguments, "repetition_penalty": 1.3, "cache_implementation": "static"}


def test_a_neighbour_leaves_both_batches() -> None:
    rows = (*OTHERS, PROMPT)
    both = Reproduction(Weights("model"), (side("a", rows, row=6), side("b", rows, row=6)))
    seen = Failing(lambda first, second: first.rows == second.rows and len(first.rows) > 1)
    minimise(both, seen)

    assert all(first.rows == second.rows for first, second in (asked.sides for asked in seen.asked))


def test_of_a_pin_only_the_end_is_cut() -> None:
    pinned = Reproduction(Weights("model"), (side(rows=(PROMPT, *OTHERS)),), Pinned(tuple(range(40))))
    small = minimise(pinned, lambda one: one.sides[0].length >= 5)

    assert small.evidence == Pinned((0, 1, 2, 3, 4))
    assert small.sides[0].rows == (PROMPT, *OTHERS)
    assert small.sides[0].arguments == GREEDY | {"max_new_tokens": 5, "min_new_tokens": 5}


def test_without_a_limit_the_librarys_own_is_where_it_begins() -> None:
    unsaid = Reproduction(Weights("model"), (side(arguments={"do_sample": False}),), Pinned(tuple(range(20))))
    fails = Failing(lambda one: one.length >= 5)

    assert minimise(unsaid, fails).sides[0].arguments == {"do_sample": False, "max_new_tokens": 5}
    assert fails.asked[0].sides[0].length == 10


def test_of_pinned_probabilities_as_many_are_left_as_of_tokens() -> None:
    known = Pinned(tuple(range(40)), tuple(-float(n) for n in range(40)), 0.5)
    small = minimise(Reproduction(Weights("model"), (side(),), known), Failing(lambda one: one.length >= 3))

    assert small.evidence == Pinned((0, 1, 2), (0.0, -1.0, -2.0), 0.5)


def test_an_output_is_made_smaller_as_calls_that_should_agree_are() -> None:
    rows = (PROMPT, *OTHERS)
    said = Reproduction(Weights("model"), (side(rows=rows),), Output())
    small = minimise(said, lambda one: 13 in one.sides[0].prompt and one.sides[0].length >= 7)

    assert small.sides[0].rows == ((13, 29),)
    assert small.sides[0].arguments == {"do_sample": False, "max_new_tokens": 7}


def test_what_an_output_lacks_was_asked_for_by_its_prompt_and_has_as_many_tokens_to_come() -> None:
    said = Reproduction(Weights("model"), (side(rows=(*OTHERS, PROMPT), row=6),), Output(lacks=True))
    small = minimise(said, lambda _: True)

    assert small.sides[0].rows == (PROMPT,)
    assert small.sides[0].arguments == {"do_sample": False, "max_new_tokens": 40}


@pytest.mark.parametrize(("needed", "left"), [(1, 1), (2, 2), (3, 4), (5, 6), (7, 6)])
def test_of_recorded_scores_the_likeliest_are_left(needed: int, left: int) -> None:
    """1, 2, 4 … of them are tried, the token's own first; 7 of 6 are never enough."""
    likely = tuple((n, -float(n)) for n in range(6))
    recorded = Reproduction(Weights("model"), (side(),), Scores((1, 2), (likely, likely), 0.1))
    small = minimise(recorded, lambda one: all(len(some) >= needed for some in scores_of(one).recorded))

    assert scores_of(small) == Scores((1, 2), (likely[:left],) * 2, 0.1)
    assert small.sides == recorded.sides


def scores_of(one: Reproduction) -> Scores:
    assert isinstance(one.evidence, Scores)
    return one.evidence
