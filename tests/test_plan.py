"""From a suite to targets, checks and requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import SuiteError
from harness.expectations.content import Contains
from harness.expectations.stopping import StopsAtEos
from harness.load import load
from harness.plan import Check, Plan, plan
from harness.record import Batch

HEAD = """
suite: demo
models:
  a: {path: org/a, dtype: float32}
  b: org/b
prompts:
  plain: "1, 2"
  chat:
    messages: [{role: user, content: "What is the capital of {country}?"}]
    rows: [{id: fr, country: France, answer: Paris}, {country: Japan, answer: Tokyo}]
"""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    monkeypatch.chdir(tmp_path)

    def build(body: str) -> Plan:
        Path("demo.yaml").write_text(HEAD + body)
        return plan([load("demo.yaml")])

    return build


def names(checks: tuple[Check, ...]) -> list[str]:
    return [check.id.removeprefix("demo.yaml::") for check in checks]


def test_every_test_runs_on_every_target_for_every_prompt(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
quantization: [none, nf4]
tests:
  - {name: stops, prompts: [plain, chat], expect: {stops_at_eos: true}}
"""
    )

    assert [target.name for target in made.targets] == ["a-none", "a-nf4", "b-none", "b-nf4"]
    assert names(made.checks)[:4] == [
        "a-none::stops[plain]",
        "a-none::stops[chat-fr]",
        "a-none::stops[chat-2]",
        "a-nf4::stops[plain]",
    ]
    assert len({check.id for check in made.checks}) == len(made.checks) == 12


def test_further_axes_name_the_target_and_change_the_model(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
dtype: [float32, bfloat16]
attention: [eager, sdpa]
tests:
  - {name: stops, prompts: [plain], expect: {stops_at_eos: true}}
"""
    )

    assert [target.name for target in made.targets][:3] == [
        "a-none-float32-eager",
        "a-none-float32-sdpa",
        "a-none-bfloat16-eager",
    ]
    assert made.targets[2].model.dtype == "bfloat16"
    assert made.targets[2].model.attention == "eager"


def test_rows_fill_prompts_and_expectations(planned: Callable[[str], Plan]) -> None:
    made = planned('tests: [{name: knows, prompts: [chat], expect: {contains: "{answer}"}}]')
    (case,) = made.checks[1].cases

    assert case.request.prompt.last == "What is the capital of Japan?"
    assert case.expectations["contains"].texts == ("Tokyo",)  # type: ignore[attr-defined]


def test_a_pass_rate_makes_one_check_of_the_test(planned: Callable[[str], Plan]) -> None:
    made = planned("tests: [{name: knows, prompts: [chat, plain], expect: {contains: a, pass_rate: 0.5}}]")

    assert names(made.checks) == ["a-none::knows", "b-none::knows"]
    assert [case.name for case in made.checks[0].cases] == ["chat-fr", "chat-2", "plain"]
    assert made.checks[0].prompt == ""


def test_greedy_is_the_default_generation(planned: Callable[[str], Plan]) -> None:
    made = planned("tests: [{name: stops, prompts: [plain], expect: {stops_at_eos: true}}]")

    assert made.checks[0].cases[0].request.generation.arguments() == {"do_sample": False, "max_new_tokens": 64}


def test_only_skips_the_other_targets(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
quantization: [none, nf4]
tests:
  - name: stops
    only: {quantization: nf4, model: [a], device: cuda}
    prompts: [plain]
    expect: {stops_at_eos: true}
"""
    )

    assert [check.target.name for check in made.checks if not check.skip] == ["a-nf4"]
    assert made.checks[1].devices == ("cuda",)


def test_a_known_failure_belongs_to_its_target_prompt_and_device(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
quantization: [none, nf4]
tests:
  - name: stops
    prompts: [plain, chat]
    expect: {stops_at_eos: true}
    xfail:
      - {quantization: nf4, model: a, prompt: chat, reason: it rambles}
      - {device: cpu, model: b, reason: slow}
"""
    )
    reasons = {check.id.removeprefix("demo.yaml::"): (check.xfail("cpu"), check.xfail("cuda")) for check in made.checks}

    assert reasons["a-nf4::stops[chat-fr]"] == ("it rambles", "it rambles")
    assert reasons["a-nf4::stops[plain]"] == ("", "")
    assert reasons["a-none::stops[chat-fr]"] == ("", "")
    assert reasons["b-none::stops[plain]"] == ("slow", "")


def test_a_known_failure_of_one_prompt_holds_for_the_pass_rate_over_it(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
tests:
  - name: knows
    prompts: [plain, chat]
    expect: {contains: a, pass_rate: 0.9}
    xfail: [{prompt: chat, reason: it does not know}]
"""
    )

    assert made.checks[0].xfail("cpu") == "it does not know"


def test_expectations_about_batches_see_the_prompts_of_the_test(planned: Callable[[str], Plan]) -> None:
    made = planned("tests: [{name: pads, prompts: [plain, chat], expect: {padding_invariant: true}}]")
    alone, padded = made.checks[0].cases[0].needs["padding_invariant"]

    assert alone.layout == "alone"
    assert isinstance(padded.layout, Batch)
    assert len(padded.layout.rows) == 4


def test_each_check_points_at_its_own_line(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """tests:
  - {name: one, prompts: [plain], expect: {stops_at_eos: true}}
  - {name: two, prompts: [plain], expect: {stops_at_eos: true}}
"""
    )
    lines = len(HEAD.splitlines()) + 1  # of the head, and "tests:"

    assert {check.test.name: check.line for check in made.checks} == {"one": lines + 1, "two": lines + 2}


