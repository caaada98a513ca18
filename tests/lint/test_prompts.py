"""Rules about prompts; what a rendering says is tested with `prompt_pipeline`, here only what lint makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.lint import Finding

Make = Callable[..., Path]
Found = Callable[..., list[Finding]]

SUITE = """
prompts: {PROMPTS}
tests:
  - {name: first, prompts: [a], expect: {stops_at_eos: true}}
  - {name: second, prompts: [a, b], expect: {stops_at_eos: true}}
"""
CHATS = "a: {messages: [{role: user, content: Hi}]}, b: {messages: [{role: user, content: Ho}]}"
MIXED = "a: {messages: [{role: user, content: Hi}]}, b: Ho"
NO_GENERATION_PROMPT = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"


def suite(prompts: str) -> str:
    """The tests stand in lines 6 and 7."""
    return SUITE.lstrip("\n").replace("PROMPTS", prompts)


def by_severity(findings: list[Finding], severity: str) -> list[str]:
    return [finding.message for finding in findings if finding.severity == severity]


def test_messages_without_a_template_are_an_error_of_their_tests(make: Make, found: Found) -> None:
    folder = make(template=None)
    [finding] = found(folder, "template", suite(MIXED))
    assert finding.severity == "error"
    assert finding.message == "prompt 'a' of test 'first' has messages, but the tokenizer has no chat template"
    assert finding.where.endswith("suite.yaml:6 and 1 more")
    assert not found(folder, "ids", suite(MIXED))
    assert not found(folder, "template")


def test_what_is_known_to_fail_is_not_told_again(make: Make, found: Found) -> None:
    folder = make(template=None)
    known = suite(MIXED).replace("stops_at_eos: true}", "stops_at_eos: true}, xfail: [{reason: so it is}]")
    assert not found(folder, "template", known)
    of_one = suite(MIXED).replace("stops_at_eos: true}", "stops_at_eos: true}, xfail: [{prompt: a, reason: so}]", 1)
    [finding] = found(folder, "template", of_one)
    assert finding.where.endswith("suite.yaml:7")


def test_plain_text_goes_without_the_template(make: Make, found: Found) -> None:
    [finding] = found(make(), "template", suite(MIXED))
    assert (finding.severity, finding.where.endswith("suite.yaml:7")) == ("note", True)
    assert "prompt 'b' of test 'second' is plain text" in finding.message


def test_a_template_where_tokenizers_do_not_look_is_none(make: Make, found: Found) -> None:
    folder = make(template=None)
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    assert [finding.severity for finding in found(folder, "template", suite(CHATS))] == ["error", "warning"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system message') }}", "TemplateError: no system message"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].contents.text }}", "UndefinedError"),
    ],
)
def test_a_template_that_raises_is_an_error(make: Make, found: Found, template: str, said: str) -> None:
    folder = make(template=template)
    [finding] = found(folder, "ids", suite(CHATS))
    assert (finding.severity, said in finding.message) == ("error", True)
    assert finding.where.endswith("suite.yaml:6 and 1 more")
    assert found(folder, "ids")


def test_a_prompt_without_tokens_is_an_error(make: Make, found: Found) -> None:
    [finding] = found(make(), "ids", suite('a: x, b: ""'))
    assert (finding.severity, "prompt 'b' of test 'second' is empty" in finding.message) == ("error", True)


def test_ids_beyond_the_embedding_are_an_error(make: Make, found: Found) -> None:
    # "z" is byte 0x7a; in the order of the byte alphabet, which begins with "!", it is the 90th: id 5 + 89.
    tensors = {"model.embed_tokens.weight": ("F32", (94, 2))}
    folder = make(config={"vocab_size": 94}, tensors=tensors, template=None)
    [finding] = found(folder, "ids", suite("a: abc, b: xyz"))
    assert finding.message == "prompt 'b' of test 'second' has id 94, but the model has 94 embeddings"


def test_a_template_that_ignores_the_generation_prompt_is_an_error(make: Make, found: Found) -> None:
    folder = make(template=NO_GENERATION_PROMPT)
    for findings in (found(folder, "prompts"), found(folder, "prompts", suite(CHATS))):
        assert any("ignores add_generation_prompt" in message for message in by_severity(findings, "error"))
    [finding] = [finding for finding in findings if finding.severity == "error"]
    assert finding.message.startswith("prompt 'a' of test 'first': ")
    assert finding.where.endswith("suite.yaml:6 and 1 more")


def test_two_bos_are_an_error_and_one_that_could_become_two_is_a_warning(
    make: Make, found: Found, adding_bos: Any
) -> None:
    words = adding_bos
    folder = make(words=words, template="<s>{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    assert any(
        "tokenizer(text) adds another" in message for message in by_severity(found(folder, "careless"), "warning")
    )
    findings = found(folder, "prompts", suite("a: <s>abc, b: def"))
    assert by_severity(findings, "error") == ["prompt 'a' of test 'first': the prompt begins with <s> 2 times"]


def test_a_template_that_writes_the_date_is_a_warning(make: Make, found: Found) -> None:
    folder = make(template="{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    assert any("writes the date" in message for message in by_severity(found(folder, "prompts"), "warning"))


def test_a_template_that_cannot_continue_is_an_error_only_where_that_is_asked(make: Make, found: Found) -> None:
    folder = make(template="{% for m in messages %}{{ m.content[:3] }}<|end|>{% endfor %}")
    [finding] = [one for one in found(folder, "prompts", suite(CHATS)) if "continue_final_message" in one.message]
    assert finding.severity == "warning"
    turns = "[{role: user, content: Hi}, {role: assistant, content: so}]"
    continued = f"a: {{continue_final_message: true, messages: {turns}}}, b: x"
    [finding] = found(folder, "ids", suite(continued))
    assert (finding.severity, "leaves out the message that is to be gone on with" in finding.message) == ("error", True)


def test_a_beginning_that_the_template_changes_is_an_error_only_where_it_is_gone_on_with(
    make: Make, found: Found
) -> None:
    folder = make(template="{% for m in messages %}{{ m.content | upper }}<|end|>{% endfor %}")
    turns = "[{role: user, content: Hi}, {role: assistant, content: so}]"
    continued = f"a: {{continue_final_message: true, messages: {turns}}}, b: x"
    said = "the template leaves out the assistant's beginning"
    for prompts, severity in ((CHATS, "warning"), (continued, "error")):
        [finding] = [one for one in found(folder, "prompts", suite(prompts)) if said in one.message]
        assert finding.severity == severity


def test_a_pad_token_in_a_prompt_is_told_where_it_stands(make: Make, found: Found) -> None:
    folder = make(settings={"pad_token": "<|end|>"})
    [finding] = [one for one in found(folder, "careless", suite(MIXED)) if "pad token" in one.message]
    assert (finding.severity, finding.where.endswith("suite.yaml:6 and 1 more")) == ("note", True)


def test_encoders_are_not_asked(make: Make, found: Found) -> None:
    folder = make(config={"is_encoder_decoder": True}, template=NO_GENERATION_PROMPT)
    assert not found(folder, "prompts", suite(CHATS))
    assert not found(folder, "careless", suite(CHATS))
