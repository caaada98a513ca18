"""The command that shows a run again: report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import app
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.reports.data import Table
    from harness.store import Results


class Format(StrEnum):
    HTML = "html"
    SUMMARY = "summary"
    ANNOTATIONS = "annotations"
    JUNIT = "junit"
    CSV = "csv"
    JSONL = "jsonl"
    JSON = "json"
    PARQUET = "parquet"


class Rows(StrEnum):
    VERDICTS = "verdicts"
    GENERATIONS = "generations"


FILES = (Format.HTML, Format.PARQUET)  # not to be printed
AGAINST = (Format.HTML, Format.SUMMARY, Format.ANNOTATIONS)
OF_ROWS = (Format.CSV, Format.JSONL, Format.PARQUET)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, its run.json, or a table of one.")],
    *,
    wanted: Annotated[Format, typer.Option("--format", help="What to make of it.")] = Format.HTML,
    rows: Annotated[Rows, typer.Option("--rows", help="Of csv, jsonl and parquet: a row for each of these.")] = (
        Rows.VERDICTS
    ),
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="An earlier run: what got worse since comes first.")
    ] = None,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it to this file instead.")] = None,
) -> None:
    """Show a run again, from its folder alone: nothing is generated or judged.

    \b
    html         the page, as one file
    summary      markdown for a pull request, or for the summary of a step in GitHub Actions
    annotations  what GitHub Actions shows at the lines of the tests that failed
    junit        JUnit XML, for GitLab, Jenkins and others
    csv, jsonl   a row for each verdict or generation; jsonl has the texts as they are
    parquet      the same, in the format of today
    json         everything but the generations, as one document

    The folder itself stays as it is. html and parquet are written beside it, as RUN.html and RUN.parquet, and replace
    what an earlier report left there; everything else is printed. Of a run that is not whole, what there is is shown,
    and what is missing is told. The exit code says whether that went well, not how the run went.
    """
    if against and wanted not in AGAINST:
        raise UsageError(f"--against says nothing to {wanted}", "Give it to --format html, summary or annotations.")
    if rows is not Rows.VERDICTS and wanted not in OF_ROWS:
        raise UsageError(f"--rows says nothing to {wanted}", "Give it to --format csv, jsonl or parquet.")
    from harness.store import read

    results = read(run)
    _tell_what_lacks(results)
    before = read(against) if against else None
    file = write or (_beside(results, run, wanted) if wanted in FILES else None)
    if file:
        _check_place(file)
    if wanted is Format.PARQUET and file:
        from harness.reports.data import write_parquet

        _written(file, lambda: write_parquet(results, rows.value, file))
        return
    text = _text(results, wanted, rows.value, before)
    if file is None:
        _print(text)
    else:
        _written(file, lambda: file.write_bytes(text.encode()))


def _text(results: Results, wanted: Format, rows: Table, before: Results | None) -> str:
    from harness.reports import data, html, junit, pull_request

    made: dict[Format, Callable[[], str]] = {
        Format.HTML: lambda: html.render(results, before),
        Format.SUMMARY: lambda: pull_request.summary_md(results, before),
        Format.ANNOTATIONS: lambda: "".join(f"{line}\n" for line in pull_request.annotations(results, before)),
        Format.JUNIT: lambda: junit.junit_xml(results),
        Format.CSV: lambda: data.csv_text(results, rows),
        Format.JSONL: lambda: data.json_lines(results, rows),
        Format.JSON: lambda: data.json_text(results),
    }
    return made[wanted]()


def _tell_what_lacks(results: Results) -> None:
    """On stderr, because stdout is what was asked for."""
    from harness.reports import lacking, one_line

    for lack in lacking(results):
        print(f"incomplete: {one_line(lack)}", file=sys.stderr)


def _beside(results: Results, run: Path, wanted: Format) -> Path:
    place = (results.path or run).resolve()
    # What a killed run left begins with a dot; a report of it is to be seen.
    return place.with_name(f"{place.name.removeprefix('.')}.{wanted}")


def _check_place(file: Path) -> None:
    """The data of a run are never written over."""
    from harness.store import RUN, VERDICTS

    if file.is_dir():
        raise UsageError(f"{file} is a folder", "Name a file.")
    if (file.parent / RUN).is_file() and (file.name in (RUN, VERDICTS) or file.suffix == ".parquet"):
        raise UsageError(f"{file} belongs to a run, whose data are never written over", "Name another file.")


def _written(file: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise UsageError(
            f"cannot write {file}: {error.strerror or error}", "Name another file with --write."
        ) from error
    print(file)


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
