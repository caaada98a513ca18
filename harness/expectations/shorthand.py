"""What expectations share: the short ways to write them, and {column} of the prompt's row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from harness.inputs import Frozen

COLUMN = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def fill_text(text: str, row: Mapping[str, Any]) -> str:
    """Replace {column} where the row has it; anything else in braces stays as it is."""
    return COLUMN.sub(lambda match: str(row[match[1]]) if match[1] in row else match[0], text)


class Written(Frozen):
    """An expectation as it may be written: `name: true`, `name: value` or `name: {field: value}`."""

    # The field that a bare value goes to; "" where only `true` makes sense.
    value_field: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict) and (not cls.value_field or set(value) <= set(cls.model_fields)):
            return value
        if cls.value_field:
            return {cls.value_field: value}
        if value is True:
            return {}
        if value is False:
            raise ValueError("leave the expectation out instead of writing false")
        raise ValueError(f"expected true or a mapping of {', '.join(cls.model_fields)}")

    def filled(self, name: str, row: Mapping[str, Any]) -> Any:
        return _filled(getattr(self, name), row)


def _filled(value: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return fill_text(value, row)
    if isinstance(value, tuple):
        return tuple(_filled(item, row) for item in value)
    return value
