"""Rules about the checkpoint: whole, readable, of one mind about its vocabulary, and long enough."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.files import read, transformers_version
from harness.lint import Finding, checkpoint, lint_model

Make = Callable[..., Path]
Found = Callable[..., list[Finding]]

SUITE = """
prompts: {short: abc, long: "%s"}
generation: {own: {do_sample: false, max_new_tokens: 10}}
tests:
  - {name: first, prompts: [short], generation: own, expect: {stops_at_eos: true}}
  - {name: second, prompts: [short, long], generation: own, expect: {stops_at_eos: true}}
  - {name: third, prompts: [long], generation: own, expect: {stops_at_eos: true}}
"""


def suite(letters: int) -> str:
    """Prompts of 3 and of so many tokens, a letter each; the tests stand in lines 7, 8 and 9."""
    return SUITE.lstrip("\n") % ("a" * letters)


def test_a_sound_model_gives_no_error_and_no_warning(make: Make) -> None:
    findings = lint_model(read(make()))
    assert {finding.severity for finding in findings} == {"note"}, findings


def test_broken_files_are_told_each(make: Make, found: Found) -> None:
    folder = make()
    (folder / "config.json").write_text("{]")
    (folder / "generation_config.json").write_text("[1]")
    (folder / "tokenizer.json").write_text("{}")
    told = {finding.where: finding for finding in found(folder, "readable")}
    assert {finding.severity for finding in told.values()} == {"error"}
    assert "cannot be read as JSON" in told["config.json"].message
    assert "holds a list" in told["generation_config.json"].message
    assert "prompts were not looked at" in told["tokenizer.json"].message


def test_a_missing_config_is_told_once(make: Make, found: Found) -> None:
    folder = make()
    (folder / "config.json").unlink()
    assert [finding.message for finding in found(folder, "readable")] == ["config.json: there is no such file"]
    assert not found(folder, "loadable")


def test_without_tokenizer_json_the_rest_is_looked_at(make: Make, found: Found) -> None:
    folder = make(config={"eos_token_id": None}, generation={"eos_token_id": None})
    (folder / "tokenizer.json").unlink()
    assert [finding.severity for finding in found(folder, "readable")] == ["note"]
    assert found(folder, "eos")
    assert not found(folder, "pad", suite(5))


def test_only_pickles_are_an_error_with_a_remedy(make: Make, found: Found) -> None:
    folder = make()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    [finding] = found(folder, "loadable")
    assert (finding.severity, "only pytorch_model.bin" in finding.message) == ("error", True)
    assert "safe_serialization=True" in finding.remedy


def test_a_shard_that_is_not_there_is_an_error(make: Make, found: Found) -> None:
    folder = make()
    index = {"weight_map": {"model.embed_tokens.weight": "model.safetensors", "b": "gone.safetensors"}}
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    [finding] = found(folder, "loadable")
    assert (finding.severity, "gone.safetensors" in finding.message) == ("error", True)


def test_a_hub_model_that_is_not_whole_would_be_fetched(make: Make) -> None:
    folder = make()
    (folder / "model.safetensors").unlink()
    findings = lint_model(dataclasses.replace(read(folder), from_hub=True))
    [finding] = [finding for finding in findings if finding.rule == "loadable"]
    assert (finding.severity, "`harness run` fetches" in finding.remedy) == ("note", True)


def test_a_tensor_that_no_file_holds_is_an_error(make: Make, found: Found) -> None:
    folder = make()
    index = {"weight_map": {"model.embed_tokens.weight": "model.safetensors", "lost": "model.safetensors"}}
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    [finding] = found(folder, "loadable")
    assert "1 tensors that no file holds, the first is lost" in finding.message


def test_weights_of_another_type_than_config_json_says(make: Make, found: Found) -> None:
    folder = make(config={"dtype": None, "torch_dtype": "float16"})
    [finding] = found(folder, "dtype")
    assert finding.message == "config.json says float16, the weights are float32: `dtype: auto` loads float16"
    assert found(folder, "dtype", suite(5))
    assert not found(folder, "dtype", suite(5), model="dtype: float32")


def test_what_auto_means_is_told_where_it_is_not_float32(make: Make, found: Found) -> None:
    tensors = {"model.embed_tokens.weight": ("BF16", (261, 2)), "norm.weight": ("F32", (2,))}
    folder = make(config={"dtype": "bfloat16"}, tensors=tensors)
    assert [finding.severity for finding in found(folder, "dtype", suite(5))] == ["note"]


def test_quantized_weights_are_of_another_type_by_design(make: Make, found: Found) -> None:
    assert not found(make(config={"dtype": "float16", "quantization_config": {"quant_method": "gptq"}}), "dtype")


def test_a_vocabulary_of_another_size_than_the_embedding(make: Make, found: Found) -> None:
    [finding] = found(make(config={"vocab_size": 300}), "vocabulary")
    assert (finding.severity, "vocab_size 300, the embedding has 261 rows" in finding.message) == ("error", True)


def test_special_ids_beyond_the_embedding(make: Make, found: Found) -> None:
    folder = make(generation={"pad_token_id": -1, "eos_token_id": [1, 261]})
    [finding] = found(folder, "vocabulary")
    assert "eos_token_id 261 and pad_token_id -1, but ids end at 260" in finding.message


def test_an_added_pad_token_without_an_embedding(make: Make, found: Found) -> None:
    [finding] = found(make(settings={"pad_token": "[PAD]"}), "vocabulary")
    assert finding.severity == "error"
    assert "the tokenizer has 262 ids, the embedding 261 rows, among them '[PAD]'" in finding.message
    assert "resize_token_embeddings" in finding.remedy


@pytest.mark.parametrize(("rows", "told"), [(261 + 128, False), (261 + 129, True)])
def test_an_embedding_far_beyond_the_tokenizer(make: Make, found: Found, rows: int, told: bool) -> None:
    folder = make(config={"vocab_size": rows}, tensors={"model.embed_tokens.weight": ("F32", (rows, 2))})
    assert [finding.severity for finding in found(folder, "vocabulary")] == (["note"] if told else [])


def test_the_embedding_is_found_by_its_name_or_by_the_configuration(make: Make, found: Found) -> None:
    tensors = {"transformer.wte.weight": ("F32", (100, 2)), "lm_head.weight": ("F32", (261, 2))}
    folder = make(tensors=tensors)
    assert read(folder).embeddings == 100
    assert {finding.severity for finding in found(folder, "vocabulary")} == {"error", "warning"}


@pytest.mark.parametrize(
    ("installed", "severity"), [((4, 57, 6), "error"), ((5, 23, 0), "warning")], ids=["on 4", "on 5"]
)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"config": {"rope_theta": None, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}},
            "rope_theta 500000 stands in rope_parameters alone: transformers 4 takes 10000",
        ),
        ({"settings": {"tokenizer_class": "TokenizersBackend"}}, "transformers 4 does not know"),
        ({"settings": {"extra_special_tokens": ["<|end|>"]}}, "extra_special_tokens is a list"),
    ],
    ids=["rope", "class", "list"],
)
def test_what_only_transformers_5_understands(  # noqa: PLR0913, PLR0917  two axes, three fixtures
    make: Make,
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    said: str,
    installed: tuple[int, ...],
    severity: str,
) -> None:
    monkeypatch.setattr(checkpoint, "transformers_version", lambda: installed)
    [finding] = found(make(**changes), "dialect")
    assert (finding.severity, said in finding.message) == (severity, True)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_parameters": {"rope_theta": 10000.0}, "rope_theta": None},
        {"rope_parameters": {"rope_theta": 1e6}, "rope_theta": None, "model_type": "mixtral"},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5},
    ],
)
def test_what_both_versions_read_alike(make: Make, found: Found, config: dict[str, Any]) -> None:
    assert not found(make(config=config), "dialect")


def test_a_checkpoint_from_the_future(make: Make, found: Found) -> None:
    [finding] = found(make(generation={"transformers_version": "99.1.0"}), "dialect")
    assert "transformers 99.1.0 wrote it" in finding.message


@pytest.mark.parametrize(("letters", "beyond"), [(118, False), (119, True)])
def test_a_prompt_beyond_the_context_is_an_error_of_its_tests(
    make: Make, found: Found, letters: int, beyond: bool
) -> None:
    findings = found(make(), "context", suite(letters))
    assert len(findings) == beyond
    if beyond:
        [finding] = findings
        assert finding.severity == "error"
        assert "prompt 'long' of test 'second' has 119 tokens; with 10 new ones that is beyond" in finding.message
        assert finding.remedy == "Shorten the prompt, or write max_new_tokens 9 or less"
        assert finding.where.endswith("suite.yaml:8 and 1 more")


def test_the_context_ends_where_the_tokenizer_says_so(make: Make, found: Found) -> None:
    folder = make(settings={"model_max_length": 50})
    [finding] = found(folder, "context", suite(60))
    assert "beyond model_max_length, 50" in finding.message
    assert finding.remedy == "Shorten the prompt"


def test_a_tokenizer_without_a_limit_does_not_end_the_context(make: Make, found: Found) -> None:
    folder = make(settings={"model_max_length": 10**30}, config={"max_position_embeddings": None})
    assert not found(folder, "context", suite(200))


@pytest.mark.parametrize(
    ("letters", "said"),
    [(6, "it is never exercised"), (7, "prompt 'long' of test 'second' reaches 17 tokens, beyond")],
)
def test_whether_a_sliding_window_is_exercised(make: Make, found: Found, letters: int, said: str) -> None:
    [finding] = found(make(config={"sliding_window": 16}), "window", suite(letters))
    assert (finding.severity, said in finding.message) == ("note", True)


@pytest.mark.parametrize("config", [{}, {"sliding_window": 16, "use_sliding_window": False}])
def test_no_window_no_finding(make: Make, found: Found, config: dict[str, Any]) -> None:
    assert not found(make(config=config), "window", suite(50))


@pytest.mark.parametrize("rope", [{"rope_scaling": {"type": "dynamic"}}, {"rope_parameters": {"rope_type": "dynamic"}}])
def test_dynamic_rope_is_told(make: Make, found: Found, rope: dict[str, Any]) -> None:
    assert [finding.severity for finding in found(make(config=rope), "dynamic_rope")] == ["note"]


def test_values_of_a_wrong_kind_are_told_once_and_not_raised(make: Make) -> None:
    wrong = {"vocab_size": "many", "sliding_window": [], "rope_parameters": 3, "eos_token_id": "x"}
    folder = make(config=wrong, generation={"eos_token_id": None})
    settings = {"added_tokens_decoder": {"x": 1, "7": {}}, "pad_token": {"content": []}, "extra_special_tokens": 3}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    findings = lint_model(read(folder))
    [stumbled] = [finding for finding in findings if "something unexpected" in finding.message]
    assert "TypeError: 'int' object is not iterable" in stumbled.message


@pytest.mark.skipif(transformers_version() >= (5,), reason="is about transformers 4")
@pytest.mark.parametrize("kind", [*checkpoint.THETA_IN_4, "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"])
def test_the_rope_that_transformers_4_takes(kind: str) -> None:
    from transformers import AutoConfig

    assert AutoConfig.for_model(kind).rope_theta == checkpoint.THETA_IN_4.get(kind, 1e4)
