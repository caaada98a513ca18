"""Commands that look at suites and models: lint, doctor, init, behaviours, schema."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import Suites, app, console, print_or_write
from harness.errors import UsageError
from harness.wording import counted

if TYPE_CHECKING:
    from harness.inputs import Model
    from harness.lint import Looked


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
            counted(len(one.suite.tests), "test"),
            counted(len({check.target for check in checks}), "target"),
            counted(len(checks), "check"),
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
    counts = ", ".join(counted(count, severity) for severity, count in severities.items())
    print(f"\n{names}: {counts or 'nothing found'}  ({model.where})")
    for finding in model.findings:
        print(f"  {finding.severity:<7}  {one_line(finding.message)}")
        print(f"           {one_line(finding.remedy)}")
        print(f"           {' · '.join(filter(None, (finding.where, finding.rule)))}")


ModelPath = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, GGUF file, package:… or wheel:…")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 compares exactly; auto takes the checkpoint's own.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 … Unset: CUDA where there is one.")]
NameOfModel = Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it; unset: from its path.")]


@app.command()
def doctor(path: ModelPath, *, dtype: Dtype = "float32", device: Device = None, name: NameOfModel = "") -> None:
    """Look at any model from all sides, without a suite: one page on what is fine and what will bite."""
    from harness.doctor import diagnose
    from harness.reports.doctor import show
    from harness.reports.progress import watch

    with watch() as observer:
        diagnosis = diagnose(_model(path, dtype, device), name or _called(path), observer)
    show(diagnosis, console())
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

    print_or_write(document().rstrip("\n"), write)


@app.command()
def schema(
    write: Annotated[Path | None, typer.Option(metavar="PATH", help="Write it to this file instead.")] = None,
) -> None:
    """Print the JSON Schema of suite files, for editors."""
    import json

    from harness.load import json_schema

    print_or_write(json.dumps(json_schema(), indent=2, ensure_ascii=False), write)
