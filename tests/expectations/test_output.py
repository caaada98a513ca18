"""Outputs that are none, outputs that are stuck, and what stands behind a row's end."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations.invariance import FILLERS, PaddingInvariant
from harness.expectations.output import NoRepetition, NotEmpty, NothingAfterEos
from harness.inputs import GREEDY, Message
from harness.record import Batch, Completion, Request, Text

CHAT = Request(Text(messages=(Message(role="user", content="hello"),)), GREEDY)


def written(completion: Any, text: str, *, finish: str = "length", **fields: Any) -> Completion:
    """A completion of this text, a token for each word, sign, digit and space of a run: as coarse as tokenizers get."""
    tokens = tuple(re.findall(r"\d| ?[A-Za-z]+|\s|[^\sA-Za-z\d]", text))
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens), start=3)}
    ids = [vocabulary[token] for token in tokens]
    if finish == "eos":
        tokens, ids = (*tokens, "<eos>"), [*ids, 1]
    made: Completion = completion(ids, tokens=tokens, text=text, finish=finish, **fields)
    return made


@pytest.mark.parametrize(
    ("tokens", "text", "finish", "status", "reason"),
    [
        ((" Paris", "<eos>"), " Paris", "eos", "passed", "5 visible characters"),
        ((".",), ".", "length", "passed", "1 visible character"),
        (("<eos>",), "", "eos", "failed", "stopped at once: the first new token is EOS ('<eos>')"),
        (("\n", "\n\n"), "\n\n\n", "length", "failed", "2 new tokens of white space only: '\\n\\n\\n'"),
        ((" ", "<eos>"), " ", "eos", "failed", "1 new token of white space only: ' '"),
        (("\u200b",), "\u200b", "length", "failed", "1 new token of white space only: '\\u200b'"),
        (
            ("<pad>", "<pad>", "<s>", "<eos>"),
            "",
            "eos",
            "failed",
            "3 new tokens and no text: only special tokens ('<pad>' × 2, '<s>' × 1)",
        ),
    ],
)
def test_not_empty(completion: Any, tokens: Any, text: str, finish: str, status: str, reason: str) -> None:
    verdict = NotEmpty().judge([completion(range(5, 5 + len(tokens)), tokens=tokens, text=text, finish=finish)])

    assert (verdict.status, verdict.reason) == (status, reason)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({}, "the prompt is plain text, without a chat template: ask a chat model by `messages:`"),
        ({"request": CHAT, "prompt_ids": (9, 1)}, "the prompt itself ends with EOS: have the tokenizer add none"),
        (
            {"request": CHAT, "prompt_text": "<s>user"},
            "see that the prompt ends where the assistant is to speak; it ends",
        ),
        ({"request": CHAT, "prompt_ids": ()}, "see that the prompt ends"),
    ],
)
def test_why_it_is_empty(completion: Any, fields: dict[str, Any], remedy: str) -> None:
    verdict = NotEmpty().judge([completion((1,), tokens=("<eos>",), text="", **fields)])

    assert verdict.details[-1].startswith(f"remedy  {remedy}")


STEPS = "".join(f"\n{number}. Take the {thing} and put it on the table." for number, thing in enumerate("abcdefgh"))
DEEP = "def f(x):\n    if x:\n        for y in x:\n            if y:\n                return y\n    return None\n"
HEALTHY = [
    "".join(f" {number}," for number in range(1, 60)),
    "\n".join(f"- item {number}: done" for number in range(1, 13)),
    STEPS,
    DEEP * 2,
    "if x:\n" + " " * 20 + "return y\n",
    "x = [\n" + "".join(f"    ({number}, {number * number}),\n" for number in range(20)) + "]\n",
    "The answer is 1000000000000, that is 10 ** 12.",
    "| name | value | unit |\n|---|---|---|\n| a | 1 | m |\n| b | 2 | s |\n",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "Let it be, let it be, let it be, let it be. Whisper words of wisdom, let it be.",
    "No, no, no, no, no. I said no.",
    "a" * 3 + "!" * 10,
    '{"a": 1, "b": [0, 0, 0, 0, 0, 0], "c": {"d": null, "e": null, "f": null}}',
    "very " * 7 + "good",
    "ha" * 5,
    "",
]


@pytest.mark.parametrize("finish", ["eos", "length"])
@pytest.mark.parametrize("text", HEALTHY)
def test_healthy_text_is_not_stuck(completion: Any, text: str, finish: str) -> None:
    verdict = NoRepetition().judge([written(completion, text, finish=finish)])

    assert verdict.status == "passed", verdict.reason


@pytest.mark.parametrize("text", HEALTHY)
def test_healthy_text_is_not_stuck_wherever_the_limit_cuts_it(completion: Any, text: str) -> None:
    whole = written(completion, text)
    for length in range(len(whole.ids)):
        cut = completion(whole.ids[:length], tokens=whole.tokens[:length], text=text, finish="length")
        verdict = NoRepetition().judge([cut])
        assert verdict.status == "passed", verdict.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is" + " the" * 30, "stuck from token 2 on: ' the' 30 times in a row"),
        ("It" + " x" * 16 + " ends well.", "stuck from token 1 on: ' x' 16 times in a row"),
        ("A" + "\n" * 24, "stuck from token 1 on: '\\n' 24 times in a row"),
        ("So:" + " I am." * 8, "stuck from token 2 on: the same 3 tokens (' I am.') 8 times in a row"),
        (
            "Well!" + " The cat sat on the mat." * 4 + " The cat",
            "stuck from token 2 on: the same 7 tokens (' The cat sat on the mat.') 4 times in a row",
        ),
    ],
)
@pytest.mark.parametrize("finish", ["eos", "length"])
def test_stuck(completion: Any, text: str, reason: str, finish: str) -> None:
    verdict = NoRepetition().judge([written(completion, text, finish=finish)])

    assert (verdict.status, verdict.reason) == ("failed", reason)
    assert verdict.details[-1].startswith("remedy  ask a chat model by `messages:`")


def test_where_it_is_stuck_is_a_number(completion: Any) -> None:
    verdict = NoRepetition().judge([written(completion, "Well," + " I am." * 10, request=CHAT)])

    assert verdict.numbers == {"start": 2, "period": 3, "times": 10}
    assert verdict.details[-1] == "remedy  repetition_penalty: 1.1, or sampling, or a larger model"


@pytest.mark.parametrize(("length", "status"), [(3, "passed"), (4, "failed"), (40, "failed")])
def test_token_zero_for_ever_is_told_as_what_it_is(completion: Any, length: int, status: str) -> None:
    verdict = NoRepetition().judge([completion((0,) * length, tokens=("!",) * length, finish="length")])

    assert verdict.status == status
    if status == "failed":
        assert verdict.reason == f"nothing but token 0 ('!'), {length} times: what NaN weights answer for ever"


def test_a_few_zeros_among_others_are_fine(completion: Any) -> None:
    assert NoRepetition().judge([completion((0, 0, 0, 0, 5), finish="length")]).status == "passed"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({}, "passed"),
        ({"run": 5}, "failed"),
        ({"run": 6}, "passed"),
        ({"loop_tokens": 5}, "failed"),
        ({"loop_tokens": 5, "loops": 6}, "passed"),
    ],
)
def test_what_counts_as_stuck_can_be_said(completion: Any, arguments: dict[str, int], status: str) -> None:
    assert NoRepetition(**arguments).judge([completion((3, 4, 7, 7, 7, 7, 7), finish="length")]).status == status


@pytest.mark.parametrize(("period", "status"), [(9, "passed"), (10, "failed")])
def test_longer_loops_than_asked_for_are_not_looked_for(completion: Any, period: int, status: str) -> None:
    looping = completion(tuple(range(3, 13)) * 3, finish="length")

    assert NoRepetition(period=period).judge([looping]).status == status


@pytest.mark.parametrize("arguments", [{"run": 1}, {"loops": 1}, {"period": 0}, {"run": True}])
def test_limits_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NoRepetition(**arguments)


def test_long_outputs_are_quick_to_look_at(completion: Any) -> None:
    almost = [(number // 7) % 5 + 3 for number in range(20_000)] + [9]  # a loop all along, but for its last token
    looked_at = completion(almost, margins=[0.0] * len(almost), steps=(), finish="length")

    began = time.perf_counter()
    NoRepetition().judge([looked_at])
    assert time.perf_counter() - began < 2


def ended(completion: Any, *tail: int, finish: str = "eos", **config: Any) -> Completion:
    made: Completion = completion(
        finish=finish, tail=tail, batch_size=3, generation_config={"eos_token_id": [1, 2], "pad_token_id": 0, **config}
    )
    return made


@pytest.mark.parametrize(
    ("tail", "status", "reason"),
    [
        ((0, 0, 0), "passed", "after its end stand 3 pads (id 0)"),
        ((2,), "passed", "after its end stand 1 pad (id 2)"),
        ((2, 0, 0), "passed", "after its end stand 3 pads (id 0, 2)"),
        ((0, 7, 0), "failed", "2 tokens after its end stands id 7, which is neither the pad token (0) nor EOS"),
        ((), "skipped", "no other row of the batch of 3 went on after it"),
    ],
)
def test_nothing_after_eos(completion: Any, tail: tuple[int, ...], status: str, reason: str) -> None:
    verdict = NothingAfterEos().judge([ended(completion, *tail)])

    assert (verdict.status, verdict.reason) == (status, reason)


def test_after_a_stop_string_stands_padding_too(completion: Any) -> None:
    assert NothingAfterEos().judge([ended(completion, 7, finish="stop")]).status == "failed"
    assert NothingAfterEos().judge([ended(completion, 0, finish="stop")]).status == "passed"


def test_a_row_that_does_not_end_shows_nothing(completion: Any) -> None:
    verdict = NothingAfterEos().judge([ended(completion, finish="length")])

    assert verdict.status == "skipped"
    assert verdict.reason.startswith("the row did not end before the limit")


def test_its_batch_is_the_one_of_padding_invariant() -> None:
    peers = [Request(Text(text=text), GREEDY) for text in ("one", "two words")]
    (needed,) = NothingAfterEos().needs(peers[0], peers)

    assert needed.layout == Batch((peers[0].prompt, peers[1].prompt, FILLERS[0]))
    assert needed in PaddingInvariant().needs(peers[0], peers)
