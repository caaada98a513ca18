"""What the text says: contains, not_contains, regex, equals, json_schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, WithJsonSchema, field_validator

from harness.expectations.shorthand import COLUMN, Written
from harness.record import Completion, Request, Verdict

SHOWN = 200  # characters of an output in a sentence


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
Texts = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_tuple), Field(min_length=1), WithJsonSchema(_TEXTS_SCHEMA)]


def quote(text: str) -> str:
    """The output as a sentence shows it: one line, control characters visible, not too long."""
    shown = repr(text if len(text) <= SHOWN else text[:SHOWN])
    return shown if len(text) <= SHOWN else f"{shown}… ({len(text)} characters)"


class _Content(Written):
    """One completion is needed, however it is batched."""

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        problem = self.problem(completions[0].text)
        if problem:
            return Verdict("failed", problem, details=(f"output  {quote(completions[0].text)}",))
        return Verdict("passed", self.met())

    def problem(self, text: str) -> str:
        raise NotImplementedError

    def met(self) -> str:
        raise NotImplementedError


def _list(texts: Sequence[str]) -> str:
    return ", ".join(map(quote, texts))


class Contains(_Content):
    """The output contains this text (all of them, if a list)."""

    value_field: ClassVar[str] = "texts"
    texts: Texts = Field(description="One text or a list; {column} is filled in from the prompt's row.")
    ignore_case: StrictBool = Field(False, description="Upper and lower case are the same.")

    def problem(self, text: str) -> str:
        missing = [wanted for wanted in self.texts if not _within(wanted, text, self.ignore_case)]
        return f"the output does not contain {_list(missing)}" if missing else ""

    def met(self) -> str:
        return f"the output contains {_list(self.texts)}"


class NotContains(_Content):
    """The output contains none of these texts."""

    value_field: ClassVar[str] = "texts"
    texts: Texts = Field(description="One text or a list; {column} is filled in from the prompt's row.")
    ignore_case: StrictBool = Field(False, description="Upper and lower case are the same.")

    def problem(self, text: str) -> str:
        found = [unwanted for unwanted in self.texts if _within(unwanted, text, self.ignore_case)]
        return f"the output contains {_list(found)}" if found else ""

    def met(self) -> str:
        return f"the output does not contain {_list(self.texts)}"


def _within(part: str, text: str, ignore_case: bool) -> bool:
    return part.casefold() in text.casefold() if ignore_case else part in text


class Regex(_Content):
    """A regular expression is found in the output (dot matches newlines)."""

    value_field: ClassVar[str] = "pattern"
    pattern: StrictStr = Field(description="Python regular expression; a row's {column} is filled in literally.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    def filled(self, name: str, row: Mapping[str, Any]) -> Any:
        return COLUMN.sub(lambda m: re.escape(str(row[m[1]])) if m[1] in row else m[0], self.pattern)

    def problem(self, text: str) -> str:
        return "" if re.search(self.pattern, text, re.DOTALL) else f"nothing in the output matches {self.pattern!r}"

    def met(self) -> str:
        return f"the output matches {self.pattern!r}"


class Equals(_Content):
    """The output is exactly this text."""

    value_field: ClassVar[str] = "text"
    text: StrictStr = Field(description="The whole output; {column} is filled in from the prompt's row.")
    strip: StrictBool = Field(True, description="White space at both ends does not count.")

    def problem(self, text: str) -> str:
        got = text.strip() if self.strip else text
        wanted = self.text.strip() if self.strip else self.text
        return "" if got == wanted else f"the output is not {quote(wanted)}"

    def met(self) -> str:
        return f"the output is {quote(self.text)}"


class JsonSchema(_Content):
    """The output is (or, fenced or among other text, holds) a JSON value that fits this schema."""

    value_field: ClassVar[str] = "json_schema_"
    json_schema_: dict[str, Any] = Field(alias="schema", description="A JSON Schema.")

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("json_schema_")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON Schema: {error.message}") from None
        return schema

    def __hash__(self) -> int:
        return hash(json.dumps(self.json_schema_, sort_keys=True, default=str))

    def problem(self, text: str) -> str:
        from jsonschema.validators import validator_for

        value = first_json(text)
        if value is NOTHING:
            return "the output holds no JSON object or array"
        errors = sorted(validator_for(self.json_schema_)(self.json_schema_).iter_errors(value), key=str)
        if not errors:
            return ""
        return "; ".join(f"{error.json_path}: {error.message}" for error in errors[:3])

    def met(self) -> str:
        return "the output holds JSON that fits the schema"


NOTHING = object()


def first_json(text: str) -> Any:
    """The whole text as JSON, or the first object or array in it; NOTHING when there is none."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[{\[]", text):
        try:
            return decoder.raw_decode(text, match.start())[0]
        except ValueError:
            continue
    return NOTHING
