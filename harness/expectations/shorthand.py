"""What expectations share: the short ways to write them, and {column} of the prompt's row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harness.inputs import Frozen, either
from harness.record import Completion, Request

COLUMN = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def fill_text(text: str, row: Mapping[str, Any]) -> str:
    """Replace {column} where the row has it; anything else in braces stays as it is."""
    return COLUMN.sub(lambda match: str(row[match[1]]) if match[1] in row else match[0], text)


@dataclass(frozen=True)
class Suspect:
    """A possible cause of a failure: it is the cause if these two, which leave it out, agree."""

    cause: str
    reference: Request
    other: Request


class Simple:
    """What most expectations do not need to say."""

    # Rows of docs/behaviours.md that it catches.
    catches: ClassVar[tuple[str, ...]] = ()
    # Traits of a model that it does not apply to, each with the reason: it is skipped there.
    not_for: ClassVar[Mapping[str, str]] = {}

    @property
    def over_set(self) -> bool:
        """Judged once over all prompts of its test, by `judge_set`, and not prompt by prompt."""
        return False

    def located(self, folder: str) -> Self:
        """With paths of files, which are relative to the suite's folder, made whole."""
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """What else the verdict depends on, once it is located."""
        return ()

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        """What is to be generated further, now that this is known; () when `judge` has what it needs."""
        return ()

    def suspects(self, completions: Sequence[Completion]) -> Sequence[Suspect]:
        """What may be the cause of a failed verdict: tried in this order, the first that holds is named."""
        return ()


class Written(Simple, Frozen):
    """An expectation as it may be written: `name: true`, `name: value` or `name: {field: value}`."""

    # The field that a bare value goes to; "" where only `true` makes sense.
    value_field: ClassVar[str] = ""
    # What else than a mapping may be written where there is no such field, as JSON Schema.
    bare: ClassVar[Mapping[str, Any]] = {"const": True}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core_schema))
        if not cls.value_field:
            return either(dict(cls.bare), full)
        field = cls.model_fields[cls.value_field]
        return either(full["properties"][field.alias or cls.value_field], full)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        keys = {field.alias or name for name, field in cls.model_fields.items()}
        if isinstance(value, dict) and (not cls.value_field or set(value) <= keys):
            return value
        if cls.value_field:
            return {cls.value_field: value}
        if value is True:
            return {}
        if value is False:
            raise ValueError("leave the expectation out instead of writing false")
        simple = "true" if "const" in cls.bare else "a number"
        raise ValueError(f"expected {simple} or a mapping of {', '.join(cls.model_fields)}")

    def filled(self, name: str, row: Mapping[str, Any]) -> Any:
        return _filled(getattr(self, name), row)


def _filled(value: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return fill_text(value, row)
    if isinstance(value, tuple):
        return tuple(_filled(item, row) for item in value)
    return value
