"""YAML nodes as plain data whose every part knows its place in its file."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.errors import Problem, SuiteError
from harness.yaml_source import MAP, MAX_DEPTH, MERGE, NULL, SCALARS, SEQ, STR, TAG, Source, compose

Path = tuple[int | str, ...]
Pair = tuple[Node, Node]


@dataclass(frozen=True)
class _Made:
    """A collection as data, with what it would weigh and how deep it would be with every alias written out."""

    value: Any
    weight: int
    height: int
    node: Node


def _weight(node: Node) -> int:
    return 1 + len(node.value) // 64


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
        entries = self.entries(node)
        values, weight, height = self._values([item for _, item in entries.values()])
        self._written += sum(_weight(item) for _, item in node.value)
        return _Made(dict(zip(entries, values, strict=True)), weight, height, node)

    def _sequence(self, node: Node) -> _Made:
        self._check_tag(node, SEQ)
        values, weight, height = self._values(node.value)
        self._written += sum(map(_weight, node.value))
        return _Made(values, weight, height, node)

    def _values(self, items: Sequence[Node]) -> tuple[list[Any], int, int]:
        """The items as data, with the weight and the height of what holds them."""
        values, weight, height = [], 1, 0
        for item in items:
            if isinstance(item, ScalarNode):
                values.append(self._scalar(item))
                weight += _weight(item)
            else:
                made = self._make(item)
                values.append(made.value)
                weight += made.weight
                height = max(height, made.height)
        return values, weight, height + 1

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
