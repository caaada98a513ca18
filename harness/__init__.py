"""Generation evaluation and regression testing for causal language models.

`harness.run("suites/basics.yaml")` is the whole of it: one row for each verdict, as a pandas DataFrame.
Importing this package imports nothing heavy; each name is fetched from its module when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

    from harness.backends import Backend
    from harness.errors import CannotRun, HarnessError, NothingSelected, SuiteError, UsageError
    from harness.expectations import Expectation
    from harness.frame import matrix, results_frame, targets_frame
    from harness.load import Loaded, json_schema, load_all
    from harness.record import Completion, Record, Request, Target, TargetFacts, Verdict
    from harness.runner import Judged, Runner
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
    "Runner",
    "Suite",
    "SuiteError",
    "Target",
    "TargetFacts",
    "UsageError",
    "Verdict",
    "json_schema",
    "load_all",
    "matrix",
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
) -> DataFrame:
    """Judge the checks of these suites: a row for each verdict; `attrs` holds counts, outcomes and load errors."""
    from harness.frame import results_frame
    from harness.load import load_all
    from harness.plan import plan
    from harness.runner import Runner
    from harness.selection import select

    targets = (target,) if isinstance(target, str) else tuple(target)
    checks = plan(load_all(suites)).checks
    runner = Runner(select(checks, keyword=keyword, mark=mark, targets=targets, limit=limit))
    try:
        for _ in runner.run():
            pass
    finally:
        runner.close()
    results = runner.results("harness.run()")
    frame = results_frame(results)
    frame.attrs |= {"counts": dict(results.counts), "outcomes": results.outcomes, "errors": list(results.errors)}
    return frame


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("harness")
    if name not in _HOME:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
