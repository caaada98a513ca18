"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError, SuiteError, UsageError

if TYPE_CHECKING:
    from harness.plan import Check
    from harness.runner import Runner
    from harness.store import Results

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


@app.command()
def run(  # noqa: PLR0913  an option of the command line each
    context: typer.Context,
    suites: Suites,
    *,
    keyword: Keyword = "",
    mark: Mark = "",
    target: Targets = None,
    limit: Limit = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the run's folder is made.")] = Path("reports"),
    no_report: Annotated[bool, typer.Option("--no-report", help="Store nothing, print the summary only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell of every check, passed ones too.")] = False,
) -> None:
    """Generate, judge, report."""
    from rich.console import Console

    from harness.reports.progress import watch
    from harness.reports.terminal import summary
    from harness.runner import Runner

    checks = _selected(suites, keyword, mark, target, limit)
    with watch() as observer:
        runner = Runner(checks, observer)
        finished = _judge(runner)
    results = runner.results(shlex.join(["harness", *(context.obj or sys.argv[1:])]))
    summary(results, Console(highlight=False), verbose=verbose)
    if not no_report:
        print(f"report: {_store(results, out) / 'report.html'}")
    raise typer.Exit(_exit_code(results) if finished else INTERRUPTED)


def _judge(runner: Runner) -> bool:
    """Whether all checks were judged; False after Ctrl-C."""
    try:
        for _ in runner.run():
            pass
    except KeyboardInterrupt:
        return False
    finally:
        runner.close()
    return True


def _store(results: Results, out: Path) -> Path:
    from harness.reports.html import render
    from harness.store import save

    return save(results, out, {"report.html": render(results)})


def _exit_code(results: Results) -> int:
    if results.outcomes.get("failed"):
        return 1
    return 3 if results.outcomes.get("error") or results.errors else 0


@app.command()
def lint(suites: Suites) -> None:
    """Read and plan suites without loading a model; tell every mistake."""
    from harness.load import load_all
    from harness.plan import plan

    for one in load_all(suites):
        planned = plan([one])
        counts = ((len(one.suite.tests), "test"), (len(planned.targets), "target"), (len(planned.checks), "check"))
        told = ", ".join(f"{count} {noun if count == 1 else noun + 's'}" for count, noun in counts)
        print(f"ok  {one.file}  {told}")


@app.command()
def selftest(
    suites: Suites,
    *,
    keyword: Keyword = "",
    mark: Mark = "",
    target: Targets = None,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", metavar="NAME", help="Only this fault; may be given again.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ask each expectation only until it has caught something.")
    ] = False,
) -> None:
    """Plant faults in the model and tell which expectations catch them; exit 1 when one catches nothing."""
    from rich.console import Console

    from harness.reports.progress import watch
    from harness.reports.selftest import show
    from harness.selftest import chosen, selftest

    results = []
    for checks in chosen(_selected(suites, keyword, mark, target, None)):
        with watch() as observer:
            results.append(selftest(checks, fault or (), observer, quick=quick))
        show(results[-1], Console(highlight=False))
    raise typer.Exit(any(result.toothless for result in results))


@app.command("list")
def list_checks(  # noqa: PLR0913  an option of the command line each
    suites: Annotated[list[str] | None, typer.Argument(metavar="SUITE", help="Suite files or folders.")] = None,
    *,
    keyword: Keyword = "",
    mark: Mark = "",
    target: Targets = None,
    limit: Limit = None,
    targets: Annotated[bool, typer.Option("--targets", help="The names of the targets instead.")] = False,
    levels: Annotated[
        bool, typer.Option("--levels", help="The quantization levels there are; needs no suite.")
    ] = False,
) -> None:
    """Show the ids of checks: what a run with the same options judges."""
    if levels:
        from harness.backends.quantizations import LEVELS

        print("\n".join(f"{name:<6} {level.summary}" for name, level in LEVELS.items()))
        return
    if not suites:
        raise UsageError("no suite given", "Name a suite file or a folder: harness list suites/")
    checks = _selected(suites, keyword, mark, target, limit)
    print("\n".join(dict.fromkeys(check.target.name if targets else check.id for check in checks)))


@app.command()
def schema(
    write: Annotated[Path | None, typer.Option(metavar="PATH", help="Write it to this file instead.")] = None,
) -> None:
    """Print the JSON Schema of suite files, for editors."""
    import json

    from harness.load import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if write is None:
        print(text)
        return
    try:
        write.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {write}: {error.strerror or error}") from error


def _selected(
    suites: Sequence[str], keyword: str, mark: str, targets: Sequence[str] | None, limit: int | None
) -> tuple[Check, ...]:
    from harness.load import load_all
    from harness.plan import plan
    from harness.selection import select

    checks = plan(load_all(suites)).checks
    return select(checks, keyword=keyword, mark=mark, targets=targets or (), limit=limit)
