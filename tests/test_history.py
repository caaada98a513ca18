"""`harness history`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main

SUITE = """\
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: "capital?", text: "Paris.", finish: eos}
prompts: {capital: "capital?"}
tests:
  - {name: knows, prompts: [capital], expect: {contains: Paris}}
"""


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with reports/ in it: two runs of one suite."""
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(SUITE)
    assert main(["run", "demo.yaml"]) == 0
    assert main(["run", "demo.yaml"]) == 0
    capsys.readouterr()
    return tmp_path


def test_runs_of_one_suite_are_of_the_same_conditions(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"demo on fake-none  2 runs.*\n  test .*\n  knows  ✓ passed  ✓✓ +100 %  0 of 1 pair\n", out)
    assert out.splitlines()[-1].startswith("STEADY  nothing fails, 0 checks flaked, in 2 runs")
    assert (two_runs / "reports" / "history.sqlite").is_file()


def test_an_edited_suite_is_named(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("demo.yaml").write_text(SUITE.replace("contains: Paris", "contains: Rome"))
    assert main(["run", "demo.yaml"]) == 1
    capsys.readouterr()
    assert main(["history", "reports"]) == 0
    out = capsys.readouterr().out
    assert "what differs between the two: suite edited" in out
    assert "knows[capital]: passed → failed" in out
    assert out.splitlines()[-1].startswith("FAILING  1 of 1 test on 1 target fail now")


def test_an_edited_file_that_the_suite_extends_is_named(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("base.yaml").write_text(SUITE.replace("suite: demo", "suite: base"))
    Path("demo.yaml").write_text("suite: demo\nextends: base.yaml\n")
    assert main(["run", "demo.yaml"]) == 0
    Path("base.yaml").write_text(
        SUITE.replace("suite: demo", "suite: base").replace("contains: Paris", "contains: Rome")
    )
    assert main(["run", "demo.yaml"]) == 1
    capsys.readouterr()
    assert main(["history", "reports"]) == 0
    out = capsys.readouterr().out
    assert "what differs between the two: suite edited" in out
    assert "0 checks flaked" in out


def test_the_page_is_written(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--html", "page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "page: page.html"
    text = Path("page.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert len(re.findall(r'href="reports/[^"]*/report.html"', text)) == 2
    assert main(["history", "--html", "no/such/folder.html"]) == 2


def test_last_bounds_the_runs(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--last", "1"]) == 0
    assert "in 1 run of" in capsys.readouterr().out


def test_rebuild_and_damage_are_no_errors(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--rebuild"]) == 0
    (two_runs / "reports" / "history.sqlite").write_bytes(b"x" * 9000)
    assert main(["history"]) == 0
    assert "is made again from the run folders" in capsys.readouterr().out


def test_without_runs_it_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(tmp_path)]) == 5
    assert capsys.readouterr().err == f"harness: error: no run in {tmp_path}\n  Make one: harness run SUITE\n"
    assert main(["history", str(tmp_path / "none")]) == 2


def test_where_all_is_left_out_it_says_why(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in Path("reports").iterdir():
        (run / "run.json").unlink()
    assert main(["history"]) == 5
    assert capsys.readouterr().err.count("was left out: run.json missing") == 2


def test_what_is_in_the_index_needs_no_pyarrow_and_the_help_nothing(two_runs: Path) -> None:
    assert main(["history"]) == 0
    for arguments, heavy in (
        (["history"], {"pandas", "pyarrow", "torch", "transformers", "jinja2"}),
        (["history", "--help"], {"pandas", "pyarrow", "numpy", "sqlite3", "rich", "pydantic_settings"}),
    ):
        code = f"import sys; from harness.cli import main; main({arguments!r}); print(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not heavy & {name.split(".")[0] for name in done.stderr.split()}
        assert done.stdout


def test_a_run_that_is_gone_is_forgotten(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history"]) == 0
    shutil.rmtree(next(run for run in Path("reports").iterdir() if run.is_dir()))
    capsys.readouterr()
    assert main(["history"]) == 0
    assert "in 1 run of" in capsys.readouterr().out
