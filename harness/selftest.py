"""How much a suite catches: its own checks on a model in which faults are planted one after the other.

An expectation that passes on the healthy model and on every faulty one is toothless: it would pass whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness import backends
from harness.answers import Kept, Observer, Quiet
from harness.backends import Backend
from harness.errors import NotSupported, UsageError
from harness.plan import Check, fits
from harness.record import Status, Target
from harness.runner import Runner

Place = tuple[str, str, str]  # suite, test, expectation


@dataclass(frozen=True)
class Tooth:
    """One expectation of one test, and the faults that it caught."""

    suite: str
    test: str
    expectation: str
    healthy: Status  # its verdict with no fault planted
    caught: tuple[str, ...] = ()

    @property
    def toothless(self) -> bool:
        return self.healthy == "passed" and not self.caught


@dataclass(frozen=True)
class SelfTest:
    """What the checks of one target caught."""

    target: str
    faults: tuple[str, ...]
    not_planted: Mapping[str, str]  # fault: why it could not be planted in this model
    teeth: tuple[Tooth, ...]
    quick: bool = False  # each expectation was tried only until it had caught one

    @property
    def toothless(self) -> tuple[Tooth, ...]:
        return tuple(tooth for tooth in self.teeth if tooth.toothless)

    @property
    def missed(self) -> tuple[str, ...]:
        """Faults that nothing caught."""
        caught = {fault for tooth in self.teeth for fault in tooth.caught}
        return tuple(fault for fault in self.faults if fault not in caught)


def selftest(
    checks: Sequence[Check], faults: Sequence[str] = (), observer: Observer | None = None, *, quick: bool = False
) -> SelfTest:
    """Judge the checks of one target with each fault planted. Quick: each expectation until it has caught one."""
    from harness.backends.faults import FAULTS, plant

    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise UsageError(f"no fault is called '{unknown[0]}'", f"There are: {', '.join(FAULTS)}.")
    observer = observer or Quiet()
    target = checks[0].target
    backend = backends.load(target, top_k=checks[0].suite.top_k_logprobs, progress=observer.says)
    names, not_planted = tuple(faults) or tuple(FAULTS), {}
    caught: dict[Place, list[str]] = {}
    try:
        healthy = _verdicts(checks, backend, observer)
        for name in names:
            observer.says(f"planting {name}: {FAULTS[name].summary}")
            try:
                with plant(backend, name):
                    faulty = _verdicts(_worth_asking(checks, healthy, caught, quick), backend, observer)
            except NotSupported as error:
                not_planted[name] = error.message
                continue
            for place, statuses in faulty.items():
                pairs = ((healthy[place].get(check), status) for check, status in statuses.items())
                if any(before == "passed" and after in ("failed", "error") for before, after in pairs):
                    caught.setdefault(place, []).append(name)
    finally:
        backend.close()
    teeth = tuple(
        Tooth(*place, healthy=_together(statuses.values()), caught=tuple(caught.get(place, ())))
        for place, statuses in healthy.items()
    )
    return SelfTest(target.name, tuple(name for name in names if name not in not_planted), not_planted, teeth, quick)


def chosen(checks: Sequence[Check]) -> list[tuple[Check, ...]]:
    """Of each suite the checks on its baseline, or else its first target; those that may share a model together."""
    targets: dict[str, Target] = {}
    for check in checks:
        baseline = check.suite.baseline is not None and fits(check.suite.baseline, check.target)
        if check.file not in targets or (baseline and not fits(check.suite.baseline, targets[check.file])):
            targets[check.file] = check.target
    groups: dict[object, list[Check]] = {}
    for check in checks:
        if check.target == targets[check.file]:
            key = (check.target, check.suite.top_k_logprobs, check.suite.batch_size)
            groups.setdefault(key, []).append(check)
    return [tuple(group) for group in groups.values()]


def _worth_asking(
    checks: Sequence[Check], healthy: Mapping[Place, Mapping[str, Status]], caught: Mapping[Place, object], quick: bool
) -> Sequence[Check]:
    """All that passed on the healthy model; quick: of that, what has caught nothing yet."""
    return [part for check in checks if (part := _part(check, healthy, caught if quick else {})).cases]


def _part(check: Check, healthy: Mapping[Place, Mapping[str, Status]], done: Mapping[Place, object]) -> Check:
    """The check with those expectations only that can still show something."""
    if check.test.expect.pass_rate is not None and not check.over_set:
        place = (check.suite.suite, check.test.name, "pass_rate")
        return replace(check, cases=()) if place in done else check

    def is_open(expectation: str) -> bool:
        place = (check.suite.suite, check.test.name, expectation)
        return place not in done and healthy.get(place, {}).get(check.id) == "passed"

    return replace(check, cases=tuple(part for case in check.cases if (part := case.only(is_open)).expectations))


def _verdicts(checks: Sequence[Check], backend: Backend, observer: Observer) -> dict[Place, dict[str, Status]]:
    """Of each expectation, the status on every check of its test."""
    found: dict[Place, dict[str, Status]] = {}
    runner = Runner(checks, observer, load=lambda *_, **__: Kept(backend), explain=False)
    for judged in runner.run():
        for record in judged.records:
            if record.expectation:
                place = (record.suite, record.test, record.expectation)
                found.setdefault(place, {})[record.check] = record.verdict.status
    return found


def _together(statuses: Iterable[Status]) -> Status:
    """Of several prompts: passed if one of them passed, for that one may catch something."""
    order: tuple[Status, ...] = ("passed", "failed", "error", "skipped")
    return min(statuses, key=order.index)
