"""Prompts as the model gets them: ends of chats, and rows of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.backends.prompts import Prompts, position
from harness.errors import InvalidRequest
from harness.inputs import GREEDY, Message
from harness.record import Batch, Request, TargetFacts, Text

USER, ASSISTANT = Message(role="user", content="w1 w2"), Message(role="assistant", content="w3")
A, B, EMPTY = Text(text="w1"), Text(text="w2 w3 w4"), Text(text="")


@pytest.fixture
def prompts(tiny: Callable[..., Any]) -> Prompts:
    from transformers import AutoTokenizer

    return Prompts(AutoTokenizer.from_pretrained(tiny("llama")), TargetFacts("t", vocabulary=95, pad_token_id=0))


def test_a_new_turn_of_the_assistant_is_opened(prompts: Prompts) -> None:
    assert prompts.encode(Text(messages=(USER, ASSISTANT))) == ("<s> w1 w2 <s> w3 <a>", (2, 6, 7, 2, 8, 3))


def test_a_turn_that_was_begun_is_left_open(prompts: Prompts) -> None:
    assert prompts.encode(Text(messages=(USER, ASSISTANT), continued=True)) == ("<s> w1 w2 <s> w3", (2, 6, 7, 2, 8))


def test_ids_are_taken_as_they_are(prompts: Prompts) -> None:
    assert prompts.encode(Text(ids=(2, 2, 6)))[1] == (2, 2, 6)
    assert prompts.length(Text(ids=(2, 2, 6))) == 3
    with pytest.raises(InvalidRequest, match="gives id 95, but the model has 95 embeddings"):
        prompts.refuse_impossible(Request(A, GREEDY), Text(ids=(5, 95)))


def test_what_was_made_with_another_template_is_forgotten(prompts: Prompts) -> None:
    chat = Text(messages=(USER,))
    before = prompts.encode(chat)
    prompts.tokenizer.chat_template = "{{ messages[0].content }}"

    assert prompts.encode(chat) == before
    prompts.forget()
    assert prompts.encode(chat) == ("w1 w2", (6, 7))


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [("left", [[9, 9, 5], [6, 7, 8]], [[0, 0, 1], [1, 1, 1]]), ("right", [[5, 9, 9], [6, 7, 8]], [[1, 0, 0], [1] * 3])],
)
def test_rows_are_padded_on_the_side_with_the_token(
    prompts: Prompts, side: str, ids: list[list[int]], mask: list[list[int]]
) -> None:
    inputs, pads = prompts.pad([(5,), (6, 7, 8)], side, 9, torch.device("cpu"))

    assert (inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), pads) == (ids, mask, [2, 0])
    assert prompts.pad([(5,), (6, 7)], side, None, torch.device("cpu"))[0]["input_ids"].min() == 0


def test_a_request_is_answered_by_its_own_row() -> None:
    batch = Batch((A, B, A))
    assert position(Request(B, GREEDY), [A, B], 1) == 1
    assert position(Request(B, GREEDY, batch), batch.rows, 0) == 1
    assert [position(Request(A, GREEDY, batch, row=row), batch.rows, 0) for row in (None, 0, 2)] == [0, 0, 2]


def test_a_neighbour_that_was_left_out_does_not_shift_the_rows(prompts: Prompts) -> None:
    first, last = (Request(A, GREEDY, Batch((EMPTY, A, B, A)), row=row) for row in (1, 3))
    rows = prompts.rows([first, last])

    assert rows == (A, B, A)
    assert [position(request, rows, 0) for request in (first, last)] == [0, 2]
