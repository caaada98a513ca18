"""What a prompt pipeline, chat template and tokenizer, makes of a prompt and of variations that show its faults.

Judging is done elsewhere. Whoever can render, encode and decode is a Pipeline: a tokenizer of transformers, or
one that is read from a model's files without it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any, Protocol, TypedDict, Unpack

from harness.record import Rendering, Text

ANSWER = "The answer"
DIALOGUE = ("First question", "First answer", "Second question")
SYSTEM = "Be brief"
PUNCTUATION = "a , b . it 's"  # what a clean-up of spaces would change
OTHER_DATE = datetime(2001, 2, 3, 4, 5, 6)

Messages = Sequence[Mapping[str, str]]


class _End(TypedDict, total=False):
    """How the rendered text is to end."""

    add_generation_prompt: bool
    continue_final_message: bool


class TemplateFailed(Exception):
    """The chat template raised, or there is none."""


class Pipeline(Protocol):
    """From messages to text, from text to ids, and back."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def pad_token_id(self) -> int | None: ...

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The id of each token that text must not be able to spell, by its spelling."""

    @property
    def size(self) -> int:
        """All ids of the tokenizer are below this."""

    @property
    def embeddings(self) -> int | None:
        """How many embeddings the model has; None where that is not known."""

    @property
    def max_length(self) -> int | None:
        """The length to which the tokenizer truncates when asked to; None without a limit."""

    @property
    def truncation_side(self) -> str: ...

    @property
    def has_template(self) -> bool: ...

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        date: datetime | None = None,
    ) -> str:
        """The chat template's text, with the clock at this date; raises TemplateFailed."""

    def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Ids; with `special`, those that the tokenizer adds at the ends too."""

    def decode(self, ids: Sequence[int], *, as_shipped: bool = False) -> str:
        """Text with special tokens, as it stands; `as_shipped`: cleaned up if the tokenizer's files say so."""


def describe(pipeline: Pipeline, prompt: Text) -> Rendering:
    """Everything there is to see; raises TemplateFailed where the prompt itself cannot be rendered."""
    return _plain(pipeline, prompt) if prompt.messages is None else _chat(pipeline, prompt)


def _plain(pipeline: Pipeline, prompt: Text) -> Rendering:
    if prompt.ids is not None:
        text = pipeline.decode(prompt.ids)
        same: dict[str, Any] = dict.fromkeys(("ids", "ids_with_special", "ids_without_special"), prompt.ids)
        return Rendering(text=text, decoded=text, **same, **_constants(pipeline))
    text = prompt.text or ""
    ids = pipeline.encode(text, special=True)
    spelled = pipeline.encode(_spelling_all(pipeline, text), special=True)
    return Rendering(
        **_tokenised(pipeline, text),
        **_constants(pipeline),
        ids=ids,
        user_text=(text,),
        special_in_user_text=_more_of(pipeline, spelled, ids),
    )


def _chat(pipeline: Pipeline, prompt: Text) -> Rendering:
    if not pipeline.has_template:
        raise TemplateFailed("the tokenizer has no chat template")
    said = [{"role": message.role, "content": message.content} for message in prompt.messages or ()]
    own_turn = said[-1]["role"] == "assistant"
    answered = said if own_turn else [*said, {"role": "assistant", "content": ANSWER}]
    answer = answered[-1]["content"]
    end: _End = {"continue_final_message": True} if prompt.continued else {"add_generation_prompt": True}
    trials = _Trials(pipeline)
    text = pipeline.render(said, date=trials.now, **end)
    tokenised = _tokenised(pipeline, text)
    closed = trials.render("closed", answered)
    dialogue = _dialogue(trials)
    return Rendering(
        **tokenised,
        **_constants(pipeline),
        ids=tokenised["ids_without_special"],
        chat=True,
        continues=prompt.continued,
        without_generation_prompt=None if own_turn else trials.render("without_generation_prompt", said),
        on_another_date=trials.render("on_another_date", said, date=OTHER_DATE, **end),
        answer=answer,
        continued=text if prompt.continued else trials.render("continued", answered, continue_final_message=True),
        closed=closed,
        closing_ids=_special_ids(pipeline, after(closed, answer)),
        user_text=tuple(turn["content"] for turn in said if turn["role"] in ("user", "system")),
        special_in_user_text=_special_in_user_text(trials, said, tokenised["ids_without_special"], end),
        markup=dialogue.markup,
        system_added="" if said[0]["role"] == "system" else dialogue.preamble,
        system_refused=_system_refused(trials),
        raised=trials.raised,
    )


def after(text: str | None, part: str) -> str:
    """What stands after the last occurrence of a part; "" where it does not occur."""
    return _around(text, part)[2]


