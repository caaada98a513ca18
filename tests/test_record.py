"""What makes one request another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.inputs import GREEDY, Generation, Message
from harness.record import Batch, Request, Text

ONE = Request(Text(text="a"), GREEDY)
OTHER: dict[str, Any] = {
    "prompt": Text(ids=(1, 2)),
    "generation": Generation(do_sample=False, max_new_tokens=63),
    "layout": "alone",
    "repeat": 1,
    "fresh_process": True,
    "kind": "score",
    "row": 0,
    "continuation": (3,),
    "position_ids": True,
    "attention": "eager",
    "float32": True,
    "resume_after": 1,
    "whole": False,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Request)])
def test_every_field_is_part_of_what_is_asked(name: str) -> None:
    changed = ONE.replace(**{name: OTHER[name]})

    assert changed != ONE
    assert changed.id != ONE.id
    assert len({changed, ONE}) == 2
    assert changed.replace(**{name: getattr(ONE, name)}) == ONE
    assert hash(changed.replace(**{name: getattr(ONE, name)})) == hash(ONE)


@pytest.mark.parametrize(
    "change",
    [{"rows": (Text(text="b"),)}, {"padding": "right"}, {"attention_mask": False}, {"pad_token_id": 5}],
    ids=str,
)
def test_how_a_batch_is_laid_out_is_part_of_what_is_asked(change: dict[str, Any]) -> None:
    batch = Batch((Text(text="a"),))
    changed = dataclasses.replace(batch, **change)

    assert ONE.replace(layout=batch).id != ONE.replace(layout=changed).id


def test_what_is_said_last() -> None:
    turns = (Message(role="user", content="Hi"), Message(role="assistant", content="Well"))

    assert Text(messages=turns, continued=True).last == "Well"
    assert Text(text="a").last == "a"
    assert Text(ids=(1, 2)).last == ""
    assert Request(Text(messages=turns), GREEDY).id != Request(Text(messages=turns, continued=True), GREEDY).id
