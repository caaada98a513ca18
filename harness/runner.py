"""Reaches verdicts. The only loop over checks: the command line and pytest both ask this object.

A check pulls just the batches that its own requests are in, so `-x` and a selection cost what they should.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from harness.answers import Answers, Observer, Setting
from harness.backends import Backend
from harness.divergence import agree
from harness.environment import describe
from harness.errors import CannotRun, LevelUnavailable
from harness.expectations import Expectation, OverSet
from harness.expectations.pinned import Remembers
from harness.judgement import Answer, Judgement, broken, caused, each, rate, reach, reach_set, record
from harness.pins.book import Book
from harness.pins.pin import Pin
from harness.plan import Case, Check
from harness.record import Completion, Failure, Record, Request, Status, Verdict
from harness.store import Results


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


class Runner:
    """Reaches the verdicts of these checks."""

    def __init__(
        self,
        checks: Sequence[Check],
        observer: Observer | None = None,
        load: Callable[..., Backend] | None = None,
        *,
        explain: bool = True,
        pins: Book | None = None,
        repros: Path | None = None,
    ) -> None:
        self.checks = tuple(checks)
        self.answers = Answers(observer, load)
        self.pins = pins or Book()
        self._repros = repros  # where scripts are put that show failures
        self._explain = explain  # look for the cause of what failed, which generates more
        self.judged: list[Judged] = []
        self._held_to: dict[str, Pin] = {}  # by check, where it did not pass
        self._began = time.monotonic()
        self._started = datetime.now(UTC)
        asked: dict[Setting, list[Request]] = {}
        for check in self.checks:
            if not check.skip:
                asked.setdefault(Setting.of_check(check), []).extend(check.needs())
        for setting, requests in asked.items():
            self.answers.announce(setting, requests)

    def judge(self, check: Check) -> Judged:
        """Generate what this check still lacks, and judge it."""
        judged = Judged(check, tuple(self._records(check)))
        self.judged.append(judged)
        return judged

    def run(self) -> Iterable[Judged]:
        """All checks, target by target, so that each is loaded once."""
        order = {setting: number for number, setting in enumerate(dict.fromkeys(map(Setting.of_check, self.checks)))}
        for check in sorted(self.checks, key=lambda check: order[Setting.of_check(check)]):
            yield self.judge(check)

    def close(self) -> None:
        """Give the resident target's memory back."""
        self.answers.close()

    def results(self, command: str = "") -> Results:
        """Everything that came of it, as it is stored and reported."""
        given = list(self.answers.given)
        suites = {check.suite_file: check for check in self.checks}.values()
        return Results(
            records=tuple(record for judged in self.judged for record in judged.records),
            completions=tuple((name, answer) for name, answer in given if isinstance(answer, Completion)),
            failures=tuple((name, answer) for name, answer in given if isinstance(answer, Failure)),
            facts=self.answers.facts,
            counts=self.answers.counts,
            suites=tuple(
                provenance(one.suite.suite, one.id.partition("::")[0], one.suite_file, one.reads) for one in suites
            ),
            targets=self.answers.targets,
            started=self._started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._began,
            environment=describe(),
            command=command,
            errors=self.answers.errors,
            complete=len(self.judged) == len(self.checks),
            pins=self._held_to,
            texts=self.answers.texts,
        )

    def _records(self, check: Check) -> Iterable[Record]:
        if check.skip:
            yield record(check, "", Verdict("skipped", check.skip))
            return
        try:
            backend = self.answers.backend(Setting.of_check(check))
        except LevelUnavailable as error:
            yield record(check, "", Verdict("skipped", str(error)))
            return
        except CannotRun as error:
            yield record(check, "", broken(error))
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
            found = rate(check, check.test.expect.pass_rate, judged, check.xfail(device))
            yield dataclasses.replace(found, verdict=self._reproduced_rate(check, found.verdict, judged))

    def _judge_case(self, check: Check, case: Case) -> dict[str, Judgement]:
        return {name: self._judge(check, case, name) for name in case.expectations}

    def _judge(self, check: Check, case: Case, name: str) -> Judgement:
        expectation = case.expectations[name]
        reason = self._not_for(check, expectation)
        if reason:
            return Verdict("skipped", reason), []
        answers: list[Answer] = []
        try:
            expectation, answers = self._asked(check, case, name)
            verdict = reach(expectation.judge, answers)
            if verdict.status != "passed" and isinstance(expectation, Remembers) and expectation.memory:
                self._held_to |= {check.id: expectation.memory.pin} if expectation.memory.pin else {}
            if verdict.status == "failed" and self._explain:
                verdict = self._explained(check, expectation, verdict, answers)
        except Exception as error:
            return broken(error), answers
        if check.test.expect.pass_rate is None:  # else one miss is no failure yet
            verdict = self._reproduced(check, name, verdict, [(expectation, answers)])
        return verdict, answers

    def _asked(self, check: Check, case: Case, name: str) -> tuple[Expectation, list[Answer]]:
        """The expectation with what is remembered for it, and the answers to all that it asks."""
        expectation, answers = case.expectations[name], self._answers(check, case.needs[name])
        if isinstance(expectation, Remembers):
            memory = self.pins.recall(check, case, self.answers.backend(Setting.of_check(check)).facts)
            expectation = expectation.remembering(memory)
        while more := _further(expectation, answers):
            given = self._answers(check, more)
            if isinstance(expectation, Remembers):  # what cannot be looked into is judged by what it said
                given = [answer for answer in given if isinstance(answer, Completion)]
            if not given:
                break
            answers += given
        done = [answer for answer in answers if isinstance(answer, Completion)]
        if isinstance(expectation, Remembers) and memory.recording and len(done) == len(answers):
            self.pins.record(memory, check, case, done)
        return expectation, answers

    def _judge_set(self, check: Check) -> dict[str, Judgement]:
        """Each expectation once, over all prompts."""
        return {name: self._judge_all(check, name, first) for name, first in check.cases[0].expectations.items()}

    def _judge_all(self, check: Check, name: str, first: Expectation) -> Judgement:
        reason = self._not_for(check, first)
        if reason:
            return Verdict("skipped", reason), []
        try:
            parts = [self._asked(check, case, name) for case in check.cases]
        except Exception as error:
            return broken(error), []
        answers = [answer for _, given in parts for answer in given]
        verdict = reach_set(cast(OverSet, parts[0][0]), parts)
        return self._reproduced(check, name, verdict, parts), answers

    def _not_for(self, check: Check, expectation: Expectation) -> str:
        traits = self.answers.backend(Setting.of_check(check)).facts.traits
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

    def _reproduced_rate(
        self, check: Check, verdict: Verdict, judged: Sequence[tuple[Case, Mapping[str, Judgement]]]
    ) -> Verdict:
        """By one of the prompts that do not meet it."""
        if verdict.status != "failed" or not self._repros:
            return verdict
        missed = [
            (case, name) for case, by_name in judged for name, (one, _) in by_name.items() if one.status == "failed"
        ]
        parts = [self._asked(check, case, name) for case, name in missed]
        return self._reproduced(check, "pass_rate", verdict, parts)

    def _reproduced(
        self, check: Check, name: str, verdict: Verdict, parts: Sequence[tuple[Expectation, Sequence[Answer]]]
    ) -> Verdict:
        """With the path of a script that shows a failure without the harness, where there is one."""
        if verdict.status != "failed" or not self._repros:
            return verdict
        from harness.backends.calls import NotReproducible
        from harness.backends.reproducing import reproduce

        name = f"{check.name}-{name}"
        self.answers.observer.says(f"looking for the smallest script that shows {name}")
        prompts = [(one, [answer for answer in answers if isinstance(answer, Completion)]) for one, answers in parts]
        try:
            backend = self.answers.backend(Setting.of_check(check))
            shows = verdict.reason if check.over_set else ""
            made = reproduce(backend, prompts, self._repros, f"{check.target.name}-{name}", shows)
        except Exception as error:  # the verdict stands, whatever becomes of the script
            made = NotReproducible(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        line = f"repro   none: {made.reason}" if isinstance(made, NotReproducible) else f"repro   python {made}"
        return dataclasses.replace(verdict, details=(*verdict.details, line))

    def _answers(self, check: Check, requests: Sequence[Request]) -> list[Answer]:
        return self.answers.of(Setting.of_check(check), requests)


def provenance(name: str, file: str, path: str, reads: Sequence[str]) -> dict[str, str]:
    """Which suite it was, as it was read, and of which other files it is made."""
    others = "".join(map(_digest, reads))
    return {
        "name": name,
        "file": file,
        "sha256": _digest(path),
        **({"reads": hashlib.sha256(others.encode()).hexdigest()} if reads else {}),
    }


def _digest(path: str) -> str:
    """Nothing of a file that has gone since."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _further(expectation: Expectation, answers: Sequence[Answer]) -> list[Request]:
    """What the expectation asks next; nothing once a request could not be answered, or when it asks the same again."""
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    if len(completions) < len(answers):
        return []
    asked = {answer.request for answer in answers}
    return [request for request in expectation.then(completions) if request not in asked]
