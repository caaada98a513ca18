"""Commands about pins: pin, and pin review."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import INTERRUPTED, Keyword, Mark, Targets, app, console, selected
from harness.errors import UsageError
from harness.wording import counted

if TYPE_CHECKING:
    from harness.plan import Check

Globs = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Pins by name or pattern; may be given again.")]


@app.command()
def pin(  # noqa: PLR0913  an option of the command line each
    suites: Annotated[
        list[str], typer.Argument(metavar="[review] SUITE…", help="Suite files or folders; review: one change by one.")
    ],
    *,
    keyword: Keyword = "",
    mark: Mark = "",
    target: Targets = None,
    new: Annotated[bool, typer.Option("--new", help="Only what is not pinned yet.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure the noise of each lane again.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete pins that no test asks for; records nothing.")] = False,
    show_fragile: Annotated[
        bool, typer.Option("--show-fragile", help="Which prompts noise may flip; records nothing.")
    ] = False,
    accept: Globs = None,
    reject: Globs = None,
) -> None:
    """Record what the tests with `pinned` do now.

    `harness pin review SUITE` records beside the pins instead, shows each change with what it was recorded under, and
    asks whether to accept it; --accept and --reject answer without asking. What is neither waits for the next review.
    """
    reviewing = suites[0] == "review"
    paths = suites[1:] if reviewing else suites
    if not paths:
        raise UsageError("no suite given", "Name a suite file or a folder: harness pin review suites/")
    if (accept or reject) and not reviewing:
        raise UsageError("--accept and --reject belong to a review", "Write: harness pin review SUITE --accept GLOB")
    if show_fragile:
        _show_fragile(paths)
    elif prune:
        _prune(paths)
    elif reviewing:
        raise typer.Exit(_review(_pinned(paths, keyword, mark, target), accept or (), reject or (), new=new))
    else:
        finished = _record(_pinned(paths, keyword, mark, target), new=new, calibrate=calibrate, pending=False)
        raise typer.Exit(0 if finished else INTERRUPTED)


def _pinned(paths: Sequence[str], keyword: str, mark: str, target: Sequence[str] | None) -> tuple[Check, ...]:
    """The checks that hold to pins, without their other expectations."""
    from dataclasses import replace

    checks = []
    for check in selected(paths, keyword, mark, target, None):
        cases = tuple(part for case in check.cases if (part := case.only(_is_pinned)).expectations)
        if cases:
            checks.append(replace(check, cases=cases))
    if not checks:
        raise UsageError("no test of these is pinned", "Write `pinned: tokens` under `expect:` of a test.")
    return tuple(checks)


def _is_pinned(expectation: str) -> bool:
    return expectation.startswith("pinned")


def _record(checks: Sequence[Check], *, new: bool, calibrate: bool, pending: bool) -> bool:
    """Whether everything was recorded; what was recorded until Ctrl-C is kept, too."""
    from harness.pins.book import Book, mode_of
    from harness.pins.recording import save
    from harness.reports.progress import watch
    from harness.runner import Runner

    finished = True
    with watch() as observer:
        mode = mode_of("new" if new else "all")
        runner = Runner(checks, observer, pins=Book(mode, pending=pending))
        try:
            for judged in runner.run():
                if judged.status == "error":
                    print(f"{judged.check.id}: {judged.worst.verdict.reason}", file=sys.stderr)
        except KeyboardInterrupt:
            finished = False
        try:
            lines = save(runner.pins, runner.answers, calibrate=calibrate)
        finally:
            runner.close()
    print("\n".join(lines) or "pins: nothing new")
    return finished


def _files(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """Each pin file of these suites, with the file of its suite."""
    from harness.load import load_all
    from harness.pins.files import SUFFIX, slug

    found = []
    for loaded in load_all(paths):
        folder = Path(loaded.file).parent / "pins" / slug(loaded.suite.suite)
        found += [(loaded.file, path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return found


def _show_fragile(paths: Sequence[str]) -> None:
    from harness.pins.files import read
    from harness.reports import one_line

    for suite, path in _files(paths):
        file = read(str(path), suite)
        pins = sorted(file.pins.values(), key=lambda pin: -pin.fragility) if file else []
        expected = sum(pin.fragility for pin in pins)
        print(f"{path}: {expected:.2g} flips to be expected from noise, in {counted(len(pins), 'pin')}")
        for one in pins:
            print(f"  {one.fragility:<8.2g} {one_line(one.name)}")


def _prune(paths: Sequence[str]) -> None:
    from harness.load import load_all
    from harness.pins.book import names_pinned
    from harness.pins.files import read, write

    wanted = {loaded.file: names_pinned(loaded.suite) for loaded in load_all(paths)}
    for suite, path in _files(paths):
        file = read(str(path), suite)
        unused = sorted(set(file.pins) - wanted[suite]) if file else []
        if file and unused:
            write(file, (), unused, suite)
            print(f"{path}: {counted(len(unused), 'pin')} deleted: {', '.join(unused)}")


def _review(checks: Sequence[Check], accepted: Sequence[str], rejected: Sequence[str], *, new: bool) -> int:
    """0 when nothing waits any more."""
    from harness.pins import review
    from harness.pins.files import read
    from harness.reports.terminal import say

    _record(checks, new=new, calibrate=False, pending=True)
    waiting = 0
    for suite, path in _waiting(checks):
        proposed = review.pending(path)
        if proposed is None:
            continue
        for change in review.changes(read(path, suite), proposed):
            if change.kind == "unchanged":
                review.reject(path, [change.name])
            if change.kind in ("unchanged", "removed"):
                continue
            say(console(), f"{change.kind}  {change.name}  ({path})", style="bold")
            for line in (*change.conditions, *change.lines):
                say(console(), f"    {line}")
            waiting += not _answered(path, change.name, accepted, rejected)
    if waiting:
        print(
            f"{counted(waiting, 'pin')} still to be reviewed: harness pin review SUITE --accept GLOB, or --reject GLOB"
        )
    return int(bool(waiting))


def _waiting(checks: Sequence[Check]) -> list[tuple[str, str]]:
    """Pin files beside which a recording waits, with the file of their suite."""
    from harness.pins.files import SUFFIX, slug
    from harness.pins.review import PENDING

    folders = {(check.suite_file, Path(check.suite_file).parent / "pins" / slug(check.suite.suite)) for check in checks}
    return [
        (suite, str(path).removesuffix(PENDING))
        for suite, folder in sorted(folders)
        for path in sorted(folder.glob(f"*{SUFFIX}{PENDING}"))
    ]


def _answered(path: str, name: str, accepted: Sequence[str], rejected: Sequence[str]) -> bool:
    """Whether the pin was accepted or rejected, by pattern or by hand."""
    from fnmatch import fnmatchcase

    from harness.pins import review

    def fits(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(one, pattern) for pattern in patterns for one in (name, name.partition("@")[0]))

    by_hand = not accepted and not rejected and sys.stdin.isatty()
    yes = fits(accepted) or (by_hand and typer.confirm(f"accept {name}?", default=False))
    if yes:
        review.accept(path, [name])
    elif fits(rejected) or by_hand:
        review.reject(path, [name])
    else:
        return False
    print(f"{name} {'accepted' if yes else 'rejected'}")
    return True
