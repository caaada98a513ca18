"""The prompt pipeline of a model from its files alone: jinja for the template, tokenizers for the rest; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from harness.files import NAMED_TOKENS, ModelFiles, transformers_version
from harness.rendering import TemplateFailed

MARK = "THE_MODEL_GOES_ON_HERE"  # put after the last message, and found again in what the template makes of it
ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
CLEANED_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class FilePipeline:
    """Renders, encodes and decodes as transformers does with the same files."""

    def __init__(self, files: ModelFiles) -> None:
        """Of files whose `backend` is a tokenizer; it is theirs no longer."""
        self.files = files
        self.cuts_off = files.tokenizer_settings["truncation"]  # read before it is switched off
        self.tokenizer = files.backend
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = bool(files.tokenizer_config.get("split_special_tokens"))
        self.named = {name: text for name in NAMED_TOKENS if (text := files.token(name)) is not None}
        self._add_missing()
        self._date: datetime | None = None

    def id(self, text: str | None) -> int | None:
        number: int | None = None if text is None else self.tokenizer.token_to_id(text)
        return number

    @property
    def bos_token_id(self) -> int | None:
        return self.id(self.named.get("bos_token"))

    @property
    def pad_token_id(self) -> int | None:
        return self.id(self.named.get("pad_token"))

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """Those marked as special, and other added tokens that the chat template writes."""
        template = (self.files.chat_template or "") if self.has_template else ""
        added = {
            token.content: number
            for number, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special or (token.content.strip() and token.content in template)
        }
        return added | {text: number for text in self.named.values() if (number := self.id(text)) is not None}

    @cached_property
    def size(self) -> int:
        added: Iterable[int] = self.tokenizer.get_added_tokens_decoder()
        return max(int(self.tokenizer.get_vocab_size(with_added_tokens=True)), *(number + 1 for number in added), 0)

    @property
    def embeddings(self) -> int | None:
        return self.files.embeddings

    @property
    def max_length(self) -> int | None:
        return self.files.max_length

    @property
    def truncation_side(self) -> str:
        return self.files.truncation_side

    @property
    def has_template(self) -> bool:
        return bool(self.files.chat_template) and self.files.template_file != "chat_template.json"

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        date: datetime | None = None,
    ) -> str:
        said = [dict(message) for message in messages]
        if continue_final_message:
            said[-1]["content"] += f"{MARK} "
        self._date = date
        try:
            text = str(
                self._template.render(
                    messages=said,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self.named,
                )
            )
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error
        return _left_open(text) if continue_final_message else text

    def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], *, as_shipped: bool = False) -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
        if as_shipped and self._cleans_up:
            for spaced in CLEANED_UP:
                text = text.replace(spaced, spaced.strip())
        return text

    @property
    def _cleans_up(self) -> bool:
        """Transformers 5 leaves the text of byte-pair tokenizers alone, whatever their files say."""
        spared = transformers_version() >= (5,) and type(self.tokenizer.model).__name__ == "BPE"
        return bool(self.files.tokenizer_config.get("clean_up_tokenization_spaces")) and not spared

    def _add_missing(self) -> None:
        """Special tokens that tokenizer.json lacks get the next ids, as transformers gives them."""
        from tokenizers import AddedToken

        known = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        named = [{"content": text, "special": True, "normalized": False} for text in self.named.values()]
        for token in (*_declared(self.files), *named, *_further(self.files)):
            if token["content"] not in known:
                self.tokenizer.add_tokens([AddedToken(**token)])
                known.add(token["content"])

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_generation_blocks(), loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": self._now}
        return environment.from_string(self.files.chat_template or "")

    def _now(self, form: str) -> str:
        return (self._date or datetime.now()).strftime(form)


def _left_open(text: str) -> str:
    """The text up to the mark; where the template trims messages, without the spaces before it too."""
    before, found, after = text.rpartition(MARK)
    if not found:
        raise TemplateFailed("the template leaves out the message that is to be gone on with")
    if MARK in before:
        raise TemplateFailed("the template writes the message that is to be gone on with more than once")
    return before if after.startswith(" ") else before.rstrip()


def _declared(files: ModelFiles) -> list[dict[str, Any]]:
    """The table of added tokens in tokenizer_config.json, by their ids."""
    table = files.tokenizer_config.get("added_tokens_decoder")
    entries = table.items() if isinstance(table, dict) else ()
    by_id = {int(number): token for number, token in entries if number.isdecimal() and isinstance(token, dict)}
    tokens = [token for _, token in sorted(by_id.items()) if isinstance(token.get("content"), str)]
    return [{key: token[key] for key in ADDED if key in token} for token in tokens]


def _further(files: ModelFiles) -> Iterator[dict[str, Any]]:
    """Special tokens that have no role of their own."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        further = files.tokenizer_config.get(key) or ()
        for token in further.values() if isinstance(further, dict) else further:
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                yield {"content": text, "special": True, "normalized": False}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what HTML would not bear."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_blocks() -> Any:
    """{% generation %} … {% endgeneration %} marks what an assistant says, for training: here it is text like any."""
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012  as jinja has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationBlocks
