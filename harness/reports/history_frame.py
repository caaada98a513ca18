"""Past runs as pandas frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.course import Course
from harness.store import WORST_FIRST
from harness.tables import encodable
from harness.trend import Flake, History, TestTrend, checks

By = Literal["test", "check", "run"]
FLAKE = ["pairs", "flakes", "flake_rate", "flake_low", "flake_high"]
OF_TEST = [
    *("suite", "test", "target", "outcome", "runs", "last_run", "passed", "judged", "pass_rate"),
    *("failing_runs", "failing_since", *FLAKE, "seconds"),
]
OF_CHECK = ["suite", "test", "target", "check", "outcome", "runs", *FLAKE, "last_flake"]
OF_RUN = [
    *("run", "started", "suite", "test", "target", "outcome", "passed", "judged", "pass_rate"),
    *("compared", "flaked", "changed", "seconds", "tokens_per_second"),
]


def history_frame(history: History, by: By = "test") -> pd.DataFrame:
    """A row for each test, or check, on each target; or for each of these tests in each run, the oldest first."""
    if by == "test":
        frame = pd.DataFrame([_of_test(test) for test in history.tests], columns=OF_TEST)
        return frame.astype({"failing_since": "datetime64[ns, UTC]", "seconds": "float64"})
    if by == "check":
        frame = pd.DataFrame([row for course in history.courses for row in _of_checks(course)], columns=OF_CHECK)
        return frame.astype({"last_flake": "datetime64[ns, UTC]"})
    if by != "run":
        raise ValueError(f"by is 'test', 'check' or 'run', not {by!r}")
    frames = [_of_runs(course) for course in history.courses] or [pd.DataFrame(columns=OF_RUN)]
    return pd.concat(frames, ignore_index=True).sort_values("started", kind="stable", ignore_index=True)


def _flake(flake: Flake) -> dict[str, Any]:
    low, high = flake.interval if flake.pairs else (np.nan, np.nan)
    values = (flake.pairs, flake.changed, flake.rate, low, high)
    return dict(zip(FLAKE, values, strict=True))


def _of_test(test: TestTrend) -> dict[str, Any]:
    seconds = [one for one in test.seconds if one]
    return {
        **{name: encodable(getattr(test, name)) for name in ("suite", "test", "target")},
        "outcome": test.outcome,
        "runs": sum(map(bool, test.outcomes)),
        "last_run": test.runs[test.last].name,
        "passed": sum(test.passed),
        "judged": sum(test.judged),
        "pass_rate": test.pass_rate,
        "failing_runs": len(test.failing),
        "failing_since": test.runs[test.failing[0]].started if test.failing else None,
        **_flake(test.flake),
        "seconds": float(np.median(seconds)) if seconds else np.nan,
    }


def _of_checks(course: Course) -> Iterable[dict[str, Any]]:
    for check in checks(course):
        yield {
            "suite": encodable(check.suite),
            "test": encodable(check.name.test),
            "target": encodable(check.target),
            "check": encodable(check.name.label),
            "outcome": check.outcome,
            "runs": check.runs,
            **_flake(check.flake),
            "last_flake": check.flaked.started if check.flaked else None,
        }


def _of_runs(course: Course) -> pd.DataFrame:
    """Made of whole columns: there may be a million rows."""
    rows, places = np.nonzero(course.worst < len(WORST_FIRST))
    tests = np.array([encodable(test) for test, _ in course.starts], object)
    judged = course.judged[rows, places]
    passed = course.passed[rows, places]
    speeds = np.array([part.tokens / part.seconds if part.seconds else np.nan for part in course.parts])
    seconds = np.array([[part.seconds_by_test.get(test, np.nan) for test, _ in course.starts] for part in course.parts])
    counts = {
        "compared": course.by_test(course.paired),
        "flaked": course.by_test(course.flaked),
        "changed": course.by_test(course.changed & ~course.paired),
    }
    return pd.DataFrame(
        {
            "run": np.array([run.name for run in course.runs], object)[rows],
            "started": pd.DatetimeIndex([run.started for run in course.runs])[rows],
            "suite": encodable(course.suite),
            "test": tests[places],
            "target": encodable(course.target),
            "outcome": np.array(WORST_FIRST, object)[course.worst[rows, places]],
            "passed": passed,
            "judged": judged,
            "pass_rate": np.divide(passed, judged, out=np.full(len(rows), np.nan), where=judged > 0),
            **{name: count[rows, places] for name, count in counts.items()},
            "seconds": seconds[rows, places],
            "tokens_per_second": speeds[rows],
        },
        columns=OF_RUN,
    )
