"""What pydantic finds wrong with a suite, in words for its author and at the place where it is written."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode

from harness.suite import Suite
from harness.wording import closest, near
from harness.yaml_tree import Path, Tree

KEY = "[key]"  # pydantic's last part of a location when the key of a mapping is wrong
NAMES = "use letters, digits, '_', '.' and '-' only, and begin with a letter, a digit or '_'"


def got(value: Any) -> str:
    """A value as YAML has read it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 40 else f"the text {value[:40]!r}…"
    if isinstance(value, int):
        return f"the integer {value}"
    if isinstance(value, float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, dict) else "a list"


def explain(errors: Sequence[ErrorDetails], tree: Tree) -> None:
    """Note each mistake once: a union complains once per member, a container about items that are wrong themselves."""
    numbers = {error["loc"][:-1] for error in errors if error["type"] == "float_type" and error["loc"][-1] == "float"}
    guessed: set[tuple[Path, str]] = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            guessed |= _unknown(error["loc"], tree)
    for error in errors:
        kind, location = error["type"], error["loc"]
        if kind == "extra_forbidden" or (kind == "int_type" and location[-1] == "int" and location[:-1] in numbers):
            continue
        if kind == "missing":
            parent, _, _ = tree.find(location)
            if (parent, str(location[-1])) not in guessed:
                tree.report((*parent, str(location[-1])), "missing; this key is required")
        elif kind == "too_short" and error["input"]:
            continue  # its items were refused, and are reported themselves
        else:
            _other(error, tree)


def _other(error: ErrorDetails, tree: Tree) -> None:
    location = error["loc"]
    is_key = location[-1:] == (KEY,)
    holder, _, node = tree.find(location[:-1])
    owner = _owner(holder)
    strange = [key for key in tree.entries(node) if key not in _keys(owner)] if isinstance(node, MappingNode) else []
    if strange and isinstance(error["input"], dict) and getattr(owner, "value_field", "") == location[-1]:
        # `contains: {txts: x}`: the mapping was taken for the value
        for key in strange:
            _unknown((*holder, key), tree)
        return
    path, _, node = tree.find(location)
    if error["type"] == "value_error" and isinstance(node, MappingNode):
        parts = [part for pair in tree.entries(node).values() for part in pair]
        if any(map(tree.is_settled, parts)):
            return  # a mapping is not whole because a part of it is wrong
    tree.report(path, f"a name cannot be {got(error['input'])}: {NAMES}" if is_key else _words(error), at_key=is_key)


def _unknown(location: Path, tree: Tree) -> set[tuple[Path, str]]:
    """Report an unknown key; the key that was meant, if that is likely."""
    path, _, _ = tree.find(location)
    *parent, key = path
    keys = _keys(_owner(tuple(parent)))
    if key == "max_length" and parent[:1] == ["generation"]:
        tree.report(path, "max_length counts the prompt; write max_new_tokens", at_key=True)
        return set()
    tree.report(path, "unknown key" + near(str(key), keys, "valid keys"), at_key=True)
    close = closest(str(key), tuple(keys))
    return {(tuple(parent), close)} if close else set()


def _keys(owner: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in owner.model_fields.items()] if owner else []


def _owner(path: Path) -> type[BaseModel] | None:
    """The noun whose keys stand at this path."""
    kind: Any = Suite
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if isinstance(part, int):
                continue  # one of a list, where one alone may stand as well
            field = kind.model_fields.get(part)
            if field is None:
                return None
            kind = _bare(field.annotation)
        elif get_args(kind):
            kind = _bare(get_args(kind)[1 if get_origin(kind) is dict else 0])
        if hasattr(kind, "list_field"):
            kind = _bare(get_args(kind.model_fields[kind.list_field].annotation)[0])
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _bare(annotation: Any) -> Any:
    """The annotation without Annotated and `| None`."""
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        annotation = get_args(annotation)[0]
    return annotation


def _text(error: ErrorDetails) -> str:
    value = error["input"]
    if isinstance(value, (bool, int, float)):
        return f'expected text; write "{str(value).lower()}"'
    return f"expected text, got {got(value)}"


def _list(error: ErrorDetails) -> str:
    if error["loc"][-1] in ("texts", "references") and isinstance(error["input"], (bool, int, float)):
        return _text(error)
    return f"expected a list, got {got(error['input'])}"


def _choice(error: ErrorDetails) -> str:
    expected = error["ctx"]["expected"]
    close = closest(str(error["input"]), tuple(expected.split("'")[1::2]))
    hint = f"; did you mean '{close}'?" if close else ""
    return f"expected {expected}, got {got(error['input'])}{hint}"


def _pattern(error: ErrorDetails) -> str:
    pattern = error["ctx"]["pattern"]
    if pattern.startswith("^[A-Za-z0-9_]["):
        return f"a name cannot be {got(error['input'])}: {NAMES}"
    if "cuda" in pattern:
        return f"expected cpu, cuda, cuda:NUMBER, mps or auto, got {got(error['input'])}"
    return f"expected text like {pattern.strip('^$')}, got {got(error['input'])}"


WORDS: dict[str, str | Callable[[ErrorDetails], str]] = {
    "int_type": "expected an integer, got {got}",
    "float_type": "expected a number, got {got}",
    "float_parsing": "expected a number, got {got}",
    "bool_type": "expected true or false, got {got}",
    "dict_type": "expected a mapping of keys and values, got {got}",
    "model_type": "expected a mapping of keys and values, got {got}",
    "model_attributes_type": "expected a mapping of keys and values, got {got}",
    "greater_than_equal": "must be at least {ge}, got {input}",
    "greater_than": "must be above {gt}, got {input}",
    "less_than_equal": "must be at most {le}, got {input}",
    "less_than": "must be below {lt}, got {input}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "longer than {max_length} characters",
    "value_error": "{error}",
    "string_type": _text,
    "tuple_type": _list,
    "literal_error": _choice,
    "string_pattern_mismatch": _pattern,
}


def _words(error: ErrorDetails) -> str:
    words = WORDS.get(error["type"], error["msg"].replace("Input", "this", 1).replace("{", "{{").replace("}", "}}"))
    if callable(words):
        return words(error)
    return words.format(got=got(error["input"]), input=error["input"], **error.get("ctx", {}))
