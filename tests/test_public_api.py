"""`import harness`: its public names, what they cost, and `harness.run`."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness

SUITE = """\
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: "capital?", text: "Paris.", finish: eos}
      - {prompt: "ramble", text: "a b c d e f", finish: length}
quantization: [none, nf4]
prompts: {capital: "capital?", ramble: "ramble"}
tests:
  - {name: stops, prompts: [capital, ramble], expect: {stops_at_eos: true}}
  - {name: knows, marks: [quality], prompts: [capital], expect: {contains: Paris}}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(SUITE)
    return path


def test_the_public_names_are_these() -> None:
    assert harness.__all__ == [
        "Backend",
        "CannotRun",
        "Completion",
        "Expectation",
        "HarnessError",
        "Judged",
        "Loaded",
        "NothingSelected",
        "Record",
        "Request",
        "Results",
        "Run",
        "Runner",
        "Suite",
        "SuiteError",
        "Target",
        "TargetFacts",
        "UsageError",
        "Verdict",
        "compare",
        "history",
        "json_schema",
        "load_all",
        "matrix",
        "read",
        "results_frame",
        "run",
        "targets_frame",
    ]


@pytest.mark.parametrize("name", harness.__all__)
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    value = getattr(harness, name)
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_no_public_name_is_hidden_by_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(harness.__path__)}
    assert not modules & set(harness.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = harness.nonsense
    assert not hasattr(harness, "__path_of_nonsense__")


def test_dir_shows_the_public_names() -> None:
    assert {*harness.__all__, "__version__"} <= set(dir(harness))


def test_run_gives_a_row_for_each_verdict_and_the_counts(suite: Path) -> None:
    run = harness.run(suite)
    assert list(run.frame()["outcome"]) == ["passed", "failed", "passed"] * 2
    assert run.results.counts == {"asked": 6, "distinct": 4, "generated": 4}
    assert run.results.outcomes == {"passed": 4, "failed": 2}
    assert run.results.errors == ()
    assert run.matrix().loc["stops", "fake-nf4"] == "1/2"
    assert list(run.targets().index) == ["fake-none", "fake-nf4"]
    assert repr(run) == "<Run of demo: 4 passed, 2 failed>"


def test_run_takes_the_selections_of_the_command_line(suite: Path) -> None:
    assert set(harness.run(suite, target="fake-nf4").frame()["target"]) == {"fake-nf4"}
    assert set(harness.run(suite, keyword="capital and not knows").frame()["test"]) == {"stops"}
    assert set(harness.run(suite, mark="quality").frame()["test"]) == {"knows"}
    assert list(harness.run(suite, limit=1).frame()["target"]) == ["fake-none", "fake-nf4"]
    with pytest.raises(harness.NothingSelected, match="none of the 6 checks"):
        harness.run(suite, keyword="nonsense")


def test_a_run_is_saved_and_read_again(suite: Path, tmp_path: Path) -> None:
    run = harness.run(suite)
    folder = run.save(tmp_path / "reports")
    assert (folder / "report.html").is_file()
    again = harness.read(folder)
    assert again.frame().equals(run.frame())
    assert [pair.kind for pair in again.against(run).verdicts] == ["same"] * 6


def test_compare_gives_a_row_for_each_target(suite: Path) -> None:
    run = harness.compare(suite, speed=False)
    table = run.compare()
    assert list(table.index) == ["fake-none", "fake-nf4"]
    assert table.loc["fake-nf4", ["same_text", "checks"]].tolist() == [1, 2 / 3]
    assert table.kl.isna().all()  # a script has no distributions
    assert "no weights" in table.loc["fake-nf4", "not_measured"]


def test_run_stays_a_function_whatever_was_imported(suite: Path) -> None:
    for module in pkgutil.walk_packages(harness.__path__, "harness."):
        if not module.name.startswith("harness.backends.") and module.name != "harness.__main__":
            importlib.import_module(module.name)
    assert len(harness.run(suite, limit=1).frame()) == 2


def test_importing_the_package_imports_nothing_but_itself() -> None:
    code = "import sys; old = set(sys.modules); import harness; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outside = {name for name in done.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert outside == {"harness"}
