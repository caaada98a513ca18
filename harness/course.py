"""What past runs made of every check, and what each outcome is compared with. Pure.

Each check of each run is compared once. Where an earlier run was made under the same conditions (the same suite
file, weights, libraries and device, all of them known; for a pinned test the same clean commit, too), the two make a
pair, and another outcome is a flake. Where none was, it is compared with the run before it, and another outcome is a
change, to be explained by what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.run_index import Part, Past, PastRun
from harness.run_outcomes import LETTERS, CheckName
from harness.store import WORST_FIRST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]
    Whole = NDArray[np.intp]

NEVER = len(WORST_FIRST)  # the code of a check that a run did not judge; an outcome's is its place in WORST_FIRST
CODES = bytes.maketrans(LETTERS, bytes(range(len(LETTERS))))
PASSED = tuple(WORST_FIRST.index(outcome) for outcome in ("passed", "xpassed"))
SKIPPED = WORST_FIRST.index("skipped")

REQUIRED = ("suite", "weights", "device", "python")  # what must be known before two runs are taken for the same
# Of these only that they differ can be read.
EDITED = {
    "suite": "suite edited",
    "weights": "other weights",
    "tokenizer": "other tokenizer",
    "chat template": "other chat template",
    "model's generation config": "the model's generation config edited",
}
COMMIT = "commit"


@dataclass(frozen=True)
class Course:
    """How the checks of one suite went on one target: a row for each run, a column for each check, by test."""

    suite: str
    target: str
    runs: tuple[PastRun, ...]
    parts: tuple[Part, ...]
    checks: tuple[CheckName, ...]
    codes: NDArray[np.uint8]
    before: Whole  # the row that each is compared with; -1: none
    paired: Flags  # that row is of the same conditions
    changed: Flags  # and whether the outcome is another one

    @property
    def flaked(self) -> Flags:
        return self.paired & self.changed

    @cached_property
    def starts(self) -> tuple[tuple[str, int], ...]:
        """Each test and the column of its first check."""
        found: dict[str, int] = {}
        for column, check in enumerate(self.checks):
            found.setdefault(check.test, column)
        return tuple(found.items())

    def by_test(self, cells: NDArray[Any]) -> Whole:
        """Of each run and test, for how many checks it is true."""
        import numpy as np

        return np.add.reduceat(cells, [column for _, column in self.starts], axis=1, dtype=np.intp)

    @cached_property
    def passed(self) -> Whole:
        import numpy as np

        return self.by_test(np.isin(self.codes, PASSED))

    @cached_property
    def judged(self) -> Whole:
        return self.by_test(self.codes < SKIPPED)

    @cached_property
    def worst(self) -> NDArray[np.uint8]:
        import numpy as np

        return np.minimum.reduceat(self.codes, [column for _, column in self.starts], axis=1)

    def differs(self, row: int, before: int, *, pinned: bool) -> tuple[str, ...]:
        """What is not the same in two of its runs."""
        conditions = [_conditions(self.parts[one], self.runs[one], pinned) for one in (before, row)]
        return tuple(_differences(*conditions))


def courses(past: Past, last: int | None = None) -> tuple[Course, ...]:
    """The last runs of every suite on every target."""
    parts: dict[tuple[str, str], list[Part]] = {}
    for part in past.parts:
        parts.setdefault((part.suite, part.target), []).append(part)
    return tuple(_course(past, some[-last:] if last else some) for some in parts.values())


def _course(past: Past, parts: Sequence[Part]) -> Course:
    import numpy as np

    checks = _checks(parts)
    columns = {(check.test, check.label): column for column, check in enumerate(checks)}
    places: dict[int, Whole] = {}
    codes = np.full((len(parts), len(checks)), NEVER, np.uint8)
    for row, part in enumerate(parts):
        if id(part.checks) not in places:
            places[id(part.checks)] = np.array([columns[check.test, check.label] for check in part.checks], np.intp)
        codes[row, places[id(part.checks)]] = np.frombuffer(part.outcomes.translate(CODES), np.uint8)
    runs = tuple(past.runs[part.run] for part in parts)
    pinned = np.array([check.pinned for check in checks], np.bool_)
    before = _row_before(codes, np.zeros(len(parts), np.intp))
    same = np.full_like(before, -1)
    for word in (True, False):
        columns_of = np.flatnonzero(pinned == word)
        same[:, columns_of] = _row_before(codes[:, columns_of], _groups(parts, runs, pinned=word))
    paired = same >= 0
    before[paired] = same[paired]
    other = np.take_along_axis(codes, np.maximum(before, 0), axis=0) != codes
    changed = other & (before >= 0)
    return Course(parts[0].suite, parts[0].target, runs, tuple(parts), checks, codes, before, paired, changed)


def _checks(parts: Sequence[Part]) -> tuple[CheckName, ...]:
    """Of all runs, in the order of the last one, those of a test side by side; pinned in one is pinned in all."""
    distinct = {id(part.checks): part.checks for part in reversed(parts)}.values()
    names = dict.fromkeys((check.test, check.label) for checks in distinct for check in checks)
    pinned = {check.test for checks in distinct for check in checks if check.pinned}
    tests = {test: place for place, test in enumerate(dict.fromkeys(test for test, _ in names))}
    ordered = sorted(names, key=lambda name: tests[name[0]])
    return tuple(CheckName(test, label, test in pinned) for test, label in ordered)


def _groups(parts: Sequence[Part], runs: Sequence[PastRun], *, pinned: bool) -> Whole:
    """A number for each run: the same for those of the same conditions, which must be known."""
    import numpy as np

    distinct = {id(part.conditions): part.conditions for part in parts}
    known = {id: tuple(one.items()) for id, one in distinct.items() if all(one.get(name) for name in REQUIRED)}
    numbers: dict[object, int] = {}
    groups = []
    for row, (part, run) in enumerate(zip(parts, runs, strict=True)):
        is_known = id(part.conditions) in known and (not pinned or (run.commit and run.clean))
        key = (known[id(part.conditions)], run.commit if pinned else "") if is_known else row
        groups.append(numbers.setdefault(key, len(numbers)))
    return np.array(groups, np.intp)


def _row_before(codes: NDArray[np.uint8], groups: Whole) -> Whole:
    """Of each run and check, the last run of its group that judged the check before; -1: none, or not judged."""
    import numpy as np

    found = np.full(codes.shape, -1, np.intp)
    for group in np.flatnonzero(np.bincount(groups) > 1):
        rows = np.flatnonzero(groups == group)
        judged = codes[rows] != NEVER
        last = np.maximum.accumulate(np.where(judged, rows[:, None], -1), axis=0)
        found[rows[1:]] = np.where(judged[1:], last[:-1], -1)
    return found


def _conditions(part: Part, run: PastRun, pinned: bool) -> Mapping[str, str]:
    return {**part.conditions, COMMIT: run.commit[:12] if run.clean else ""} if pinned else part.conditions


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterable[str]:
    for name in dict.fromkeys((*before, *after, *REQUIRED)):
        old, new = before.get(name, ""), after.get(name, "")
        if name in (*REQUIRED, COMMIT) and not (old and new):
            word = "not a clean commit: pins may have been edited" if name == COMMIT else f"{name} not known"
            yield word
        elif old != new:
            yield EDITED.get(name) or f"{name} {old or 'none'} → {new or 'none'}"
