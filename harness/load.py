"""Suite files to suites: every mistake of a file at once, each as file:line:column. And their JSON Schema."""

from __future__ import annotations

import difflib
import gc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.errors import Problem, SuiteError, UsageError
from harness.problems import explain
from harness.references import check
from harness.suite import Reading, Suite
from harness.yaml_source import MAP, STR, read
from harness.yaml_tree import Pair, Refused, Tree
from harness.yaml_tree import Path as Place

OWN = ("suite", "description", "extends")  # keys that a suite never takes from the file it extends
TOP_KEY = re.compile(r"^[{ ]{0,2}[\"']?([A-Za-z_]+)[\"']?\s*:", re.MULTILINE)


@dataclass(frozen=True)
class Loaded:
    """A suite and where its tests are written."""

    suite: Suite
    file: str
    lines: Mapping[str, int]  # test name -> line of that test in its own file
    files: Mapping[str, str] = field(default_factory=dict)  # test name -> file, if that is another one
    path: str = ""  # where the suite's file is, whatever it is called in ids
    reads: tuple[str, ...] = ()  # where the other files are of which it is made


def load(path: Path | str) -> Loaded:
    """The suite of one file. SuiteError holds every mistake of the file, and of those it extends."""
    return _load(str(path))[0]


def load_all(paths: Sequence[Path | str]) -> list[Loaded]:
    """The suites of files and folders. SuiteError holds every mistake of all of them."""
    loaded: list[Loaded] = []
    problems: list[Problem] = []
    first: dict[str, str] = {}
    for file in _files(paths):
        try:
            one, tree = _load(file)
        except SuiteError as error:
            problems += error.problems
            continue
        loaded.append(one)
        if first.setdefault(one.suite.suite, file) != file:
            tree.report(("suite",), f"'{one.suite.suite}' is already the name of the suite in {first[one.suite.suite]}")
            problems += tree.problems
    if problems:
        raise SuiteError(problems)
    return loaded


def _files(paths: Sequence[Path | str]) -> list[str]:
    """Each file once, those of a folder in order."""
    found: dict[str, str] = {}
    for path in map(str, paths):
        files = [path]
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.endswith((".yaml", ".yml")))
            files = [file for name in names if _looks_like_a_suite(file := os.path.join(path, name))]
            if not files:
                raise UsageError(f"no suite in {path}", "A suite is a *.yaml file with a top-level key `suite`.")
        elif not os.path.exists(path):
            raise UsageError(
                f"no such file or folder: {path}", "Name a suite file, or a folder that holds suite files."
            )
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _looks_like_a_suite(file: str) -> bool:
    """By its text alone: a folder may hold YAML of other tools, and parts that suites extend."""
    if not os.path.isfile(file):
        return False
    try:
        text = read(file).text
    except SuiteError:
        return True  # to be told what is wrong with it
    return bool(difflib.get_close_matches("suite", set(TOP_KEY.findall(text)), cutoff=0.75))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which else takes half of the time of a large file looking through its nodes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_uncollected()
def _load(file: str) -> tuple[Loaded, Tree]:
    tree = Tree()
    root = _extended(tree, file, ())
    data = tree.value(root)
    if tree.has_nulls:
        for place in _nulls(data):
            tree.report(place, "empty; write a value, or leave the key out")
    tree.next_phase()
    suite = None
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        explain(error.errors(include_url=False), tree)
    tree.next_phase()
    check(data, tree)
    texts = _text_files(suite, tree) if suite else {}
    if suite is None or tree.problems:
        raise SuiteError(tree.problems)
    suite = suite.model_copy(update={"compare": suite.compare.model_copy(update={"texts": texts})})
    marks = [node.start_mark for node in tree.find(("tests",))[2].value]
    places = list(zip((test.name for test in suite.tests), marks, strict=True))
    lines = {name: mark.line + 1 for name, mark in places}
    others = {name: mark.name for name, mark in places if mark.name != file}
    extended = [one for one in tree.sources if one != file]
    reads = tuple(dict.fromkeys(map(os.path.abspath, (*extended, *_named_files(suite, file, others)))))
    return Loaded(suite, file, lines, others, os.path.abspath(file), reads), tree


def _named_files(suite: Suite, file: str, others: Mapping[str, str]) -> Iterator[str]:
    """Its texts and metrics; not its pins, which are made by it."""
    yield from (reading.file for reading in suite.compare.texts.values() if reading.file)
    for test in suite.tests:
        folder = os.path.dirname(others.get(test.name, file))
        for expectation in test.expect.expectations().values():
            yield from expectation.located(folder).files


def _text_files(suite: Suite, tree: Tree) -> dict[str, Reading]:
    """The texts to read; a file is relative to the one that names it."""
    texts = dict(suite.compare.texts)
    for name, reading in texts.items():
        if reading.file is not None:
            place = ("compare", "texts", name, "file")
            path = os.path.normpath(os.path.join(os.path.dirname(tree.find(place)[2].start_mark.name), reading.file))
            if not os.path.isfile(path):
                tree.report(place, f"no such file: {path}; the path is relative to this file")
            texts[name] = reading.model_copy(update={"file": path})
    return texts


