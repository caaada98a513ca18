"""Names in a suite that must exist, and {columns} of rows. Works on data that may be wrong in other ways too."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, get_origin

from harness.expectations import TABLE
from harness.expectations.shorthand import COLUMN
from harness.inputs import Frozen
from harness.wording import near
from harness.yaml_tree import Path, Tree

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
DEVICES = ("cpu", "cuda", "mps")


def check(data: dict[str, Any], tree: Tree) -> None:
    """Note every name that does not exist, every name used twice, and every unknown {column}."""
    _Check(data, tree).run()


class _Check:
    """One suite's names, and what uses them."""

    def __init__(self, data: dict[str, Any], tree: Tree) -> None:
        from harness.backends.quantizations import LEVELS

        self.data = data
        self.tree = tree
        self.levels: Collection[str] = LEVELS
        self.models = _mapping(data.get("models"))
        self.prompts = _mapping(data.get("prompts"))
        self.generation = {"greedy", *_mapping(data.get("generation"))}
        self.rows = {name: rows for name, prompt in self.prompts.items() if (rows := _rows(prompt))}
        self.rows_named = [f"{name}-{row_id(row, n)}" for name, rows in self.rows.items() for n, row in _counted(rows)]

    def run(self) -> None:
        self.names(("quantization",), "quantization level", self.levels)
        for name, model in self.models.items():
            for index, completion in enumerate(_items(_mapping(model).get("completions"))):
                if "quantization" in _mapping(completion):
                    path = ("models", name, "completions", index, "quantization")
                    self.names(path, "quantization level", self.levels, completion)
        self.baseline()
        self.compared()
        for name, rows in self.rows.items():
            self.check_rows(("prompts", name), rows)
            self.columns(name, _prompt_texts(name, self.prompts[name]))
        self.tests()

    def names(self, path: Path, what: str, known: Collection[str], holder: dict[str, Any] | None = None) -> None:
        """Check one name, or a list of names, at the path; its last part is a key of the holder."""
        written = (self.data if holder is None else holder).get(str(path[-1]))
        for place, name in _texts(path, written):
            if known and name not in known:
                self.tree.report(place, f"no {what} is called '{name}'{near(name, known)}")

    def where(self, path: Path, where: Any) -> None:
        holder = _mapping(where)
        self.names((*path, "model"), "model", self.models, holder)
        self.names((*path, "quantization"), "quantization level", self.levels, holder)
        self.names((*path, "device"), "kind of device", DEVICES, holder)
        self.names((*path, "prompt"), "prompt", [*self.prompts, *self.rows_named], holder)

    def baseline(self) -> None:
        self.where(("baseline",), self.data.get("baseline"))
        axes = {key: self.data.get(key, ["none"] if key == "quantization" else []) for key in ("quantization", "dtype")}
        axes["attention"] = self.data.get("attention", [])
        for key, levels in axes.items():
            known = self.levels if key == "quantization" else levels
            for place, name in _texts(("baseline", key), _mapping(self.data.get("baseline")).get(key)):
                if levels and name in known and name not in _items(levels):
                    self.tree.report(place, f"'{name}' is not among the {key} of this suite: {_listed(levels)}")

    def compared(self) -> None:
        compare, budget = _mapping(self.data.get("compare")), _mapping(self.data.get("budget"))
        self.names(("compare", "prompts"), "prompt", self.prompts, compare)
        self.names(("compare", "generation"), "generation", self.generation, compare)
        tests = [name for test in _items(self.data.get("tests")) if isinstance(name := _mapping(test).get("name"), str)]
        self.names(("budget", "must_pass"), "test", tests, budget)
        if "max_perplexity_ratio" in budget and not compare.get("texts"):
            place = ("budget", "max_perplexity_ratio")
            self.tree.report(place, "there is no text to read; name some under `compare: {texts: …}`")

    def check_rows(self, path: Path, rows: list[Any]) -> None:
        seen: set[str] = set()
        for index, row in _counted(rows):
            place: Path = (*path, "rows", index)
            for column, value in row.items():
                if not isinstance(value, (str, int, float)):
                    self.tree.report((*place, column), "expected text, a number or true or false")
            name = row_id(row, index)
            if "id" in row:
                place = (*place, "id")
            if not NAME.fullmatch(name):
                self.tree.report(place, f"'{name}' cannot be an id: use letters, digits, '_', '.' and '-' only")
            elif name in seen:
                self.tree.report(place, f"'{name}' is already the id of another row")
            elif f"{path[-1]}-{name}" in self.prompts:
                self.tree.report(place, f"this row is called '{path[-1]}-{name}', and so is another prompt")
            seen.add(name)

    def columns(self, prompt: str, texts: Iterator[tuple[Path, str]]) -> None:
        """Every {column} must be in every row, or the braces would reach the model."""
        rows = self.rows[prompt]
        columns = list(dict.fromkeys(column for _, row in _counted(rows) for column in row))
        for path, text in texts:
            for column in dict.fromkeys(COLUMN.findall(text)):
                lacking = [row_id(row, index) for index, row in _counted(rows) if column not in row]
                if column not in columns:
                    hint = near(column, columns, "columns")
                    self.tree.report(path, f"{{{column}}} is not a column of the rows of '{prompt}'{hint}")
                elif lacking:
                    self.tree.report(path, f"row '{lacking[0]}' of '{prompt}' has no column '{column}'; add it there")

    def tests(self) -> None:
        first: dict[str, int] = {}
        for index, test in enumerate(_items(self.data.get("tests"))):
            if not isinstance(test, dict):
                continue
            path: Path = ("tests", index)
            name = test.get("name")
            if isinstance(name, str) and first.setdefault(name, index) != index:
                mark = self.tree.find(("tests", first[name]))[2].start_mark
                self.tree.report((*path, "name"), f"'{name}' is already the name of the test on line {mark.line + 1}")
            self.names((*path, "prompts"), "prompt", self.prompts, test)
            self.names((*path, "generation"), "generation", self.generation, test)
            if "only" in test:
                self.where((*path, "only"), test["only"])
            for number, failure in enumerate(_items(test.get("xfail"))):
                self.where((*path, "xfail", number), failure)
            for prompt in _items(test.get("prompts")):
                if isinstance(prompt, str) and prompt in self.rows:
                    self.columns(prompt, _expected_texts((*path, "expect"), _mapping(test.get("expect"))))


