"""The loop: what is generated, what is judged, what happens when something breaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.answers import Kept
from harness.backends.scripted import Scripted
from harness.errors import LevelUnavailable, ModelUnavailable, NotSupported
from harness.expectations.shorthand import Suspect
from harness.load import load
from harness.plan import Case, plan
from harness.record import Completion, Failure, Request, Text, Verdict
from harness.runner import Judged, Runner

HEAD = """
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: broken, error: the cable is out}
      - {prompt: ramble, text: a b c d, finish: length}
      - {prompt: flaky, repeat: 1, text: other words}
      - {prompt: "long long prompt", text: yes}
      - {text: yes}
prompts: {good: good, ramble: ramble, broken: broken, flaky: flaky}
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    monkeypatch.chdir(tmp_path)

    def build(body: str, keep: Callable[[Any], bool] = lambda check: True) -> Runner:
        Path("demo.yaml").write_text(HEAD + body)
        return Runner([check for check in plan([load("demo.yaml")]).checks if keep(check)])

    return build


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were really generated, in order."""
    seen: list[str] = []
    original = Scripted.generate

    def generate(self: Scripted, requests: Any) -> Any:
        seen.extend(request.prompt.last for request in requests)
        return original(self, requests)

    monkeypatch.setattr(Scripted, "generate", generate)
    return seen


def outcomes(judged: list[Judged]) -> dict[str, str]:
    return {one.check.name: one.worst.outcome for one in judged}


def test_each_check_gets_its_verdict(runner: Any) -> None:
    made = runner("tests: [{name: stops, prompts: [good, ramble, broken], expect: {stops_at_eos: true}}]")
    judged = list(made.run())

    assert outcomes(judged) == {"stops[good]": "passed", "stops[ramble]": "failed", "stops[broken]": "error"}
    assert judged[2].worst.verdict.reason == "the cable is out"
    assert judged[1].worst.text == "a b c d"
    assert judged[1].worst.new_tokens == 4


def test_equal_requests_are_generated_once(runner: Any, generated: list[str]) -> None:
    made = runner(
        """
tests:
  - {name: stops, prompts: [good], expect: {stops_at_eos: true, new_tokens: {max: 9}, contains: yes}}
  - {name: again, prompts: [good], expect: {contains: yes}}
"""
    )
    list(made.run())

    assert generated == ["good"]
    assert made.answers.counts == {"asked": 4, "distinct": 1, "generated": 1}


def test_repeats_are_really_generated_again(runner: Any, generated: list[str]) -> None:
    made = runner("tests: [{name: same, prompts: [good, flaky], expect: {deterministic: {runs: 3}}}]")
    judged = list(made.run())

    assert generated.count("good") == 3
    assert outcomes(judged) == {"same[good]": "passed", "same[flaky]": "failed"}


def test_only_what_is_selected_is_generated(runner: Any, generated: list[str]) -> None:
    body = "tests: [{name: stops, prompts: [good, ramble], expect: {stops_at_eos: true}}]"
    list(runner(body, keep=lambda check: check.prompt == "ramble").run())

    assert generated == ["ramble"]


def test_a_check_pulls_only_its_own_batch(runner: Any, generated: list[str]) -> None:
    made = runner("batch_size: 1\ntests: [{name: stops, prompts: [good, ramble], expect: {stops_at_eos: true}}]")
    made.judge(made.checks[1])

    assert generated == ["ramble"]


def test_a_pass_rate_is_judged_over_the_prompts(runner: Any) -> None:
    body = "tests: [{{name: stops, prompts: [good, flaky, ramble], expect: {{stops_at_eos: true, pass_rate: {}}}}}]"
    (enough,) = runner(body.format(0.6)).run()
    (missed,) = runner(body.format(0.7)).run()

    assert enough.status == "passed"
    assert enough.worst.verdict.reason == "2 of 3 prompts meet it (67%), at least 70% wanted".replace("70", "60")
    assert missed.status == "failed"
    assert missed.worst.verdict.details == ("ramble: rambled on until the limit of 4 new tokens, without EOS",)


def test_a_pass_rate_over_a_prompt_that_cannot_run_is_an_error(runner: Any) -> None:
    (judged,) = runner(
        "tests: [{name: stops, prompts: [good, broken], expect: {stops_at_eos: true, pass_rate: 0.5}}]"
    ).run()

    assert judged.status == "error"
    assert "prompt broken could not be judged: the cable is out" in judged.worst.verdict.reason


def test_known_failures_have_a_word_of_their_own(runner: Any) -> None:
    judged = list(
        runner(
            """
tests:
  - name: stops
    prompts: [good, ramble, broken]
    expect: {stops_at_eos: true, new_tokens: {max: 9}}
    xfail: [{reason: known}]
