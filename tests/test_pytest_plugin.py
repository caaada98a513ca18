"""The pytest face, on scripted suites: one test for each option that people use, and for each kind of outcome."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

# An in-process run forgets the modules that it imported: these are kept, and with them the classes they define.
from harness import load, plan, reports, runner
from harness.backends import scripted
from harness.errors import ModelUnavailable, SuiteError
from harness.pytest_plugin import CheckItem

KEPT = (load, plan, reports, runner)
DEMO = """\
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: "capital?", text: "Paris.", finish: eos}
      - {prompt: "ramble", text: "a b c d e f", finish: length}
quantization: [none, nf4]
prompts: {capital: "capital?", ramble: "ramble"}
tests:
  - name: stops
    prompts: [capital, ramble]
    marks: [quality]
    expect: {stops_at_eos: true}
  - name: knows
    prompts: [capital]
    expect: {contains: Paris}
"""
IDS = [
    f"suites/demo.yaml::fake-{level}::{check}"
    for level in ("none", "nf4")
    for check in ("stops[capital]", "stops[ramble]", "knows[capital]")
]
INI = """\
[pytest]
harness_suites = suites/*.yaml
addopts = --strict-markers
markers = quality
"""
# Six requests, one a batch; the third and the fifth fail.
ROW = """\
suite: row
models:
  fake:
    backend: scripted
    completions: [{prompt: p3, text: no}, {prompt: p5, text: no}, {text: "yes"}]
batch_size: 1
prompts: {p1: p1, p2: p2, p3: p3, p4: p4, p5: p5, p6: p6}
tests:
  - {name: says, prompts: [p1, p2, p3, p4, p5, p6], expect: {contains: "yes"}}
"""
ROW_ID = "suites/row.yaml::fake-none::says"


def suite(completions: str, test: str, head: str = "") -> str:
    """A suite with one model, one prompt and one test."""
    return f"""\
suite: one
{head}
models: {{fake: {{backend: scripted, completions: [{completions}]}}}}
prompts: {{p: hello, farewell: bye}}
tests:
  - {{name: t, {test}}}
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.Pytester]:
    """A project folder with these suites, and an ini file that names them."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)

    def make(ini: str = INI, **suites: str) -> pytest.Pytester:
        pytester.makefile(".ini", pytest=ini)
        pytester.mkdir("suites")
        for name, text in suites.items():
            (pytester.path / "suites" / f"{name}.yaml").write_text(text)
        return pytester

    return make


Project = Callable[..., pytest.Pytester]


def lines_with(result: pytest.RunResult, text: str) -> list[str]:
    return [line for line in result.outlines if text in line]


def collected(pytester: pytest.Pytester, *arguments: str) -> list[str]:
    result = pytester.runpytest_inprocess("--co", "-q", *arguments)
    return [line for line in result.outlines if "::" in line]


# What is collected


def test_option_collect_only_lists_exact_node_ids(project: Project) -> None:
    assert collected(project(demo=DEMO), "suites/") == IDS


def test_only_what_the_ini_option_names_is_collected(project: Project) -> None:
    here = project(demo=DEMO)
    (here.path / "suites" / "deeper").mkdir()
    (here.path / "suites" / "deeper" / "demo.yaml").write_text(DEMO)
    (here.path / "suites" / "demo.yml").write_text(DEMO)
    (here.path / "suites" / "compose.yaml").write_text("services: {}\n")
    (here.path / "suites" / "suite.schema.json").write_text("{}")
    (here.path / "elsewhere.yaml").write_text(DEMO)
    assert collected(here) == IDS


@pytest.mark.parametrize("glob", ["/abs/*.yaml", "''"])
def test_a_wrong_glob_is_a_usage_error(project: Project, glob: str) -> None:
    result = project(ini=f"[pytest]\nharness_suites = {glob}\n").runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: harness_suites: * is not a glob relative to the rootdir")


def test_a_file_named_on_the_command_line_needs_no_ini(project: Project) -> None:
    here = project(ini="[pytest]\n", demo=DEMO)
    assert collected(here, "suites/") == []
    named = collected(here, "-W", "ignore::pytest.PytestUnknownMarkWarning", "suites/demo.yaml")
    assert named == IDS


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ("suites/demo.yaml::fake-nf4", IDS[3:]),
        ("suites/demo.yaml::fake-none::stops", IDS[:2]),
        ("suites/demo.yaml::fake-none::stops[ramble]", IDS[1:2]),
    ],
)
def test_a_node_id_selects_a_target_a_test_or_a_check(project: Project, selected: str, expected: list[str]) -> None:
    assert collected(project(demo=DEMO), selected) == expected


def test_without_the_ini_pytest_is_as_it_is_without_the_plugin(project: Project) -> None:
    here = project(ini="[pytest]\n", demo=DEMO)
    here.makepyfile("def test_python(): pass")
    (here.path / "other.yaml").write_text("services: {}\n")
    for arguments in ([], ["other.yaml"], ["suites"], ["-rA"]):
        runs = [here.runpytest_inprocess(*arguments, *off) for off in ([], ["-p", "no:harness"])]
        texts = [[line for line in run.outlines if "plugins:" not in line and " in " not in line] for run in runs]
        assert texts[0] == texts[1]
        assert runs[0].ret == runs[1].ret


def test_the_plugin_can_be_switched_off(project: Project) -> None:
    result = project(ini="[pytest]\n", demo=DEMO).runpytest_inprocess("-p", "no:harness", "suites")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("how", ["subdirectory", "absolute", "rootdir"])
def test_a_check_has_its_node_id_wherever_pytest_is_started(
    project: Project, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    here = project(demo=DEMO)
    suites = here.path / "suites"
    if how != "absolute":
        monkeypatch.chdir(suites)
    arguments = {"subdirectory": ["demo.yaml"], "absolute": [str(suites)], "rootdir": [f"--rootdir={here.path}"]}
    items, _ = here.inline_genitems(*arguments[how])
    assert [item.nodeid for item in items] == IDS
    assert [item.check.id for item in items if isinstance(item, CheckItem)] == IDS
    assert items[0].reportinfo()[:2] == (suites / "demo.yaml", 10)
    assert items[0].location == ("suites/demo.yaml", 10, "stops[capital] on fake-none")


def test_an_inherited_test_is_told_where_it_is_written(project: Project) -> None:
    here = project(ini="[pytest]\n", demo=DEMO.replace("[quality]", "[]"), more="suite: more\nextends: demo.yaml\n")
    items, _ = here.inline_genitems("suites/more.yaml")
    assert items[0].location[:2] == ("suites/demo.yaml", 10)
    result = here.runpytest_inprocess("suites/more.yaml::fake-none")
    assert "at suites/demo.yaml:11" in result.outlines
    assert 'pytest "suites/more.yaml::fake-none::stops[ramble]"' in result.outlines


def test_collection_imports_nothing_heavy(project: Project) -> None:
    here = project(demo=DEMO)
    heavy = "('torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'evaluate')"
    code = (
        "import sys, pytest\n"
        "assert pytest.main(['--co', '-q', 'suites']) == 0\n"
        f"print('heavy:', [name for name in {heavy} if name in sys.modules])\n"
        "assert 'harness.load' in sys.modules\n"
        "assert 'harness.runner' not in sys.modules\n"
    )
    result = here.runpython_c(code)
    assert result.ret == 0, result.errlines
    assert "heavy: []" in result.outlines
    code = (
        "import sys, pytest\n"
        "assert pytest.main(['-q', '-c', 'none.ini', '--rootdir', 'suites', 'suites']) == 5\n"
        "print(sorted(name for name in sys.modules if name.startswith('harness')))\n"
    )
    (here.path / "none.ini").write_text("[pytest]\n")
    light = ["harness", "harness.pytest_keeping", "harness.pytest_plugin", "harness.pytest_telling"]
    assert str(light) in here.runpython_c(code).outlines


# Mistakes in suites


def test_every_broken_suite_is_told_without_a_traceback(project: Project) -> None:
    here = project(
        good=DEMO, slip=DEMO.replace("expect: {c", "expct: {c"), kind=DEMO.replace(": scripted", ": scriptd")
    )
    result = here.runpytest_inprocess("suites")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=2)
    with pytest.raises(SuiteError) as slip:
        load.load("suites/slip.yaml")
    with pytest.raises(SuiteError) as kind:
        load.load("suites/kind.yaml")
    for file, error in (("slip", slip), ("kind", kind)):
        told = str(error.value).splitlines()
        start = next(i for i, line in enumerate(result.outlines) if f" ERROR collecting suites/{file}.yaml " in line)
        assert told[0].startswith(f"suites/{file}.yaml:")
        assert result.outlines[start + 1 : start + 1 + len(told)] == told
        assert result.outlines[start + 1 + len(told)].startswith(("___", "==="))


def test_a_slip_in_the_top_key_is_told(project: Project) -> None:
    result = project(demo=DEMO.replace("suite: demo", "siute: demo")).runpytest_inprocess("suites")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert lines_with(result, "suites/demo.yaml:1:1: error: ")


def test_strict_markers_refuse_an_unknown_mark_with_its_place(project: Project) -> None:
    here = project(demo=DEMO.replace("[quality]", "[qualty, _own]"))
    result = here.runpytest_inprocess("suites")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    start = next(i for i, line in enumerate(result.outlines) if " ERROR collecting " in line)
    assert result.outlines[start + 1 : start + 3] == [
        "suites/demo.yaml:11: error: mark of test 'stops': 'qualty' not found in `markers` configuration option",
        "suites/demo.yaml:11: error: mark of test 'stops': Marker name must NOT start with underscore",
    ]


def test_the_same_prompt_twice_cannot_make_the_same_node_id_twice(project: Project) -> None:
    here = project(demo=DEMO.replace("[capital, ramble]", "[capital, capital]").replace("[none, nf4]", "[nf4, nf4]"))
    result = here.runpytest_inprocess("suites")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert lines_with(result, "suites/demo.yaml:")


# Options that select, stop and repeat


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("nf4", IDS[3:]),
        ("fake-none", IDS[:3]),
        ("ramble and none", IDS[1:2]),
        ("knows", [IDS[2], IDS[5]]),
        ("FAKE and not stops", [IDS[2], IDS[5]]),
    ],
)
def test_option_k_knows_target_level_test_and_prompt(project: Project, expression: str, expected: list[str]) -> None:
    assert collected(project(demo=DEMO), "suites", "-k", expression) == expected


def test_option_k_knows_the_prompts_of_a_check_over_all_of_them(project: Project) -> None:
    here = project(one=suite("{text: a}", "prompts: [p, farewell], expect: {contains: a, pass_rate: 0.5}"))
    assert collected(here, "suites", "-k", "farewell") == ["suites/one.yaml::fake-none::t"]
    assert collected(here, "suites", "-k", "nonsense") == []


def test_option_k_generates_only_for_what_is_selected(project: Project) -> None:
    result = project(demo=DEMO).runpytest_inprocess("suites", "-k", "knows and none")
    result.assert_outcomes(passed=1, deselected=5)
    assert lines_with(result, "harness:") == ["harness: requests asked 1, distinct 1, generated 1; 1 target"]


def test_option_m_takes_marks_from_the_suite(project: Project) -> None:
    here = project(demo=DEMO)
    assert collected(here, "suites", "-m", "quality") == [IDS[0], IDS[1], IDS[3], IDS[4]]
    assert collected(here, "suites", "-m", "not quality") == [IDS[2], IDS[5]]


def test_option_x_generates_nothing_more(project: Project) -> None:
    here = project(row=ROW)
    result = here.runpytest_inprocess("suites", "-x")
    result.assert_outcomes(passed=2, failed=1)
    assert lines_with(result, "harness:") == ["harness: requests asked 6, distinct 6, generated 3; 1 target"]


def test_option_lf_repeats_only_the_failures(project: Project) -> None:
    here = project(row=ROW, demo=DEMO)
    here.runpytest_inprocess("suites").assert_outcomes(passed=8, failed=4)
    result = here.runpytest_inprocess("suites", "--lf", "-v")
    result.assert_outcomes(failed=4)
    assert "run-last-failure: rerun previous 4 failures" in result.outlines
    assert lines_with(result, "harness:") == ["harness: requests asked 4, distinct 4, generated 4; 3 targets"]


def test_option_sw_goes_on_where_it_stopped(project: Project) -> None:
    here = project(row=ROW)
    first = here.runpytest_inprocess("suites", "--sw")
    first.assert_outcomes(passed=2, failed=1)
    assert "generated 3;" in lines_with(first, "harness:")[0]
    second = here.runpytest_inprocess("suites", "--sw", "--sw-skip")
    second.assert_outcomes(passed=1, failed=2, deselected=2)
    assert "generated 3;" in lines_with(second, "harness:")[0]


def test_option_v_tells_each_batch_outside_ci_only(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    here = project(demo=DEMO)
    loud = here.runpytest_inprocess("suites", "-v")
    assert [line for line in loud.outlines if line.endswith(" requests")] == [
        "fake-none (target 1 of 2): 2/2 requests",
        "fake-nf4 (target 2 of 2): 1/2 requests",
        "fake-nf4 (target 2 of 2): 2/2 requests",
    ]
    assert not lines_with(here.runpytest_inprocess("suites"), " requests\n")
    monkeypatch.setenv("CI", "true")
    assert not [line for line in here.runpytest_inprocess("suites", "-v").outlines if line.endswith(" requests")]


# Outcomes


def test_a_failure_tells_its_reason_first_and_how_to_repeat_it(project: Project) -> None:
    result = project(demo=DEMO).runpytest_inprocess("suites", "-k", "ramble and none")
    result.assert_outcomes(failed=1, deselected=5)
    reason = "rambled on until the limit of 6 new tokens, without EOS"
    start = next(i for i, line in enumerate(result.outlines) if " stops[ramble] on fake-none " in line)
    assert result.outlines[start + 1 : start + 6] == [
        reason,
        "output  'a b c d e f'",
        "remedy  raise max_new_tokens; a chat model ends its turns only if asked by `messages:`",
        "at suites/demo.yaml:11",
        f'pytest "{IDS[1]}"',
    ]
    assert f"FAILED {IDS[1]} - {reason}" in result.outlines


def test_in_ci_too_the_short_summary_is_one_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = project(demo=DEMO).runpytest_inprocess("suites", "-k", "ramble and none")
    at = next(i for i, line in enumerate(result.outlines) if line.startswith("FAILED "))
    assert "1 failed" in result.outlines[at + 1]


def test_several_failed_expectations_are_all_told(project: Project) -> None:
    result = project(
        one=suite("{text: a b, finish: length}", "prompts: [p], expect: {stops_at_eos: true, contains: c}")
    ).runpytest_inprocess("suites")
    result.assert_outcomes(failed=1)
    start = next(i for i, line in enumerate(result.outlines) if " t[p] on fake-none " in line)
    told = result.outlines[start + 1 : start + 4]
    assert told[1] == f"stops_at_eos: {told[0]}"
    assert told[2].startswith("contains: ")
    assert f"FAILED suites/one.yaml::fake-none::t[p] - {told[0]}" in result.outlines


def test_what_cannot_be_judged_is_an_error(project: Project) -> None:
    result = project(
        one=suite("{error: the engine caught fire}", "prompts: [p], expect: {contains: a}")
    ).runpytest_inprocess("suites")
    result.assert_outcomes(errors=1)
    assert "the engine caught fire" in result.outlines
    assert "ERROR suites/one.yaml::fake-none::t[p] - the engine caught fire" in result.outlines
    assert not lines_with(result, "Traceback")
    assert not lines_with(result, "NotJudged")


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scripted models cannot be loaded; the names of those that were tried."""
    tried: list[str] = []

    def load(target: Any, **_: Any) -> Any:
        tried.append(target.name)
        raise ModelUnavailable("the weights are not there", "Download them first.")

    monkeypatch.setattr(scripted, "load", load)
    return tried


def test_a_model_that_cannot_load_is_tried_and_told_in_full_once(project: Project, unloadable: list[str]) -> None:
    result = project(row=ROW).runpytest_inprocess("suites")
    result.assert_outcomes(errors=6)
    assert unloadable == ["fake-none"]
    assert result.outlines.count("the weights are not there") == 1
    assert result.outlines.count("  Download them first.") == 1
    assert result.outlines.count("same as above: the weights are not there") == 5
    short = lines_with(result, "ERROR suites/")
    assert short[0] == f"ERROR {ROW_ID}[p1] - the weights are not there"
    assert short[5] == f"ERROR {ROW_ID}[p6] - same as above: the weights are not there"


def test_a_skip_tells_its_reason_at_the_line_of_the_suite(project: Project) -> None:
    test = "prompts: [p], only: {device: cuda}, expect: {contains: a}"
    result = project(one=suite("{text: a}", test)).runpytest_inprocess("suites", "-rs")
    result.assert_outcomes(skipped=1)
    assert lines_with(result, "SKIPPED") == [
        "SKIPPED [1] suites/one.yaml:6: this test is for cuda (`only`), the target is on scripted"
    ]


XFAIL = "prompts: [p], xfail: [{reason: upstream bug}], expect: {contains: a}"


def test_a_known_failure_is_xfailed(project: Project) -> None:
    result = project(one=suite("{text: b}", XFAIL)).runpytest_inprocess("suites", "-rx")
    result.assert_outcomes(xfailed=1)
    assert "XFAIL suites/one.yaml::fake-none::t[p] - upstream bug" in result.outlines


def test_a_known_failure_that_passes_is_xpassed(project: Project) -> None:
    here = project(one=suite("{text: a}", XFAIL))
    result = here.runpytest_inprocess("suites", "-rX")
    result.assert_outcomes(xpassed=1)
    assert "XPASS suites/one.yaml::fake-none::t[p] - upstream bug" in result.outlines
    strict = here.runpytest_inprocess("suites", "-o", "xfail_strict=true")
    strict.assert_outcomes(failed=1)
    assert "[XPASS(strict)] upstream bug" in strict.outlines


def test_an_error_is_an_error_even_where_a_failure_is_known(project: Project) -> None:
    project(one=suite("{error: on fire}", XFAIL)).runpytest_inprocess("suites").assert_outcomes(errors=1)


def test_option_runxfail_takes_known_failures_for_failures(project: Project) -> None:
    here = project(one=suite("{text: b}", XFAIL), two=suite("{text: a}", XFAIL))
    here.runpytest_inprocess("suites", "--runxfail").assert_outcomes(failed=1, passed=1)


# What others read

HOSTILE = "\x1b[2J\x07 ]]> </failure> \u202e \ud800 \uffff \x85 \x00 end"


def changed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Scripted models answer with these fields; YAML cannot hold every character that a model can write."""
    complete = scripted.Scripted._complete
    monkeypatch.setattr(scripted.Scripted, "_complete", lambda *a: dataclasses.replace(complete(*a), **changes))


def test_option_junitxml_is_valid_whatever_the_model_wrote(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, text=HOSTILE)
    test = "prompts: [p], expect: {stops_at_eos: true, contains: zzz}"
    here = project(one=suite("{text: a, finish: length}", test))
    result = here.runpytest_inprocess("suites", "--junitxml=junit.xml")
    result.assert_outcomes(failed=1)
    assert "\x1b" not in str(result.stdout)
    assert "\u202e" not in str(result.stdout)
    case = ET.parse(here.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    assert (case.get("classname"), case.get("name")) == ("suites.one.yaml.fake-none", "t[p]")
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    text = properties.pop("text")
    assert text is not None
    assert text.startswith("\\x1b[2J\\x07 ]]> </failure> \\u202e \\ud800 ")
    assert list(properties) == [
        "model",
        "quantization",
        "target",
        "prompt",
        "finish",
        "verdict.stops_at_eos",
        "verdict.contains",
        "new_tokens",
    ]
    assert properties["target"] == "fake-none"
    assert properties["finish"] == "length"
    failure = case.find("failure")
    assert failure is not None
    assert "\n" not in (failure.get("message") or "\n")


def test_warnings_are_counted_and_shown_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, warnings={"too \x1bhot": 2})
    result = project(row=ROW).runpytest_inprocess("suites")
    assert lines_with(result, "harness:")[1:] == ["harness: warning 12 × too \\x1bhot"]


@pytest.fixture
def reporting() -> None:
    """Libraries that a process can import only once are here before an in-process run, and stay after it."""
    for name in ("pyarrow.parquet", "harness.reports.html"):
        importlib.import_module(name)


@pytest.mark.usefixtures("reporting")
def test_option_harness_report_writes_a_run_folder(project: Project) -> None:
    from harness.store import read

    here = project(demo=DEMO)
    result = here.runpytest_inprocess("suites", "--harness-report", "out")
    (folder,) = (here.path / "out").iterdir()
    assert lines_with(result, "harness: report") == [f"harness: report out/{folder.name}"]
    run = read(folder)
    assert [record.check for record in run.records] == IDS
    assert run.command == "pytest suites --harness-report out"
    assert run.complete is True
    assert (folder / "report.html").is_file()


@pytest.mark.usefixtures("reporting")
def test_a_report_tells_which_suite_it_was_wherever_it_was_typed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.store import read

    here = project(demo=DEMO)
    monkeypatch.chdir(here.path / "suites")
    here.runpytest_inprocess("demo.yaml", "-k", "knows", "--harness-report", "../out")
    (folder,) = (here.path / "out").iterdir()
    digest = hashlib.sha256(DEMO.encode()).hexdigest()
    assert read(folder).suites == ({"name": "demo", "file": "suites/demo.yaml", "sha256": digest},)


@pytest.mark.usefixtures("reporting")
def test_a_report_that_cannot_be_written_is_told_before_anything_is_generated(project: Project) -> None:
    here = project(demo=DEMO)
    (here.path / "out").write_text("a file")
    result = here.runpytest_inprocess("suites", "-k", "knows", "--harness-report", "out")
    result.assert_outcomes(deselected=4)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = "\n".join((*result.outlines, *result.errlines))
    assert "cannot write" in told
    assert "give --harness-report another folder" in told
    assert "--no-report" not in told


@pytest.mark.usefixtures("reporting")
def test_where_its_report_cannot_be_written_in_the_end_the_journal_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import store

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    here = project(demo=DEMO)
    monkeypatch.setattr(store, "_fill", full)
    result = here.runpytest_inprocess("suites", "-k", "knows", "--harness-report", "out")
    result.assert_outcomes(passed=2, deselected=4)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert lines_with(result, "harness: cannot write")
    (folder,) = (here.path / "out").iterdir()
    assert [record.check for record in store.read(folder).records] == [IDS[2], IDS[5]]


CRASH = """\
import os
from pathlib import Path

def pytest_runtest_setup(item):
    if "p4" in item.nodeid and not Path("crashed").exists():
        Path("crashed").touch()
        os._exit(1)
"""


def test_a_session_that_is_killed_leaves_its_verdicts(project: Project) -> None:
    from harness.store import read

    here = project(row=ROW)
    here.makeconftest(CRASH)
    here.runpytest_subprocess("suites", "--harness-report", "out")
    (folder,) = (here.path / "out").iterdir()
    run = read(folder)
    assert folder.name.startswith(".partial-")
    assert [record.check for record in run.records] == [f"{ROW_ID}[p{place}]" for place in (1, 2, 3)]
    assert run.complete is False


@pytest.mark.slow
def test_a_worker_that_crashes_leaves_its_verdicts(project: Project) -> None:
    pytest.importorskip("xdist")
    from harness.store import read

    here = project(row=ROW)
    here.makeconftest(CRASH)
    result = here.runpytest_subprocess("suites", "-n", "1", "--harness-report", "out")
    result.assert_outcomes(passed=4, failed=3)  # p3, p5, and p4 when it crashed
    (folder,) = (here.path / "out").iterdir()
    run = read(folder)
    assert sorted(record.check for record in run.records) == [f"{ROW_ID}[p{place}]" for place in range(1, 7)]
    assert run.complete is False
    why = "worker gw0: the run was killed: verdicts.jsonl holds the verdicts until then"
    assert f"harness: {why}" in result.outlines
    assert why in (folder / "report.html").read_text(encoding="utf-8")


def test_the_model_is_freed_when_the_run_is_interrupted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def interrupt(self: Any, requests: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(scripted.Scripted, "generate", interrupt)
    monkeypatch.setattr(scripted.Scripted, "close", lambda self: closed.append(self.target.name))
    result = project(demo=DEMO).runpytest_inprocess("suites", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert closed == ["fake-none"]


def test_option_n_keeps_each_target_on_one_worker_and_gives_one_report(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    from harness.store import read

    here = project(demo=DEMO, row=ROW)
    (here.path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(here.path / "temporary"))
    result = here.runpytest_subprocess("suites", "-n", "2", "-v", "--harness-report", "out", "--junitxml=junit.xml")
    result.assert_outcomes(passed=8, failed=4)
    assert "scheduling tests via LoadScopeScheduling" in result.outlines
    by_worker = {tuple(re.findall(r"\[(gw\d)\].* (suites/\S+?::\S+?)::", line)) for line in result.outlines} - {()}
    assert len(by_worker) == 3  # a target is with one of them only
    assert lines_with(result, "harness: requests") == [
        "harness: requests asked 12, distinct 10, generated 10; 3 targets"
    ]
    assert not list((here.path / "temporary").glob("harness-*"))  # in which workers left their runs
    (folder,) = (here.path / "out").iterdir()
    assert lines_with(result, "harness: report") == [f"harness: report out/{folder.name}"]
    run = read(folder)
    assert {record.check for record in run.records} == {*IDS, *(f"{ROW_ID}[p{place}]" for place in range(1, 7))}
    assert sorted(run.outcomes.items()) == [("failed", 4), ("passed", 8)]
    assert (run.complete, run.lacks) == (True, ())
    assert run.command.endswith(" suites -n 2 -v --harness-report out --junitxml=junit.xml")
    assert len(run.completions) == 10
    assert not [line for line in result.outlines if line.endswith(" requests")]
    assert f"FAILED {IDS[1]} - rambled on until the limit of 6 new tokens, without EOS" in result.outlines
    targets = {item.get("value") for item in ET.parse(here.path / "junit.xml").iter("property")}
    assert {"fake-none", "fake-nf4"} <= targets


@pytest.mark.slow
def test_workers_that_are_stopped_leave_what_they_have(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    from harness.store import read

    here = project(row=ROW)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here.path / "summary.md"))
    result = here.runpytest_subprocess("suites", "-n", "1", "-x", "--harness-report", "out")
    result.assert_outcomes(passed=2, failed=1)
    (folder,) = (here.path / "out").iterdir()
    run = read(folder)
    assert run.complete is False
    assert [record.outcome for record in run.records][:3] == ["passed", "passed", "failed"]
    assert "incomplete" in (here.path / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "scheduling"),
    [(["suites", "--dist=worksteal"], "WorkStealingScheduling"), (["test_python.py"], "LoadScheduling")],
)
def test_option_n_leaves_other_ways_to_distribute_alone(
    project: Project, arguments: list[str], scheduling: str
) -> None:
    pytest.importorskip("xdist")
    here = project(demo=DEMO)
    here.makepyfile(test_python="def test_python(): pass")
    result = here.runpytest_subprocess("-v", "-n", "1", *arguments)
    assert f"scheduling tests via {scheduling}" in result.outlines
