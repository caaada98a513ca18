"""Problems and hazards of prompts, on renderings made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from harness.expectations.hazards import HAZARDS, Hazard, hazards
from harness.expectations.prompting import OF_CHATS, RULES, PromptPipeline, problems
from harness.inputs import GREEDY, Generation
from harness.record import Rendering, Request, Text

SPECIAL = {"<s>": 1, "</s>": 2, "<|start|>": 3, "<|end|>": 4}
USER = "<|start|>user\nWhy?<|end|>\n"
TEXT = f"<s>{USER}<|start|>assistant\n"
SOUND: dict[str, Any] = {
    "text": TEXT,
    "ids": (1, 3, 50, 4, 3, 51),
    "ids_with_special": (1, 3, 50, 4, 3, 51),
    "ids_without_special": (1, 3, 50, 4, 3, 51),
    "decoded": TEXT,
    "chat": True,
    "special_tokens": SPECIAL,
    "bos_token_id": 1,
    "tokenizer_size": 100,
    "embeddings": 100,
    "truncation_side": "left",
    "max_length": 6,
    "without_generation_prompt": f"<s>{USER}",
    "on_another_date": TEXT,
    "answer": "The answer",
    "continued": f"{TEXT}The answer",
    "closed": f"{TEXT}The answer<|end|>\n",
    "closing_ids": (4,),
    "user_text": ("Why?",),
    "markup": ("<|start|>user\n", "<|end|>\n<|start|>assistant\n"),
}
PLAIN: dict[str, Any] = {
    "text": "Why?",
    "ids": (1, 50),
    "ids_with_special": (1, 50),
    "ids_without_special": (50,),
    "decoded": "Why?",
    "special_tokens": SPECIAL,
    "bos_token_id": 1,
    "user_text": ("Why?",),
}


def chat(**fields: Any) -> Rendering:
    return Rendering(**(SOUND | fields))


def plain(**fields: Any) -> Rendering:
    return Rendering(**(PLAIN | fields))


def sentences(rendering: Rendering, **settings: Any) -> dict[str, str]:
    return {problem.name: problem.sentence for problem in problems(rendering, PromptPipeline(**settings))}


def remedy(rendering: Rendering, **settings: Any) -> str:
    (problem,) = problems(rendering, PromptPipeline(**settings))
    return problem.remedy


@pytest.mark.parametrize("rendering", [chat(), plain()], ids=["chat", "plain"])
def test_a_sound_prompt_has_neither_problems_nor_hazards(rendering: Rendering) -> None:
    assert problems(rendering) == hazards(rendering) == []


def ids(*tokens: int) -> dict[str, Any]:
    return {"ids": tokens, "ids_without_special": tokens}


@pytest.mark.parametrize(
    ("rendering", "setting", "sentence"),
    [
        (chat(**ids(1, 1, 50)), "as_shipped", "the prompt begins with <s> 2 times"),
        (chat(**ids(1, 1, 50)), "one", "the prompt begins with <s> 2 times"),
        (chat(**ids(1, 1, 50)), "none", "the prompt begins with <s>"),
        (chat(**ids(1, 1, 50)), "any", ""),
        (chat(), "none", "the prompt begins with <s>"),
        (chat(**ids(50)), "none", ""),
        (
            chat(**ids(50)),
            "as_shipped",
            "the prompt does not begin with <s>, which the tokenizer puts before plain text",
        ),
        (chat(**ids(50), ids_with_special=(50,)), "as_shipped", ""),
        (chat(**ids(50), ids_with_special=(50,)), "one", "the prompt does not begin with <s>"),
        (chat(bos_token_id=None), "as_shipped", ""),
        (chat(bos_token_id=None), "one", "the tokenizer has no BOS token"),
        (plain(text="<s>Why?", ids=(1, 1, 50)), "as_shipped", "the prompt begins with <s> 2 times"),
        (plain(ids=(50,), ids_with_special=(50,)), "as_shipped", ""),
    ],
)
def test_bos(rendering: Rendering, setting: str, sentence: str) -> None:
    assert sentences(rendering, bos=setting, round_trip=False, generation_prompt=False).get("bos", "") == sentence


@pytest.mark.parametrize(
    ("rendering", "what_to_do"),
    [
        (chat(**ids(1, 1, 50)), "Take <s> out of the start of the chat template"),
        (
            chat(text=USER, on_another_date=USER, **ids(1, 1, 50)),
            "Tokenise the template's text with add_special_tokens=False",
        ),
        (chat(**ids(50)), "Put {{ bos_token }} first in the chat template, or say `bos: none`"),
        (plain(text="<s>Why?", ids=(1, 1, 50)), "Take <s> out of the text: the tokenizer adds it"),
        (plain(ids=(1, 1, 50)), "Set add_bos_token to false"),
    ],
)
def test_the_remedy_of_a_wrong_bos_names_its_cause(rendering: Rendering, what_to_do: str) -> None:
    assert remedy(rendering, round_trip=False, generation_prompt=False) == what_to_do


def test_a_bos_that_only_careless_code_doubles_is_a_hazard() -> None:
    rendering = chat(ids_with_special=(1, 1, 3, 50))

    assert problems(rendering) == []
    assert [hazard.name for hazard in hazards(rendering)] == ["double_bos"]
    assert hazards(chat(**ids(1, 1, 50), ids_with_special=(1, 1, 1, 50))) == []  # a problem already


def test_a_template_that_ignores_the_generation_prompt_fails_with_the_words_to_add() -> None:
    text = f"<s>{USER}"
    rendering = chat(text=text, decoded=text, on_another_date=text)

    assert sentences(rendering) == {
        "generation_prompt": "the template ignores add_generation_prompt: '<|start|>assistant\\n', with which an "
        "answer begins, is missing"
    }
    assert "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}" in remedy(rendering)


@pytest.mark.parametrize("space", ["", " "])
def test_a_template_whose_answer_just_follows_needs_no_generation_prompt(space: str) -> None:
    text = "<s>[INST] Why? [/INST]"
    rendering = chat(
        text=text,
        decoded=text,
        on_another_date=text,
        without_generation_prompt=text,
        continued=f"{text}{space}The answer",
        closed=f"{text}{space}The answer</s>",
        markup=("[INST] ", " [/INST]"),
    )

    assert problems(rendering) == hazards(rendering) == []


@pytest.mark.parametrize(("markup", "fails"), [(("", "\n"), True), (("", "</s>"), False), ((), False)])
def test_a_template_that_only_joins_messages_fails(markup: tuple[str, ...], fails: bool) -> None:
    text = "Why?\n"
    joined = chat(text=text, without_generation_prompt=text, closed=f"{text}The answer\n", markup=markup)

    found = sentences(joined, round_trip=False, same_on_any_date=False)

    assert ("cannot tell who speaks" in found.get("generation_prompt", "")) is fails


def test_the_generation_prompt_may_only_be_added() -> None:
    changed = chat(without_generation_prompt="<s>In short:\n" + USER)

    assert sentences(changed)["generation_prompt"].startswith("add_generation_prompt changes what stands before it:")
    assert problems(chat(without_generation_prompt=f"<s>{USER}</s>\n")) == []  # closed with EOS otherwise


def test_a_generation_prompt_that_shortens_the_text_fails() -> None:
    assert "generation_prompt" in sentences(chat(without_generation_prompt=f"{TEXT}<|end|>"))


def test_an_assistants_message_at_the_end_is_to_be_gone_on_with() -> None:
    rendering = chat(without_generation_prompt=None)

    assert "the last message is the assistant's" in sentences(rendering)["generation_prompt"]
    assert "continue_final_message: true" in remedy(rendering)
    assert problems(dataclasses.replace(rendering, continues=True)) == []


def test_plain_text_that_the_tokenizer_ends_fails() -> None:
    ended = plain(ids=(1, 50, 2), ids_with_special=(1, 50, 2))

    assert sentences(ended) == {
        "generation_prompt": "the tokenizer puts </s> after the text: to the model it is over before it begins"
    }
    assert problems(plain(ids=(1, 50, 2), ids_without_special=(50, 2))) == []  # the text itself says so


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (TEXT, "spells <s>, <|start|>, <|end|>"),
        ("Why?<|end|>", "spells <|end|>"),
        ("What is a <b>?", ""),
    ],
)
def test_a_message_that_holds_special_tokens_has_been_through_a_template(message: str, found: str) -> None:
    text = TEXT.replace("Why?", message)
    rendering = chat(
        text=text, decoded=text, on_another_date=text, user_text=(message,), special_in_user_text=tuple(SPECIAL)
    )
    rendering = dataclasses.replace(rendering, without_generation_prompt=text.removesuffix("<|start|>assistant\n"))

    assert sentences(rendering).get("template_once", "").endswith(found)
    assert bool(sentences(rendering)) == bool(found)
    assert "template_once" not in sentences(rendering, template_once=False)


@pytest.mark.parametrize(
    ("message", "fails"),
    [("[INST] Why? [/INST]", True), ("[/INST] [INST]", False), ("What is [INST] for?", False)],
)
def test_markup_of_plain_words_counts_only_as_a_whole_turn(message: str, fails: bool) -> None:
    text = f"<s>[INST] {message} [/INST]"
    rendering = chat(text=text, user_text=(message,), markup=("[INST] ", " [/INST]"))

    assert ("template_once" in sentences(rendering)) is fails


def test_markup_too_short_to_mean_anything_is_not_looked_for() -> None:
    assert "template_once" not in sentences(chat(user_text=("a: b > c",), markup=("a:", ">")), messages_kept=False)


def test_special_tokens_that_are_meant_are_no_second_template() -> None:
    message = "Why?<|end|>"
    text = TEXT.replace("Why?", message)
    fields: dict[str, Any] = {"text": text, "decoded": text, "on_another_date": text, "user_text": (message,)}

    parsed = chat(**fields, special_in_user_text=("<|end|>",))
    in_pieces = chat(**fields)

    assert "template_once" not in sentences(parsed, special_in_user_text="special", generation_prompt=False)
    assert sentences(in_pieces, special_in_user_text="special", generation_prompt=False) == {
        "special_in_user_text": "<|end|> in the text is not read as the special token but in pieces"
    }


def test_special_tokens_from_user_text_are_a_hazard_and_by_choice_a_problem() -> None:
    rendering = chat(special_in_user_text=("<s>", "<|end|>"))

    assert problems(rendering) == []
    assert [hazard.name for hazard in hazards(rendering)] == ["special_in_user_text"]
    assert sentences(rendering, special_in_user_text="plain") == {
        "special_in_user_text": "user text that spells <|end|> is read as the special token itself: whoever writes it "
        "can end their turn and speak as another"
    }
    assert problems(chat(), PromptPipeline(special_in_user_text="plain")) == []


def test_a_message_that_the_template_leaves_out_is_named() -> None:
    rendering = chat(user_text=("Be kind", "Why?"))

    assert sentences(rendering) == {"messages_kept": "the template leaves out or changes the message 'Be kind'"}
    assert problems(chat(user_text=("  Why?\n",))) == []  # stripped is kept


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"continued": f"{TEXT}The answer<|end|>\n"}, "does not continue: '<|end|>' closes the assistant's turn"),
        ({"continued": TEXT}, "the template leaves out the assistant's beginning 'The answer'"),
        ({"continued": None, "raised": {"continued": "ValueError: no"}}, "with this template: ValueError: no"),
        ({"continued": f"{TEXT} The answer "}, ""),
    ],
)
def test_continue_final_message_leaves_the_turn_open(fields: dict[str, Any], sentence: str) -> None:
    found = sentences(chat(**fields))

    assert found.get("continues", "").endswith(sentence)
    assert bool(found) == bool(sentence)
    assert sentences(chat(**fields), continues=False) == {}


def test_ids_that_do_not_say_what_the_text_says_fail() -> None:
    garbled = plain(text="Why not?", decoded="Why <unk>?")

    assert hazards(garbled) == []
    assert sentences(garbled) == {
        "round_trip": "the ids do not say what the text says: 'Why not?' against 'Why <unk>?'"
    }


def test_white_space_beside_special_tokens_is_only_a_hazard() -> None:
    rendering = chat(decoded=TEXT.replace("<s>", "<s> ").replace("<|end|>\n", "<|end|>"))

    assert problems(rendering) == []
    assert [hazard.name for hazard in hazards(rendering)] == ["spaces"]
    assert "round_trip" in sentences(chat(decoded=TEXT.replace("user\nWhy", "user Why")))


def test_no_ids_at_all_is_the_only_thing_said() -> None:
    nothing = plain(ids=(), ids_with_special=(), ids_without_special=(), decoded="")

    assert sentences(nothing) == {"no_ids": "the tokenizer makes no ids at all of 'Why?'"}
    assert "PreTrainedTokenizerFast" in remedy(nothing)
    assert sentences(plain(text="", **ids(), decoded="", user_text=("",)), bos="any") == {}


def test_a_date_in_the_template_fails_unless_accepted() -> None:
    dated = chat(on_another_date=TEXT.replace("Why", "3 Feb"))

    assert sentences(dated) == {
        "same_on_any_date": "the template writes the date, so outputs change from day to day: "
        "'start|>user\\nWhy?<|end|>\\n<|start|>assista' against 'start|>user\\n3 Feb?<|end|>\\n<|start|>assis'"
    }
    assert sentences(dated, same_on_any_date=False) == {}


def test_a_system_turn_that_is_added_is_a_hazard_and_by_choice_a_problem() -> None:
    added = chat(system_added="You are Hal")

    assert problems(added) == []
    assert [hazard.name for hazard in hazards(added)] == ["system_added"]
    assert sentences(added, system_added="none") == {
        "system_added": "the template puts 'You are Hal' before the first turn, which no message says"
    }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"embeddings": 99}, "the tokenizer has 100 ids, the model only 99 embeddings"),
        ({"embeddings": 4}, "the tokenizer has 100 ids, the model only 4 embeddings, among them <|end|>"),
        ({"embeddings": None}, ""),
        ({"max_length": 5}, "the prompt has 6 tokens: truncated to model_max_length, 5, it loses the beginning"),
        (
            {"max_length": 5, "truncation_side": "right"},
            "the prompt has 6 tokens: truncated to model_max_length, 5, it loses the end, where the answer is to begin",
        ),
        ({"max_length": None}, ""),
    ],
)
def test_prompt_and_tokenizer_fit_the_model(fields: dict[str, Any], sentence: str) -> None:
    assert sentences(chat(**fields)).get("fits", "") == sentence
    assert sentences(chat(**fields), fits=False) == {}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"pad_token_id": 4}, "pad_in_prompt"),
        ({"truncation_side": "right"}, "truncation"),
        ({"cleaned_up": "a, b"}, "clean_up"),
        ({"system_refused": "raises TemplateError: no"}, "system_refused"),
        ({"closed": f"<s>{USER}<|start|>model\nThe answer<|end|>\n"}, "other_generation_prompt"),
    ],
)
def test_a_hazard_is_no_problem_unless_it_is_refused(fields: dict[str, Any], name: Hazard) -> None:
    rendering = chat(**fields)

    assert [hazard.name for hazard in hazards(rendering)] == [name]
    assert problems(rendering) == []
    assert list(sentences(rendering, refuse=[name])) == [name]


def test_plain_text_may_be_truncated_at_its_end() -> None:
    assert hazards(plain(max_length=6)) == []


@pytest.mark.parametrize("opening", ["", "<think>\n\n</think>\n\n"])
def test_a_template_that_thinks_before_an_answer_is_sound(opening: str) -> None:
    text = f"{TEXT}<think>\n"
    thinking = chat(text=text, decoded=text, on_another_date=text, closed=f"{TEXT}{opening}The answer<|end|>\n")

    assert problems(thinking) == hazards(thinking) == []


def test_every_hazard_can_be_refused_by_name() -> None:
    worst = chat(
        ids_with_special=(1, 1),
        special_in_user_text=("<s>",),
        system_added="Hal",
        pad_token_id=3,
        truncation_side="right",
        cleaned_up="a, b",
        decoded=TEXT.replace("<s>", "<s> "),
        system_refused="raises",
        closed=f"<s>{USER}<|start|>model\nThe answer",
    )

    names = [hazard.name for hazard in hazards(worst)]

    assert len(names) == len(HAZARDS)
    assert set(names) == {*get_args(Hazard), "special_in_user_text", "system_added"}


def test_every_rule_has_a_field_that_switches_it() -> None:
    assert set(RULES) == set(PromptPipeline.model_fields) - {"refuse"}
    assert set(OF_CHATS) < set(RULES)


def test_one_rendering_of_the_prompt_is_needed() -> None:
    request = Request(Text(text="Why?"), GREEDY, layout="any")

    (needed,) = PromptPipeline().needs(request, [request])

    assert needed == Request(Text(text="Why?"), GREEDY, layout="alone", kind="render")


def test_a_sound_prompt_passes_and_says_what_was_looked_at(completion: Any) -> None:
    passed = PromptPipeline().judge([completion(rendering=chat(truncation_side="right"))])
    short = PromptPipeline().judge([completion(rendering=plain())])

    assert (passed.status, short.status) == ("passed", "passed")
    assert passed.reason == (
        "chat of 6 tokens, sound in bos, generation_prompt, template_once, messages_kept, continues, round_trip, "
        "same_on_any_date, fits"
    )
    assert passed.numbers == {"prompt_tokens": 6, "hazards": "truncation"}
    assert [line.split(":")[0] for line in passed.details] == ["hazard  truncation"]
    assert short.reason == (
        "plain text, without a chat template, of 2 tokens, sound in bos, generation_prompt, round_trip, fits"
    )
    assert not short.details


def test_all_problems_are_told_with_their_remedies_and_the_first_is_the_reason(completion: Any) -> None:
    rendering = chat(**ids(1, 1, 50), embeddings=99, special_in_user_text=("<|end|>",))

    verdict = PromptPipeline(special_in_user_text="plain").judge([completion(rendering=rendering)])

    assert verdict.status == "failed"
    assert verdict.reason == "the prompt begins with <s> 2 times (and 2 more problems)"
    assert verdict.numbers["problems"] == "bos, fits, special_in_user_text"
    assert verdict.details == tuple(map(str, problems(rendering, PromptPipeline(special_in_user_text="plain"))))
    assert verdict.details[0].endswith(". Take <s> out of the start of the chat template")


def test_a_backend_without_a_pipeline_is_skipped(completion: Any) -> None:
    assert PromptPipeline().judge([completion()]).status == "skipped"


def test_plain_text_to_which_nothing_applies_is_skipped(completion: Any) -> None:
    only_chats = PromptPipeline(bos="any", generation_prompt=False, round_trip=False, fits=False)

    assert only_chats.judge([completion(rendering=plain())]).status == "skipped"
    assert only_chats.judge([completion(rendering=chat())]).status == "passed"


def test_it_is_written_as_true_or_as_a_mapping() -> None:
    assert PromptPipeline.model_validate(True) == PromptPipeline()
    written = {"bos": "none", "refuse": ["double_bos"], "system_added": "none"}
    assert PromptPipeline.model_validate(written) == PromptPipeline(
        bos="none", refuse=("double_bos",), system_added="none"
    )
    assert hash(PromptPipeline()) == hash(PromptPipeline())


@pytest.mark.parametrize("written", [{"bos": "two"}, {"refuse": ["nonsense"]}, {"round_trip": 1}, {"x": True}, "true"])
def test_what_makes_no_sense_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        PromptPipeline.model_validate(written)


def test_the_request_keeps_its_generation_because_lengths_count() -> None:
    generation = Generation(max_new_tokens=500)

    assert PromptPipeline().needs(Request(Text(text="a"), generation), ())[0].generation == generation
