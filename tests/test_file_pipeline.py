"""The prompt pipeline from files, against transformers' own tokenizer on the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness.backends.pipeline import TokenizerPipeline
from harness.file_pipeline import FilePipeline
from harness.files import find, read
from harness.inputs import Message, Model
from harness.record import Text
from harness.rendering import TemplateFailed, describe

SPECIAL = ["<pad>", "<eos>", "<s>", "<|start|>", "<|end|>"]
NAMED = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<s>"}
TEXTS = ["Hello, world", " It's 12,345  ok\n\n\tx ", "<s>a<|end|>b", "é 漢 🙂", "", "a , b . it 's"]
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So "}]
TEMPLATES = {
    "chatml": "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
    "trimming": "{%- for m in messages %}\n    {{- '<|start|>' + m['content'] | trim }}\n"
    "  {% if loop.last %}{% break %}{% endif %}\n{%- endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
    "json": "{{ {'é': messages, 'b': '<&>'} | tojson }}{{ messages | tojson(indent=2) }}{{ eos_token }}{{ nothing }}",
    "date": "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m.content }}"
    "{% endfor %}{{ ns.n }}{% if tools is none %}no tools{% endif %}",
    "refusing": "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('not so') }}{% endif %}"
    "{{ m.content }}{% endfor %}",
}


def byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *letters, "12"])}
    made = Tokenizer(models.BPE(vocabulary, [("1", "2")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def sentencepiece_like() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, "<unk>", "▁", *map(chr, range(33, 127))])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens(SPECIAL)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return made


def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "a": 2, ",": 3, "it": 4, "'s": 5}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(2)
    made.enable_padding(length=9, pad_token="<pad>", pad_id=1)
    return made


SETTINGS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "byte level": (byte_level, NAMED),
    "sentencepiece": (sentencepiece_like, NAMED | {"model_max_length": 77, "truncation_side": "left"}),
    "words that clean up": (words, {"clean_up_tokenization_spaces": True, "unk_token": "<unk>"}),
    "bytes that clean up": (byte_level, NAMED | {"clean_up_tokenization_spaces": True}),
    "an added pad": (byte_level, NAMED | {"pad_token": "[PAD]"}),
    "more special tokens": (byte_level, NAMED | {"additional_special_tokens": ["<|end|>", "<new>"]}),
    "a table of added tokens": (
        byte_level,
        {
            "eos_token": "<eos>",
            "added_tokens_decoder": {
                "262": {"content": "<later>", "special": False, "normalized": False},
                "1": {"content": "<eos>", "special": True, "normalized": False},
                "4": {"content": "<|end|>", "special": True, "lstrip": True, "normalized": False},
            },
        },
    ),
    "special tokens in pieces": (byte_level, NAMED | {"split_special_tokens": True}),
}


def folder_of(where: Path, tokenizer: Any, settings: dict[str, Any], template: str = "") -> Path:
    tokenizer.save(str(where / "tokenizer.json"))
    (where / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}))
    (where / "config.json").write_text('{"model_type": "llama"}')
    if template:
        (where / "chat_template.jinja").write_text(template)
    return where


def both(folder: Path) -> tuple[FilePipeline, TokenizerPipeline]:
    from transformers import AutoTokenizer

    return FilePipeline(read(folder)), TokenizerPipeline(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_and_text_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    make, settings = SETTINGS[name]
    ours, theirs = both(folder_of(tmp_path, make(), settings))
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, special=special)
            assert ours.encode(text, special=special) == ids, text
            for as_shipped in (True, False):
                assert ours.decode(ids, as_shipped=as_shipped) == theirs.decode(ids, as_shipped=as_shipped)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_known_of_the_tokenizer_is_what_the_library_knows(tmp_path: Path, name: str) -> None:
    make, settings = SETTINGS[name]
    ours, theirs = both(folder_of(tmp_path, make(), settings, TEMPLATES["chatml"]))
    for known in ("bos_token_id", "pad_token_id", "special_tokens", "size", "max_length", "truncation_side"):
        assert getattr(ours, known) == getattr(theirs, known), known
    assert ours.files.padding_side == theirs.tokenizer.padding_side


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_say_what_the_library_has_them_say(tmp_path: Path, name: str) -> None:
    ours, theirs = both(folder_of(tmp_path, byte_level(), NAMED, TEMPLATES[name]))
    date = datetime(2024, 2, 29, 12)
    for messages, how in (
        (CHAT[:1], {}),
        (CHAT[:1], {"add_generation_prompt": True}),
        (CHAT, {}),
        (CHAT, {"continue_final_message": True}),
    ):
        assert said(ours, messages, date, how) == said(theirs, messages, date, how), how


def said(pipeline: Any, messages: Any, date: datetime, how: dict[str, bool]) -> str:
    try:
        text: str = pipeline.render(messages, date=date, **how)
    except TemplateFailed:
        return "it raised"
    # Where a message is written twice, the library leaves its own mark in the first place: ours refuses.
    return "it raised" if "FINAL_MESSAGE_TAG" in text else text


def test_messages_stay_as_they_were(tmp_path: Path) -> None:
    ours, _ = both(folder_of(tmp_path, byte_level(), NAMED, TEMPLATES["chatml"]))
    messages = [dict(one) for one in CHAT]
    ours.render(messages, continue_final_message=True)
    assert messages == CHAT


def test_templates_are_kept_in_a_sandbox(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    pipeline = FilePipeline(read(folder_of(tmp_path, byte_level(), NAMED, template)))
    with pytest.raises(TemplateFailed, match="SecurityError"):
        pipeline.render(CHAT)


@pytest.mark.parametrize("name", ["chatml", "trimming", "generation"])
def test_the_whole_rendering_is_that_of_the_library(tmp_path: Path, name: str) -> None:
    ours, theirs = both(folder_of(tmp_path, byte_level(), NAMED, TEMPLATES[name]))
    prompt = Text(messages=(Message(role="user", content="Why?"),))
    assert describe(ours, prompt) == describe(theirs, prompt)


@pytest.mark.model
def test_the_embedded_model_is_read_as_the_library_reads_it() -> None:
    from transformers import AutoTokenizer

    from harness.backends.sources import resolve
    from harness.load import load

    suite = Path(__file__).parents[1] / "suites" / "basics.yaml"
    model: Model = load(suite).suite.models["smollm2"]
    where = resolve(model).path
    files = find(model)
    assert not isinstance(files, str)
    assert str(files.where) == where
    ours, theirs = (
        FilePipeline(files),
        TokenizerPipeline(AutoTokenizer.from_pretrained(where), rows_of_the_embedding(files)),
    )
    for text in (*TEXTS, suite.read_text()):
        assert ours.encode(text, special=True) == theirs.encode(text, special=True)
        assert ours.decode(ours.encode(text, special=False)) == text
    for prompt in (Text(messages=(Message(role="user", content="Why? 123"),)), Text(text="1, 2, 3,")):
        assert describe(ours, prompt) == describe(theirs, prompt)


def rows_of_the_embedding(files: Any) -> int:
    """Counted in the weights themselves."""
    from safetensors import safe_open

    with safe_open(files.where / "model.safetensors", "pt") as weights:
        return int(weights.get_slice("model.embed_tokens.weight").get_shape()[0])
