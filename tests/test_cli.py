"""The command line: what each command prints, and each exit code."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.cli import main
from harness.errors import CannotRun
from harness.load import json_schema
from harness.record import Target
from harness.reports import progress
from harness.reports.progress import Heartbeat

SUITE = """\
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: "capital?", text: "Paris.", finish: eos}
      - {prompt: "ramble", text: "a b c d e f", finish: length}
      - {prompt: "broken", text: "", error: the wire is cut}
prompts: {capital: "capital?", ramble: "ramble", broken: "broken"}
tests:
"""
STOPS = "  - {name: stops, marks: [quick], prompts: [capital], expect: {stops_at_eos: true}}\n"
FOLDER = {"report.html", "results.parquet", "run.json", "texts.parquet", "tokens.parquet"}
RAMBLES = "  - {name: rambles, prompts: [ramble], expect: {stops_at_eos: true}}\n"
BREAKS = "  - {name: breaks, prompts: [broken], expect: {stops_at_eos: true}}\n"
KNOWN = "  - {name: known, prompts: [capital], expect: {contains: Paris}, xfail: [{reason: it never knew}]}\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a suite of these tests into the current folder, which is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_DEBUG", raising=False)

    def write_suite(*tests: str, name: str = "demo.yaml") -> Path:
        path = Path(name)
        path.write_text(SUITE.replace("demo", path.stem) + "".join(tests))
        return path

    return write_suite


def runs() -> list[Path]:
    return list(Path("reports").glob("*"))


def test_a_run_where_all_holds_prints_its_verdict_and_stores_the_run(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(STOPS)
    assert main(["run", "demo.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [folder] = runs()
    assert lines[-2].startswith("PASSED  1 of 1 check passed")
    assert lines[-1] == f"report: {folder}/report.html"
    assert {path.name for path in folder.iterdir()} == FOLDER
    stored = json.loads((folder / "run.json").read_text())
    assert stored["command"] == "harness run demo.yaml"
    assert stored["complete"] is True


def test_a_failed_expectation_is_exit_code_1_even_beside_an_error(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(STOPS, RAMBLES, BREAKS)
    assert main(["run", "demo.yaml"]) == 1
    assert "FAILED  1 of 3 checks failed, 1 error" in capsys.readouterr().out


def test_what_could_not_be_run_is_exit_code_3(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS, BREAKS)
    assert main(["run", "demo.yaml"]) == 3
    assert "the wire is cut" in capsys.readouterr().out


def test_a_model_that_cannot_be_loaded_is_exit_code_3(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CannotRun("the weights are gone", "Fetch them.")

    monkeypatch.setattr("harness.backends.load", refuse)
    write(STOPS)
    assert main(["run", "demo.yaml"]) == 3
    assert "the weights are gone" in capsys.readouterr().out
    assert len(runs()) == 1


def test_an_unexpected_pass_is_exit_code_0(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(KNOWN)
    assert main(["run", "demo.yaml"]) == 0
    assert "1 unexpectedly passed" in capsys.readouterr().out


def test_nothing_selected_is_exit_code_5(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS, RAMBLES)
    assert main(["run", "demo.yaml", "-k", "nonsense", "-m", "quick"]) == 5
    assert "none of the 2 checks fits -k 'nonsense' and -m 'quick'" in capsys.readouterr().err
    assert not runs()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "Missing argument"),
        (["run", "demo.yaml", "--nonsense"], "No such option"),
        (["run", "demo.yaml", "--limit", "0"], "--limit"),
        (["run", "missing.yaml"], "no such file or folder: missing.yaml"),
        (["run", "demo.yaml", "--target", "fake-non"], "did you mean 'fake-none'?"),
        (["run", "demo.yaml", "-k", "a and"], "a word is missing at the end"),
        (["run", "demo.yaml", "-k", "a b"], "`and` or `or` is missing before 'b'"),
        (["run", "demo.yaml", "-k", "(a"], "a `)` is missing"),
        (["run", "demo.yaml", "-m", "a & b"], "only words"),
        (["list"], "no suite given"),
        (["schema", "--write", "no/such/folder.json"], "cannot write no/such/folder.json"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(
    write: Write, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    write(STOPS)
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert not told.out


def test_lint_counts_what_it_planned(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS, RAMBLES)
    write(STOPS, name="other.yaml")
    assert main(["lint", "."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ok  ./demo.yaml  2 tests, 1 target, 2 checks", "ok  ./other.yaml  1 test, 1 target, 1 check"]


def test_lint_tells_every_mistake_of_every_file(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("  - {name: a, prompts: [capitol], expect: {stops_at_eos: true}}\n", "  - {name: b, prompt: [capital]}\n")
    write("  - {name: c, prompts: [capital], expect: {contain: x}}\n", name="other.yaml")
    assert main(["lint", "demo.yaml", "other.yaml"]) == 2
    told = capsys.readouterr()
    assert not told.out
    for place, said in (("demo.yaml:11:", "'capital'"), ("demo.yaml:12:", "prompt"), ("other.yaml:11:", "contains")):
        assert any(line.startswith(place) and said in line for line in told.err.splitlines()), told.err
    assert "Traceback" not in told.err


ON_FILES = """\
suite: {name}
models: {{small: ./model, absent: org/absent}}
prompts: {{hi: Hi}}
tests:
  - {{name: t, prompts: [hi], expect: {{stops_at_eos: true}}}}
