"""What a rendering tells, seen on pipelines made by hand: one id a character, templates in Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from harness.inputs import Message
from harness.record import Rendering, Text
from harness.rendering import OTHER_DATE, PUNCTUATION, Messages, TemplateFailed, after, before, describe

SPECIAL = {"<s>": 1, "</s>": 2, "<|start|>": 3, "<|end|>": 4}
FIRST = 10  # ids below are special
Template = Callable[..., str]


def chatml(messages: Messages, generate: bool, date: datetime | None) -> str:
    text = "".join(f"<|start|>{turn['role']}\n{turn['content']}<|end|>\n" for turn in messages)
    return text + ("<|start|>assistant\n" if generate else "")


def bracketed(messages: Messages, generate: bool, date: datetime | None) -> str:
    """Without system turns and without a generation prompt."""
    if messages[0]["role"] == "system":
        raise TemplateFailed("TemplateError: no system here")
    turns = [f"[INST] {m['content']} [/INST]" if m["role"] == "user" else f" {m['content']}</s>" for m in messages]
    return "<s>" + "".join(turns)


@dataclass
class ByHand:
    template: Template | None = chatml
    adds_bos: bool = False
    cleans_up: bool = False
    bos_token_id: int | None = 1
    pad_token_id: int | None = 2
    special_tokens: dict[str, int] = field(default_factory=lambda: dict(SPECIAL))
    size: int = 300
    embeddings: int | None = 320
    max_length: int | None = 512
    truncation_side: str = "right"
    dates: list[datetime | None] = field(default_factory=list)

    @property
    def has_template(self) -> bool:
        return self.template is not None

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        date: datetime | None = None,
    ) -> str:
        assert self.template
        self.dates.append(date)
        text = self.template(messages, add_generation_prompt, date)
        last = messages[-1]["content"]
        return text[: text.rindex(last) + len(last)] if continue_final_message else text

    def encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        pieces = re.findall("|".join([*map(re.escape, SPECIAL), "."]), text, re.DOTALL)
        ids = tuple(SPECIAL.get(piece, FIRST + ord(piece[0])) for piece in pieces)
        return (1, *ids) if special and self.adds_bos else ids

    def decode(self, ids: Sequence[int], *, as_shipped: bool = False) -> str:
        spelled = {number: text for text, number in SPECIAL.items()}
        text = "".join(spelled.get(token) or chr(token - FIRST) for token in ids)
        return text.replace(" ,", ",") if as_shipped and self.cleans_up else text


def said(*turns: tuple[Any, str]) -> Text:
    return Text(messages=tuple(Message(role=role, content=content) for role, content in turns))


QUESTION = said(("user", "Why?"))


def rendered(prompt: Text = QUESTION, **pipeline: Any) -> Rendering:
    return describe(ByHand(**pipeline), prompt)


def test_a_chat_is_rendered_with_its_variations() -> None:
    made = rendered()

    assert made.text == "<|start|>user\nWhy?<|end|>\n<|start|>assistant\n"
    assert made.without_generation_prompt == "<|start|>user\nWhy?<|end|>\n"
    assert made.continued == made.text + "The answer"
    assert made.closed == made.text + "The answer<|end|>\n"
    assert made.on_another_date == made.text
    assert made.closing_ids == (4,)
    assert made.markup == ("<|start|>user\n", "<|end|>\n<|start|>assistant\n")
    assert (made.chat, made.continues, made.user_text, made.system_added, made.raised) == (
        True,
        False,
        ("Why?",),
        "",
        {},
    )


def test_the_text_of_a_template_gets_no_special_tokens_and_plain_text_does() -> None:
    chat, plain = rendered(adds_bos=True), rendered(Text(text="<s>a"), adds_bos=True)

    assert chat.ids == chat.ids_without_special
    assert chat.ids[0] == 3
    assert chat.ids_with_special == (1, *chat.ids)
    assert plain.ids == plain.ids_with_special == (1, 1, FIRST + ord("a"))
    assert plain.ids_without_special == plain.ids[1:]
    assert plain.decoded == "<s>a"


def test_plain_text_has_no_variations() -> None:
    made = rendered(Text(text="a"))

    assert not made.chat
    assert (made.without_generation_prompt, made.on_another_date, made.continued, made.closed) == (None,) * 4
    assert made.special_in_user_text == tuple(SPECIAL)


def test_ids_stay_as_they_are() -> None:
    made = rendered(Text(ids=(1, 75, 4)), adds_bos=True)

    assert made.ids == made.ids_with_special == made.ids_without_special == (1, 75, 4)
    assert made.text == made.decoded == "<s>A<|end|>"


def test_what_the_pipeline_knows_is_passed_on() -> None:
    made = rendered()

    assert (made.bos_token_id, made.pad_token_id, made.special_tokens) == (1, 2, SPECIAL)
    assert (made.tokenizer_size, made.embeddings, made.max_length, made.truncation_side) == (300, 320, 512, "right")


def test_all_variations_but_one_are_made_at_one_moment() -> None:
    pipeline = ByHand(lambda messages, generate, date: f"{date:%H:%M:%S.%f} {chatml(messages, generate, date)}")

    made = describe(pipeline, QUESTION)

    assert len(set(pipeline.dates)) == 2
    assert made.on_another_date == made.text.replace(made.text.split()[0], f"{OTHER_DATE:%H:%M:%S.%f}")
    assert made.text != made.on_another_date
    assert made.without_generation_prompt
    assert made.text.startswith(made.without_generation_prompt)


def test_a_template_that_refuses_the_prompt_itself_says_so() -> None:
    with pytest.raises(TemplateFailed, match="no system here"):
        rendered(said(("system", "Be kind"), ("user", "Why?")), template=bracketed)


def test_a_missing_template_says_so() -> None:
    with pytest.raises(TemplateFailed, match="no chat template"):
        rendered(template=None)


def test_a_variation_that_raises_is_left_out_and_told() -> None:
    def only_users(messages: Messages, generate: bool, date: datetime | None) -> str:
        if any(turn["role"] != "user" for turn in messages):
            raise TemplateFailed("users only")
        return chatml(messages, generate, date)

    made = rendered(template=only_users)

    assert (made.continued, made.closed, made.closing_ids, made.markup) == (None, None, (), ())
    assert set(made.raised) == {"continued", "closed", "dialogue", "system"}
    assert made.without_generation_prompt


def test_a_system_message_that_is_refused_or_left_out_is_told() -> None:
    def without_system(messages: Messages, generate: bool, date: datetime | None) -> str:
        return chatml([turn for turn in messages if turn["role"] != "system"], generate, date)

    assert rendered().system_refused == ""
    assert rendered(template=bracketed).system_refused == "raises TemplateError: no system here"
    assert rendered(template=without_system).system_refused == "leaves it out without a word"


def test_a_system_turn_that_the_template_adds_is_seen() -> None:
    def with_default(messages: Messages, generate: bool, date: datetime | None) -> str:
        default = [] if messages[0]["role"] == "system" else [{"role": "system", "content": "You are Hal"}]
        return "<s>" + chatml([*default, *messages], generate, date)

    assert rendered(template=with_default).system_added == "You are Hal"
    assert rendered(said(("system", "Be kind"), ("user", "Why?")), template=with_default).system_added == ""


@pytest.mark.parametrize("template", [bracketed, lambda *args: "<s>" + chatml(*args)], ids=["bracketed", "chatml"])
def test_special_tokens_alone_are_no_system_turn(template: Template) -> None:
    assert rendered(template=template).system_added == ""


def test_the_markup_of_a_template_without_special_tokens_is_found() -> None:
    assert rendered(template=bracketed).markup == ("[INST] ", " [/INST]")


def test_special_tokens_that_user_text_can_spell_are_found_by_trying() -> None:
    def careful(messages: Messages, generate: bool, date: datetime | None) -> str:
        bare = [{**turn, "content": turn["content"].replace("<|", "< |")} for turn in messages]
        return chatml(bare, generate, date)

    assert rendered().special_in_user_text == tuple(SPECIAL)
    assert rendered(template=careful).special_in_user_text == ("<s>", "</s>")


def test_what_the_assistant_says_is_no_user_text() -> None:
    prompt = said(("system", "Be kind"), ("user", "Why?"), ("assistant", "So."), ("user", "How?"))

    assert rendered(prompt).user_text == ("Be kind", "Why?", "How?")


def test_a_prefilled_answer_is_its_own_variation() -> None:
    prompt = said(("user", "Why?"), ("assistant", "Because "))
    made = rendered(Text(messages=prompt.messages, continued=True))

    assert made.text == made.continued == "<|start|>user\nWhy?<|end|>\n<|start|>assistant\nBecause "
    assert made.closed == made.text + "<|end|>\n"
    assert (made.continues, made.answer, made.without_generation_prompt) == (True, "Because ", None)


def test_an_empty_prefill_is_no_trouble() -> None:
    prompt = said(("user", "Why?"), ("assistant", ""))

    assert describe(ByHand(), Text(messages=prompt.messages, continued=True)).closing_ids == ()


def test_a_clean_up_of_spaces_is_seen() -> None:
    assert rendered().cleaned_up == ""
    assert rendered(cleans_up=True).cleaned_up == PUNCTUATION.replace(" ,", ",")


def test_around_the_last_occurrence() -> None:
    assert (before("x a y a z", " a "), after("x a y a z", " a ")) == ("x a y ", " z")
    assert (before("x", "a"), after("x", "a"), before(None, "a"), after("x", " ")) == ("", "", "", "")