def row_id(row: dict[str, Any], index: int) -> str:
    """What a row is called: its id, or its number counted from 1."""
    return str(row.get("id", index + 1))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _rows(prompt: Any) -> list[Any]:
    return _items(_mapping(prompt).get("rows"))


def _counted(rows: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((index, row) for index, row in enumerate(rows) if isinstance(row, dict))


def _listed(levels: Any) -> str:
    return ", ".join(map(str, _items(levels)))


def _texts(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    """A text, or the texts of a list, each with its place."""
    if isinstance(value, str):
        yield path, value
    for index, item in enumerate(_items(value)):
        if isinstance(item, str):
            yield (*path, index), item


def _prompt_texts(name: str, prompt: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    yield from _texts(("prompts", name, "text"), prompt.get("text"))
    for index, message in enumerate(_items(prompt.get("messages"))):
        yield from _texts(("prompts", name, "messages", index, "content"), _mapping(message).get("content"))


def _expected_texts(path: Path, expect: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """The texts of expectations that columns are filled into."""
    for name, written in expect.items():
        kind = TABLE.get(name)
        if kind is None or _takes_a_mapping(kind):
            continue
        yield from _texts((*path, name), written)
        for place, one in ((), written), *(((index,), one) for index, one in enumerate(_items(written))):
            for field, value in _mapping(one).items():
                yield from _texts((*path, name, *place, field), value)


def _takes_a_mapping(kind: type[Frozen]) -> bool:
    field = kind.model_fields.get(getattr(kind, "value_field", ""))
    return field is not None and get_origin(field.annotation) is dict
