"""The coverage table: whole, honest about what is not caught, and the page that is written from it fresh."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from typer.testing import CliRunner

from harness.behaviours import COMPARED, FAMILIES, GUARDS, OUT_OF_REACH, ROWS, caught_by, document
from harness.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "behaviours.md"


def test_the_catalogue_is_whole() -> None:
    wanted = {"D": 7, "P": 13, "E": 6, "L": 7, "C": 12, "T": 9, "K": 9, "Q": 5, "X": 7, "M": 3, "N": 4}
    assert Counter(row[0] for row in ROWS) == wanted
    assert set(wanted) == set(FAMILIES)
    assert {severity for severity, _ in ROWS.values()} == {"S1", "S2", "S3"}


def test_every_row_is_caught_or_there_is_a_reason_and_never_both() -> None:
    found = caught_by()  # raises where something claims a row that there is not
    for row in ROWS:
        caught = bool(found[row]) or row in GUARDS or row in COMPARED
        assert caught != (row in OUT_OF_REACH), row
    assert set(GUARDS) | set(COMPARED) | set(OUT_OF_REACH) <= set(ROWS)


def test_what_a_row_names_is_what_claims_it() -> None:
    found = caught_by()
    assert "`invariants: static_cache`" in found["K1"]
    assert "`padding_invariant`" in found["P1"]
    assert any(word.startswith("lint ") for word in found["P1"])


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), "harness behaviours --write docs/behaviours.md"


def test_the_command_prints_it_and_writes_it(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["behaviours"]).stdout == document()
    file = tmp_path / "page.md"
    assert CliRunner().invoke(app, ["behaviours", "--write", str(file)]).exit_code == 0
    assert file.read_text(encoding="utf-8") == document()
