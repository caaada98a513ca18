"""What careless code around a sound prompt would fall into, and how faults of prompts are told.

To add a hazard: write a function of its kind, add it to HAZARDS, and its name to Hazard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from harness.expectations.content import quote
from harness.record import Rendering
from harness.rendering import PUNCTUATION, before, shared
from harness.wording import counted

CONTEXT = 12  # characters shown before a difference
EXCERPT = 40

Hazard = Literal[
    "double_bos",
    "pad_in_prompt",
    "truncation",
    "clean_up",
    "spaces",
    "system_refused",
    "other_generation_prompt",
]


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to type."""

    name: str
    sentence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}. {self.remedy}"


def hazards(rendering: Rendering) -> list[Problem]:
    """All that bites elsewhere, though this prompt is made rightly."""
    return [problem for hazard in HAZARDS if (problem := hazard(rendering))]


def _double_bos(rendering: Rendering) -> Problem | None:
    """No problem here, where a template's text is tokenised without special tokens; half of all models have it."""
    count = leading_bos(rendering, rendering.ids_with_special)
    if count < 2 or leading_bos(rendering, rendering.ids) > 1:
        return None
    bos = spelled(rendering, rendering.bos_token_id)
    return Problem(
        "double_bos",
        f"the template already writes {bos}, and tokenizer(text) adds another",
        "Tokenise the template's text with add_special_tokens=False, or let apply_chat_template tokenise it",
    )


def special_from_user_text(rendering: Rendering) -> Problem | None:
    parsed = rendering.special_in_user_text
    if not parsed:
        return None
    closing = [token for token in parsed if rendering.special_tokens[token] in rendering.closing_ids]
    turn = ": whoever writes it can end their turn and speak as another" if closing else ""
    return Problem(
        "special_in_user_text",
        f"user text that spells {some(closing or parsed)} is read as the special token itself{turn}",
        "Take the spellings out of what users write, or use apply_chat_template(…, sanitize_control_tokens=True) "
        "where your transformers has it",
    )


def system_turn_added(rendering: Rendering) -> Problem | None:
    if not rendering.system_added:
        return None
    return Problem(
        "system_added",
        f"the template puts {quote(rendering.system_added)} before the first turn, which no message says",
        "Write your own system message to decide what is said",
    )


def _pad_in_prompt(rendering: Rendering) -> Problem | None:
    count = rendering.ids.count(rendering.pad_token_id) if rendering.pad_token_id is not None else 0
    if not count:
        return None
    pad = spelled(rendering, rendering.pad_token_id)
    return Problem(
        "pad_in_prompt",
        f"the prompt holds the pad token {pad} {counted(count, 'time')}: without a mask it cannot be told from padding",
        "Always pass attention_mask to generate()",
    )


def _truncation(rendering: Rendering) -> Problem | None:
    if not rendering.chat or rendering.max_length is None or rendering.truncation_side == "left":
        return None
    return Problem(
        "truncation",
        f"with truncation=True, a chat of more than {rendering.max_length} tokens loses its end, "
        "where the answer is to begin",
        "Set tokenizer.truncation_side to left, or do not truncate chats",
    )


def _clean_up(rendering: Rendering) -> Problem | None:
    if not rendering.cleaned_up:
        return None
    return Problem(
        "clean_up",
        f"decode() as shipped changes spaces: {PUNCTUATION!r} comes back as {rendering.cleaned_up!r}",
        "Pass clean_up_tokenization_spaces=False to decode()",
    )


def _spaces(rendering: Rendering) -> Problem | None:
    text, decoded = rendering.text, rendering.decoded
    if text == decoded or tight(rendering, text) != tight(rendering, decoded):
        return None
    return Problem(
        "spaces",
        f"decoding changes white space beside special tokens: {difference(text, decoded)}",
        "Compare and concatenate ids, not decoded text",
    )


def _refused(rendering: Rendering) -> Problem | None:
    if not rendering.system_refused:
        return None
    return Problem(
        "system_refused",
        f"the template takes no system message: it {rendering.system_refused}",
        "Write what the system is to say before the first user's text",
    )


def _other_generation_prompt(rendering: Rendering) -> Problem | None:
    """A template that thinks may say more, or less, before an answer; but not something else."""
    text, opening = rendering.text.rstrip(), before(rendering.closed, rendering.answer).rstrip()
    by_itself = rendering.chat and not rendering.continues and rendering.without_generation_prompt is not None
    if not by_itself or not opening or text.startswith(opening) or opening.startswith(text):
        return None
    return Problem(
        "other_generation_prompt",
        f"the generation prompt is not what the template writes before an answer: {difference(opening, text)}",
        "Write the same in the chat template for both, as the model was trained",
    )


def leading_bos(rendering: Rendering, ids: Sequence[int]) -> int:
    return len(list(takewhile(lambda token: token == rendering.bos_token_id, ids)))


def tight(rendering: Rendering, text: str) -> str:
    """Without white space beside special tokens: many tokenizers take it or add it there by design."""
    tokens = "|".join(re.escape(token) for token in sorted(rendering.special_tokens, key=len, reverse=True))
    return re.sub(rf"\s*({tokens})\s*", r"\1", text) if tokens else text


def spelled(rendering: Rendering, token: int | None) -> str:
    return next((text for text, number in rendering.special_tokens.items() if number == token), f"id {token}")


def some(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - 3} more" if len(tokens) > 3 else ""
    return f"{', '.join(tokens[:3])}{more}"


def excerpt(text: str) -> str:
    return quote(text) if len(text) <= EXCERPT else f"{text[:EXCERPT]!r}…"


def difference(one: str, other: str) -> str:
    """Both from shortly before the first place where they differ."""
    start = max(0, shared(one, other) - CONTEXT)
    return f"{excerpt(one[start : start + EXCERPT])} against {excerpt(other[start : start + EXCERPT])}"


HAZARDS: Sequence[Callable[[Rendering], Problem | None]] = (
    _double_bos,
    special_from_user_text,
    system_turn_added,
    _pad_in_prompt,
    _truncation,
    _clean_up,
    _spaces,
    _refused,
    _other_generation_prompt,
)
