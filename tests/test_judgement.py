"""From answers to verdicts and records: what a failed request, a broken expectation, a known failure come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.expectations.stopping import StopsAtEos
from harness.inputs import GREEDY
from harness.judgement import Judgement, caused, each, rate, reach, reach_set, record
from harness.load import load
from harness.plan import Check, plan
from harness.record import Completion, Failure, Request, Status, Text, Verdict

REQUEST = Request(Text(text="a"), GREEDY)
PASSED, FAILED = Verdict("passed", "it is well"), Verdict("failed", "it is not", {}, ("a detail",))
SKIPPED, ERROR = Verdict("skipped", "it does not apply"), Verdict("error", "it broke", {"kind": "numeric"})
DONE = Completion(REQUEST, "a", (1,), (2, 0), ("x", "<eos>"), "x", "eos", seconds=0.5)


def failure(kind: str) -> Failure:
    return Failure(REQUEST, kind, f"it was {kind}")


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Check]:
    monkeypatch.chdir(tmp_path)

    def build(prompts: str = "[a]", expect: str = "{stops_at_eos: true}") -> Check:
        Path("s.yaml").write_text(
            "suite: s\nmodels: {m: {backend: scripted, completions: [{text: x}]}}\nprompts: {a: a, b: b, c: c}\n"
            f"tests: [{{name: t, prompts: {prompts}, expect: {expect}}}]\n"
        )
        (made,) = plan([load("s.yaml")]).checks
        return made

    return build


def test_the_expectation_sees_the_completions_in_order() -> None:
    seen: list[Any] = []

    def judge(completions: Any) -> Verdict:
        seen.extend(completions)
        return PASSED

    assert reach(judge, [DONE, DONE]) is PASSED
    assert seen == [DONE, DONE]


@pytest.mark.parametrize(("kind", "status"), [("numeric", "error"), ("error", "error"), ("not_supported", "skipped")])
def test_a_request_that_failed_is_never_judged(kind: str, status: Status) -> None:
    verdict = reach(lambda _: PASSED, [DONE, failure(kind)])

    assert verdict == Verdict(status, f"it was {kind}", {"kind": kind})


def test_the_first_failure_decides() -> None:
    assert reach(lambda _: PASSED, [failure("numeric"), failure("not_supported")]).status == "error"


def test_an_expectation_that_raises_is_an_error_that_says_what() -> None:
    def judge(completions: Any) -> Verdict:
        raise KeyError("oops")

    assert reach(judge, [DONE]) == Verdict("error", "the expectation itself failed: KeyError: 'oops'")


class _Together(StopsAtEos):
    def judge_set(self, prompts: Any) -> Verdict:
        return Verdict("passed", f"{[len(completions) for _, completions in prompts]} of {len(prompts)}")


class _Broken(StopsAtEos):
    def judge_set(self, prompts: Any) -> Verdict:
        raise KeyError("oops")


def test_a_set_is_judged_at_once_with_the_completions_of_each_prompt() -> None:
    one = _Together()

    assert reach_set(one, [(one, [DONE]), (one, [DONE, DONE])]).reason == "[1, 2] of 2"
    assert reach_set(one, [(one, [DONE]), (one, [failure("numeric")])]).status == "error"
    assert reach_set(one, [(one, [failure("not_supported")]), (one, [DONE])]).status == "skipped"
    assert "itself failed: KeyError" in reach_set(_Broken(), [(_Broken(), [DONE])]).reason


def test_the_cause_is_told_before_the_details() -> None:
    verdict = caused(FAILED, "the pad token")

    assert verdict.details == ("cause   the pad token", "a detail")
    assert (verdict.status, verdict.reason) == (FAILED.status, FAILED.reason)


def outcomes(check: Check, judged: dict[str, Judgement], xfail: str = "known") -> dict[str, str]:
    return {made.expectation: made.outcome for made in each(check, judged, xfail)}


def test_where_one_fails_as_known_those_beside_it_just_pass(check: Any) -> None:
    both = {"one": (PASSED, [DONE]), "two": (FAILED, [DONE])}

    assert outcomes(check(), both) == {"one": "passed", "two": "xfailed"}
    assert outcomes(check(), {"one": (PASSED, [DONE]), "two": (SKIPPED, [])}) == {"one": "xpassed", "two": "skipped"}
    assert outcomes(check(), both, xfail="") == {"one": "passed", "two": "failed"}


def rated(check: Any, *verdicts: tuple[Verdict, Verdict], wanted: float = 0.5) -> Any:
    """The record over as many prompts, each with the verdicts of its two expectations."""
    made = check("[a, b, c]", "{contains: x, stops_at_eos: true, pass_rate: 0.5}")
    judged = [
        (case, {"contains": (one, [DONE]), "stops_at_eos": (two, [DONE])})
        for case, (one, two) in zip(made.cases, verdicts, strict=False)
    ]
    return rate(made, wanted, judged, "")


def test_a_prompt_counts_when_it_meets_everything(check: Any) -> None:
    made = rated(check, (PASSED, PASSED), (PASSED, FAILED), (FAILED, FAILED), wanted=0.4)

    assert made.verdict.status == "failed"
    assert made.verdict.reason == "1 of 3 prompts meet it (33%), at least 40% wanted"
    assert made.verdict.numbers == {"met": 1, "prompts": 3, "wanted": 0.4}
    assert made.verdict.details == ("b: it is not", "c: it is not")
    assert rated(check, (PASSED, PASSED), (PASSED, FAILED), wanted=0.5).verdict.status == "passed"


def test_what_does_not_apply_has_no_part_in_the_rate(check: Any) -> None:
    some = rated(check, (PASSED, SKIPPED), (SKIPPED, FAILED), (SKIPPED, SKIPPED))

    assert some.verdict.numbers == {"met": 1, "prompts": 2, "wanted": 0.5}
    assert some.verdict.reason.startswith("1 of 2 prompts")
    assert rated(check, (SKIPPED, SKIPPED), (SKIPPED, SKIPPED)).verdict == SKIPPED


def test_an_error_leaves_the_rate_open_whatever_else_failed(check: Any) -> None:
    made = rated(check, (PASSED, PASSED), (ERROR, FAILED))

    assert made.verdict == Verdict("error", "prompt b could not be judged: it broke", {"kind": "numeric"})


def test_a_record_shows_the_first_completion_of_its_prompt(check: Any) -> None:
    made = record(check(), "stops_at_eos", PASSED, [failure("numeric"), DONE], "")

    assert (made.check, made.prompt, made.expectation) == ("s.yaml::m-none::t[a]", "a", "stops_at_eos")
    assert (made.text, made.new_tokens, made.finish, made.seconds) == ("x", 2, "eos", 0.5)
    assert made.requests == (REQUEST.id, REQUEST.id)


def test_a_record_over_all_prompts_shows_the_output_of_none(check: Any) -> None:
    made = rated(check, (PASSED, PASSED))

    assert (made.prompt, made.text, made.new_tokens) == ("", "", None)
    assert made.expectation == "pass_rate"