def _nulls(value: Any, place: Place = ()) -> Iterator[Place]:
    """Keys without a value. In a JSON Schema, null is a value like others; rows are checked with their columns."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if item is None:
            yield (*place, key)
        elif key not in ("json_schema", "rows"):
            yield from _nulls(item, (*place, key))


def _extended(tree: Tree, file: str, chain: tuple[str, ...]) -> MappingNode:
    """The nodes of the file, laid over those of the file that it extends."""
    own = tree.add(read(file))
    try:
        extends = tree.entries(own).get("extends")
    except Refused:
        return own  # reported when it becomes data
    if extends is None:
        return own
    if not isinstance(extends[1], ScalarNode) or extends[1].tag != STR:
        tree.note(extends[0], "extends: expected the path of another suite file")
        raise SuiteError(tree.problems)
    base = os.path.normpath(os.path.join(os.path.dirname(file), extends[1].value))
    chain = (*chain, file)
    if os.path.realpath(base) in map(os.path.realpath, chain):
        tree.note(extends[1], f"extends: goes round in a circle: {' -> '.join((*chain, base))}")
        raise SuiteError(tree.problems)
    if not os.path.isfile(base):
        tree.note(extends[1], f"extends: no such file: {base}; the path is relative to this file")
        raise SuiteError(tree.problems)
    try:
        return _over(tree, own, _extended(tree, base, chain))
    except SuiteError as error:
        raise SuiteError([*tree.problems, *error.problems]) from None


def _over(tree: Tree, own: MappingNode, base: MappingNode) -> MappingNode:
    """One suite over another: models, prompts, generation and tests by name; everything else as a whole."""
    inherited = {key: pair for key, pair in tree.entries(base).items() if key not in OWN}
    pairs = inherited | tree.entries(own)
    for key in ("models", "prompts", "generation", "tests"):
        if key in inherited and key in tree.entries(own):
            theirs, ours = inherited[key][1], tree.entries(own)[key][1]
            joined = _tests(tree, ours, theirs) if key == "tests" else _named(tree, ours, theirs, deep=key != "prompts")
            pairs[key] = (pairs[key][0], joined)
    return _mapping(own, pairs)


def _named(tree: Tree, own: Node, base: Node, deep: bool) -> Node:
    """Two mappings as one; if deep, what both name is joined key by key."""
    if not isinstance(own, MappingNode) or not isinstance(base, MappingNode):
        return own
    ours, theirs = tree.entries(own), tree.entries(base)
    pairs = theirs | ours
    for name in ours.keys() & theirs.keys() if deep else ():
        key, base_value = theirs[name]
        if isinstance(base_value, ScalarNode):  # a model by its path alone
            path = ScalarNode(STR, "path", key.start_mark, key.end_mark)
            base_value = MappingNode(MAP, [(path, base_value)], base_value.start_mark, base_value.end_mark)
        pairs[name] = (ours[name][0], _named(tree, ours[name][1], base_value, deep=False))
    return _mapping(own, pairs)


def _tests(tree: Tree, own: Node, base: Node) -> Node:
    """The tests of both; one of ours takes the place of theirs with the same name."""
    if not isinstance(own, SequenceNode) or not isinstance(base, SequenceNode):
        return own
    ours = {_name(tree, test): test for test in own.value}
    replaced = [ours.get(_name(tree, test), test) for test in base.value]
    used = set(map(id, replaced))
    added = [test for test in own.value if id(test) not in used]
    return SequenceNode(own.tag, [*replaced, *added], own.start_mark, own.end_mark)


def _name(tree: Tree, test: Node) -> object:
    """The name of a test; a test without one is only itself."""
    pair = tree.entries(test).get("name") if isinstance(test, MappingNode) else None
    return pair[1].value if pair and isinstance(pair[1], ScalarNode) else id(test)


def _mapping(own: MappingNode, pairs: Mapping[str, Pair]) -> MappingNode:
    return MappingNode(own.tag, list(pairs.values()), own.start_mark, own.end_mark)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a suite file, for editors and for checks without this package."""
    schema = _tidy(Suite.model_json_schema())
    whole = [key for key in schema.pop("required") if key != "suite"]
    required = {"required": ["suite"], "anyOf": [{"required": ["extends"]}, {"required": whole}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **required}


# Constraints on a union, which pydantic passes through under its own names.
JSON_NAMES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _tidy(schema: Any) -> Any:
    """What pydantic writes, as the loader reads it: no nulls, no unnamed extras, no titles that repeat the key."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {JSON_NAMES.get(key, key): value for key, value in schema.items() if key != "title"}
    for key in schema.keys() & {"properties", "patternProperties", "$defs"}:
        schema[key] = {name: _tidy(value) for name, value in schema[key].items()}
    for key in schema.keys() & {"items", "anyOf"}:
        schema[key] = _tidy(schema[key])
    if "patternProperties" in schema:
        schema["additionalProperties"] = False
    if schema.get("default", 0) is None:
        del schema["default"]
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        if {"type": "number"} in kinds:
            kinds = [kind for kind in kinds if kind != {"type": "integer"}]
        del schema["anyOf"]
        schema |= kinds[0] | schema if len(kinds) == 1 else {"anyOf": kinds}
    return schema
