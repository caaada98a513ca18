"""Rules about tokenizer files that versions of transformers read differently; what they say is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from harness.files import read, transformers_version
from harness.lint import Finding, tokenizers
from harness.lint.tokenizers import PROBE, SPLITS, class_in_5, splits

Make = Callable[..., Path]
Found = Callable[..., list[Finding]]

VERSION = transformers_version()
on_5 = pytest.mark.skipif(VERSION < (5,), reason="is about transformers 5")
on_4 = pytest.mark.skipif(VERSION >= (5,), reason="is about transformers 4")


def with_split(split: Any, merges: tuple[tuple[str, str], ...] = ()) -> Any:
    """One token a byte and what is merged, after this pre-tokenizer."""
    from tokenizers import Tokenizer, decoders, models

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", "<s>", "<|start|>", "<|end|>", *letters, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, list(merges)))
    made.pre_tokenizer, made.decoder = split, decoders.ByteLevel()
    made.add_special_tokens(words[:5])
    return made


def digits_apart() -> Any:
    """As SmolLM2 has it: each digit is a token of its own, although "12" is in the vocabulary."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return with_split(split, (("1", "2"),))


@on_5
@pytest.mark.parametrize("name", SPLITS)
def test_classes_split_as_the_table_says(name: str) -> None:
    import transformers

    assert splits(getattr(transformers, name)().backend_tokenizer) == SPLITS[name]


@on_5
def test_a_class_that_forgets_how_the_file_splits_is_an_error(make: Make, found: Found) -> None:
    from transformers import AutoTokenizer

    words = digits_apart()
    folder = make(words=words, settings={"tokenizer_class": "GPT2Tokenizer"})
    [finding] = found(folder, "tokenizer_class")
    assert finding.severity == "error"
    assert "by tokenizer_class, transformers 5 reads the tokenizer as GPT2Tokenizer" in finding.message
    assert "It|'s| 1234|(|x|\\n\\n| y; tokenizer.json says It|'s| |1|2|3|4|(|x|\\n\\n| y" in finding.message
    assert AutoTokenizer.from_pretrained(folder)("12")["input_ids"] != words.encode("12").ids


@on_5
def test_the_remedy_helps(make: Make, found: Found) -> None:
    from transformers import AutoTokenizer

    words = digits_apart()
    folder = make(words=words)
    assert not found(folder, "tokenizer_class")
    assert AutoTokenizer.from_pretrained(folder)("12")["input_ids"] == words.encode("12").ids


@on_5
def test_a_family_that_overrules_its_files(make: Make, found: Found) -> None:
    folder = make(config={"model_type": "qwen2"})
    [finding] = found(folder, "tokenizer_class")
    assert finding.severity == "error"
    assert "by model_type qwen2, transformers 5 reads the tokenizer as Qwen2Tokenizer" in finding.message
    assert "PreTrainedTokenizerFast.from_pretrained(FOLDER)" in finding.remedy


@on_5
def test_a_family_that_overrules_its_files_to_no_effect_on_splitting_is_a_warning(make: Make, found: Found) -> None:
    # Written for this test: single digits, an opening character that goes with a word, and whole runs of newlines.
    split = Regex(r"'s|[^\r\n\p{L}\p{N}\s]?\p{L}+|\p{N}|[\r\n]+| \p{L}+| ")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = with_split(pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), byte_level]))
    [finding] = found(make(words=words, config={"model_type": "qwen2"}), "tokenizer_class")
    assert finding.severity == "warning"
    assert "tokenizer_config.json says PreTrainedTokenizer, but by model_type qwen2" in finding.message


@on_5
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2", "mistral", "phi3", "gemma2", "granite"])
@pytest.mark.parametrize(
    "declared",
    ["PreTrainedTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2TokenizerFast", "LlamaTokenizerFast", None],
)
def test_the_class_is_the_one_that_the_library_takes(make: Make, model_type: str, declared: str | None) -> None:
    from transformers import AutoTokenizer

    folder = make(config={"model_type": model_type}, settings={"tokenizer_class": declared})
    files = read(folder)
    taken, _ = class_in_5(files, byte_level=True)
    generic = taken in tokenizers.GENERIC
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ == ("TokenizersBackend" if generic else taken)


@on_4
def test_transformers_4_reads_tokenizer_json_as_it_is(make: Make, found: Found) -> None:
    assert not found(make(words=digits_apart(), settings={"tokenizer_class": "GPT2Tokenizer"}), "tokenizer_class")


def bos(adds: bool) -> Any:
    from tokenizers import processors

    made = with_split(pre_tokenizers.ByteLevel(add_prefix_space=False))
    if adds:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return made


LLAMA, PLAIN = "LlamaTokenizerFast", "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("name", "adds", "flag", "in_4", "in_5"),
    [
        (LLAMA, False, None, True, False),
        (LLAMA, False, True, True, False),
        (LLAMA, True, False, False, True),
        (LLAMA, True, None, True, True),
        (LLAMA, False, False, False, False),
        (PLAIN, False, None, False, False),
        (PLAIN, True, None, True, True),
    ],
)
def test_a_bos_that_only_one_version_adds(  # noqa: PLR0913, PLR0917  a row of the table
    make: Make, found: Found, name: str, adds: bool, flag: bool | None, in_4: bool, in_5: bool
) -> None:
    from transformers import AutoTokenizer

    folder = make(words=bos(adds), settings={"tokenizer_class": name, "add_bos_token": flag})
    findings = found(folder, "bos_flag")
    assert [finding.severity for finding in findings] == (["warning"] if in_4 != in_5 else [])
    begins = AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == 2
    assert begins == (in_5 if VERSION >= (5,) else in_4)


@pytest.mark.parametrize(("adds", "flag"), [(True, False), (False, True)])
def test_a_bos_flag_without_effect(make: Make, found: Found, adds: bool, flag: bool) -> None:
    from transformers import AutoTokenizer

    folder = make(words=bos(adds), settings={"add_bos_token": flag})
    [finding] = found(folder, "bos_flag")
    assert "but has no effect" in finding.message
    assert (AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == 2) is adds


def test_truncation_in_tokenizer_json_is_told(make: Make, found: Found) -> None:
    words = bos(False)
    words.enable_truncation(3)
    [finding] = found(make(words=words), "cuts_off")
    assert "truncates to 3 tokens" in finding.message
    assert len(PROBE) > 3
