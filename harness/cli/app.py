"""The program itself: what every command shares, and how it ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError, SuiteError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.plan import Check

EXIT_CODES = """\b
Exit codes:
  0    all went as expected; known failures and unexpected passes included
  1    an expectation failed, whatever else went wrong
  2    the command line or a suite is wrong
  3    nothing failed, but something could not be run or stored
  5    the selection leaves nothing to run
  130  interrupted; what was judged until then is summarised and stored

HARNESS_DEBUG=1 shows the traceback of an error."""
INTERRUPTED = 130

# Plain help: rich's panels double the time that --help takes, and cut paths in two in a log.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Suites = Annotated[list[str], typer.Argument(metavar="SUITE", help="Suite files, or folders of them.")]
Keyword = Annotated[
    str, typer.Option("-k", metavar="EXPR", help="Only checks whose id, suite or marks contain it: 'pad and not nf4'.")
]
Mark = Annotated[str, typer.Option("-m", metavar="EXPR", help="Only tests with these marks: 'not quality'.")]
Targets = Annotated[
    list[str] | None, typer.Option("--target", metavar="NAME", help="Only this target; may be given again.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only the first N checks of a suite on each target.")
]


Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the run's folder is made.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Store nothing, print the summary only.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of `harness ARGUMENTS`. Nothing is raised; errors are told on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typer.main.get_command(app).main(args=given, prog_name="harness", obj=given)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HarnessError as error:
        return _tell(f"{error}" if isinstance(error, SuiteError) else f"harness: error: {error}", error.exit_code)
    except Exception as error:
        remedy = "This is a bug of the harness: please report it, with what HARNESS_DEBUG=1 shows."
        return _tell(f"harness: error: {type(error).__name__}: {error}\n  {remedy}", HarnessError.exit_code)
    return 0


def _tell(message: str, exit_code: int) -> int:
    if os.environ.get("HARNESS_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    print(message, file=sys.stderr)
    return exit_code


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"harness {version('harness')}")
        raise typer.Exit


@app.callback()
def _harness(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Does this language model still behave? Suites of tests, run over models and quantization levels."""


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def print_or_write(text: str, write: Path | None) -> None:
    if write is None:
        print(text)
        return
    try:
        write.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {write}: {error.strerror or error}") from error


def selected(
    suites: Sequence[str], keyword: str, mark: str, targets: Sequence[str] | None, limit: int | None
) -> tuple[Check, ...]:
    from harness.load import load_all
    from harness.plan import plan
    from harness.selection import select

    checks = plan(load_all(suites)).checks
    return select(checks, keyword=keyword, mark=mark, targets=targets or (), limit=limit)
