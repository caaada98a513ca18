"""The prompt pipeline of real tokenizers: tiny ones, and the embedded model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import backends
from harness.backends.pipeline import TokenizerPipeline
from harness.expectations.prompting import PromptPipeline, hazards, problems
from harness.inputs import Generation, Message, Model
from harness.record import Completion, Failure, Rendering, Request, Target, Text
from harness.rendering import TemplateFailed, describe

MODELS = Path(__file__).parents[2] / "suites" / "models" / "smollm2.yaml"
SPECIAL = ["<pad>", "<eos>", "<s>", "<|start|>", "<|end|>"]
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
QUESTION = Text(messages=(Message(role="user", content="Why?"),))


def tokenizer(
    template: str | None = CHATML, *, adds: str = "", shipped: dict[str, Any] | None = None, spaces: bool = False
) -> Any:
    """One token a byte, or a character where a space becomes a part of the next word, as sentencepiece has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*map(chr, range(33, 127)), "▁"] if spaces else sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.Metaspace() if spaces else pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.Metaspace() if spaces else decoders.ByteLevel()
    if adds:
        named = [(token, vocabulary[token]) for token in ("<s>", "<eos>")]
        made.post_processor = processors.TemplateProcessing(single=adds, special_tokens=named)
    named_tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **named_tokens, **(shipped or {}))
    wrapped.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    wrapped.chat_template = template
    return wrapped


def rendering(prompt: Text = QUESTION, **options: Any) -> Rendering:
    return describe(TokenizerPipeline(tokenizer(**options)), prompt)


def names(found: Any) -> list[str]:
    return [problem.name for problem in found]


def test_the_ids_of_a_chat_are_those_of_the_library() -> None:
    words = tokenizer(adds="<s> $A")
    by_library = words.apply_chat_template(
        [message.model_dump() for message in QUESTION.messages or ()], add_generation_prompt=True, return_dict=True
    )["input_ids"]

    made = describe(TokenizerPipeline(words), QUESTION)

    assert list(made.ids) == by_library
    assert made.ids_with_special == (2, 2, *made.ids[1:])
    assert problems(made) == []
    assert names(hazards(made)) == ["double_bos", "special_in_user_text"]
    assert [made.special_tokens[token] for token in SPECIAL] == list(range(5))
    assert made.closing_ids == (4,)


def test_without_a_bos_in_the_template_the_missing_one_is_told() -> None:
    assert names(problems(rendering(template=CHATML.removeprefix("{{ bos_token }}"), adds="<s> $A"))) == ["bos"]
    assert names(problems(rendering(template=CHATML.removeprefix("{{ bos_token }}")))) == []


def test_plain_text_that_spells_bos_begins_with_two() -> None:
    assert names(problems(rendering(Text(text="Why?"), adds="<s> $A"))) == []
    assert names(problems(rendering(Text(text="<s>Why?"), adds="<s> $A"))) == ["bos"]


def test_plain_text_that_the_tokenizer_ends_with_eos_is_told() -> None:
    assert names(problems(rendering(Text(text="Why?"), adds="$A <eos>"))) == ["generation_prompt"]


def test_a_rendered_chat_as_a_message_is_told() -> None:
    twice = Text(messages=(Message(role="user", content=rendering().text),))

    assert names(problems(rendering(twice))) == ["template_once"]


def test_split_special_tokens_make_plain_text_of_what_users_spell() -> None:
    made = rendering(shipped={"split_special_tokens": True})

    assert made.special_in_user_text == ()
    assert made.ids.count(3) == 0


def test_the_clock_that_templates_read_is_stopped() -> None:
    pipeline = TokenizerPipeline(tokenizer("{{ strftime_now('%d %b %Y, %A') }}" + CHATML))
    turns = [{"role": "user", "content": "Why?"}]

    assert pipeline.render(turns, date=datetime(2001, 2, 3, 4, 5)).startswith("03 Feb 2001, Saturday<s>")
    assert pipeline.render(turns).startswith(f"{datetime.now():%d %b %Y, %A}<s>")


def test_the_clock_runs_again_after_a_template_that_raised() -> None:
    from transformers.utils import chat_template_utils

    before, turns = chat_template_utils.datetime, [{"role": "user", "content": "Why?"}]
    for template, reason in (("{{ raise_exception('no') }}", "TemplateError: no"), ("{{ a.b.c }}", "UndefinedError")):
        with pytest.raises(TemplateFailed, match=reason):
            TokenizerPipeline(tokenizer(template)).render(turns, date=datetime(2001, 2, 3))

    assert chat_template_utils.datetime is before


def test_a_template_with_a_date_fails_and_one_without_does_not() -> None:
    assert names(problems(rendering(template="{{ strftime_now('%Y') }}" + CHATML))) == ["same_on_any_date"]
    assert names(problems(rendering())) == []


def test_white_space_that_sentencepiece_adds_is_a_hazard() -> None:
    made = rendering(spaces=True, template=CHATML.replace("\n", ""))

    assert made.decoded != made.text
    assert made.decoded.replace(" ", "") == made.text
    assert names(problems(made)) == []
    assert "spaces" in names(hazards(made))


