"""`harness report`: a run shown again, from its folder alone."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest

from harness.cli import main
from harness.store import read
from harness.tables import as_json, result_row

SUITE = """\
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: "capital?", text: "TEXT", finish: eos}
      - {prompt: "ramble", text: "=a \\e[31m b", finish: length}
prompts: {capital: "capital?", ramble: "ramble"}
tests:
  - {name: knows, prompts: [capital], expect: {contains: Paris}}
  - {name: stops, prompts: [ramble], expect: {stops_at_eos: true}}
"""
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(text): the folder of a run in which one test passes if the text has Paris in it, and the other fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)

    def make(text: str = "Paris.") -> Path:
        (tmp_path / "demo.yaml").write_text(SUITE.replace("TEXT", text))
        before = set(tmp_path.glob("reports/*/"))
        main(["run", "demo.yaml"])
        capsys.readouterr()
        (folder,) = set(tmp_path.glob("reports/*/")) - before
        return folder.relative_to(tmp_path)

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_page_is_written_beside_the_folder_which_stays_as_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    before = contents(folder)
    assert main(["report", str(folder)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == (folder.parent / f"{folder.name}.html").resolve()
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert contents(folder) == before
    assert main(["report", str(folder)]) == 0  # again, over it


def test_the_current_folder_can_be_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run().resolve()
    monkeypatch.chdir(folder)
    assert main(["report", "."]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder.with_name(f"{folder.name}.html")


def test_what_is_text_is_printed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run())
    assert main(["report", folder, "--format", "summary"]) == 0
    assert capsys.readouterr().out.startswith("## ✗ FAILED: 1 of 2 checks failed")
    assert main(["report", folder, "--format", "annotations"]) == 0
    assert capsys.readouterr().out.startswith("::error file=demo.yaml,line=11,title=stops%3A 1 failed::stops[ramble]")
    assert main(["report", folder, "--format", "junit"]) == 0
    assert ET.fromstring(capsys.readouterr().out.encode()).get("failures") == "1"
    assert main(["report", folder, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "FAILED"


def test_rows_are_of_verdicts_or_of_generations(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run())
    assert main(["report", folder, "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["test"], row["outcome"]) for row in rows] == [("knows", "passed"), ("stops", "failed")]
    assert main(["report", folder, "--format", "jsonl", "--rows", "generations"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["text"] for row in rows} == {"Paris.", "=a \x1b[31m b"}
    assert main(["report", folder, "--format", "csv", "--rows", "generations"]) == 0
    assert '"\'=a \\x1b[31m b"' in capsys.readouterr().out


def test_it_is_written_where_one_says(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run())
    assert main(["report", folder, "--format", "csv", "--write", "out.csv"]) == 0
    assert capsys.readouterr().out == "out.csv\n"
    assert (tmp_path / "out.csv").read_text().startswith('"check",')
    assert main(["report", folder, "--format", "parquet", "--write", "out.parquet"]) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.equals(pq.read_table(tmp_path / folder / "results.parquet"))


def test_parquet_is_written_beside_the_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    assert main(["report", str(folder), "--format", "parquet", "--rows", "generations"]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file.name == f"{folder.name}.parquet"
    assert pq.read_table(file).num_rows == 2


def test_against_an_earlier_run_regressions_come_first(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = str(run()), str(run("Rome."))
    assert main(["report", after, "--format", "summary", "--against", before]) == 0
    text = capsys.readouterr().out
    assert "### ✗ Regressed\n\n1 check regressed, 1 of 2 generations changed since" in text
    assert text.index("knows") < text.index("### Other failures") < text.index("stops")
    assert main(["report", after, "--format", "annotations", "--against", before]) == 0
    assert [line.split(",")[1] for line in capsys.readouterr().out.splitlines()] == ["line=10", "line=11"]
    assert main(["report", after, "--against", before]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert page.index(">Since ") < page.index("✗ regressed") < page.index(">What failed<")
    assert "1 check regressed, 1 of 2 generations changed" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--against", "x", "--format", "junit"], "--against says nothing to junit"),
        (["--rows", "generations"], "--rows says nothing to html"),
        (["--format", "summary", "--against", "gone"], "gone does not exist"),
        (["--format", "sarif"], "sarif"),
        (["--write", "."], ". is a folder"),
        (["--write", "gone/out.html"], "cannot write gone/out.html: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_a_wrong_command_line(
    run: Run, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run()), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.json", "results.parquet", "tokens.parquet"])
def test_the_data_of_a_run_are_never_written_over(run: Run, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    before = contents(folder)
    assert main(["report", str(folder), "--format", "parquet", "--write", str(folder / name)]) == 2
    assert "never written over" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_run_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "gone"]) == 2
    assert "gone does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["html", "summary", "annotations", "junit", "csv", "jsonl", "json", "parquet"])
def test_of_a_table_alone_what_there_is_is_shown_and_what_is_missing_told(
    run: Run, tmp_path: Path, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.parquet"
    (run() / "results.parquet").rename(alone)
    assert main(["report", "alone.parquet", "--format", wanted, "--write", "out"]) == 0
    told = capsys.readouterr()
    assert "incomplete: alone.parquet holds only the verdicts of its run" in told.err
    assert told.out == "out\n"
    assert (tmp_path / "out").stat().st_size


def killed(folder: Path) -> None:
    """As a run leaves it that is killed after its first verdict."""
    first, *_ = read(folder).records
    meta = json.loads((folder / "run.json").read_text())
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(meta | {"complete": False}))
    (folder / "verdicts.jsonl").write_text(as_json(result_row(first)) + '\n{"check": "de')


def of_format_1(folder: Path) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    table = pq.read_table(folder / "tokens.parquet")
    pq.write_table(
        table.drop_columns(["kind"]).set_column(0, "request", [["?"] * table.num_rows]), folder / "tokens.parquet"
    )


DAMAGES: dict[str, Callable[[Path], object]] = {
    "tokens.parquet is missing": lambda folder: (folder / "tokens.parquet").unlink(),
    "run.json is missing": lambda folder: (folder / "run.json").unlink(),
    "results.parquet is damaged": lambda folder: (folder / "results.parquet").write_bytes(b"PAR1"),
    "the run was killed": killed,
    "2 generations were left out": of_format_1,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_run_that_is_not_whole_what_there_is_is_shown_and_marked(
    run: Run, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run()
    DAMAGES[damage](folder)
    told = {}
    for wanted in ("html", "summary", "junit", "csv", "json", "parquet"):
        assert main(["report", str(folder), "--format", wanted, "--write", "out"]) == 0
        assert f"incomplete: {damage}" in capsys.readouterr().err
        told[wanted] = html.unescape(Path("out").read_text(encoding="utf-8", errors="replace"))
    for wanted in ("html", "summary", "json"):
        assert damage in told[wanted]
    if "left out" not in damage:  # of an older format, the verdicts are whole
        assert damage in told["junit"]
    if "results" not in damage:
        assert "demo.yaml::fake-none::knows[capital]" in told["csv"]


def test_a_page_of_a_run_that_was_killed_is_not_hidden(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    killed(folder)
    hidden = folder.rename(folder.with_name(f".partial-{folder.name}"))
    assert main(["report", str(hidden)]) == 0
    assert Path(capsys.readouterr().out.strip()).name == f"partial-{folder.name}.html"


def test_reports_are_written_without_running_anything() -> None:
    code = (
        "import sys; from harness.cli import main; "
        "assert main(['report', '--help']) == 0; print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in done.stderr.split()}
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "pandas", "numpy", "pyarrow", "jinja2", "rich", "yaml"}


def test_a_console_that_cannot_say_it_gets_escapes(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "report", str(run("Köln")), "--format", "summary"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=True,
    )
    assert b"\\u2717 FAILED" in done.stdout


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The summary file of a step of GitHub Actions that runs in this folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "demo.yaml").write_text(SUITE.replace("TEXT", "::add-mask::Rome"))
    return tmp_path / "summary.md"


def test_in_github_actions_a_run_tells_what_failed(github: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo.yaml", "--no-report"]) == 1
    told = capsys.readouterr().out
    assert "::error file=demo.yaml,line=10" in told
    token = told.partition("::stop-commands::")[2].split()[0]
    assert told.index("add-mask") < told.index(f"::{token}::", told.index("add-mask")) < told.index("::error file=")
    assert "knows" in github.read_text()


def test_in_github_actions_pytest_tells_it_too(github: Path, pytester: pytest.Pytester) -> None:
    (pytester.path / "demo.yaml").write_text((github.parent / "demo.yaml").read_text())
    done = pytester.runpytest("demo.yaml", "-p", "no:cacheprovider")
    assert any(line.startswith("::error file=") for line in done.outlines)
    assert "knows" in github.read_text()
