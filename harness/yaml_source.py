"""YAML files as plain data whose every part knows its place. YAML 1.2 scalars, no tags, nothing that runs code."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Hashable, Sequence
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

Path = tuple[int | str, ...]
Pair = tuple[Node, Node]


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


@dataclass(frozen=True)
class _Made:
    """A collection as data, with what it would weigh and how deep it would be with every alias written out."""

    value: Any
    weight: int
    height: int
    node: Node


class Refused(Exception):
    """The nodes cannot become data at all."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.message = message


class Tree:
    """The nodes of one suite, its own and those of the files it extends: as data, and as places in files."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self.has_nulls = False
        self._settled: set[Hashable] = set()
        self._reported: set[Hashable] = set()
        self._made: dict[int, _Made] = {}
        self._open: set[int] = set()
        self._entries: dict[int, dict[str, Pair]] = {}
        self._keep: list[Node] = []  # the caches go by id: no node may die before its tree
        self._written = 0
        self._merged = 0

    def add(self, source: Source) -> MappingNode:
        """Compose one more file."""
        self.sources[source.file] = source
        node = compose(source)
        self._keep.append(node)
        return node

    def value(self, node: Node) -> Any:
        """The node as data. What is merely wrong is noted; what would not end is a SuiteError."""
        self._keep.append(node)
        self.root = node
        try:
            made = self._make(node)
            limit = 10 * self._written + 10_000
            if made.weight > limit:
                first = next(one for one in self._made.values() if one.weight > limit)
                raise Refused(first.node, "its aliases add up to far more than is written; write fewer of them")
        except Refused as refused:
            self.note(refused.node, refused.message)
            raise SuiteError(self.problems) from None
        return made.value

    def _make(self, node: Node) -> _Made:
        known = self._made.get(id(node))
        if known is not None:
            return known
        if id(node) in self._open:
            raise Refused(node, "it contains itself through an alias; write it out")
        self._open.add(id(node))
        made = self._mapping(node) if isinstance(node, MappingNode) else self._sequence(node)
        self._open.discard(id(node))
        if made.height > MAX_DEPTH:
            raise Refused(node, f"nested deeper than {MAX_DEPTH} levels; suites are flat")
        self._made[id(node)] = made
        return made

    def _mapping(self, node: MappingNode) -> _Made:
        self._check_tag(node, MAP)
        value, weight, height = {}, 1, 0
        for name, (_, item) in self.entries(node).items():
            if isinstance(item, ScalarNode):
                value[name] = self._scalar(item)
                weight += 1 + len(item.value) // 64
            else:
                made = self._make(item)
                value[name] = made.value
                weight += made.weight
                height = max(height, made.height)
        self._written += sum(1 + len(item.value) // 64 for _, item in node.value)
        return _Made(value, weight, height + 1, node)

    def _sequence(self, node: Node) -> _Made:
        self._check_tag(node, SEQ)
        value, weight, height = [], 1, 0
        for item in node.value:
            if isinstance(item, ScalarNode):
                value.append(self._scalar(item))
                weight += 1 + len(item.value) // 64
            else:
                made = self._make(item)
                value.append(made.value)
                weight += made.weight
                height = max(height, made.height)
        self._written += sum(1 + len(item.value) // 64 for item in node.value)
        return _Made(value, weight, height + 1, node)

    def _scalar(self, node: ScalarNode) -> Any:
        if node.tag == STR:
            return node.value
        make = SCALARS.get(node.tag)
        if make is None:
            self._check_tag(node, STR)
            return node.value
        if node.tag == NULL:
            self.has_nulls = True
        try:
            return make(node.value)
        except (ValueError, KeyError):
            self.note(node, f"cannot be read as {node.tag.removeprefix(TAG)}; quote the text")
            return node.value

    def _check_tag(self, node: Node, tag: str) -> None:
        if node.tag != tag:
            shown = node.tag.replace(TAG, "!!", 1)
            self.note(node, f"tag {shown} is not allowed; a suite is plain data: write the value without it")

    def entries(self, node: MappingNode) -> dict[str, Pair]:
        """Key and value by the name of the key, those of `<<` included."""
        known = self._entries.get(id(node))
        if known is not None:
            return known
        found: dict[str, Pair] = {}
        bases: list[MappingNode] = []
        for pair in node.value:
            key = pair[0]
            if key.tag == MERGE:
                bases += self._bases(pair[1])
                continue
            if key.tag != STR and not self._is_usable(key):
                continue
            if key.value in found:
                first = found[key.value][0].start_mark.line + 1
                self.note(key, f"{key.value}: duplicate key, first used on line {first}; keep one of them")
            else:
                found[key.value] = pair
        for base in bases:
            inherited = self.entries(base)
            self._merged += len(inherited)
            if self._merged > 200_000:
                raise Refused(node, "merge keys add up to far more than is written; write fewer of them")
            for name, pair in inherited.items():
                found.setdefault(name, pair)
        self._entries[id(node)] = found
        return found

    def _is_usable(self, key: Node) -> bool:
        if not isinstance(key, ScalarNode):
            self.note(key, "a key must be text, not a list or a mapping")
            return False
        if key.tag in SCALARS:
            self.note(key, f'a key must be text; write "{key.value}"')
        else:
            self._check_tag(key, STR)
        return True

    def _bases(self, node: Node) -> list[MappingNode]:
        bases = {id(base): base for base in (node.value if isinstance(node, SequenceNode) else [node])}
        for base in bases.values():
            if id(base) in self._open:
                raise Refused(base, "it contains itself through an alias; write it out")
            if not isinstance(base, MappingNode):
                self.note(base, "<<: expected an alias of a mapping")
        return [base for base in bases.values() if isinstance(base, MappingNode)]

    def find(self, location: Sequence[int | str]) -> tuple[Path, Node | None, Node]:
        """The path that exists, its key and its value; parts that do not extend a known path are skipped."""
        assert self.root is not None
        path: Path = ()
        key: Node | None = None
        node = self.root
        for part in location:
            step = self._step(node, part)
            if step is None:
                continue
            key, node = step
            path += (part,)
        return path, key, node

    def _step(self, node: Node, part: int | str) -> tuple[Node | None, Node] | None:
        if isinstance(node, MappingNode) and isinstance(part, str):
            return self.entries(node).get(part)
        if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            return None, node.value[part]
        return None

    def note(self, node: Node, message: str) -> None:
        """Add a problem at a node, unless that place was found wrong in an earlier phase."""
        mark = node.start_mark
        if not self.is_settled(node):
            self.problems.append(self.sources[mark.name].problem(mark.line + 1, mark.column + 1, message))

    def report(self, location: Sequence[int | str], message: str, at_key: bool = False) -> None:
        """Add a problem at a path, which its message begins with; once, however many aliases lead there."""
        _, key, node = self.find(location)
        is_empty = isinstance(node, ScalarNode) and node.value == ""
        place = key if key is not None and (at_key or is_empty) else node
        if (id(place), message) not in self._reported:
            self._reported.add((id(place), message))
            self.note(place, f"{'.'.join(map(str, location))}: {message}")

    def is_settled(self, node: Node) -> bool:
        """Whether this place was found wrong in an earlier phase."""
        mark = node.start_mark
        return (mark.name, mark.line, mark.column) in self._settled

    def next_phase(self) -> None:
        """What was found so far is not to be found again in other words."""
        self._settled |= {(one.file, one.line - 1, one.column - 1) for one in self.problems}
