"""Commands that run suites: run, compare, selftest, list."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import INTERRUPTED, Keyword, Limit, Mark, NoReport, Out, Suites, Targets, app, console, selected
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.comparison.comparing import Comparison
    from harness.runner import Runner
    from harness.store import Journal, Results

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell everything.")]


@app.command()
def run(  # noqa: PLR0913  an option of the command line each
    context: typer.Context,
    suites: Suites,
    *,
    keyword: Keyword = "",
    mark: Mark = "",
    target: Targets = None,
    limit: Limit = None,
    repro: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a stand-alone script for each failure, here.")
    ] = None,
    out: Out = Path("reports"),
    no_report: NoReport = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell of every check, passed ones too.")] = False,
) -> None:
    """Generate, judge, report."""
    from harness.reports.progress import watch
    from harness.reports.terminal import summary
    from harness.runner import Runner
    from harness.store import Journal

    checks = selected(suites, keyword, mark, target, limit)
    with watch() as observer:
        runner = Runner(checks, observer, repros=repro)
        journal = None if no_report else Journal(runner.results(_command(context)), out)
        finished = _judge(runner, journal)
    results = runner.results(_command(context))
    _tell(results, partial(summary, results, console(), verbose=verbose))
    if journal:
        print(f"report: {_store(results, out) / 'report.html'}")
        journal.close()
    raise typer.Exit(_exit_code(results) if finished else INTERRUPTED)


@app.command()
def compare(  # noqa: PLR0913  an option of the command line each
    context: typer.Context,
    things: Annotated[list[str], typer.Argument(metavar="SUITE | RUN [RUN]", help="A suite, or folders of runs.")],
    *,
    keyword: Keyword = "",
    mark: Mark = "",
    target: Targets = None,
    baseline: Annotated[str, typer.Option("--baseline", metavar="NAME", help="Instead of the suite's own.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N prompts.")] = None,
    no_checks: Annotated[bool, typer.Option("--no-checks", help="Measure only; judge no test.")] = False,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Measure neither speed nor memory.")] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Keep the baseline loaded, and time it in turns with each target.")
    ] = False,
    require: Annotated[
        list[str] | None, typer.Option("--require", metavar="NAME", help="Exit 1 unless this one may be shipped.")
    ] = None,
    out: Out = Path("reports"),
    no_report: NoReport = False,
    verbose: Verbose = False,
) -> None:
    """Which target to ship: every target of a suite against its baseline; or one run against another.

    Of a suite, each target is measured: its distributions on the baseline's own continuations, its texts, checks,
    memory and speed. With a budget in the suite, exit 1 when nothing may be shipped. Of two runs the first is before
    and the second after; exit 1 when a check got worse. One run shows its own comparison again.
    """
    from harness.reports.comparison import show

    if _are_runs(things):
        raise typer.Exit(_compare_runs(things, require or (), verbose=verbose))
    from harness.comparison.comparing import prepare
    from harness.reports.progress import watch
    from harness.store import Journal

    with watch() as observer:
        comparison = prepare(
            things,
            observer,
            keyword=keyword,
            mark=mark,
            targets=target or (),
            baseline=baseline,
            limit=limit,
            checks=not no_checks,
            speed=False if no_speed else "side by side" if side_by_side else True,
        )
        journal = None if no_report else Journal(comparison.results(_command(context)), out)
        finished = _measure(comparison, journal, _command(context))
    results = comparison.results(_command(context))
    _tell(results, partial(show, results, console(), verbose=verbose))
    if journal:
        print(f"report: {_store(results, out) / 'report.html'}")
        journal.close()
    raise typer.Exit(_ships(results, require or ()) if finished else INTERRUPTED)


def _are_runs(things: Sequence[str]) -> bool:
    """Whether run folders are meant, or files of theirs."""
    runs = [Path(thing) for thing in things if (Path(thing) / "run.json").is_file() or _is_result(Path(thing))]
    if runs and len(runs) < len(things):
        raise UsageError("suites and runs cannot be compared with each other", "Name one suite, or one or two runs.")
    return bool(runs)


def _is_result(path: Path) -> bool:
    return path.suffix == ".parquet" or path.name == "run.json"


def _compare_runs(things: Sequence[str], required: Sequence[str], *, verbose: bool) -> int:
    from harness.comparison.runs import compare_runs
    from harness.reports.comparison import show, show_runs
    from harness.store import read

    if len(things) > 2:
        raise UsageError(f"{len(things)} runs were named", "Name one run, or two: before and after.")
    runs = [read(Path(thing)) for thing in things]
    if len(runs) == 1:
        show(runs[0], console(), verbose=verbose)
        return _ships(runs[0], required)
    difference = compare_runs(*runs)
    show_runs(difference, console(), verbose=verbose)
    return int(bool(difference.verdicts_that("regressed")))


def _measure(comparison: Comparison, journal: Journal | None, command: str) -> bool:
    """Whether everything was measured; False after Ctrl-C."""
    try:
        for _ in comparison.run():
            if journal:
                journal.keep(comparison.results(command))
    except KeyboardInterrupt:
        return False
    return True


def _ships(results: Results, required: Sequence[str]) -> int:
    """0 when something may be shipped, and everything that was required."""
    from harness.comparison.decision import decide

    gates = {gate.candidate: gate.word for gate in decide(results).gates}
    unknown = [name for name in required if name not in gates]
    if unknown:
        there = f"There are: {', '.join(gates)}." if gates else "The suite has no `budget`, which decides."
        raise UsageError(f"--require: no candidate is called '{unknown[0]}'", there)
    wanted = [gates[name] == "ship" for name in required] or ["ship" in gates.values()]
    if gates and not all(wanted):
        return 1
    return 3 if results.errors or (results.measured and results.measured.not_measured) else 0


def _command(context: typer.Context) -> str:
    return shlex.join(["harness", *(context.obj or sys.argv[1:])])


def _judge(runner: Runner, journal: Journal | None) -> bool:
    """Whether all checks were judged; False after Ctrl-C."""
    try:
        for judged in runner.run():
            if journal:
                journal.add(judged.records)
    except KeyboardInterrupt:
        return False
    finally:
        runner.close()
    return True


def _tell(results: Results, show: Callable[[], None]) -> None:
    """On the terminal; in GitHub Actions as a summary and annotations, too."""
    from harness.reports.pull_request import tell_github, without_commands

    with without_commands(sys.stdout):
        show()
    tell_github(results, sys.stdout)


def _store(results: Results, out: Path) -> Path:
    from harness.reports.html import render
    from harness.store import save

    return save(results, out, {"report.html": render(results)})


def _exit_code(results: Results) -> int:
    if results.outcomes.get("failed"):
        return 1
    return 3 if results.outcomes.get("error") or results.errors else 0


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
    from harness.reports.progress import watch
    from harness.reports.selftest import show
    from harness.selftest import chosen, selftest

    results = []
    for checks in chosen(selected(suites, keyword, mark, target, None)):
        with watch() as observer:
            results.append(selftest(checks, fault or (), observer, quick=quick))
        show(results[-1], console())
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

        print("\n".join(f"{name:<18} {level.summary}" for name, level in LEVELS.items()))
        return
    if not suites:
        raise UsageError("no suite given", "Name a suite file or a folder: harness list suites/")
    checks = selected(suites, keyword, mark, target, limit)
    print("\n".join(dict.fromkeys(check.target.name if targets else check.id for check in checks)))
