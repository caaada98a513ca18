"""Past runs as one page: what fails now and since when, what flakes, what changed, every test run by run."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from harness.reports import SYMBOLS, duration
from harness.reports.history import differs_words, failing_words, flake_words, headline, rate_words
from harness.reports.pages import digest, joined, template
from harness.run_index import PastRun
from harness.trend import FAILING, Change, CheckTrend, History, TargetTrend, TestTrend

STYLES = ("page.css", "history.css")
DRAWN = 60  # runs in one drawing: the last ones
STEP, HEIGHT, MARK = 5, 18, 6  # of a run's bar, and of the mark above it where something failed
WIDTH, ROOM = 120, 2  # of a line, and around it
SHOWN = 100  # failing tests, flaky checks, changes, runs
LISTED = 20  # checks of one change


@dataclass(frozen=True)
class Strip:
    """The pass rate of each run as bars, as paths of an SVG."""

    width: int
    height: int
    full: str  # a bar as high as the share that passed
    fail: str  # a triangle above where something failed
    none: str  # a tick where nothing was judged
    edge: str  # a line where the conditions changed
    words: str


@dataclass(frozen=True)
class Line:
    """A number run by run, as a path of an SVG."""

    path: str
    x: float  # the last point
    y: float
    words: str
    width: int = WIDTH
    height: int = HEIGHT


def render(history: History, place: Path) -> str:
    """The whole page; links to the runs are written as seen from the folder that the page will lie in."""
    style = joined(STYLES)
    word, sentence = headline(history)
    groups = groupby(history.tests, key=lambda test: (test.suite, test.target))
    return template("history.html.j2").render(
        style=Markup(style),
        style_hash=digest(style),
        word=word,
        sentence=sentence,
        failing=[_failing(test) for test in history.failing[:SHOWN]],
        flaky=[_flaky(check) for check in history.flaky[:SHOWN]],
        changes=[_change(change) for change in history.changes[:SHOWN]],
        more={name: max(0, len(getattr(history, name)) - SHOWN) for name in ("failing", "flaky", "changes", "runs")},
        groups=[(suite, target, [_test(test) for test in tests]) for (suite, target), tests in groups],
        drawn=DRAWN,
        targets=[_target(target) for target in history.targets],
        runs=[_run(run, place) for run in reversed(history.runs[-SHOWN:])],
        durations=_line([run.seconds for run in history.runs], "s", "duration of a run"),
        notes=history.notes,
    )


def _failing(test: TestTrend) -> dict[str, Any]:
    return {
        "test": test,
        "symbol": SYMBOLS[test.outcome],
        "words": failing_words(test),
        "differs": "–" if test.before_failing is None else differs_words(test.what_differed),
        "strip": strip(test),
    }


def _flaky(check: CheckTrend) -> dict[str, Any]:
    return {"check": check, "flake": flake_words(check.flake), "symbol": SYMBOLS[check.outcome]}


def _change(change: Change) -> dict[str, Any]:
    return {
        "change": change,
        "differs": differs_words(change.differs),
        "all": change.differs,
        "checks": change.checks[:LISTED],
        "more": len(change.checks) - LISTED,
    }


def _test(test: TestTrend) -> dict[str, Any]:
    seconds = [one for one in test.seconds if one]
    return {
        "test": test,
        "symbol": SYMBOLS[test.outcome],
        "ago": len(test.runs) - 1 - test.last,
        "strip": strip(test),
        "rate": rate_words(test),
        "flake": flake_words(test.flake),
        "seconds": duration(statistics.median(seconds)) if seconds else "–",
        "line": _line(test.seconds, "s", "time to generate"),
    }


def _target(target: TargetTrend) -> dict[str, Any]:
    judged = sum(target.judged)
    return {
        "target": target,
        "passed": f"{sum(target.passed):,} of {judged:,}",
        "flake": flake_words(target.flake),
        "line": _line(target.tokens_per_second, "tokens/s", "speed"),
    }


def _run(run: PastRun, place: Path) -> dict[str, Any]:
    outcomes = ", ".join(f"{SYMBOLS[name]} {run.outcomes[name]:,} {name}" for name in SYMBOLS if run.outcomes.get(name))
    commit = run.commit[:8] + ("" if run.clean or not run.commit else " and edited")
    return {
        "run": run,
        "link": _link(run, place),
        "outcomes": outcomes,
        "duration": duration(run.seconds),
        "commit": commit,
    }


def _link(run: PastRun, place: Path) -> str:
    """To its report, if it has one that can be reached by a relative path."""
    page = run.folder / "report.html"
    try:
        return quote(Path(os.path.relpath(page, place)).as_posix()) if page.is_file() else ""
    except ValueError:  # on another drive
        return ""


def strip(test: TestTrend) -> Strip:
    """The last runs of a test as bars."""
    first = max(0, len(test.runs) - DRAWN)
    full: list[str] = []
    fail: list[str] = []
    none: list[str] = []
    edge: list[str] = []
    for number, place in enumerate(range(first, len(test.runs))):
        x, bottom = STEP * number, MARK + HEIGHT
        judged = test.judged[place]
        if judged and test.passed[place]:
            full.append(f"M{x + 2} {bottom}v-{HEIGHT * test.passed[place] / judged:.4g}")
        elif test.outcomes[place]:
            none.append(f"M{x} {bottom - 1}h{STEP - 1}")
        if test.outcomes[place] in FAILING:
            fail.append(f"M{x} 0h4l-2 {MARK - 2}z")
        if number and test.differs[place]:
            edge.append(f"M{x - 0.5} 0v{bottom}")
    return Strip(
        width=STEP * (len(test.runs) - first),
        height=MARK + HEIGHT,
        full="".join(full),
        fail="".join(fail),
        none="".join(none),
        edge="".join(edge),
        words=_strip_words(test, first),
    )


def _strip_words(test: TestTrend, first: int) -> str:
    outcomes = test.outcomes[first:]
    failed = sum(outcome in FAILING for outcome in outcomes)
    rates = [100 * a / b for a, b in zip(test.passed[first:], test.judged[first:], strict=True) if b]
    told = f"{len(outcomes)} runs, oldest first: failed in {failed}"
    told += f"; passed from {min(rates):.0f} % to {max(rates):.0f} %, in the last {rates[-1]:.0f} %" if rates else ""
    changes = sum(map(bool, test.differs[first + 1 :]))
    return f"{told}; conditions changed {changes} times"


def _line(values: Sequence[float | None], unit: str, what: str) -> Line | None:
    """The last runs as a line above zero; nothing where fewer than two are known."""
    some = values[-DRAWN:]
    points = [(place, value) for place, value in enumerate(some) if value]
    if len(points) < 2:
        return None
    known = [value for _, value in points]
    low, high = min(known), max(known)
    across, down = (WIDTH - 2 * ROOM) / (len(some) - 1), HEIGHT - 2 * ROOM
    spots = [(ROOM + across * place, ROOM + down * (1 - value / high)) for place, value in points]
    path = "M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in spots)
    words = f"{what}: {known[-1]:.3g} {unit} in the last run, {low:.3g} to {high:.3g} in {len(known)} runs"
    return Line(path, *spots[-1], words)
