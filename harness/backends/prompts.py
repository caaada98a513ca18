"""Prompts as one target gets them: rendered, tokenised, checked, padded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from harness.errors import CannotRun, InvalidRequest
from harness.record import Batch, Request, TargetFacts, Text


class Prompts:
    """What the tokenizer of a target makes of prompts."""

    def __init__(self, tokenizer: Any, facts: TargetFacts) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self._encoded: dict[Text, tuple[str, tuple[int, ...]]] = {}

    def encode(self, prompt: Text) -> tuple[str, tuple[int, ...]]:
        """Rendered text and ids of a prompt. A template's text already holds its special tokens."""
        if prompt not in self._encoded:
            if prompt.ids is not None:
                self._encoded[prompt] = (str(self.tokenizer.decode(prompt.ids)), prompt.ids)
                return self._encoded[prompt]
            text = prompt.text if prompt.messages is None else self._render(prompt)
            try:
                ids = self.tokenizer(text, add_special_tokens=prompt.messages is None)["input_ids"]
            except TypeError as error:  # lone surrogates and the like
                raise InvalidRequest(f"the tokenizer refuses this prompt: {error}") from error
            self._encoded[prompt] = (str(text), tuple(ids))
        return self._encoded[prompt]

    def forget(self) -> None:
        """The tokenizer was changed: what it made before does not hold."""
        self._encoded.clear()

    def _render(self, prompt: Text) -> str:
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                "the prompt has messages, but the model's tokenizer has no chat template",
                "Write the prompt as plain text, or take the model's instruct variant.",
            )
        messages = [message.model_dump() for message in prompt.messages or ()]
        end = {"continue_final_message": True} if prompt.continued else {"add_generation_prompt": True}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **end))
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise InvalidRequest(
                f"the model's chat template raised {type(error).__name__}: {error}",
                "Many templates refuse a system message, or turns that do not alternate.",
            ) from error

    def length(self, prompt: Text) -> int:
        try:
            return len(self.encode(prompt)[1])
        except CannotRun:
            return 0

    def refuse_impossible(self, request: Request, prompt: Text) -> None:
        """What would fail obscurely, or not at all, is said before it runs."""
        text, ids = self.encode(prompt)
        if text and not ids:
            raise InvalidRequest(
                "the tokenizer makes no ids at all of this prompt: its class does not fit its files",
                "Load the files with PreTrainedTokenizerFast and save them again; `harness lint` tells more.",
            )
        if not ids:
            raise InvalidRequest("the prompt is empty: no token to start from", "Give it text.")
        if max(ids) >= self.facts.vocabulary:
            raise InvalidRequest(
                f"the tokenizer gives id {max(ids)}, but the model has {self.facts.vocabulary} embeddings",
                "Tokenizer and weights do not belong together; check `path` and `revision`.",
            )
        new = request.generation.max_new_tokens or 0
        window = self.facts.context_window
        if window is not None and len(ids) + new > window and request.kind != "likelihood":
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens; with {new} new ones that is beyond the context of {window}",
                "Shorten the prompt or lower max_new_tokens.",
            )

    def rows(self, requests: Sequence[Request]) -> tuple[Text, ...]:
        """The prompts of the batch, as they can be run: a neighbour's own check says what is wrong with it."""
        layout = requests[0].layout
        if not isinstance(layout, Batch):
            return tuple(request.prompt for request in requests)
        rows = (self._neighbour(requests[0], row) for row in layout.rows)
        return tuple(row for row in rows if row is not None)

    def _neighbour(self, request: Request, row: Text) -> Text | None:
        """The row; cut where it is too long, so that it still pads the others; None where it cannot be run."""
        try:
            self.refuse_impossible(request, row)
            return row
        except InvalidRequest:
            room = (self.facts.context_window or 0) - (request.generation.max_new_tokens or 0)
            with suppress(InvalidRequest):
                cut = Text(ids=self.encode(row)[1][: max(0, room)])
                self.refuse_impossible(request, cut)
                return cut
            return None

    def pad(
        self, rows: Sequence[tuple[int, ...]], side: str, token: int | None, device: torch.device
    ) -> tuple[dict[str, Any], list[int]]:
        """Rows of ids as one tensor with its mask, and how many pads each row got."""
        filler = self.facts.pad_token_id if token is None else token
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids, mask = [], []
        for row, count in zip(rows, pads, strict=True):
            padding, real = [filler] * count, [1] * len(row)
            ids.append([*padding, *row] if side == "left" else [*row, *padding])
            mask.append([0] * count + real if side == "left" else real + [0] * count)
        inputs = {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
        return inputs, pads


def position(request: Request, rows: Sequence[Text], index: int) -> int:
    """The row of the batch that answers a request."""
    if not isinstance(request.layout, Batch):
        return index
    if request.row is None:
        return rows.index(request.prompt)
    # Of the rows that hold this prompt: how many of them stand before the one that is meant.
    before = request.layout.rows[: request.row].count(request.prompt)
    return [number for number, row in enumerate(rows) if row == request.prompt][before]