def before(text: str | None, part: str) -> str:
    """What stands before the last occurrence of a part; "" where it does not occur."""
    return _around(text, part)[0]


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items both have in common from the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def pieces(text: str, tokens: Iterable[str]) -> list[str]:
    """Special tokens whole, all else by character."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.findall("|".join([*map(re.escape, longest_first), "."]), text, re.DOTALL)


def _around(text: str | None, part: str) -> tuple[str, str, str]:
    part = part.strip()  # many templates strip what they are given
    return text.rpartition(part) if text and part and part in text else ("", "", "")


@dataclass
class _Trials:
    """Renders variations, all at one moment, and keeps what they raise."""

    pipeline: Pipeline
    now: datetime = field(default_factory=datetime.now)
    raised: dict[str, str] = field(default_factory=dict)

    def render(self, name: str, messages: Messages, date: datetime | None = None, **end: Unpack[_End]) -> str | None:
        try:
            return self.pipeline.render(messages, date=date or self.now, **end)
        except TemplateFailed as error:
            self.raised[name] = str(error)
            return None


def _constants(pipeline: Pipeline) -> dict[str, Any]:
    """What is the same for all prompts."""
    shipped = pipeline.decode(pipeline.encode(PUNCTUATION, special=False), as_shipped=True)
    as_it_stands = pipeline.decode(pipeline.encode(PUNCTUATION, special=False))
    return {
        "special_tokens": dict(pipeline.special_tokens),
        "bos_token_id": pipeline.bos_token_id,
        "pad_token_id": pipeline.pad_token_id,
        "tokenizer_size": pipeline.size,
        "embeddings": pipeline.embeddings,
        "max_length": pipeline.max_length,
        "truncation_side": pipeline.truncation_side,
        "cleaned_up": "" if shipped == as_it_stands else shipped,
    }


def _tokenised(pipeline: Pipeline, text: str) -> dict[str, Any]:
    plain = pipeline.encode(text, special=False)
    return {
        "text": text,
        "ids_with_special": pipeline.encode(text, special=True),
        "ids_without_special": plain,
        "decoded": pipeline.decode(plain),
    }


def _special_ids(pipeline: Pipeline, text: str) -> tuple[int, ...]:
    special = set(pipeline.special_tokens.values())
    return tuple(token for token in pipeline.encode(text, special=False) if token in special) if text else ()


def _spelling_all(pipeline: Pipeline, text: str) -> str:
    return " ".join((text, *pipeline.special_tokens))


def _more_of(pipeline: Pipeline, ids: Sequence[int], than: Sequence[int]) -> tuple[str, ...]:
    """The special tokens that occur in these ids more often than in those."""
    count, base = Counter(ids), Counter(than)
    return tuple(spelled for spelled, token in pipeline.special_tokens.items() if count[token] > base[token])


def _special_in_user_text(trials: _Trials, said: Messages, ids: Sequence[int], end: _End) -> tuple[str, ...]:
    """Those of which one more is in the prompt when the last user's text spells them all."""
    turn = max((number for number, one in enumerate(said) if one["role"] == "user"), default=0)
    spelling = {**said[turn], "content": _spelling_all(trials.pipeline, said[turn]["content"])}
    text = trials.render("special_in_user_text", [*said[:turn], spelling, *said[turn + 1 :]], **end)
    return () if text is None else _more_of(trials.pipeline, trials.pipeline.encode(text, special=False), ids)


@dataclass(frozen=True)
class _Dialogue:
    preamble: str = ""
    markup: tuple[str, ...] = ()


def _dialogue(trials: _Trials) -> _Dialogue:
    """What the template writes around a user's turn, and what only before the first one: seen on two turns."""
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": said} for role, said in zip(roles, DIALOGUE, strict=True)]
    text = trials.render("dialogue", turns, add_generation_prompt=True)
    if text is None or not all(said in text for said in DIALOGUE):
        return _Dialogue()
    opening, _, rest = text.partition(DIALOGUE[0])
    between = rest.partition(DIALOGUE[1])[2].partition(DIALOGUE[2])[0]
    closing = text.rpartition(DIALOGUE[2])[2]
    tokens = trials.pipeline.special_tokens
    first, later = pieces(opening, tokens), pieces(between, tokens)
    start = len(first) - shared(first[::-1], later[::-1])
    header = "".join(first[start:])
    preamble = "".join(piece for piece in first[:start] if piece not in tokens)
    return _Dialogue(preamble.strip().removeprefix("system").strip(), (header, closing))


def _system_refused(trials: _Trials) -> str:
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": DIALOGUE[0]}]
    text = trials.render("system", turns, add_generation_prompt=True)
    if text is None:
        return f"raises {trials.raised['system']}"
    return "" if SYSTEM in text else "leaves it out without a word"
