"""The shipped example is what the present code makes of it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from harness.reports.html import render
from harness.store import read

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "reports" / "example"
PICTURE = ROOT / "docs" / "report.png"


@pytest.fixture(scope="module")
def results():
    return read(EXAMPLE)


def test_its_page_is_what_is_rendered_now(results):
    fresh = render(results) == (EXAMPLE / "report.html").read_text(encoding="utf-8")
    assert fresh, "reports/example/report.html is old: make example-page, and look at docs/report.png"


def test_it_was_measured_with_the_suite_that_lies_there(results):
    (suite,) = results.suites
    now = hashlib.sha256((EXAMPLE / "suite.yaml").read_bytes()).hexdigest()
    assert suite["sha256"] == now, "reports/example/suite.yaml has changed since: make example"


def test_it_shows_a_comparison_and_what_fails(results):
    assert results.complete
    assert {candidate.name for candidate in results.measured.candidates} == {
        "smollm2-fp32",
        "smollm2-int8",
        "smollm2-nf4",
    }
    assert results.outcomes["failed"]
    assert results.outcomes["passed"] > results.outcomes["failed"]
    assert results.pins


def test_it_is_small_and_tells_nothing_of_the_machine_of_its_author():
    files = [file for file in EXAMPLE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert PICTURE.stat().st_size < 300_000
    found = [file.name for file in files for word in (b"/root/", b"/home/", b"/tmp/") if word in file.read_bytes()]
    assert found == []


def test_the_command_that_renders_it_says_how_it_is_called():
    done = subprocess.run([sys.executable, EXAMPLE / "render.py", "--help"], capture_output=True, text=True, check=True)
    assert "make example-page" in done.stdout
