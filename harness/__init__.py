"""Generation evaluation and regression testing for causal language models.

`harness.run("suites/basics.yaml").frame()` is the whole of it: one row for each verdict, as a pandas DataFrame.
Importing this package imports nothing heavy; each name is fetched from its module when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pandas import DataFrame

    from harness.backends import Backend
    from harness.comparison.measuring import Timed
    from harness.errors import CannotRun, HarnessError, NothingSelected, SuiteError, UsageError
    from harness.expectations import Expectation
    from harness.frame import matrix, results_frame, targets_frame
    from harness.load import Loaded, json_schema, load_all
    from harness.record import Completion, Record, Request, Target, TargetFacts, Verdict
    from harness.runner import Judged, Runner
    from harness.runs import Run
    from harness.store import Results
    from harness.suite import Suite

# Where each public name lives. None is called like a module: `import harness.load` would then hide it.
_HOMES = {
    "harness.backends": ("Backend",),
    "harness.errors": ("CannotRun", "HarnessError", "NothingSelected", "SuiteError", "UsageError"),
    "harness.expectations": ("Expectation",),
    "harness.frame": ("matrix", "results_frame", "targets_frame"),
    "harness.load": ("Loaded", "json_schema", "load_all"),
    "harness.record": ("Completion", "Record", "Request", "Target", "TargetFacts", "Verdict"),
    "harness.runner": ("Judged", "Runner"),
    "harness.runs": ("Run",),
    "harness.store": ("Results",),
    "harness.suite": ("Suite",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
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


def run(
    *suites: str | Path,
    target: str | Sequence[str] = (),
    keyword: str = "",
    mark: str = "",
    limit: int | None = None,
) -> Run:
    """Judge the checks of these suites."""
    from harness.load import load_all
    from harness.plan import plan
    from harness.runner import Runner
    from harness.runs import Run
    from harness.selection import select

    checks = plan(load_all(suites)).checks
    runner = Runner(select(checks, keyword=keyword, mark=mark, targets=_names(target), limit=limit))
    try:
        for _ in runner.run():
            pass
    finally:
        runner.close()
    return Run(runner.results("harness.run()"))


def compare(
    suite: str | Path,
    *,
    target: str | Sequence[str] = (),
    baseline: str = "",
    limit: int | None = None,
    checks: bool = True,
    speed: Timed = True,
) -> Run:
    """Measure every target of a suite against its baseline, and judge its checks."""
    from harness.comparison.comparing import prepare
    from harness.runs import Run

    comparison = prepare(
        [suite],
        targets=_names(target),
        baseline=baseline,
        limit=limit,
        checks=checks,
        speed=speed,
    )
    for _ in comparison.run():
        pass
    return Run(comparison.results("harness.compare()"))


def read(folder: str | Path) -> Run:
    """A run folder as it was saved, or a file of one."""
    from harness.runs import Run
    from harness.store import read

    return Run(read(Path(folder)))


def history(*folders: str | Path, last: int | None = None, by: Literal["test", "check", "run"] = "test") -> DataFrame:
    """Past runs in these folders, unset reports/: a row for each test, check, or test and run."""
    from harness.reports.history_frame import history_frame
    from harness.run_index import past
    from harness.trend import history as follow

    return history_frame(follow(past([Path(folder) for folder in folders or ("reports",)]), last), by)


def _names(target: str | Sequence[str]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else tuple(target)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("harness")
    if name not in _HOME:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