"""


@pytest.fixture
def model_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite on a model of which there is a configuration and little else."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path.cwd()))
    Path("demo.yaml").write_text(ON_FILES.format(name="demo"))
    folder = Path("model")
    folder.mkdir()
    (folder / "config.json").write_text('{"eos_token_id": 1, "vocab_size": 9}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.5}')
    header = b'{"wte.weight": {"dtype": "F32", "shape": [9, 1], "data_offsets": [0, 36]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(36))
    return folder


def test_lint_tells_warnings_and_what_was_not_looked_at(model_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "demo.yaml"]) == 0
    told = capsys.readouterr().out
    assert f"\nsmall: 1 warning, 1 note  ({model_files.absolute()})\n" in told
    lines = [line.strip() for line in told.splitlines()]
    place = next(number for number, line in enumerate(lines) if line.startswith("warning"))
    assert "temperature 0.5, which has no effect" in lines[place]
    assert lines[place + 1].startswith("Take temperature out of generation_config.json")
    assert lines[place + 2] == "generation_config.json · idle_arguments"
    assert "absent: org/absent is not in the local Hub cache: `hf download org/absent` fetches it" in told
    assert main(["lint", "demo.yaml", "--strict"]) == 2


def test_lint_is_exit_code_2_where_something_is_wrong_as_it_stands(
    model_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_files / "model.safetensors").rename(model_files / "pytorch_model.bin")
    (model_files / "generation_config.json").write_text("{\x1b")
    assert main(["lint", "demo.yaml"]) == 2
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    severities = [line[0] for line in lines if line[0] in ("error", "warning", "note")]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    assert severities.count("error") == 2
    assert main(["lint", "demo.yaml", "--no-models"]) == 0
    assert capsys.readouterr().out == "ok  demo.yaml  1 test, 2 targets, 2 checks\n"


def test_lint_tells_of_a_model_once_for_all_suites(model_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").write_text(ON_FILES.format(name="other").replace("small", "same"))
    assert main(["lint", "."]) == 0
    assert capsys.readouterr().out.count("\nsmall, same: 1 warning, 1 note") == 1


def test_lint_shows_foreign_text_without_letting_it_act(model_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model_files / "config.json").write_text('{"eos_token_id": 1, "transformers_version": "99.\\u001b[2J"}')
    main(["lint", "demo.yaml"])
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "99.\\x1b[2J" in told


@pytest.mark.model
def test_the_shipped_suites_are_linted_without_an_error_and_without_torch() -> None:
    from harness.backends.sources import resolve
    from harness.load import load

    suites = Path(__file__).parents[1] / "suites"
    resolve(load(suites / "basics.yaml").suite.models["smollm2"])
    code = "import sys; from harness.cli import main; code = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(code)", "lint", str(suites)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "\nsmollm2, smollm2-left: " in done.stdout
    assert "  error" not in done.stdout
    imported = {name.split(".")[0] for name in done.stderr.split()}
    assert {"tokenizers", "jinja2"} <= imported
    assert not imported & {"torch", "transformers", "numpy", "pandas", "rich"}


def test_list_shows_the_ids_that_a_run_would_judge(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS, RAMBLES)
    assert main(["list", "demo.yaml"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "demo.yaml::fake-none::stops[capital]",
        "demo.yaml::fake-none::rambles[ramble]",
    ]


def test_list_shows_targets_and_levels(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(STOPS, RAMBLES)
    path.write_text(path.read_text() + "quantization: [none, nf4]\n")
    assert main(["list", "demo.yaml", "--targets"]) == 0
    assert capsys.readouterr().out.splitlines() == ["fake-none", "fake-nf4"]
    assert main(["list", "--levels"]) == 0
    assert any(line.split()[:2] == ["nf4", "bitsandbytes"] for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["-k", "STOPS"], ["stops", "stops"]),
        (["-k", "not stops"], ["rambles", "rambles"]),
        (["-k", "(stops or rambles) and nf4"], ["stops", "rambles"]),
        (["-k", "quick"], ["stops", "stops"]),
        (["-m", "quick"], ["stops", "stops"]),
        (["-m", "not quick"], ["rambles", "rambles"]),
        (["--target", "fake-nf4"], ["stops", "rambles"]),
        (["--target", "fake-nf4", "--target", "fake-none", "--limit", "1"], ["stops", "stops"]),
        (["--limit", "1"], ["stops", "stops"]),
    ],
)
def test_options_select_checks(
    write: Write, capsys: pytest.CaptureFixture[str], options: list[str], left: list[str]
) -> None:
    path = write(STOPS, RAMBLES)
    path.write_text(path.read_text() + "quantization: [none, nf4]\n")
    assert main(["list", "demo.yaml", *options]) == 0
    names = [line.split("::")[2].split("[")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == left


def test_a_selection_leaves_the_other_checks_out_of_the_run(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS, RAMBLES)
    assert main(["run", "demo.yaml", "-k", "capital", "--no-report"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 check passed" in said
    assert "report:" not in said
    assert not runs()


def test_verbose_tells_of_checks_that_passed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS)
    main(["run", "demo.yaml", "--no-report"])
    assert "stops[capital]" not in capsys.readouterr().out
    main(["run", "demo.yaml", "--no-report", "--verbose"])
    assert "stops[capital]" in capsys.readouterr().out


def test_schema_is_printed_or_written(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert main(["schema", "--write", "suite.schema.json"]) == 0
    assert not capsys.readouterr().out
    assert json.loads(Path("suite.schema.json").read_text()) == json_schema()


def test_after_ctrl_c_what_was_judged_is_told_and_stored(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(STOPS, RAMBLES)
    path = Path("demo.yaml")
    path.write_text(path.read_text() + "quantization: [none, nf4]\n")

    def interrupted(self: Heartbeat, target: Target, done: int, total: int) -> None:
        if target.quantization == "nf4":
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Heartbeat, "batch", interrupted)
    assert main(["run", "demo.yaml", "-k", "stops"]) == 130
    assert "stopped before the end" in capsys.readouterr().out
    [folder] = runs()
    stored = json.loads((folder / "run.json").read_text())
    assert stored["complete"] is False
    assert stored["outcomes"] == {"passed": 1}


def test_a_run_that_cannot_be_stored_is_not_begun(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(STOPS)
    Path("reports").write_text("a file, where a folder has to be")
    assert main(["run", "demo.yaml"]) == 3
    told = capsys.readouterr()
    assert "PASSED" not in told.out
    assert told.err.startswith("harness: error: cannot write reports")
    assert "--no-report" in told.err


def test_a_bug_is_told_without_a_traceback_unless_it_is_asked_for(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("harness.load.json_schema", broken)
    assert main(["schema"]) == 3
    said = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in said
    assert "HARNESS_DEBUG=1" in said
    assert "Traceback" not in said
    monkeypatch.setenv("HARNESS_DEBUG", "1")
    assert main(["schema"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_harness_shows_its_traceback_when_asked(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise CannotRun("no", "yes")

    monkeypatch.setattr("harness.load.json_schema", refuse)
    monkeypatch.setenv("HARNESS_DEBUG", "1")
    assert main(["schema"]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("harness: error: no\n  yes\n")


def test_help_documents_exit_codes_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for word in ("run", "lint", "list", "schema", "Exit codes:", "5    the selection leaves nothing", "HARNESS_DEBUG"):
        assert word in said


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import harness

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"harness {harness.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_there_at_once(option: str) -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "harness", option], check=True, capture_output=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1.5  # 0.2 s on an idle machine; a single heavy import takes more than this


def test_the_exit_code_reaches_the_shell(write: Write) -> None:
    write(RAMBLES)
    done = subprocess.run([sys.executable, "-m", "harness", "run", "demo.yaml"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout


def test_what_was_judged_before_a_run_was_killed_can_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.runner import Runner

    judge = Runner.judge

    def killed(self: Runner, check: Any) -> Any:
        if self.judged:
            raise SystemExit(9)  # nothing is tidied up
        return judge(self, check)

    monkeypatch.setattr(Runner, "judge", killed)
    write(STOPS + STOPS.replace("stops,", "stops-again,"))
    with contextlib.suppress(SystemExit):
        main(["run", "demo.yaml"])
    (left,) = Path("reports").glob(".partial-*")
    run = harness.read(left)
    assert [record.test for record in run.results.records] == ["stops"]
    assert not run.results.complete


def test_what_was_compared_before_it_was_killed_can_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.comparison.measuring import Measurer

    target = Measurer.target

    def killed(self: Measurer, one: Target) -> None:
        if one.quantization == "nf4":
            raise SystemExit(9)
        target(self, one)

    monkeypatch.setattr(Measurer, "target", killed)
    suite = write(STOPS)
    suite.write_text(suite.read_text().replace("prompts:", "quantization: [none, int8, nf4]\nprompts:", 1))
    with contextlib.suppress(SystemExit):
        main(["compare", "demo.yaml", "--no-speed"])
    (left,) = Path("reports").glob(".partial-*")
    run = harness.read(left)
    assert [record.target for record in run.results.records] == ["fake-none", "fake-int8"]
    assert list(run.compare().index) == ["fake-none", "fake-int8"]
    assert not run.results.complete
    assert run.results.lacks == ()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_compared(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(STOPS)
    Path("reports").write_text("in the way")
    assert main(["compare", "demo.yaml"]) == 3
    told = capsys.readouterr()
    assert "cannot write reports/" in told.err
    assert told.out == ""


def test_nothing_but_the_run_is_left_of_a_comparison(write: Write) -> None:
    write(STOPS)
    main(["compare", "demo.yaml", "--no-speed"])
    (folder,) = Path("reports").iterdir()
    assert not folder.name.startswith(".")
