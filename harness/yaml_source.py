"""The text of YAML files, and its nodes: YAML 1.2 scalars, no tags, nothing that runs code."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.errors import Problem, SuiteError, UsageError

if TYPE_CHECKING:
    from yaml import SafeLoader as Parser
else:
    Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_BYTES = 5_000_000
MAX_DEPTH = 50
MAX_SOURCE = 200  # characters of a source line that are shown

TAG = "tag:yaml.org,2002:"
STR, MAP, SEQ, MERGE, NULL = (TAG + name for name in ("str", "map", "seq", "merge", "null"))
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")
# Letters, quotes and brackets that start something else than text.
SPECIAL = re.compile(r"""[\t?:{}\[\],&*#!|>'"%@`]""")


@dataclass(frozen=True)
class Source:
    """The text of one file, and problems at places in it."""

    file: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def line(self, number: int) -> str:
        """A line counted from 1; empty behind the end."""
        return self.lines[number - 1] if number <= len(self.lines) else ""

    def problem(self, line: int, column: int, message: str) -> Problem:
        """A problem at a place, both counted from 1, with the source line where it is short enough to show."""
        source = self.line(line) if column <= MAX_SOURCE else ""
        return Problem(self.file, line, column, message, CONTROL.sub("�", source.replace("\t", " "))[:MAX_SOURCE])


def read(file: str) -> Source:
    """The file as text; a file that is no text, or far too long for a suite, is a SuiteError."""
    if not os.path.isfile(file):
        raise UsageError(f"no such file: {file}", "Name a suite file, or a folder that holds suite files.")
    try:
        with open(file, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", "Check the permissions of the file.") from None
    if len(raw) > MAX_BYTES:
        size = f"longer than {MAX_BYTES // 1_000_000} MB"
        raise SuiteError([Problem(file, 1, 1, f"{size}; split the suite into several files")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", "replace")
        place = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise SuiteError([Problem(file, *place, "not UTF-8 text; save the file as UTF-8")]) from None
    source = Source(file, text)
    found = CONTROL.search(text)
    if found:
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        escape = f"\\x{ord(found[0]):02x}" if found[0] < "\x80" else f"\\u{ord(found[0]):04x}"
        message = f'control character {escape}; write it as "{escape}" between double quotes'
        raise SuiteError([source.problem(line, column, message)])
    return source


class _Stream(io.StringIO):
    """Text with the name that marks carry."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.text)
        self.name = source.file


class _Loader(Parser):
    """YAML 1.2 core scalars: `no`, `12:30` and `2024-01-01` are text, `1e-3` is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as PyYAML has it)

    def __init__(self, stream: _Stream) -> None:
        super().__init__(stream)
        self.levels = 0

    def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> str:
        """The tag of a node without one; the inherited method does more than is used here, once per node."""
        if kind is not ScalarNode:
            return SEQ if kind is SequenceNode else MAP
        if implicit[0]:
            for tag, pattern in self.yaml_implicit_resolvers.get(value[:1], ()):
                if pattern.match(value):
                    return tag
        return STR

    # Both composers, the C one and the Python one, call these around each node, before they recurse.
    def descend_resolver(self, parent: Node | None, _index: object) -> None:
        self.levels += 1
        if self.levels > MAX_DEPTH + 1:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=parent.start_mark if parent else None)

    def ascend_resolver(self) -> None:
        self.levels -= 1


for _name, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", "-+0123456789"),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        "-+.0123456789",
    ),
    ("merge", r"<<\Z", "<"),
):
    _Loader.add_implicit_resolver(TAG + _name, re.compile(_pattern), list(_first))


def compose(source: Source) -> MappingNode:
    """The nodes of the file; what is not one YAML mapping is a SuiteError."""
    loader = _Loader(_Stream(source))
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        unclosed = "end of stream" in (error.problem or "")
        mark = (error.context_mark if unclosed else None) or error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SuiteError([source.problem(line, column, _syntax(error, source, line, column))]) from None
    except yaml.YAMLError as error:
        raise SuiteError([source.problem(1, 1, f"not YAML: {error}")]) from None
    finally:
        loader.dispose()
    if root is None:
        raise SuiteError([source.problem(1, 1, "the file is empty; a suite begins with `suite: NAME`")])
    if not isinstance(root, MappingNode):
        message = "not a mapping; a suite begins with `suite: NAME` at the top"
        raise SuiteError([source.problem(root.start_mark.line + 1, root.start_mark.column + 1, message)])
    return root


def _syntax(error: yaml.MarkedYAMLError, source: Source, line: int, column: int) -> str:
    problem = error.problem or "not YAML"
    text = source.line(line)
    if "nested deeper" in problem:
        return f"{problem}; suites are flat"
    if "another document" in problem:
        return "a second document; a suite file is one document: remove this `---` or make it a file of its own"
    if text[: column - 1].strip() == "" and text[column - 1 : column] == "\t":
        return "not YAML: a tab in the indentation; use spaces"
    if "alias" in problem or "anchor" in problem or "document" in problem:
        return f"not YAML: {problem}"
    if "end of stream" in problem:
        return "not YAML: this quote or bracket is never closed; close it"
    context = f" {error.context}" if error.context and "next token" not in error.context else ""
    hint = "; quote the text" if SPECIAL.search(text) else "; check the indentation"
    return f"not YAML: {problem}{context}{hint}"


def _integer(text: str) -> int:
    return int(text[2:], {"0x": 16, "0o": 8}[text[:2]]) if text[:2] in ("0x", "0o") else int(text)


def _number(text: str) -> float:
    return float(text.replace(".", "") if text[-1:] in "fFnN" else text)


SCALARS: dict[str, Callable[[str], Any]] = {
    STR: str,
    NULL: lambda text: None,
    TAG + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    TAG + "int": _integer,
    TAG + "float": _number,
    MERGE: str,
}
