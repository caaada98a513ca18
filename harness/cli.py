"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError, SuiteError, UsageError

if TYPE_CHECKING:
    from harness.inputs import Model
    from harness.lint import Looked
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
def lint(
    suites: Suites,
    *,
    no_models: Annotated[bool, typer.Option("--no-models", help="The suites alone, not the models' files.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A warning is exit code 2, too.")] = False,
) -> None:
    """Tell what is wrong with suites, and with them on their models, by the models' files alone.

    No weights are loaded. What is wrong as it stands is an error, and exit code 2; what will bite somebody is
    a warning; a note is good to know.
    """
    from harness.lint import lint as look
    from harness.load import load_all
    from harness.plan import plan

    loaded = load_all(suites)
    planned = plan(loaded)
    for one in loaded:
        checks = [check for check in planned.checks if check.suite is one.suite]
        told = (
            _counted(len(one.suite.tests), "test"),
            _counted(len({check.target for check in checks}), "target"),
            _counted(len(checks), "check"),
        )
        print(f"ok  {one.file}  {', '.join(told)}")
    models = [] if no_models else look(planned.checks)
    for model in models:
        _tell_findings(model)
    found = {finding.severity for model in models for finding in model.findings}
    if "error" in found or (strict and "warning" in found):
        raise typer.Exit(2)


def _tell_findings(model: Looked) -> None:
    from harness.reports import one_line

    names = ", ".join(model.names)
    if model.why_not:
        print(f"\n{names}: {one_line(model.why_not)}")
        return
    severities = Counter(finding.severity for finding in model.findings)
    counts = ", ".join(_counted(count, severity) for severity, count in severities.items())
    print(f"\n{names}: {counts or 'nothing found'}  ({model.where})")
    for finding in model.findings:
        print(f"  {finding.severity:<7}  {one_line(finding.message)}")
        print(f"           {one_line(finding.remedy)}")
        print(f"           {' · '.join(filter(None, (finding.where, finding.rule)))}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


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


ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, GGUF file, package:… or wheel:…")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 compares exactly; auto takes the checkpoint's own.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 … Unset: CUDA where there is one.")]
NameOfModel = Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it; unset: from its path.")]


@app.command()
def doctor(path: ModelPath, *, dtype: Dtype = "float32", device: Device = None, name: NameOfModel = "") -> None:
    """Look at any model from all sides, without a suite: one page on what is fine and what will bite."""
    from rich.console import Console

    from harness.doctor import diagnose
    from harness.reports.doctor import show
    from harness.reports.progress import watch

    with watch() as observer:
        diagnosis = diagnose(_model(path, dtype, device), name or _called(path), observer)
    show(diagnosis, Console(highlight=False))
    raise typer.Exit(0 if diagnosis.healthy else 1)


@app.command("init")
def write_suite(
    path: ModelPath,
    *,
    dtype: Dtype = "float32",
    device: Device = None,
    name: NameOfModel = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Unset: suites/NAME.yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a suite that passes on this model, from what it does now; its faults become known failures."""
    from harness.reports.progress import watch
    from harness.starter import write

    file = out or Path("suites") / f"{name or _called(path)}.yaml"
    if file.exists() and not force:
        raise UsageError(f"{file} is there already", "Name another with --out, or write over it with --force.")
    with watch() as observer:
        outcomes = write(file, _model(path, dtype, device), name or _called(path), observer)
    print(f"{file}: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}")
    print(f"next: harness run {shlex.quote(str(file))}")


def _model(path: str, dtype: str, device: str | None) -> Model:
    from pydantic import ValidationError

    from harness.inputs import Model

    try:
        return Model.model_validate({"path": path, "dtype": dtype} | ({"device": device} if device else {}))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, wrong['loc'])) or 'MODEL'}: {wrong['msg']}") from error


def _called(path: str) -> str:
    """A name that a suite may have, from the last part of a path."""
    last = path.rstrip("/").split("#")[0].rsplit("/", 1)[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")[:60] or "model"


@app.command()
def behaviours(
    write: Annotated[Path | None, typer.Option(metavar="PATH", help="Write it to this file instead.")] = None,
) -> None:
    """Show how generation breaks in real life, and which expectation, invariant or lint rule catches it."""
    from harness.behaviours import document

    _out(document().rstrip("\n"), write)


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

    _out(json.dumps(json_schema(), indent=2, ensure_ascii=False), write)


def _out(text: str, write: Path | None) -> None:
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
