"""The rules of the house: who may import whom, where heavy libraries may appear, how long things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "harness"

# Each may import what stands before it, and its own submodules. A package stands for everything in it, unless a
# submodule has a place of its own. This is the one list: where the code teaches otherwise, it is changed here.
ORDER = [
    "errors",
    "wording",
    "inputs",
    "record",
    "rendering",
    "divergence",
    "steps",
    "pins.pin",
    "pins.packing",
    "pins.drift",
    "pins.ladder",
    "pins.diagnosis",
    "pins.judging",
    "sampler",
    "expectations",
    "suite",
    "yaml_source",
    "yaml_tree",
    "problems",
    "backends.quantizations",
    "references",
    "load",
    "plan",
    "judgement",
    "selection",
    "schedule",
    "repro",
    "repro_script",
    "backends",
    "answers",
    "files",
    "file_pipeline",
    "lint",
    "environment",
    "comparison.measured",
    "tables",
    "store",
    "joining",
    "comparison.statistics",
    "comparison.positions",
    "pins",
    "runner",
    "comparison",
    "selftest",
    "doctor",
    "starter",
    "frame",
    "run_outcomes",
    "run_index",
    "course",
    "trend",
    "behaviours",
    "reports",
    "runs",
    "__init__",
    "pytest_keeping",
    "pytest_telling",
    "pytest_plugin",
    "cli",
    "__main__",
]

ONLY_IN = {
    "torch": ("backends",),
    "transformers": ("backends",),
    "bitsandbytes": ("backends",),
    "accelerate": ("backends",),
    "gguf": ("backends",),
    "torchao": ("backends",),
    "optimum": ("backends",),
    "pandas": ("comparison", "frame", "reports"),
    "pytest": ("pytest_plugin",),
    "_pytest": ("pytest_plugin",),
    "typer": ("cli",),
    "tokenizers": ("backends", "files", "file_pipeline", "lint"),
    "evaluate": ("expectations",),
    "datasets": ("expectations",),
    "sacrebleu": ("expectations",),
}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "core", "helpers", "helper", "base", "manager", "misc"}
HEAVY = (
    "torch",
    "transformers",
    "bitsandbytes",
    "accelerate",
    "torchao",
    "optimum",
    "pandas",
    "numpy",
    "pyarrow",
    "evaluate",
    "datasets",
    "sacrebleu",
    "jinja2",
)

LINES_OF_A_FUNCTION = 60
LINES_OF_A_FILE = 400
# What may be longer, and why: "file" or "file:function" -> the reason.
LONGER: dict[str, str] = {}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """harness/backends/scripted.py -> backends.scripted; a package is its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path) for path in FILES}


def rank(module: str) -> int:
    """The place in ORDER of a module, or of the package that it is in; -1 when it has none."""
    while module not in ORDER and "." in module:
        module = module.rpartition(".")[0]
    return ORDER.index(module) if module in ORDER else -1


def nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, those in functions too; what stands under `if TYPE_CHECKING` never runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from nodes_that_run(other)
            continue
        yield node
        yield from nodes_that_run(node)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported."""
    for node in nodes_that_run(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def own_module(name: str) -> str | None:
    """harness.record.Target -> record; None when it is not of this package."""
    first, _, rest = name.partition(".")
    if first != "harness":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def imports_out_of_order(module: str, tree: ast.AST) -> list[str]:
    wrong = []
    for line, name in imports(tree):
        other = own_module(name)
        if name.startswith("."):
            wrong.append(f"{module}:{line} imports {name}: write the whole name")
        elif other and rank(other) > rank(module):
            wrong.append(f"{module}:{line} imports {other}, which stands after it")
    return wrong


def imports_out_of_place(module: str, tree: ast.AST) -> list[str]:
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports(tree)
        if (places := ONLY_IN.get(name.split(".")[0])) and module.split(".")[0] not in places
    ]


def too_long(file: str, text: str) -> list[str]:
    found = []
    lines = len(text.splitlines())
    if lines > LINES_OF_A_FILE:
        found.append((file, lines))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LINES_OF_A_FUNCTION:
                found.append((f"{file}:{node.name}", length))
    return [f"{place} has {length} lines" for place, length in found if place not in LONGER]


def test_every_module_has_a_place_in_the_order() -> None:
    assert not [module for module in MODULES if rank(module) < 0]


def test_the_order_names_only_modules_that_exist() -> None:
    assert not [module for module in ORDER if module not in MODULES]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_modules_import_only_what_stands_before_them(path: Path) -> None:
    assert not imports_out_of_order(module_of(path), ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_heavy_libraries_stay_where_they_belong(path: Path) -> None:
    assert not imports_out_of_place(module_of(path), ast.parse(path.read_text()))


def test_module_names_say_something() -> None:
    assert not {part for module in MODULES for part in module.split(".")} & NAMES_THAT_SAY_NOTHING


def test_functions_and_files_are_short() -> None:
    found = [place for path in FILES for place in too_long(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))]
    assert not found, "\n".join(["shorter, or with a reason in LONGER:", *found])


def test_the_rules_see_imports_inside_functions_and_not_those_for_types() -> None:
    inside = ast.parse("def f():\n    from harness import store\n    import torch.nn\n    from . import x")
    assert imports_out_of_order("record", inside) == [
        "record:2 imports store, which stands after it",
        "record:4 imports ..x: write the whole name",
    ]
    assert imports_out_of_place("record", inside) == ["record:3 imports torch.nn"]
    assert not imports_out_of_place("backends.scripted", inside)
    types = ast.parse("if TYPE_CHECKING:\n    from harness.store import Results\n    import pandas")
    assert not imports_out_of_order("record", types)
    assert not imports_out_of_place("record", types)


def test_the_rules_see_what_is_too_long() -> None:
    body = "    pass\n" * LINES_OF_A_FUNCTION
    assert too_long("a.py", f"def f():\n{body}") == ["a.py:f has 61 lines"]
    assert too_long("a.py", "pass\n" * 401) == ["a.py has 401 lines"]


def modules_after(*arguments: str, folder: Path) -> set[str]:
    """The top-level modules that `harness ARGUMENTS` has imported when it is done."""
    code = "import sys; from harness.cli import main; code = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(code)", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("list", "--levels")])
def test_help_imports_no_library_but_typer(arguments: tuple[str, ...], tmp_path: Path) -> None:
    imported = modules_after(*arguments, folder=tmp_path)
    assert "typer" in imported
    assert not imported & {*HEAVY, "rich", "yaml"}
    if len(arguments) == 1:  # typer itself takes pydantic to the options of a command
        assert "pydantic" not in imported


@pytest.mark.parametrize("arguments", [("lint", "s.yaml"), ("list", "s.yaml"), ("list", "s.yaml", "--targets")])
def test_reading_suites_imports_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodels: {m: some/path}\nquantization: [none, nf4]\nprompts: {p: text}\n"
        "tests: [{name: t, prompts: [p], expect: {deterministic: true, padding_invariant: true}}]\n"
    )
    imported = modules_after(*arguments, folder=tmp_path)
    assert "pydantic" in imported
    assert not imported & {*HEAVY, "rich"}
