"""Completions made up by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from harness.inputs import GREEDY
from harness.record import Completion, Request, Step, Text


@pytest.fixture(scope="session")
def completion() -> Callable[..., Completion]:
    """Build a completion from token ids; `margins` are the gaps to every other token at each step."""

    def build(ids: Sequence[int] = (5, 6, 1), *, margins: float | Sequence[float] = 5.0, **fields: Any) -> Completion:
        gaps = [margins] * len(ids) if isinstance(margins, (int, float)) else margins
        height = fields.pop("height", 27.0)
        steps = tuple(
            Step(-0.1, (token, *(i for i in range(30) if i != token)), (-0.1, *[-0.1 - gap] * 29), height)
            for token, gap in zip(ids, gaps, strict=True)
        )
        defaults: dict[str, Any] = {
            "request": Request(Text(text="a prompt"), GREEDY),
            "prompt_text": "a prompt",
            "prompt_ids": (9,),
            "tokens": tuple(f"t{token}" for token in ids),
            "text": " ".join(f"t{token}" for token in ids),
            "finish": "eos",
            "steps": steps,
            "generation_config": {"eos_token_id": 1},
        }
        return Completion(ids=tuple(ids), **(defaults | fields))

    return build
