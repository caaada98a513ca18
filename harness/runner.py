"""Drives backends over a plan. The only loop: the command line and pytest both ask this object for verdicts.

A check pulls just the batches that its own requests are in, so `-x` and a selection cost what they should.
One target is resident at a time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, cast

from harness import backends
from harness.backends import Backend, process
from harness.divergence import agree
from harness.environment import describe
from harness.errors import CannotRun, HarnessError, LevelUnavailable
from harness.expectations import Expectation, OverSet
from harness.judgement import Answer, Judgement, broken, caused, each, rate, reach, reach_set, record
from harness.plan import Case, Check
from harness.record import Completion, Failure, Record, Request, Status, Target, TargetFacts, Verdict
from harness.schedule import batches, unite
from harness.store import Results

# Suites share what is generated for a target when they also agree on how: top-k log-probabilities, rows per batch.
Setting = tuple[Target, int, int | None]


def _setting(check: Check) -> Setting:
    return check.target, check.suite.top_k_logprobs, check.suite.batch_size


class Observer(Protocol):
    """Told what is going on; draws progress, or keeps quiet."""

    def says(self, message: str) -> None:
        """Something that takes a while has begun."""

    def batch(self, target: Target, done: int, total: int) -> None:
        """So many of the target's requests are answered."""


class Quiet:
    """The observer that says nothing."""

    def says(self, message: str) -> None: ...

    def batch(self, target: Target, done: int, total: int) -> None: ...


