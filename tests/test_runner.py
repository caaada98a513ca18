"""The loop: what is generated, what is judged, what happens when something breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.backends.scripted import Scripted
from harness.errors import LevelUnavailable, ModelUnavailable
from harness.load import load
from harness.plan import plan
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
    assert made.counts == {"asked": 4, "distinct": 1, "generated": 1}


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
    assert made.counts == {"asked": 3, "distinct": 2, "generated": 2}
    assert len(made.results().records) == 3
