"""What the text says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations import TABLE, Expectation, fill
from harness.expectations.content import Contains, Equals, JsonSchema, NotContains, Regex

CITY = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("expectation", "text", "status"),
    [
        (Contains.model_validate("Paris"), "It is Paris.", "passed"),
        (Contains.model_validate("paris"), "It is Paris.", "failed"),
        (Contains.model_validate({"texts": "paris", "ignore_case": True}), "It is Paris.", "passed"),
        (Contains.model_validate(["Paris", "Rome"]), "Paris", "failed"),
        (NotContains.model_validate(["sorry", "As an AI"]), "Paris", "passed"),
        (NotContains.model_validate("sorry"), "I'm sorry", "failed"),
        (Regex.model_validate(r"^\d+$"), "123", "passed"),
        (Regex.model_validate("a.b"), "a\nb", "passed"),
        (Regex.model_validate(r"^\d+$"), "12a", "failed"),
        (Equals.model_validate("Paris."), " Paris.\n", "passed"),
        (Equals.model_validate({"text": "Paris.", "strip": False}), " Paris.", "failed"),
        (Equals.model_validate("Paris."), "Paris", "failed"),
        (JsonSchema.model_validate(CITY), '{"name": "Paris"}', "passed"),
        (JsonSchema.model_validate({"schema": CITY}), '{"name": "Paris"}', "passed"),
        (JsonSchema.model_validate(CITY), 'Sure!\n```json\n{"name": "Paris"}\n```', "passed"),
        (JsonSchema.model_validate(CITY), '{"name": 5}', "failed"),
        (JsonSchema.model_validate(CITY), '{"name": "Par', "failed"),
        (JsonSchema.model_validate({"schema": CITY}), "{}", "failed"),
        (JsonSchema.model_validate(CITY), "none at all", "failed"),
    ],
)
def test_content(completion: Any, expectation: Expectation, text: str, status: str) -> None:
    verdict = expectation.judge([completion(text=text)])

    assert verdict.status == status
    assert verdict.reason


def test_a_failure_says_what_is_wrong_and_shows_the_output(completion: Any) -> None:
    verdict = JsonSchema.model_validate(CITY).judge([completion(text='{"name": 5}')])

    assert verdict.reason == "$.name: 5 is not of type 'string'"
    assert verdict.details == ("output  '{\"name\": 5}'",)


def test_a_long_output_is_cut_in_the_sentence(completion: Any) -> None:
    (line,) = Contains.model_validate("x").judge([completion(text="a" * 5000)]).details

    assert line.endswith("… (5000 characters)")
    assert len(line) < 260


@pytest.mark.parametrize(
    ("kind", "written"),
    [(Regex, "("), (JsonSchema, {"type": "nonsense"}), (Contains, []), (Contains, 5), (Equals, None)],
)
def test_what_cannot_be_judged_is_refused_at_load(kind: Any, written: Any) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(written)


def test_columns_are_filled_in_and_other_braces_left() -> None:
    row = {"answer": "a.c", "n": 3}

    assert fill(Contains.model_validate(["{answer}", "{other}", "{}"]), row).texts == ("a.c", "{other}", "{}")
    assert fill(Regex.model_validate(r"\d{3} {answer}"), row).pattern == r"\d{3} a\.c"
    assert fill(Equals.model_validate("{n} times"), row).text == "3 times"


@pytest.mark.parametrize("name", TABLE)
def test_every_expectation_keeps_the_protocol_and_describes_itself(name: str) -> None:
    kind = TABLE[name]

    methods = ("members",) if hasattr(kind, "members") else ("needs", "judge")
    assert all(callable(getattr(kind, method)) for method in methods)
    assert kind.__doc__
    assert all(field.description for field in kind.model_fields.values())