class Kept:
    """A backend that outlives those who use it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def facts(self) -> TargetFacts:
        return self._backend.facts

    def length(self, request: Request) -> int:
        return self._backend.length(request)

    def generate(self, requests: Sequence[Request]) -> Sequence[Completion | Failure]:
        return self._backend.generate(requests)

    def close(self) -> None:
        """Whoever loaded it closes it."""


@dataclass(frozen=True)
class Judged:
    """A check and what came of it, one record for each expectation."""

    check: Check
    records: tuple[Record, ...]

    @property
    def status(self) -> Status:
        """The worst of its verdicts."""
        order: tuple[Status, ...] = ("error", "failed", "passed", "skipped")
        return min((record.verdict.status for record in self.records), key=order.index)

    @property
    def worst(self) -> Record:
        return next(record for record in self.records if record.verdict.status == self.status)


@dataclass
class _Work:
    """What is asked of one target, and what has been answered."""

    answered_by: dict[Request, Request]
    answers: dict[Request, Answer] = field(default_factory=dict)
    batch_of: dict[Request, tuple[Request, ...]] = field(default_factory=dict)  # filled once the target is loaded
    error: CannotRun | None = None
    facts: TargetFacts | None = None


class Runner:
    """Reaches the verdicts of these checks."""

    def __init__(
        self,
        checks: Sequence[Check],
        observer: Observer | None = None,
        load: Callable[..., Backend] | None = None,
        *,
        explain: bool = True,
    ) -> None:
        self.checks = tuple(checks)
        self.observer = observer or Quiet()
        self._explain = explain  # look for the cause of what failed, which generates more
        self._load = load or backends.load
        self.judged: list[Judged] = []
        self._loaded: tuple[Setting, Backend] | None = None
        self._began = time.monotonic()
        self._started = datetime.now(UTC)
        asked: dict[Setting, list[Request]] = {}
        for check in self.checks:
            if not check.skip:
                asked.setdefault(_setting(check), []).extend(check.needs())
        self._asked = sum(map(len, asked.values()))
        self._work = {
            setting: _Work(dict(unite(tuple(dict.fromkeys(requests))))) for setting, requests in asked.items()
        }

    def judge(self, check: Check) -> Judged:
        """Generate what this check still lacks, and judge it."""
        judged = Judged(check, tuple(self._records(check)))
        self.judged.append(judged)
        return judged

    def run(self) -> Iterable[Judged]:
        """All checks, target by target, so that each is loaded once."""
        order = {setting: number for number, setting in enumerate(dict.fromkeys(map(_setting, self.checks)))}
        for check in sorted(self.checks, key=lambda check: order[_setting(check)]):
            yield self.judge(check)

    def close(self) -> None:
        """Give the resident target's memory back."""
        if self._loaded:
            self._loaded[1].close()
            self._loaded = None

    @property
    def counts(self) -> dict[str, int]:
        """How much was asked, how much of it was different, how much was really generated."""
        return {
            "asked": self._asked,
            "distinct": sum(len(work.answered_by) for work in self._work.values()),
            "generated": sum(len(work.answers) for work in self._work.values()),
        }

    def results(self, command: str = "") -> Results:
        """Everything that came of it, as it is stored and reported."""
        answers = [
            (target.name, answer) for (target, _, _), work in self._work.items() for answer in work.answers.values()
        ]
        suites = dict.fromkeys((check.suite.suite, check.file) for check in self.checks)
        return Results(
            records=tuple(record for judged in self.judged for record in judged.records),
            completions=tuple((name, answer) for name, answer in answers if isinstance(answer, Completion)),
            failures=tuple((name, answer) for name, answer in answers if isinstance(answer, Failure)),
            facts=tuple(work.facts for work in self._work.values() if work.facts),
            counts=self.counts,
            suites=tuple({"name": name, "file": file, "sha256": _digest(file)} for name, file in suites),
            targets=tuple(dict.fromkeys(target for target, _, _ in self._work)),
            started=self._started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._began,
            environment=describe(),
            command=command,
            errors=tuple(
                f"{target.name}: {work.error}"
                for (target, _, _), work in self._work.items()
                if work.error and not isinstance(work.error, LevelUnavailable)
            ),
            complete=len(self.judged) == len(self.checks),
        )

    def _records(self, check: Check) -> Iterable[Record]:
        if check.skip:
            yield record(check, "", Verdict("skipped", check.skip))
            return
        try:
            backend = self._backend(check)
        except LevelUnavailable as error:
            yield record(check, "", Verdict("skipped", str(error)))
            return
        except CannotRun as error:
            yield record(check, "", Verdict("error", str(error), {"kind": error.kind}))
            return
        device = backend.facts.device.split(":")[0]
        if check.devices and device not in check.devices:
            reason = f"this test is for {' or '.join(check.devices)} (`only`), the target is on {device}"
            yield record(check, "", Verdict("skipped", reason))
            return
        if check.over_set:
            yield from each(check, self._judge_set(check), check.xfail(device))
            return
        judged = [(case, self._judge_case(check, case)) for case in check.cases]
        if check.test.expect.pass_rate is None:
            yield from each(check, judged[0][1], check.xfail(device))
        else:
            yield rate(check, check.test.expect.pass_rate, judged, check.xfail(device))

    def _judge_case(self, check: Check, case: Case) -> dict[str, Judgement]:
        return {name: self._judge(check, one, case.needs[name]) for name, one in case.expectations.items()}

    def _judge(self, check: Check, expectation: Expectation, needs: Sequence[Request]) -> Judgement:
        reason = self._not_for(check, expectation)
        if reason:
            return Verdict("skipped", reason), []
        answers = self._answers(check, needs)
        try:
            while more := _further(expectation, answers):
                answers += self._answers(check, more)
            verdict = reach(expectation.judge, answers)
            if verdict.status == "failed" and self._explain:
                verdict = self._explained(check, expectation, verdict, answers)
        except HarnessError:
            raise
        except Exception as error:
            verdict = broken(error)
        return verdict, answers

    def _judge_set(self, check: Check) -> dict[str, Judgement]:
        """Each expectation once, over all prompts."""
        judged = {}
        for name in check.cases[0].expectations:
            reason = self._not_for(check, check.cases[0].expectations[name])
            cases = () if reason else check.cases
            parts = [(case.expectations[name], self._answers(check, case.needs[name])) for case in cases]
            answers = [answer for _, given in parts for answer in given]
            verdict = Verdict("skipped", reason) if reason else reach_set(cast(OverSet, parts[0][0]), parts)
            judged[name] = (verdict, answers)
        return judged

    def _not_for(self, check: Check, expectation: Expectation) -> str:
        traits = self._backend(check).facts.traits
        return next((reason for trait, reason in expectation.not_for.items() if trait in traits), "")

    def _explained(
        self, check: Check, expectation: Expectation, verdict: Verdict, answers: Sequence[Answer]
    ) -> Verdict:
        """With the cause, if one of the suspects turns out to be it."""
        suspects = expectation.suspects([answer for answer in answers if isinstance(answer, Completion)])
        for suspect in suspects:
            reference, other = self._answers(check, (suspect.reference, suspect.other))
            if isinstance(reference, Completion) and isinstance(other, Completion) and agree(reference, other):
                return caused(verdict, suspect.cause)
        return (
            caused(verdict, f"not found: none of the usual suspects explains it ({len(suspects)} tried)")
            if suspects
            else verdict
        )

    def _answers(self, check: Check, requests: Sequence[Request]) -> list[Answer]:
        work = self._work[_setting(check)]
        backend = self._backend(check)
        new = [request for request in requests if work.answered_by.get(request) is None]
        if new:  # asked for on the way, not in the plan
            self._asked += len(new)
            work.answered_by.update((request, request) for request in new)
            self._plan_batches(check, backend, tuple(dict.fromkeys(new)))
        return [self._answer(check, request) for request in requests]

    def _answer(self, check: Check, request: Request) -> Answer:
        work = self._work[_setting(check)]
        request = work.answered_by[request]
        if request not in work.answers:
            self._generate(check, work.batch_of[request])
        return work.answers[request]

    def _generate(self, check: Check, batch: Sequence[Request]) -> None:
        work, target = self._work[_setting(check)], check.target
        if batch[0].fresh_process:
            answers: Sequence[Answer] = process.generate(target, check.suite.top_k_logprobs, batch)
        else:
            backend = self._backend(check)
            answers = backend.generate(batch)
            work.facts = backend.facts
        work.answers.update(zip(batch, answers, strict=True))
        self.observer.batch(target, len(work.answers), len(work.batch_of))

    def _backend(self, check: Check) -> Backend:
        """The check's target, loaded; the one before it makes room first."""
        setting = _setting(check)
        work = self._work[setting]
        if work.error:
            raise work.error
        if self._loaded and self._loaded[0] == setting:
            return self._loaded[1]
        self.close()
        try:
            backend = self._load(check.target, top_k=check.suite.top_k_logprobs, progress=self.observer.says)
        except CannotRun as error:
            work.error = error
            raise
        self._loaded = (setting, backend)
        work.facts = backend.facts
        if not work.batch_of:
            self._plan_batches(check, backend, tuple(dict.fromkeys(work.answered_by.values())))
        return backend

    def _plan_batches(self, check: Check, backend: Backend, requests: Sequence[Request]) -> None:
        work = self._work[_setting(check)]
        exact = backend.facts.dtype == "float32" and check.target.quantization == "none"
        for batch in batches(requests, backend.length, exact=exact, rows=check.suite.batch_size):
            work.batch_of.update(dict.fromkeys(batch, batch))


def _digest(file: str) -> str:
    """The suite as it was read is part of a run's provenance; one that has gone since has no digest."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def _further(expectation: Expectation, answers: Sequence[Answer]) -> list[Request]:
    """What the expectation asks next; nothing once a request could not be answered, or when it asks the same again."""
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    if len(completions) < len(answers):
        return []
    asked = {answer.request for answer in answers}
    return [request for request in expectation.then(completions) if request not in asked]