"""
        ).run()
    )
    words = {one.check.prompt: {r.expectation: r.outcome for r in one.records} for one in judged}

    assert words["good"] == {"stops_at_eos": "xpassed", "new_tokens": "xpassed"}
    assert words["ramble"] == {"stops_at_eos": "xfailed", "new_tokens": "passed"}
    assert words["broken"] == {"stops_at_eos": "error", "new_tokens": "error"}


def test_a_model_that_cannot_load_is_an_error_of_its_checks_alone(runner: Any, monkeypatch: Any) -> None:
    original, loads = backends.load, []

    def refuse(target: Any, **kwargs: Any) -> Any:
        loads.append(target.name)
        if target.quantization == "nf4":
            raise ModelUnavailable("no such folder", "make it")
        return original(target, **kwargs)

    monkeypatch.setattr(backends, "load", refuse)
    made = runner(
        "quantization: [nf4, none]\ntests: [{name: stops, prompts: [good, flaky], expect: {stops_at_eos: true}}]"
    )
    judged = list(made.run())

    assert [one.status for one in judged] == ["error", "error", "passed", "passed"]
    assert loads == ["fake-nf4", "fake-none"]
    assert made.results().errors == ("fake-nf4: no such folder\n  make it",)


def test_a_level_this_machine_cannot_run_is_skipped_with_the_remedy(runner: Any, monkeypatch: Any) -> None:
    def refuse(target: Any, **kwargs: Any) -> Any:
        raise LevelUnavailable("nf4 needs bitsandbytes", "pip install bitsandbytes")

    monkeypatch.setattr(backends, "load", refuse)
    (judged,) = runner("tests: [{name: stops, prompts: [good], expect: {stops_at_eos: true}}]").run()

    assert judged.status == "skipped"
    assert "pip install bitsandbytes" in judged.worst.verdict.reason


def test_a_test_for_another_device_is_skipped(runner: Any) -> None:
    (judged,) = runner(
        "tests: [{name: stops, only: {device: cuda}, prompts: [good], expect: {stops_at_eos: true}}]"
    ).run()

    assert judged.status == "skipped"
    assert "this test is for cuda" in judged.worst.verdict.reason


def test_an_expectation_that_breaks_is_an_error_of_its_own(runner: Any, monkeypatch: Any) -> None:
    from harness.expectations.stopping import StopsAtEos

    def broken(self: StopsAtEos, completions: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(StopsAtEos, "judge", broken)
    (judged,) = runner("tests: [{name: stops, prompts: [good], expect: {stops_at_eos: true, contains: yes}}]").run()

    assert [(r.expectation, r.verdict.status) for r in judged.records] == [
        ("stops_at_eos", "error"),
        ("contains", "passed"),
    ]


def test_one_target_is_resident_at_a_time(runner: Any, monkeypatch: Any) -> None:
    events: list[str] = []
    original = backends.load

    def load_and_tell(target: Any, **kwargs: Any) -> Any:
        events.append(f"load {target.name}")
        backend = original(target, **kwargs)
        monkeypatch.setattr(backend, "close", lambda: events.append(f"close {target.name}"))
        return backend

    monkeypatch.setattr(backends, "load", load_and_tell)
    made = runner(
        "quantization: [none, nf4]\ntests: [{name: stops, prompts: [good, flaky], expect: {stops_at_eos: true}}]"
    )
    list(made.run())
    made.close()

    assert events == ["load fake-none", "close fake-none", "load fake-nf4", "close fake-nf4"]


def test_an_interrupted_run_is_incomplete(runner: Any) -> None:
    made = runner("tests: [{name: stops, prompts: [good, flaky], expect: {stops_at_eos: true}}]")
    next(iter(made.run()))

    assert not made.results().complete
    assert len(made.results().records) == 1


def test_suites_share_a_target_only_when_they_generate_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body = HEAD + "tests: [{name: stops, prompts: [good], expect: {stops_at_eos: true}}]\n"
    for name, extra in (("one", ""), ("two", ""), ("three", "top_k_logprobs: 5\n")):
        Path(f"{name}.yaml").write_text(body.replace("demo", name) + extra)
    loaded = [load(f"{name}.yaml") for name in ("one", "two", "three")]

    made = Runner(plan(loaded).checks)
    list(made.run())

    assert generated == ["good", "good"]
    assert made.answers.counts == {"asked": 3, "distinct": 2, "generated": 2}
    assert len(made.results().records) == 3


class Made:
    """An expectation put together for one test; what it does by default is nothing."""

    catches = ()

    def __init__(self, **does: Any) -> None:
        self.does = {"then": lambda _: (), "suspects": lambda _: (), "judge": lambda _: Verdict("passed", "")} | does
        self.not_for, self.over_set = does.get("not_for", {}), does.get("over_set", False)

    def located(self, folder: str) -> Made:
        return self

    def needs(self, request: Request, peers: Any) -> Any:
        return (request,)

    def then(self, completions: Any) -> Any:
        return self.does["then"](completions)

    def judge(self, completions: Any) -> Any:
        return self.does["judge"](completions)

    def judge_set(self, prompts: Any) -> Any:
        return self.does["judge_set"](prompts)

    def suspects(self, completions: Any) -> Any:
        return self.does["suspects"](completions)


@pytest.fixture
def judged(runner: Any) -> Callable[..., Runner]:
    """Run these expectations, a check for each, or one over the set of prompts."""

    def build(*expectations: Made, prompts: str = "good", **options: Any) -> Runner:
        body = "tests:\n" + "".join(
            f"  - {{name: t{n}, prompts: [{prompts}], expect: {{stops_at_eos: true, pass_rate: 1.0}}}}\n"
            for n, _ in enumerate(expectations)
        )
        checks = []
        for check, expectation in zip(runner(body).checks, expectations, strict=True):
            cases = tuple(Case(c.name, c.request, {"made": expectation}, {"made": (c.request,)}) for c in check.cases)
            one = {"over_set": expectation.over_set, "prompt": "" if expectation.over_set else cases[0].name}
            test = check.test.model_copy(update={"expect": check.test.expect.model_copy(update={"pass_rate": None})})
            checks.append(dataclasses.replace(check, cases=cases, test=test, **one))
        made = Runner(checks, **options)
        list(made.run())
        return made

    return build


def again(completion: Completion, repeat: int) -> Request:
    return completion.request.replace(repeat=repeat)


def test_an_expectation_asks_further_until_it_knows_enough(judged: Any, generated: list[str]) -> None:
    seen: list[list[int]] = []

    def then(completions: Any) -> Any:
        seen.append([completion.request.repeat for completion in completions])
        return [again(completions[0], len(completions))] if len(completions) < 3 else []

    made = judged(Made(then=then, judge=lambda got: Verdict("passed", f"on {len(got)} answers")))
    (one,) = made.judged

    assert seen == [[0], [0, 1], [0, 1, 2]]
    assert one.worst.verdict.reason == "on 3 answers"
    assert len(one.worst.requests) == 3
    assert generated == ["good"] * 3
    assert made.answers.counts == {"asked": 3, "distinct": 3, "generated": 3}


def test_asking_the_same_again_ends_the_asking(judged: Any, generated: list[str]) -> None:
    (one,) = judged(Made(then=lambda completions: [again(completions[0], 1), completions[0].request])).judged

    assert (one.status, generated) == ("passed", ["good", "good"])


def test_nothing_is_asked_after_an_answer_that_failed(judged: Any) -> None:
    (one,) = judged(Made(then=lambda completions: pytest.fail("asked")), prompts="broken").judged

    assert (one.status, one.worst.verdict.reason) == ("error", "the cable is out")


def test_what_two_checks_ask_on_the_way_is_generated_once(judged: Any, generated: list[str]) -> None:
    asking = [Made(then=lambda completions: [again(completions[0], 1)]) for _ in range(2)]
    judged(*asking)

    assert generated == ["good", "good"]


def fails(completions: Any) -> Verdict:
    return Verdict("failed", "it is not well", {}, ("a detail",))


def told(completions: Any, *repeats: int) -> list[Suspect]:
    """Suspects that compare the answer with its repeats; of `flaky` the first repeat is another."""
    return [Suspect(f"cause {repeat}", completions[0].request, again(completions[0], repeat)) for repeat in repeats]


def test_the_first_suspect_that_agrees_is_named_first(judged: Any, generated: list[str]) -> None:
    (one,) = judged(Made(judge=fails, suspects=lambda got: told(got, 1, 2, 3)), prompts="flaky").judged

    assert one.worst.verdict == Verdict("failed", "it is not well", {}, ("cause   cause 2", "a detail"))
    assert len(generated) == 3  # the third suspect was not tried


def test_where_no_suspect_agrees_that_is_said(judged: Any) -> None:
    (one,) = judged(Made(judge=fails, suspects=lambda got: told(got, 1)), prompts="flaky").judged

    assert one.worst.verdict.details[0].startswith("cause   not found: none of the usual suspects")
    assert one.worst.verdict.details[1:] == ("a detail",)


def test_a_suspect_that_cannot_be_run_is_passed_over(judged: Any) -> None:
    def suspects(completions: Any) -> Any:
        request = completions[0].request
        return [Suspect("no", request, request.replace(prompt=Text(text="broken"))), *told(completions, 2)]

    (one,) = judged(Made(judge=fails, suspects=suspects)).judged

    assert one.worst.verdict.details[0] == "cause   cause 2"


def test_without_suspects_the_verdict_stays_as_it_is(judged: Any) -> None:
    (one,) = judged(Made(judge=fails)).judged

    assert one.worst.verdict.details == ("a detail",)


@pytest.mark.parametrize("status", ["passed", "error", "skipped"])
def test_only_a_failure_is_looked_into(judged: Any, status: Any) -> None:
    suspects = {"suspects": lambda completions: pytest.fail("looked into")}
    (one,) = judged(Made(judge=lambda _: Verdict(status, "so it is"), **suspects)).judged

    assert one.status == status


def with_facts(**facts: Any) -> Callable[..., Any]:
    """A way to load that changes what the target says it is."""

    def load_with(target: Any, **kwargs: Any) -> Any:
        backend = backends.load(target, **kwargs)
        backend.facts = dataclasses.replace(backend.facts, **facts)
        return backend

    return load_with


def test_what_does_not_apply_to_the_model_is_skipped_and_not_generated(judged: Any, generated: list[str]) -> None:
    reason = {"not_for": {"other": "never", "encoder_decoder": "it does not go on from its prompt"}}
    made = judged(Made(**reason), Made(), load=with_facts(traits=("encoder_decoder",)))
    (no, yes) = made.judged

    assert (no.status, no.worst.verdict.reason) == ("skipped", "it does not go on from its prompt")
    assert yes.status == "passed"
    assert made.answers.counts["generated"] == len(generated) == 1


def test_what_the_backend_cannot_do_is_skipped(judged: Any) -> None:
    class Unable(Scripted):
        def generate(self, requests: Any) -> Any:
            return [Failure(request, NotSupported.kind, "no such attention here") for request in requests]

    (one,) = judged(Made(), load=lambda target, **_: Unable(target)).judged

    assert (one.status, one.worst.verdict.reason) == ("skipped", "no such attention here")


def test_a_set_of_prompts_has_one_verdict(judged: Any) -> None:
    def judge_set(prompts: Any) -> Verdict:
        texts = [completion.text for _, completions in prompts for completion in completions]
        return Verdict("failed", f"{len(prompts)} prompts: {texts}", {}, ("a detail",))

    together = Made(judge_set=judge_set, over_set=True)
    (one,) = judged(together, prompts="good, ramble, flaky").judged
    (record,) = one.records

    assert record.verdict.reason == "3 prompts: ['yes', 'a b c d', 'yes']"
    assert (record.prompt, record.text, len(record.requests)) == ("", "", 3)


def test_a_set_with_a_prompt_that_failed_is_an_error(judged: Any) -> None:
    together = Made(judge_set=lambda prompts: Verdict("passed", ""), over_set=True)
    (one,) = judged(together, prompts="good, broken").judged

    assert (one.status, one.worst.verdict.reason) == ("error", "the cable is out")


def test_a_set_that_does_not_apply_to_the_model_is_skipped(judged: Any) -> None:
    together = Made(judge_set=lambda prompts: Verdict("passed", ""), over_set=True, not_for={"mute": "it is mute"})
    (one,) = judged(together, prompts="good, flaky", load=with_facts(traits=("mute",))).judged

    assert (one.status, one.worst.verdict.reason) == ("skipped", "it is mute")


def test_a_kept_backend_outlives_the_run(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = runner("tests: [{name: stops, prompts: [good], expect: {stops_at_eos: true}}]").checks
    backend = backends.load(check.target)
    monkeypatch.setattr(backend, "close", lambda: pytest.fail("closed"))
    made = Runner([check], load=lambda *_, **__: Kept(backend))
    (one,) = made.run()
    made.close()

    assert one.status == "passed"
    assert made.results().facts == (backend.facts,)


def test_failures_are_left_unexplained_where_nobody_reads_them(judged: Any, generated: list[str]) -> None:
    (one,) = judged(Made(judge=fails, suspects=lambda got: told(got, 1)), prompts="flaky", explain=False).judged

    assert one.worst.verdict.details == ("a detail",)
    assert generated == ["flaky"]


@pytest.mark.parametrize("part", ["then", "suspects"])
def test_an_expectation_that_breaks_on_the_way_is_that_checks_error(judged: Any, part: str) -> None:
    def breaks(completions: Any) -> Any:
        raise ValueError("out of words")

    (one,) = judged(Made(judge=fails, **{part: breaks}), prompts="flaky").judged

    assert one.status == "error"
    assert one.worst.verdict.reason == "the expectation itself failed: ValueError: out of words"


def test_a_scripted_model_has_nothing_to_look_into(runner: Any) -> None:
    names = "one_forward, prefix, resumed_cache"
    made = runner(f"tests: [{{name: ways, prompts: [good], expect: {{invariants: [{names}], processor_order: true}}}}]")
    (one,) = made.run()

    assert {record.verdict.status for record in one.records if record.expectation != "prefix"} == {"skipped"}
    assert one.status == "skipped"
