"""The command that looks back: history."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app, console, print_or_write
from harness.errors import NothingSelected


@app.command()
def history(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Folders of runs; unset: reports/.")
    ] = None,
    *,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="Only the last N runs of a suite on a target.")] = 50,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page, too.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read all run folders again.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell everything.")] = False,
) -> None:
    """Tell what past runs show: since when a test fails, what flakes, how pass rate and speed went.

    Each check of each run is compared once. If an earlier run was made under the same conditions (same suite file,
    weights, libraries, device and settings), the last such run and this one are a pair; when the outcome is another
    one, it is a FLAKE. The flake rate is the share of pairs in which that happened, of a test: to any of its checks;
    in brackets is where it lies at 95 % confidence. With fewer than 10 pairs it says `few`.

    If no earlier run was made under the same conditions, the check is compared with the run before; when the outcome
    is another one, it is a CHANGE, and what differed is named. What is not known counts as different. The outcome of
    a pinned test depends on files beside the suite, too: its runs are of the same conditions only on the same commit
    with nothing changed since.

    Passed is the share of checks that passed, of those that were not skipped, as in the table of a run.

    What it reads of a run it keeps in FOLDER/history.sqlite, which can be deleted at any time.
    """
    from harness.reports.history import show
    from harness.run_index import past
    from harness.trend import history as follow

    named = folders or [Path("reports")]
    found = past(named, rebuild=rebuild, tell=lambda line: print(line, file=sys.stderr))
    if not found.runs:
        where = ", ".join(str(folder) for folder in named)
        left_out = "".join(f"\n  {note}" for note in found.notes)
        raise NothingSelected(f"no run in {where}{left_out}", "Make one: harness run SUITE")
    told = follow(found, last)
    show(told, console(), verbose=verbose)
    if html:
        from harness.reports.history_page import render

        print_or_write(render(told, html.parent), html)
        print(f"page: {html}")
