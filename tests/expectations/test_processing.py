"""processor_order: the closed form on distributions small enough to work out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from harness.expectations.processing import ProcessorOrder, closed_form
from harness.inputs import GREEDY, Generation
from harness.record import Completion, Request, Text, Verdict

LN = math.log
SHARES = [0.4, 0.3, 0.2, 0.1]
RAW = [LN(share) + 5 for share in SHARES]  # all positive: a penalty divides


def judge(build: Callable[..., Completion], raw: list[float], processed: list[float], **config: Any) -> Verdict:
    done = build((), prompt_ids=(0,), raw_logits=raw, processed_logits=processed, generation_config=config)
    return ProcessorOrder().judge([done])


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"top_k": 2}, {0: RAW[0], 1: RAW[1]}),
        ({"top_p": 0.65}, {0: RAW[0], 1: RAW[1]}),  # 0.4 is not enough, 0.7 is
        ({"min_p": 0.45}, {0: RAW[0], 1: RAW[1], 2: RAW[2]}),  # at least 0.18
        ({"temperature": 2.0}, {token: score / 2 for token, score in enumerate(RAW)}),
        ({"repetition_penalty": 2.0}, {0: RAW[0] / 2, 1: RAW[1], 2: RAW[2], 3: RAW[3]}),
        ({"top_k": 0, "top_p": 1.0}, dict(enumerate(RAW))),
    ],
)
def test_each_processor_by_hand(config: dict[str, float], kept: dict[int, float]) -> None:
    assert closed_form(RAW, frozenset({0}), config) == pytest.approx(kept)


def test_a_penalty_makes_negative_scores_more_negative() -> None:
    assert closed_form([-1.0, -2.0], frozenset({1}), {"repetition_penalty": 2.0}) == {0: -1.0, 1: -4.0}


def test_the_temperature_comes_before_the_nucleus() -> None:
    # At temperature 1/2 shares are squared: 16, 9, 4, 1 of 30. Two of them are 0.83; unsquared they would be 0.7.
    assert set(closed_form(RAW, frozenset(), {"temperature": 0.5, "top_p": 0.8})) == {0, 1}
    assert set(closed_form(RAW, frozenset(), {"top_p": 0.8})) == {0, 1, 2}


def test_what_the_library_did_by_the_book_passes(completion: Callable[..., Completion]) -> None:
    processed = [RAW[0] / 0.5, RAW[1] / 0.5, -math.inf, -math.inf]
    verdict = judge(completion, RAW, processed, temperature=0.5, top_p=0.8)
    assert (verdict.status, verdict.numbers) == ("passed", {"kept": 2, "expected": 2})


def test_another_order_fails_and_is_named(completion: Callable[..., Completion]) -> None:
    processed = [RAW[0] / 0.5, RAW[1] / 0.5, RAW[2] / 0.5, -math.inf]  # the nucleus was cut before the temperature
    verdict = judge(completion, RAW, processed, temperature=0.5, top_p=0.8)
    assert verdict.status == "failed"
    assert "3 tokens can be drawn, 2 are expected" in verdict.reason
    assert verdict.details == ("cause   temperature acts after top_p",)


def test_a_wrong_score_fails(completion: Callable[..., Completion]) -> None:
    verdict = judge(completion, RAW, [RAW[0], RAW[1] + 0.01, RAW[2], RAW[3]], temperature=1.0)
    assert verdict.status == "failed"
    assert verdict.reason == "temperature 1: the score of token 1 is 3.806, 3.796 is expected"


def test_an_unknown_processor_leaves_it_open(completion: Callable[..., Completion]) -> None:
    verdict = judge(completion, RAW, RAW, temperature=1.0, typical_p=0.9)
    assert verdict.status == "skipped"
    assert "typical_p" in verdict.reason


def test_a_test_that_samples_is_looked_at_as_it_samples() -> None:
    own = Generation(do_sample=True, temperature=0.7, max_new_tokens=5)
    prompt = Text(text="x")
    (request,) = ProcessorOrder().needs(Request(prompt, own), ())
    assert (request.kind, request.generation) == ("processed", own)
    (request,) = ProcessorOrder().needs(Request(prompt, GREEDY), ())
    assert request.generation.do_sample
