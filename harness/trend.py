"""Trend and flake rate of every test, check and target, from the courses of past runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from harness.course import NEVER, Course, courses
from harness.run_index import Past, PastRun
from harness.run_outcomes import CheckName
from harness.store import WORST_FIRST

CONFIDENCE = 0.95
FEW = 10  # pairs: fewer say little
NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
FAILING = ("error", "failed")


@dataclass(frozen=True)
class Flake:
    """How often the same conditions gave another outcome."""

    changed: int
    pairs: int

    @property
    def rate(self) -> float:
        return self.changed / self.pairs if self.pairs else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 95 % confidence, on half as many pairs: a run is in two, and one odd run makes two flakes."""
        if not self.pairs:
            return 0.0, 1.0
        weight = NORMAL**2 / (self.pairs / 2)
        centre = (self.rate + weight / 2) / (1 + weight)
        half = math.sqrt(weight * self.rate * (1 - self.rate) + weight**2 / 4) / (1 + weight)
        return (0.0 if not self.changed else centre - half), (1.0 if self.changed == self.pairs else centre + half)


class Changed(NamedTuple):
    """One check, and its two outcomes."""

    label: str
    before: str
    after: str
    flaky: bool  # it flaked elsewhere: the conditions may have nothing to do with it


@dataclass(frozen=True)
class Change:
    """Another outcome under other conditions: of checks of one suite on one target, from one run to a later one."""

    suite: str
    target: str
    before: PastRun
    after: PastRun
    checks: tuple[Changed, ...]
    differs: tuple[str, ...]  # "torch 2.12.0 → 2.13.0"


@dataclass(frozen=True)
class CheckTrend:
    """One check on one target."""

    suite: str
    target: str
    name: CheckName
    outcome: str  # in the last run that judged it
    runs: int
    flake: Flake
    flaked: PastRun | None  # the last run in which it did


@dataclass(frozen=True)
class TestTrend:
    """One test on one target, run by run; a run in which it was not judged has no outcome."""

    __test__ = False  # for pytest
    suite: str
    target: str
    test: str
    runs: tuple[PastRun, ...]
    outcomes: tuple[str, ...]  # the worst of its checks in each run
    passed: tuple[int, ...]  # of so many that were …
    judged: tuple[int, ...]  # … not skipped
    seconds: tuple[float | None, ...]  # to generate all that its checks needed
    differs: tuple[tuple[str, ...], ...]  # from the run before, where it had the test
    flake: Flake  # of the runs in which any check of it was compared with one of the same conditions
    removed: bool  # the suite was edited since it was last judged

    @property
    def last(self) -> int:
        """The place of the last run that judged it."""
        return max(place for place, outcome in enumerate(self.outcomes) if outcome)

    @property
    def outcome(self) -> str:
        return self.outcomes[self.last]

    @property
    def fails(self) -> bool:
        return self.outcome in FAILING and not self.removed

    @property
    def pass_rate(self) -> float:
        judged = sum(self.judged)
        return sum(self.passed) / judged if judged else math.nan

    @property
    def failing(self) -> tuple[int, ...]:
        """The places of the runs in which it failed without a pass in between, up to the last one."""
        found = []
        for place in reversed(range(len(self.runs))):
            if self.outcomes[place] in FAILING:
                found.append(place)
            elif self.outcomes[place]:
                break
        return tuple(reversed(found))

    @property
    def before_failing(self) -> int | None:
        """The place of the last run that judged it before it began to fail."""
        first = self.failing[0] if self.failing else 0
        return next((place for place in reversed(range(first)) if self.outcomes[place]), None)

    @property
    def what_differed(self) -> tuple[str, ...]:
        """Between that run and the first in which it failed."""
        if self.before_failing is None:
            return ()
        runs = range(self.before_failing + 1, self.failing[0] + 1)
        return tuple(dict.fromkeys(word for place in runs for word in self.differs[place]))

    @property
    def steady(self) -> bool:
        """Whether it neither failed in any run nor flaked."""
        return not self.flake.changed and not any(outcome in FAILING for outcome in self.outcomes)


@dataclass(frozen=True)
class TargetTrend:
    """One target, over all suites, run by run."""

    target: str
    runs: tuple[PastRun, ...]
    passed: tuple[int, ...]
    judged: tuple[int, ...]
    tokens_per_second: tuple[float | None, ...]  # of what was freely generated to be judged
    flake: Flake  # of the runs in which any check on it was compared with one of the same conditions


@dataclass
class Sum:
    """Over the suites of one run, on one target."""

    run: PastRun
    passed: int = 0
    judged: int = 0
    paired: bool = False
    flaked: bool = False
    tokens: int = 0
    seconds: float = 0.0


def tests(found: Iterable[Course]) -> list[TestTrend]:
    """Every test on every target."""
    return [trend for course in found for trend in _tests(course)]


def _tests(course: Course) -> Iterable[TestTrend]:
    worst, passed, judged = course.worst.T.tolist(), course.passed.T.tolist(), course.judged.T.tolist()
    paired, flaked = course.by_test(course.paired) > 0, course.by_test(course.flaked) > 0
    pairs, flakes = paired.sum(axis=0).tolist(), flaked.sum(axis=0).tolist()
    differs = {pinned: _differs_by_run(course, pinned) for pinned in {check.pinned for check in course.checks}}
    words = (*WORST_FIRST, "")
    suites = [part.conditions.get("suite") for part in course.parts]
    seconds = [part.seconds_by_test for part in course.parts]
    for place, (test, column) in enumerate(course.starts):
        outcomes = tuple(map(words.__getitem__, worst[place]))
        last = max(row for row, outcome in enumerate(outcomes) if outcome)
        yield TestTrend(
            suite=course.suite,
            target=course.target,
            test=test,
            runs=course.runs,
            outcomes=outcomes,
            passed=tuple(passed[place]),
            judged=tuple(judged[place]),
            seconds=tuple([one.get(test) for one in seconds]),
            differs=differs[course.checks[column].pinned],
            flake=Flake(flakes[place], pairs[place]),
            removed=suites[last] != suites[-1],
        )


