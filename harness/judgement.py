"""From answers to verdicts, and from verdicts to records. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.errors import CannotRun, NotSupported
from harness.expectations import Expectation, OverSet
from harness.plan import Case, Check
from harness.record import Completion, Failure, Record, Status, Verdict

Answer = Completion | Failure
Judgement = tuple[Verdict, list[Answer]]  # and what it was reached on


def reach(judge: Callable[[Sequence[Completion]], Verdict], answers: Sequence[Answer]) -> Verdict:
    """The verdict on these answers; an error when one of them could not be given."""
    failed = _failed(answers)
    if failed:
        return failed
    try:
        return judge([answer for answer in answers if isinstance(answer, Completion)])
    except Exception as error:
        return broken(error)


def broken(error: Exception) -> Verdict:
    """What cannot be judged, and an expectation that breaks, are that check's error and not the run's end."""
    if isinstance(error, CannotRun):
        return Verdict("error", str(error), {"kind": error.kind})
    return Verdict("error", f"the expectation itself failed: {type(error).__name__}: {error}")


def reach_set(expectation: OverSet, parts: Sequence[tuple[Expectation, Sequence[Answer]]]) -> Verdict:
    """The verdict over all prompts; one that could not be generated leaves it open."""
    failed = _failed([answer for _, answers in parts for answer in answers])
    if failed:
        return failed
    prompts = [(one, [answer for answer in answers if isinstance(answer, Completion)]) for one, answers in parts]
    return reach(lambda _: expectation.judge_set(prompts), ())


def _failed(answers: Sequence[Answer]) -> Verdict | None:
    failure = next((answer for answer in answers if isinstance(answer, Failure)), None)
    if failure is None:
        return None
    status: Status = "skipped" if failure.kind == NotSupported.kind else "error"
    return Verdict(status, failure.message, {"kind": failure.kind})


def caused(verdict: Verdict, cause: str) -> Verdict:
    """The verdict with its cause told first thing after the reason."""
    return dataclasses.replace(verdict, details=(f"cause   {cause}", *verdict.details))


def each(check: Check, judged: Mapping[str, Judgement], xfail: str) -> Iterable[Record]:
    """One record for each expectation. Where one fails as known, those beside it that pass just pass."""
    failed = any(verdict.status == "failed" for verdict, _ in judged.values())
    for name, (verdict, answers) in judged.items():
        known = xfail if verdict.status == "failed" or not failed else ""
        yield record(check, name, verdict, answers, known)


def rate(
    check: Check,
    wanted: float,
    judged: Sequence[tuple[Case, Mapping[str, Judgement]]],
    xfail: str,
) -> Record:
    """One verdict over all prompts of the test. What does not apply to this target has no part in it."""
    applied = [
        (case.name, verdicts)
        for case, by_name in judged
        if (verdicts := [verdict for verdict, _ in by_name.values() if verdict.status != "skipped"])
    ]
    if not applied:
        return record(check, "pass_rate", next(verdict for verdict, _ in judged[0][1].values()))
    answers = [answer for _, by_name in judged for _, some in by_name.values() for answer in some]
    unmet = [(name, verdict) for name, verdicts in applied for verdict in verdicts if verdict.status != "passed"]
    error = next(((name, verdict) for name, verdict in unmet if verdict.status == "error"), None)
    if error:
        verdict = Verdict("error", f"prompt {error[0]} could not be judged: {error[1].reason}", error[1].numbers)
        return record(check, "pass_rate", verdict, answers, xfail)
    worst = dict(unmet)
    met = len(applied) - len(worst)
    reason = f"{met} of {len(applied)} prompts meet it ({met / len(applied):.0%}), at least {wanted:.0%} wanted"
    details = tuple(f"{name}: {verdict.reason}" for name, verdict in worst.items())
    numbers = {"met": met, "prompts": len(applied), "wanted": wanted}
    status: Status = "passed" if met / len(applied) >= wanted else "failed"
    return record(check, "pass_rate", Verdict(status, reason, numbers, details), answers, xfail)


def record(check: Check, expectation: str, verdict: Verdict, answers: Sequence[Answer] = (), xfail: str = "") -> Record:
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    shown = completions[0] if completions and check.prompt else None
    return Record(
        check=check.id,
        suite=check.suite.suite,
        file=check.file,
        line=check.line,
        test=check.test.name,
        target=check.target.name,
        model=check.target.model_name,
        quantization=check.target.quantization,
        prompt=check.prompt,
        generation=check.test.generation,
        expectation=expectation,
        verdict=verdict,
        xfail=xfail,
        marks=check.test.marks,
        requests=tuple(answer.request.id for answer in answers),
        text=shown.text if shown else "",
        new_tokens=shown.new_tokens if shown else None,
        finish=shown.finish if shown else "",
        seconds=shown.seconds if shown else None,
    )
