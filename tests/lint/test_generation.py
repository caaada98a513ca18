"""Rules about what generate() does unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.lint import Finding

Make = Callable[..., Path]
Found = Callable[..., list[Finding]]

CHAT = "prompts: {hi: {messages: [{role: user, content: Hi}]}, plain: Hi}\n"
TESTS = """
tests:
  - {name: first, prompts: [hi, plain], GENERATION expect: {stops_at_eos: true}}
  - {name: second, prompts: [hi], GENERATION expect: {stops_at_eos: true}}
"""


def suite(**arguments: Any) -> str:
    """Two tests with one generation config of these arguments; the first is written in line 7, the second in 8."""
    written = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"generation: {{own: {{{written}}}}}\n{CHAT}" + TESTS.strip("\n").replace("GENERATION", "generation: own,")


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]


def test_agreeing_ends_are_no_finding(make: Make, found: Found) -> None:
    assert not found(make(), "eos")


def test_no_eos_anywhere_is_an_error_that_names_the_tokenizers(make: Make, found: Found) -> None:
    [finding] = found(make(config={"eos_token_id": None}, generation={"eos_token_id": None}), "eos")
    assert finding.severity == "error"
    assert "always at max_new_tokens" in finding.message
    assert finding.remedy == 'Write "eos_token_id": 1 into generation_config.json'
    assert finding.catches == ("E1", "E2")


def test_a_generation_config_without_eos_hides_the_one_of_config_json(make: Make, found: Found) -> None:
    [finding] = found(make(generation={"eos_token_id": None}), "eos")
    assert finding.severity == "error"
    assert "although config.json says [1, 4]" in finding.message


def test_files_that_disagree_on_eos_are_a_warning(make: Make, found: Found) -> None:
    [finding] = found(make(config={"eos_token_id": 3}), "eos")
    assert (finding.severity, finding.message.split(":")[0]) == (
        "warning",
        "config.json says EOS 3, generation_config.json [1, 4]",
    )


def test_a_longer_list_in_the_generation_config_is_as_it_should_be(make: Make, found: Found) -> None:
    assert not found(make(config={"eos_token_id": 1}), "eos")


def test_an_eos_of_the_tokenizer_that_ends_nothing_is_a_warning(make: Make, found: Found) -> None:
    folder = make(config={"eos_token_id": 4}, generation={"eos_token_id": 4})
    [finding] = found(folder, "eos")
    assert "the tokenizer's EOS '<eos>' (1)" in finding.message
    assert '"eos_token_id": [4, 1]' in finding.remedy


def test_without_a_generation_config_the_ends_are_those_of_config_json(make: Make, found: Found) -> None:
    folder = make(generation=False)
    assert severities(found(folder, "eos")) == ["note"]
    assert not found(folder, "turn_end")


def test_a_turn_that_no_eos_ends_is_an_error(make: Make, found: Found) -> None:
    folder = make(config={"eos_token_id": 1}, generation={"eos_token_id": 1})
    [finding] = found(folder, "turn_end")
    assert finding.severity == "error"
    assert "ends a turn with '<|end|>' (4), but generation ends at 1" in finding.message
    assert finding.remedy == 'Write "eos_token_id": [1, 4] into generation_config.json'
    [finding] = found(folder, "turn_end", suite(do_sample="false", max_new_tokens=4))
    assert finding.where.endswith("suite.yaml:7 and 1 more")


def test_a_hub_that_samples_is_an_error_where_the_suite_says_nothing(make: Make, found: Found) -> None:
    folder = make(generation={"do_sample": True, "temperature": 0.6, "top_k": 50})
    [finding] = found(folder, "hub_sampling", suite(max_new_tokens=4))
    assert finding.severity == "error"
    assert "generation_config.json says do_sample true and temperature 0.6, and" in finding.message
    assert "generation 'own'" in finding.remedy
    assert finding.where.endswith("suite.yaml:7 and 1 more")
    assert not found(folder, "hub_sampling", suite(do_sample="false", max_new_tokens=4))
    assert severities(found(folder, "hub_sampling")) == ["warning"]


def test_what_the_hub_adds_to_sampling_is_a_warning_unless_the_suite_says_it(make: Make, found: Found) -> None:
    folder = make(generation={"temperature": 0.6, "top_p": 0.9})
    [finding] = found(folder, "hub_sampling", suite(do_sample="true", temperature=1.0, max_new_tokens=4))
    assert (finding.severity, "adds top_p 0.9 to" in finding.message) == ("warning", True)
    assert not found(folder, "hub_sampling", suite(do_sample="true", temperature=1.0, top_p=1.0, max_new_tokens=4))


def test_penalties_of_the_hub_are_active_unless_the_suite_overrides_them(make: Make, found: Found) -> None:
    folder = make(generation={"repetition_penalty": 1.1, "suppress_tokens": [7]})
    [finding] = found(folder, "hub_penalties")
    assert "repetition_penalty 1.1 and suppress_tokens [7]" in finding.message
    assert "`repetition_penalty: 1.0`" in finding.remedy
    assert "Take suppress_tokens out of" in finding.remedy
    [finding] = found(folder, "hub_penalties", suite(repetition_penalty=1.0, max_new_tokens=4))
    assert "repetition_penalty" not in finding.message
    folder = folder.rename(folder.parent / "other")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "repetition_penalty": 1.1}')
    assert not found(folder, "hub_penalties", suite(repetition_penalty=1.0, max_new_tokens=4))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, "temperature 0.6 and top_p 0.9, which have no effect without do_sample"),
        ({"length_penalty": 2.0}, "length_penalty 2.0, which has no effect without num_beams above 1"),
        ({"do_sample": True, "temperature": 0.6}, ""),
        ({"num_beams": 2, "length_penalty": 2.0}, ""),
        ({"temperature": 1.0, "top_k": 50}, ""),
    ],
)
def test_arguments_without_effect_are_a_warning(make: Make, found: Found, own: dict[str, Any], said: str) -> None:
    findings = found(make(generation=own), "idle_arguments")
    assert [said in finding.message for finding in findings] == ([True] if said else [])


def test_arguments_in_config_json_are_not_read_beside_a_generation_config(make: Make, found: Found) -> None:
    folder = make(config={"repetition_penalty": 1.3, "do_sample": True})
    [finding] = found(folder, "in_config_json")
    assert (finding.severity, "which is not read" in finding.message) == ("warning", True)
    assert not found(folder, "hub_penalties")
    assert not found(folder, "hub_sampling")


def test_arguments_in_config_json_hold_without_a_generation_config(make: Make, found: Found) -> None:
    folder = make(config={"repetition_penalty": 1.3, "do_sample": True}, generation=False)
    assert severities(found(folder, "in_config_json")) == ["note"]
    [finding] = found(folder, "hub_penalties")
    assert finding.message.startswith("config.json says repetition_penalty 1.3")
    assert severities(found(folder, "hub_sampling", suite(max_new_tokens=4))) == ["error"]


def test_pads(make: Make, found: Found) -> None:
    folder = make(settings={"pad_token": None})
    [finding] = found(folder, "pad")
    assert "has no pad token" in finding.message
    assert '"pad_token": "<eos>"' in finding.remedy


def test_a_pad_token_that_is_an_end_too(make: Make, found: Found) -> None:
    [finding] = found(make(settings={"pad_token": "<|end|>"}, generation={"pad_token_id": 4}), "pad")
    assert finding.message.startswith("the pad token is EOS, '<|end|>' (4)")


def test_a_pad_token_that_generate_does_not_know(make: Make, found: Found) -> None:
    folder = make(generation={"pad_token_id": 3})
    [finding] = found(folder, "pad")
    assert "pads with 0, generation_config.json says 3" in finding.message
    assert not found(folder, "padding_side")


def test_the_padding_side_as_shipped_and_as_the_suite_says(make: Make, found: Found) -> None:
    folder = make(settings={"padding_side": "right"})
    assert severities(found(folder, "padding_side")) == ["warning"]
    greedy = suite(do_sample="false", max_new_tokens=4)
    [finding] = found(folder, "padding_side", greedy)
    assert "right as shipped" in finding.message
    assert finding.where.endswith("suite.yaml:7 and 1 more")
    assert not found(folder, "padding_side", greedy, model="padding_side: left")
    (folder / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    [finding] = found(folder, "padding_side", greedy, model="padding_side: right")
    assert "right in the suite" in finding.message


def test_an_encoder_may_be_padded_on_the_right(make: Make, found: Found) -> None:
    assert not found(make(config={"is_encoder_decoder": True}, settings={"padding_side": None}), "padding_side")


def test_max_length_of_the_hub_is_an_error_where_the_suite_sets_no_length(make: Make, found: Found) -> None:
    folder = make(generation={"max_length": 20})
    [finding] = found(folder, "lengths", suite(do_sample="false"))
    assert (finding.severity, "says max_length 20" in finding.message) == ("error", True)
    assert not found(folder, "lengths", suite(do_sample="false", max_new_tokens=4))
    assert severities(found(folder, "lengths")) == ["warning"]


def test_a_suite_without_any_length_is_told_the_default(make: Make, found: Found) -> None:
    folder = make()
    [finding] = found(folder, "lengths", suite(do_sample="false"))
    assert (finding.severity, "default of 20" in finding.message) == ("note", True)
    assert not found(folder, "lengths")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "max_new_tokens": 7}')
    assert not found(folder, "lengths", suite(do_sample="false"))