def _differs_by_run(course: Course, pinned: bool) -> tuple[tuple[str, ...], ...]:
    told: dict[object, tuple[str, ...]] = {}  # most runs are of the same conditions as the one before
    found: list[tuple[str, ...]] = [()]
    for row in range(1, len(course.runs)):
        sides = [(id(course.parts[one].conditions), course.runs[one].commit, course.runs[one].clean)
                 for one in (row - 1, row)]  # fmt: skip
        key = tuple(sides)
        if key not in told:
            told[key] = course.differs(row, row - 1, pinned=pinned)
        found.append(told[key])
    return tuple(found)


def flaky(some: Iterable[Course]) -> list[CheckTrend]:
    """The checks that flaked, the most frequent first."""
    found = [one for course in some for one in checks(course) if one.flake.changed]
    return sorted(found, key=lambda one: (-one.flake.rate, -one.flake.pairs))


def checks(course: Course) -> Iterable[CheckTrend]:
    """Every check of one suite on one target."""
    import numpy as np

    flaked = course.flaked
    rows = np.arange(len(course.runs))[:, None]
    latest = np.where(flaked, rows, -1).max(axis=0).tolist()
    met = course.codes != NEVER
    outcome = course.codes[np.where(met, rows, -1).max(axis=0), np.arange(len(course.checks))].tolist()
    counts = zip(flaked.sum(axis=0).tolist(), course.paired.sum(axis=0).tolist(), strict=True)
    flakes = [Flake(changed, pairs) for changed, pairs in counts]
    runs = met.sum(axis=0).tolist()
    for column, name in enumerate(course.checks):
        when = course.runs[latest[column]] if latest[column] >= 0 else None
        told = WORST_FIRST[outcome[column]]
        yield CheckTrend(course.suite, course.target, name, told, runs[column], flakes[column], when)


def changes(some: Iterable[Course]) -> list[Change]:
    """Outcomes that are others under other conditions, the newest first."""
    import numpy as np

    found: list[Change] = []
    for course in some:
        told: dict[tuple[int, int, bool], list[Changed]] = {}
        flaky: list[bool] = np.any(course.flaked, axis=0).tolist()
        for row, column in np.argwhere(course.changed & ~course.paired).tolist():
            before, name = int(course.before[row, column]), course.checks[column]
            was, now = (WORST_FIRST[course.codes[one, column]] for one in (before, row))
            told.setdefault((row, before, name.pinned), []).append(Changed(name.label, was, now, flaky[column]))
        for (row, before, pinned), checked in told.items():
            differs = course.differs(row, before, pinned=pinned)
            runs = course.runs[before], course.runs[row]
            found.append(Change(course.suite, course.target, *runs, tuple(checked), differs))
    return sorted(found, key=lambda change: change.after.started, reverse=True)


def targets(some: Sequence[Course]) -> list[TargetTrend]:
    """Every target over all its suites."""
    by_target: dict[str, list[Course]] = {}
    for course in some:
        by_target.setdefault(course.target, []).append(course)
    return [_target(target, own) for target, own in by_target.items()]


def _target(target: str, some: Sequence[Course]) -> TargetTrend:
    sums: dict[int, Sum] = {}
    for course in some:
        columns = (course.passed.sum(axis=1), course.judged.sum(axis=1))
        flags = (course.paired.any(axis=1), course.flaked.any(axis=1))
        cells = zip(*(column.tolist() for column in (*columns, *flags)), strict=True)
        for run, part, (passed, judged, paired, flaked) in zip(course.runs, course.parts, cells, strict=True):
            one = sums.setdefault(part.run, Sum(run))
            one.passed, one.judged = one.passed + passed, one.judged + judged
            one.paired, one.flaked = one.paired or paired, one.flaked or flaked
            one.tokens, one.seconds = one.tokens + part.tokens, one.seconds + part.seconds
    ordered = [sums[place] for place in sorted(sums)]
    return TargetTrend(
        target,
        runs=tuple(one.run for one in ordered),
        passed=tuple(one.passed for one in ordered),
        judged=tuple(one.judged for one in ordered),
        tokens_per_second=tuple(one.tokens / one.seconds if one.seconds else None for one in ordered),
        flake=Flake(sum(one.flaked for one in ordered), sum(one.paired for one in ordered)),
    )


@dataclass(frozen=True)
class History:
    """All that is shown of past runs."""

    runs: tuple[PastRun, ...]
    courses: tuple[Course, ...]
    tests: tuple[TestTrend, ...]
    targets: tuple[TargetTrend, ...]
    flaky: tuple[CheckTrend, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def failing(self) -> list[TestTrend]:
        """The tests that fail now, those first that just began to."""
        return sorted((test for test in self.tests if test.fails), key=lambda test: len(test.failing))


def history(past: Past, last: int | None = None) -> History:
    """What the last runs of every suite on every target show; unset, all of them."""
    found = courses(past, last)
    met = {run.name for course in found for run in course.runs}
    return History(
        runs=tuple(run for run in past.runs if run.name in met or not last),
        courses=found,
        tests=tuple(tests(found)),
        targets=tuple(targets(found)),
        flaky=tuple(flaky(found)),
        changes=tuple(changes(found)),
        notes=past.notes,
    )
