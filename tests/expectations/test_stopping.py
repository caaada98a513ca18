"""Why generation ended, and after how many tokens."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations.stopping import Finish, NewTokens, StopsAtEos, StopString, Truncated
from harness.inputs import Generation, Message
from harness.record import Completion, Request, Text

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


def chat(**generation: Any) -> Request:
    turn = Message(role="user", content="hello")
    return Request(Text(messages=(turn,)), Generation(**({"do_sample": False, "max_new_tokens": 40} | generation)))


def spoken(completion: Any, *tokens: str, finish: str = "length", special: str = "", **fields: Any) -> Completion:
    """A completion of these tokens, of which the special ones are not in the text."""
    ids = fields.pop("ids", tuple(range(5, 5 + len(tokens))))
    text = "".join(token for token in tokens if token != special)
    made: Completion = completion(ids, tokens=tokens, text=text, finish=finish, **fields)
    return made


@pytest.mark.parametrize(
    ("written", "fields", "status", "reason"),
    [
        ("eos", {}, "passed", "EOS token 1 ('t1') ended it after 3 tokens"),
        (["eos", "stop"], {"finish": "stop"}, "passed", "a stop string ended it after 3 tokens"),
        ("length", {"finish": "length"}, "passed", "the limit ended it after 3 tokens"),
        ("stop", {}, "failed", "EOS token 1 ('t1') ended it after 3 tokens, not a stop string"),
        (["eos", "stop"], {"finish": "length"}, "failed", "rambled on until the limit of 3 new tokens, without EOS"),
        (
            "eos",
            {"finish": "length", "generation_config": {}},
            "failed",
            "it cannot stop: the effective generation config has no eos_token_id",
        ),
        (
            {"token_ids": [1, 2]},
            {"generation_config": {"eos_token_id": [0, 1]}},
            "passed",
            "EOS token 1 ('t1'), one of 0, 1, ended it after 3 tokens",
        ),
        (
            {"token_ids": 2},
            {"generation_config": {"eos_token_id": [1, 2]}},
            "failed",
            "EOS token 1 ('t1'), one of 1, 2, ended it after 3 tokens, not 2",
        ),
        (
            {"reason": ["eos", "length"], "token_ids": 2},
            {"finish": "length"},
            "passed",
            "the limit ended it after 3 tokens",
        ),
    ],
)
def test_finish(completion: Any, written: Any, fields: dict[str, Any], status: str, reason: str) -> None:
    verdict = Finish.model_validate(written).judge([completion(**fields)])

    assert (verdict.status, verdict.reason) == (status, reason)


def test_finish_reports_which_end_token_it_was(completion: Any) -> None:
    config = {"eos_token_id": [1, 6]}

    assert Finish().judge([completion((5, 6), generation_config=config)]).numbers["end_token"] == 6
    assert "end_token" not in Finish().judge([completion(finish="length")]).numbers


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({}, "raise max_new_tokens; a chat model ends its turns only if asked by `messages:`"),
        ({"request": chat()}, "raise max_new_tokens; see that eos_token_id (1) has the id that ends a turn"),
        ({"generation_config": {}}, "set eos_token_id in the model's generation_config.json"),
        (
            {"special": "<end>"},
            "token 1 of the output is '<end>' (id 6); if that ends a turn, add it to eos_token_id, which is 1",
        ),
    ],
)
@pytest.mark.parametrize("expectation", [Finish(), StopsAtEos(), Truncated(max_rate=0)])
def test_what_to_do_about_rambling(completion: Any, fields: dict[str, Any], remedy: str, expectation: Any) -> None:
    verdict = expectation.judge([spoken(completion, "Paris", "<end>", " Paris", **fields)])

    assert verdict.details[-1] == f"remedy  {remedy}"


@pytest.mark.parametrize(("wanted", "remedy"), [(7, "7 cannot end it"), (6, "if 1 is a right end as well")])
def test_what_to_do_about_another_end_token(completion: Any, wanted: int, remedy: str) -> None:
    verdict = Finish(token_ids=(wanted,)).judge([completion(generation_config={"eos_token_id": [1, 6]})])

    assert verdict.details[-1].startswith(f"remedy  {remedy}")


@pytest.mark.parametrize(
    "written", ["limit", [], True, {"reason": "stop", "token_ids": 2}, {"token_ids": []}, {"token_ids": -1}]
)
def test_a_finish_that_there_is_not_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        Finish.model_validate(written)


@pytest.mark.parametrize(
    ("stops", "tokens", "reason"),
    [
        ((",",), (" one", ","), "ended by ',' after 2 tokens"),
        ((",",), (" one", ", and"), "ended by ',' after 2 tokens, with 4 more characters of that token"),
        (("\n",), (" one", "\n\n"), "ended by '\\n' after 2 tokens, with 1 more character of that token"),
        (("END",), ("a E", "N", "D"), "ended by 'END' after 3 tokens"),
        (("x", "END"), ("a E", "N", "Dx"), "ended by 'END' after 3 tokens, with 1 more character of that token"),
    ],
)
def test_a_stop_string_ends_it(completion: Any, stops: tuple[str, ...], tokens: Any, reason: str) -> None:
    verdict = StopString().judge([spoken(completion, *tokens, finish="stop", request=chat(stop_strings=stops))])

    assert (verdict.status, verdict.reason) == ("passed", reason)


def test_a_stop_string_may_begin_in_the_prompt(completion: Any) -> None:
    begun = spoken(completion, "\nQ", " more", finish="stop", prompt_text="A\n", request=chat(stop_strings=("\n\nQ",)))
    ended = spoken(completion, "\nQ", finish="stop", prompt_text="A\n", request=chat(stop_strings=("\n\nQ",)))
    before = spoken(completion, "Q", finish="length", prompt_text="A\n\n", request=chat(stop_strings=("\n",)))

    assert StopString().judge([begun]).status == "failed"
    assert StopString().judge([ended]).status == "passed"
    assert StopString().judge([before]).reason == "the limit ended it after 1 token: none of '\\n' is in it"


def test_a_stop_string_may_be_a_special_token(completion: Any) -> None:
    request = chat(stop_strings=("<end>",))

    stopped = spoken(completion, "Paris", "<end>", special="<end>", finish="stop", request=request)
    at_eos = spoken(completion, "Paris", "<end>", special="<end>", finish="eos", request=request)
    missed = spoken(completion, "Paris", "<end>", " Paris", special="<end>", request=request)

    assert [StopString().judge([one]).status for one in (stopped, at_eos, missed)] == ["passed", "passed", "failed"]


def test_tokens_that_lose_their_space_are_no_reason_to_fail(completion: Any) -> None:
    ended = completion((5, 6), tokens=("one", "two"), text="one two", finish="stop", request=chat(stop_strings=(" ",)))

    assert StopString().judge([ended]).status == "passed"


@pytest.mark.parametrize(
    ("tokens", "finish", "reason"),
    [
        ((" one", " two"), "stop", "a stop string ended it after 2 tokens: none of ',' is in it"),
        ((" one", " two"), "length", "the limit ended it after 2 tokens: none of ',' is in it"),
        ((" one", "<eos>"), "eos", "EOS token 6 ('<eos>') ended it after 2 tokens: none of ',' is in it"),
        ((" o", ",", " two", ","), "stop", "',' at character 2 of the output did not end it: "),
        (
            (" o", ",", " two"),
            "length",
            "',' at character 2 of the output did not end it: generation went on for 4 char",
        ),
        ((" o", ","), "length", "',' at character 2 of the output did not end it: only the limit ended it"),
        ((" o", ",", "<eos>"), "eos", "',' at character 2 of the output did not end it: "),
    ],
)
def test_a_stop_string_that_does_not_end_it(completion: Any, tokens: Any, finish: str, reason: str) -> None:
    request = chat(stop_strings=(",",))
    verdict = StopString().judge([spoken(completion, *tokens, finish=finish, special="<eos>", request=request)])

    assert verdict.status == "failed"
    assert verdict.reason.startswith(reason)


def test_without_stop_strings_there_is_nothing_to_judge(completion: Any) -> None:
    verdict = StopString().judge([completion()])

    assert (verdict.status, verdict.reason) == (
        "error",
        'the generation of this test has no stop strings: write stop_strings: ["…"] there',
    )


@pytest.mark.parametrize(
    ("least", "finish", "status"),
    [(2, "eos", "passed"), (3, "eos", "failed"), (3, "stop", "passed"), (3, "length", "passed"), (0, "eos", "passed")],
)
def test_eos_is_held_back_before_min_new_tokens(completion: Any, least: int, finish: str, status: str) -> None:
    """With min_new_tokens: 3 the first three tokens are not EOS: it can be the fourth, not the third."""
    config = {"eos_token_id": 1, "min_new_tokens": least}
    verdict = NewTokens(max=9).judge([completion((5, 6, 1), finish=finish, generation_config=config)])

    assert verdict.status == status
    if status == "failed":
        assert verdict.reason.startswith("EOS was new token 3, although min_new_tokens: 3 is to hold it back")


def test_more_tokens_than_were_allowed(completion: Any) -> None:
    request = chat(max_new_tokens=2)

    assert NewTokens(max=9).judge([completion((5, 6), request=request)]).status == "passed"
    verdict = NewTokens(max=9).judge([completion((5, 6, 7), request=request)])
    assert verdict.status == "failed"
    assert verdict.reason.startswith("3 new tokens, although max_new_tokens is 2; speculative decoding")


@pytest.mark.parametrize(
    ("rate", "cut", "status", "reason"),
    [
        (0.25, 1, "passed", "1 of 4 prompts (25%) stopped only because of the limit"),
        (0.25, 2, "failed", "2 of 4 prompts (50%) stopped only because of the limit, at most 25% wanted"),
        (0, 0, "passed", "0 of 4 prompts (0%) stopped only because of the limit"),
        (0, 1, "failed", "1 of 4 prompts (25%) stopped only because of the limit, at most 0% wanted"),
    ],
)
def test_truncated(completion: Any, rate: float, cut: int, status: str, reason: str) -> None:
    expectation = Truncated.model_validate(rate)
    prompts = [Request(Text(text=f"prompt {number}"), Generation(max_new_tokens=3)) for number in range(4)]
    ends = ["length"] * cut + ["stop", "eos", "eos", "eos"][: 4 - cut]
    completions = [completion(request=one, finish=end) for one, end in zip(prompts, ends, strict=True)]

    verdict = expectation.judge_set([(expectation, [one]) for one in completions])

    assert expectation.over_set
    assert (verdict.status, verdict.reason) == (status, reason)
    assert verdict.details[:cut] == tuple(f"3 tokens: 'prompt {number}'" for number in range(cut))


def test_truncated_by_the_default_limit(completion: Any) -> None:
    verdict = Truncated(max_rate=0).judge([completion(finish="length", request=UNLIMITED)])

    assert "(the default: the suite sets no max_new_tokens), at most 0% wanted" in verdict.reason


def test_of_a_long_prompt_its_end_is_shown(completion: Any) -> None:
    request = Request(Text(text="x" * 100 + "y" * 60), Generation(max_new_tokens=3))
    verdict = Truncated(max_rate=0).judge([completion(finish="length", request=request)])

    assert verdict.details[0] == f"3 tokens: …'{'y' * 60}'"


@pytest.mark.parametrize("written", [True, 1.5, -0.1, "10%", None])
def test_a_rate_that_is_none_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        Truncated.model_validate(written)
