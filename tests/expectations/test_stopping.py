"""Why generation ended, and after how many tokens."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations.stopping import NewTokens, StopsAtEos
from harness.inputs import Generation
from harness.record import Request, Text

UNLIMITED = Request(Text(text="x"), Generation(do_sample=False))


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({}, "passed", "stopped at EOS after 3 tokens"),
        ({"ids": (1,)}, "passed", "stopped at EOS after 1 token"),
        ({"finish": "length"}, "failed", "rambled on until the limit of 3 new tokens, without EOS"),
        (
            {"finish": "length", "request": UNLIMITED},
            "failed",
            "rambled on until the limit of 3 new tokens (the default: the suite sets no max_new_tokens), without EOS",
        ),
        ({"finish": "stop"}, "failed", "a stop string ended it after 3 tokens, no EOS token did"),
        (
            {"finish": "length", "generation_config": {}},
            "failed",
            "it cannot stop: the effective generation config has no eos_token_id",
        ),
    ],
)
def test_stops_at_eos(completion: Any, fields: dict[str, Any], status: str, reason: str) -> None:
    verdict = StopsAtEos().judge([completion(**fields)])

    assert (verdict.status, verdict.reason) == (status, reason)


@pytest.mark.parametrize(
    ("limits", "finish", "status", "reason"),
    [
        ({"min": 3, "max": 3}, "eos", "passed", "3 new tokens, ended by EOS"),
        ({"min": 4}, "eos", "failed", "too short: 3 new tokens, ended by EOS, at least 4 wanted"),
        ({"max": 2}, "length", "failed", "too long: 3 new tokens, ended by the limit, at most 2 wanted"),
        ({"min": 0}, "stop", "passed", "3 new tokens, ended by a stop string"),
    ],
)
def test_new_tokens(completion: Any, limits: dict[str, int], finish: str, status: str, reason: str) -> None:
    verdict = NewTokens(**limits).judge([completion(finish=finish)])

    assert (verdict.status, verdict.reason) == (status, reason)


def test_the_default_of_twenty_is_named(completion: Any) -> None:
    verdict = NewTokens(min=30).judge([completion(tuple(range(2, 22)), finish="length", request=UNLIMITED)])

    assert verdict.reason == (
        "too short: 20 new tokens, ended by the limit (the default: the suite sets no max_new_tokens), "
        "at least 30 wanted"
    )


def test_a_bare_number_is_both_limits() -> None:
    assert NewTokens.model_validate(7) == NewTokens(min=7, max=7)


@pytest.mark.parametrize("written", [{}, {"min": 5, "max": 4}, {"min": -1}, {"min": True}, True, "5"])
def test_a_range_that_makes_no_sense_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        NewTokens.model_validate(written)