def test_the_same_request_is_equal_and_has_one_id(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
tests:
  - {name: one, prompts: [plain], expect: {stops_at_eos: true}}
  - {name: two, prompts: [plain], expect: {new_tokens: 3}}
"""
    )
    first, second = (next(iter(check.needs())) for check in made.checks[:2])

    assert first == second
    assert first.id == second.id
    assert first.id != first.replace(repeat=1).id


@pytest.fixture
def stops_is_over_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """stops_at_eos stands for an expectation that is judged over all prompts of its test."""
    monkeypatch.setattr(StopsAtEos, "over_set", property(lambda self: True))


@pytest.mark.usefixtures("stops_is_over_set")
def test_what_is_about_all_prompts_has_a_check_of_its_own(planned: Callable[[str], Plan]) -> None:
    made = planned("tests: [{name: t, prompts: [plain, chat], expect: {stops_at_eos: true, contains: a}}]")
    checks = [check for check in made.checks if check.target.name == "a-none"]

    assert names(tuple(checks)) == ["a-none::t[plain]", "a-none::t[chat-fr]", "a-none::t[chat-2]", "a-none::t[*]"]
    assert [check.over_set for check in checks] == [False, False, False, True]
    assert [list(check.cases[0].expectations) for check in checks] == [["contains"]] * 3 + [["stops_at_eos"]]
    assert [case.name for case in checks[3].cases] == ["plain", "chat-fr", "chat-2"]
    assert checks[3].prompt == ""
    assert [set(case.needs) for check in checks for case in check.cases] == [{"contains"}] * 3 + [{"stops_at_eos"}] * 3


@pytest.mark.usefixtures("stops_is_over_set")
def test_a_test_about_all_prompts_alone_has_one_check(planned: Callable[[str], Plan]) -> None:
    made = planned("tests: [{name: t, prompts: [plain, chat], expect: {stops_at_eos: true}}]")

    assert names(made.checks) == ["a-none::t[*]", "b-none::t[*]"]


@pytest.mark.usefixtures("stops_is_over_set")
def test_a_pass_rate_is_over_what_is_judged_prompt_by_prompt(planned: Callable[[str], Plan]) -> None:
    made = planned(
        "tests: [{name: t, prompts: [plain, chat], expect: {stops_at_eos: true, contains: a, pass_rate: 1}}]"
    )
    rate, whole = made.checks[:2]

    assert names((rate, whole)) == ["a-none::t", "a-none::t[*]"]
    assert (rate.over_set, whole.over_set) == (False, True)
    assert [list(case.expectations) for case in rate.cases] == [["contains"]] * 3


@pytest.mark.usefixtures("stops_is_over_set")
def test_a_known_failure_of_one_prompt_holds_for_the_check_over_all(planned: Callable[[str], Plan]) -> None:
    made = planned(
        """
tests:
  - {name: t, prompts: [plain, chat], expect: {stops_at_eos: true}, xfail: [{prompt: chat, reason: known}]}
"""
    )

    assert made.checks[0].xfail("cpu") == "known"


def test_one_word_may_stand_for_several_expectations(planned: Callable[[str], Plan]) -> None:
    made = planned("tests: [{name: t, prompts: [plain], expect: {invariants: [no_cache, prefix], contains: a}}]")
    (case,) = made.checks[0].cases

    assert list(case.expectations) == ["no_cache", "prefix", "contains"]
    assert [request.generation.use_cache for request in case.needs["no_cache"]] == [None, False]


def test_an_expectation_knows_the_folder_of_the_file_that_holds_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def located(self: Contains, folder: str) -> Contains:
        return self.model_copy(update={"texts": tuple(f"{folder}/{text}" for text in self.texts)})

    monkeypatch.setattr(Contains, "located", located)
    monkeypatch.chdir(tmp_path)
    Path("below").mkdir()
    tests = "tests: [{name: NAME, prompts: [plain], expect: {contains: file.txt}}]\n"
    Path("below/parent.yaml").write_text(HEAD + tests.replace("NAME", "inherited"))
    child = "suite: child\nextends: below/parent.yaml\n" + tests.replace("NAME", "own")
    Path("child.yaml").write_text(child)
    made = plan([load("child.yaml")])

    texts = {check.test.name: check.cases[0].expectations["contains"].texts for check in made.checks}  # type: ignore[attr-defined]
    assert texts == {"inherited": ("below/file.txt",), "own": ("/file.txt",)}


def test_the_last_message_may_be_gone_on_with(planned: Callable[[str], Plan]) -> None:
    prompt = "{messages: [{role: user, content: Hi}, {role: assistant, content: Well}], continue_final_message: true}"
    made = planned(f"  begun: {prompt}\ntests: [{{name: t, prompts: [begun, chat], expect: {{contains: a}}}}]\n")

    assert [check.cases[0].request.prompt.continued for check in made.checks[:2]] == [True, False]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            "{messages: [{role: user, content: Hi}], continue_final_message: true}",
            "continue_final_message needs messages of which the last is the assistant's",
        ),
        ("{text: Hi, continue_final_message: true}", "continue_final_message needs messages"),
    ],
)
def test_only_the_assistants_own_message_can_be_gone_on_with(
    planned: Callable[[str], Plan], prompt: str, says: str
) -> None:
    with pytest.raises(SuiteError, match=says):
        planned(f"  begun: {prompt}\ntests: [{{name: t, prompts: [begun], expect: {{contains: a}}}}]\n")