def test_letters_that_the_vocabulary_lacks_do_not_come_back() -> None:
    assert names(problems(rendering(Text(text="naïve"), spaces=True))) == ["round_trip"]


def test_added_tokens_count_as_special_where_the_template_writes_them() -> None:
    from tokenizers import AddedToken

    words = tokenizer(CHATML.replace("<|end|>", "<|over|>"))
    words.add_tokens(["<|over|>", "elsewhere", AddedToken("<file>", special=True)])

    made = describe(TokenizerPipeline(words), QUESTION)

    assert "elsewhere" not in made.special_tokens
    assert "<file>" in made.special_tokens
    assert made.closing_ids == (made.special_tokens["<|over|>"],)


def test_a_token_without_an_embedding_is_told() -> None:
    words = tokenizer()
    size = len(words)
    words.add_special_tokens({"additional_special_tokens": [*SPECIAL[3:], "<new>"]})

    assert describe(TokenizerPipeline(words, size), QUESTION).tokenizer_size == size + 1
    assert names(problems(describe(TokenizerPipeline(words, size + 1), QUESTION))) == []
    (problem,) = problems(describe(TokenizerPipeline(words, size), QUESTION))
    assert problem.sentence.endswith(f"the model only {size} embeddings, among them <new>")


def test_a_vocabulary_with_holes_reaches_to_its_highest_special_token() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"w1": 0, "</s>": 7}, unk_token="w1"))

    assert TokenizerPipeline(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")).size == 8


def test_a_clean_up_that_the_tokenizer_ships_with_is_a_hazard() -> None:
    by_name = "clean_up_tokenization_spaces"
    insisting = {by_name: True, f"{by_name}_for_bpe_even_though_it_will_corrupt_output": True}

    assert rendering(shipped=insisting).cleaned_up == "a, b. it's"
    assert "clean_up" in names(hazards(rendering(shipped=insisting)))
    assert problems(rendering(shipped=insisting)) == []
    assert rendering(shipped={by_name: False}).cleaned_up == ""


def test_a_limit_of_the_tokenizer_is_known() -> None:
    assert rendering().max_length is None
    assert rendering(shipped={"model_max_length": 9, "truncation_side": "left"}).truncation_side == "left"
    assert names(problems(rendering(shipped={"model_max_length": 9}))) == ["fits"]


def test_a_continued_message_is_left_open() -> None:
    messages = (*(QUESTION.messages or ()), Message(role="assistant", content="Because"))
    made = rendering(Text(messages=messages, continued=True))

    assert made.text.endswith("<|start|>assistant\nBecause")
    assert problems(made) == []
    assert names(problems(rendering(Text(messages=messages)))) == ["generation_prompt"]


def test_a_template_that_cannot_be_continued_is_told() -> None:
    made = rendering(template=CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'assistant' }}"))

    assert names(problems(made)) == ["continues"]
    assert made.raised["continued"].startswith("ValueError: continue_final_message is set but")


def test_a_tokenizer_class_that_does_not_fit_its_files_makes_no_ids(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "w1": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    made = describe(TokenizerPipeline(loaded), Text(text="w1"))

    # Some releases of transformers take the class from the model's type, whatever the folder says.
    assert names(problems(made)) == ([] if made.ids == (1,) else ["no_ids"])


def ask(folder: Path, prompt: Text) -> Completion | Failure:
    backend = backends.load(Target("tiny", "tiny", Model(path=str(folder), dtype="float32", device="cpu")))
    try:
        (answer,) = backend.generate(PromptPipeline().needs(Request(prompt, Generation(max_new_tokens=4)), ()))
    finally:
        backend.close()
    return answer


def test_a_loaded_target_renders_and_is_judged(tiny: Callable[..., Path]) -> None:
    answer = ask(tiny(), Text(text="w1 w2"))

    assert isinstance(answer, Completion)
    assert answer.rendering
    assert answer.rendering.ids == answer.prompt_ids
    assert PromptPipeline().judge([answer]).status == "passed"


def test_messages_without_a_template_are_an_error_with_the_remedy(tiny: Callable[..., Path]) -> None:
    answer = ask(tiny(chat=False), QUESTION)

    assert isinstance(answer, Failure)
    assert "has no chat template" in answer.message


@pytest.mark.model
def test_the_embedded_model_is_sound() -> None:
    from transformers import AutoTokenizer

    from harness.backends.sources import resolve

    path = yaml.safe_load(MODELS.read_text(encoding="utf-8"))["models"]["smollm2"]["path"]
    words = AutoTokenizer.from_pretrained(resolve(Model(path=path)).path)
    pipeline = TokenizerPipeline(words, 49152)

    chat, plain = describe(pipeline, QUESTION), describe(pipeline, Text(text="1, 2, 3"))

    assert problems(chat) == problems(plain) == []
    assert names(hazards(chat)) == ["special_in_user_text", "system_added", "pad_in_prompt", "truncation"]
    assert chat.system_added == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert chat.closing_ids == (words.convert_tokens_to_ids("<|im_end|>"),)
    assert chat.ids[0] == words.bos_token_id
