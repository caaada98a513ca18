"""The prompt pipeline of a tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Any

from harness.backends.loading import UNLIMITED
from harness.rendering import TemplateFailed


class TokenizerPipeline:
    """Renders, encodes and decodes as the tokenizer does."""

    def __init__(self, tokenizer: Any, embeddings: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.embeddings = embeddings

    @property
    def bos_token_id(self) -> int | None:
        return self._id(self.tokenizer.bos_token_id)

    @property
    def pad_token_id(self) -> int | None:
        return self._id(self.tokenizer.pad_token_id)

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Those marked as special, and other added tokens that the chat template writes."""
        template = str(self.tokenizer.chat_template or "")
        added = {
            token.content: number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or (token.content.strip() and token.content in template)
        }
        named = zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        return added | {str(spelled): number for spelled, number in named}

    @cached_property
    def size(self) -> int:
        added: Iterable[int] = self.tokenizer.added_tokens_decoder  # get_vocab() would take 0.2 s
        return max(len(self.tokenizer), *(number + 1 for number in added), 0)

    @property
    def max_length(self) -> int | None:
        limit = self.tokenizer.model_max_length
        return int(limit) if limit and limit < UNLIMITED else None

    @property
    def truncation_side(self) -> str:
        return str(self.tokenizer.truncation_side)

    @property
    def has_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        date: datetime | None = None,
    ) -> str:
        try:
            with _clock_at(date):
                text = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                )
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error
        return str(text)

    def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def decode(self, ids: Sequence[int], *, as_shipped: bool = False) -> str:
        how = {} if as_shipped else {"clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, **how))

    @staticmethod
    def _id(token: Any) -> int | None:
        return None if token is None else int(token)


@contextmanager
def _clock_at(date: datetime | None) -> Iterator[None]:
    """The clock that templates read through `strftime_now`: it is no argument of theirs and cannot be passed."""
    from transformers.utils import chat_template_utils

    if date is None:
        yield
        return
    stopped = date

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return stopped if tz is None else stopped.astimezone(tz)

    clock = chat_template_utils.datetime
    chat_template_utils.datetime = Stopped
    try:
        yield
    finally:
        chat_template_utils.datetime = clock
