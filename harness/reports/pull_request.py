"""What a pull request shows of a run: a summary in GitHub's markdown, and annotations on the lines of the tests."""

# No `from __future__ import annotations` here: a function of this module has that name.

import html
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TextIO, TypeVar

from harness.comparison.decision import decide
from harness.comparison.difference import RunDifference, VerdictPair
from harness.comparison.provenance import Change
from harness.comparison.runs import SPEED_NOTE, compare_runs
from harness.comparison.summary import summarize
from harness.record import Record
from harness.reports import (
    SYMBOLS,
    compared,
    cut,
    grid,
    headline,
    lacking,
    one_line,
    reproduce,
    requests_line,
    to_tell,
    untold_errors,
    visible,
)
from harness.store import Results
from harness.wording import counted

COMMENT = 65_536  # characters of a comment
STEP_SUMMARY = 1024 * 1024  # bytes of what one step may write; of more, GitHub shows nothing at all
ANNOTATIONS = 10  # of one kind in a step; GitHub drops the others
# Characters of each section, so that together they stay below COMMENT.
ROOM = {
    **{"head": 6_000, "notes": 3_000, "regressed": 11_000, "failures": 15_000, "matrix": 10_000, "decision": 6_000},
    "changes": 6_000,
}
NAME, VALUE, REASON, TEXT = 120, 80, 240, 1_500  # characters of one of them, before escaping
COLUMNS = 12  # targets or candidates side by side
TOLD = 3  # checks in the message of one annotation
T = TypeVar("T")
VERDICTS = {"PASSED": "✓", "FAILED": "✗", "ERROR": "!"}
# What may end a code span, a cell or a tag, or begin a link, an emoji, a mention or a formula.
_ACTIVE = re.compile(r"""[!"#$&'*:<>@\[\\\]^_`{|}~]|(?<=www)\.""", re.IGNORECASE)


def summary_md(results: Results, before: Results | None = None) -> str:
    """The run as markdown for a step summary or a comment; against an earlier run, what got worse comes first."""
    difference = compare_runs(before, results) if before else None
    regressed = difference.verdicts_that("regressed") if difference else ()
    told = {(pair.record.check, pair.record.expectation) for pair in regressed}
    sections = (
        _head(results),
        _regressed(difference) if difference else "",
        _failures(results, told),
        _matrix(results),
        _decision(results) if results.measured else "",
        _changes(difference) if difference else "",
        _origin(results),
    )
    return "\n\n".join(filter(None, sections)) + "\n"


def annotations(results: Results, before: Results | None = None) -> list[str]:
    """Workflow commands that put each test that failed on its own line of the suite; at most ten, and how many more.

    Against an earlier run, what got worse comes first.
    """
    regressed = compare_runs(before, results).verdicts_that("regressed") if before else ()
    worse = {pair.record.check for pair in regressed}
    tests: dict[tuple[str, int], list[tuple[Record, int]]] = {}
    for record, count in to_tell(results.records):
        tests.setdefault((record.file, record.line), []).append((record, count))
    groups = sorted(tests.values(), key=lambda group: not any(record.check in worse for record, _ in group))
    lines = [_annotation(group) for group in groups[:ANNOTATIONS]]
    errors = untold_errors(results)
    file = results.suites[0]["file"] if results.suites else ""
    lines += [
        _command("error", _short(error, TEXT), file=file, title="not loaded")
        for error in errors[: ANNOTATIONS - len(lines)]
    ]
    left = len(groups) + len(errors) - len(lines)
    if left:
        more = f"and {counted(left, 'more test')} with failures: all of them are in the report of the run"
        lines.append(_command("notice", more, title="harness"))
    return lines


def tell_github(
    results: Results, stream: TextIO, before: Results | None = None, environment: Mapping[str, str] = os.environ
) -> None:
    """In GitHub Actions: add the summary to that of the step, and print annotations. Elsewhere nothing.

    A run never ends because its summary cannot be written.
    """
    lines = annotations(results, before) if environment.get("GITHUB_ACTIONS") == "true" else []
    path = environment.get("GITHUB_STEP_SUMMARY")
    try:
        if path and not _append(Path(path), summary_md(results, before)):
            lines.append(_command("notice", "the summary of this step is full: see the report of the run"))
    except OSError as error:
        lines.append(_command("warning", f"cannot write the summary of this step: {error.strerror or error}"))
    for line in lines:
        encoding = stream.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)


@contextmanager
def without_commands(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """What is printed meanwhile is no workflow command to GitHub Actions, whatever a model wrote."""
    if environment.get("GITHUB_ACTIONS") != "true":
        yield
        return
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}", file=stream)
    try:
        yield
    finally:
        print(f"::{token}::", file=stream, flush=True)


def repository_path(file: str, environment: Mapping[str, str] = os.environ) -> str:
    """The file as the repository names it: relative to GITHUB_WORKSPACE, or to the folder that holds .git."""
    return _in_repository(file, Path.cwd(), environment.get("GITHUB_WORKSPACE", ""))


@lru_cache(maxsize=1000)
def _in_repository(file: str, here: Path, workspace: str) -> str:
    parents = (here, *here.parents)
    path = next((parent / file for parent in parents if (parent / file).is_file()), here / file)
    root = Path(workspace) if workspace else next((one for one in parents if (one / ".git").exists()), here)
    for one, base in ((Path(os.path.abspath(path)), root), (path.resolve(), root.resolve())):
        if one.is_relative_to(base):
            return one.relative_to(base).as_posix()
    return file.replace(os.sep, "/")


def _append(path: Path, text: str) -> bool:
    """Whether there was room for it; a step that says too much would show nothing at all."""
    data = text.encode()
    if path.is_file() and path.stat().st_size + len(data) > STEP_SUMMARY:
        return False
    with path.open("ab") as file:
        file.write(data)
    return True


def _annotation(group: Sequence[tuple[Record, int]]) -> str:
    """One test, with the first of its checks that went wrong."""
    first = group[0][0]
    lines = []
    for record, count in group[:TOLD]:
        name = record.check.rpartition("::")[2]
        expectation = f" ({record.expectation})" if record.expectation else ""
        alike = f" (and {counted(count - 1, 'more check')} there for the same reason)" if count > 1 else ""
        check = _short(f"{name} on {record.target}{expectation}", REASON)
        lines.append(f"{check}: {_short(record.verdict.reason, TEXT)}{alike}")
    if len(group) > TOLD:
        lines.append(f"and {len(group) - TOLD:,} more of this test")
    words = [f"{count} {word}" for word in ("failed", "error") if (count := _checks(group, word))]
    title = f"{_short(first.test, NAME)}: {', '.join(words)}"
    return _command("error", "\n".join(lines), file=first.file, line=first.line, title=title)


def _checks(group: Sequence[tuple[Record, int]], outcome: str) -> int:
    return len({record.check for record, _ in group if record.outcome == outcome})


def _command(kind: str, message: str, *, file: str = "", line: int = 0, title: str = "") -> str:
    """A workflow command; what would end one of its parts is escaped as the runner reads it."""
    parts = {"file": visible(repository_path(file)) if file else "", "line": str(line or ""), "title": title}
    properties = ",".join(f"{name}={_property(value)}" for name, value in parts.items() if value)
    return f"::{kind} {properties}::{_data(message)}" if properties else f"::{kind}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def code(text: str, limit: int = NAME) -> str:
    """Foreign text in one line: GitHub makes neither markup nor links, mentions or references of it."""
    return f"<code>{_ACTIVE.sub(_inert, _short(text, limit))}</code>"


def _inert(match: re.Match[str]) -> str:
    # GitHub looks for addresses once entities are characters again, but only within one element.
    return "<span>&#64;</span>" if match[0] == "@" else f"&#{ord(match[0])};"


def _pre(text: str) -> str:
    """Foreign text in lines, as a block of its own: it can hold empty lines, and nothing in it is markdown."""
    return f"<pre>{html.escape(visible(text), quote=False)}</pre>"


def _short(text: str, limit: int) -> str:
    """Visible, on one line, and not longer; what is longer is not looked at to its end."""
    shown = one_line(text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def _fitting(items: Sequence[T], shown: Callable[[T], str], room: int, noun: str, joint: str = "\n\n") -> str:
    """As many as there is room for, and how many more there are; those are not even made."""
    blocks: list[str] = []
    for item in items:
        block = shown(item)
        room -= len(block) + len(joint)
        if room < 0:
            break
        blocks.append(block)
    left = len(items) - len(blocks)
    more = f"\n\n… and {counted(left, f'more {noun}')}, not shown here" if left else ""
    return joint.join(blocks) + more


def _head(results: Results) -> str:
    word, sentence = headline(results)
    notes = [("⚠ incomplete", lack, "") for lack in lacking(results)]
    notes += [(f"{SYMBOLS['error']} not loaded", error, "") for error in untold_errors(results)]
    passes = (record for record in results.records if record.outcome == "xpassed")
    notes += [(f"{SYMBOLS['xpassed']} passed unexpectedly", one.check, one.xfail) for one in passes]
    said = _fitting(notes, _note, ROOM["head"], "note", "\n")
    return "\n\n".join(filter(None, (f"## {VERDICTS.get(word, '–')} {word}: {' '.join(sentence.split())}", said)))


def _note(note: tuple[str, str, str]) -> str:
    what, text, known = note
    return f"- {what}: {code(text, REASON)}{f', known as {code(known)}' if known else ''}"


def _regressed(difference: RunDifference) -> str:
    pairs = difference.verdicts_that("regressed")
    generations = [pair.judgement for target in difference.targets for pair in target.pairs]
    counts = (
        (_count_checks(difference, "regressed"), "regressed"),
        (_count_checks(difference, "fixed"), "fixed"),
        (_count_checks(difference, "changed"), "otherwise"),
    )
    said = [f"{counted(count, 'check')} {word}" for count, word in counts if count] or ["no check changed"]
    changed = generations.count("change")
    said += [f"{changed:,} of {counted(len(generations), 'generation')} changed"] if changed else []
    notes = [("note", note, "") for note in difference.notes if note != SPEED_NOTE]
    parts = (
        "### ✗ Regressed" if pairs else "### Since the run before",
        f"{', '.join(said)} since {code(difference.before, VALUE)}",
        _fitting(notes, _note, ROOM["notes"], "note", "\n"),
        _fitting(pairs, lambda pair: _told_pair(pair, opened=pair is pairs[0]), ROOM["regressed"], "regression"),
    )
    return "\n\n".join(filter(None, parts))


def _told_pair(pair: VerdictPair, opened: bool) -> str:
    return _told(pair.record, before=pair.before.outcome if pair.before else "", opened=opened)


def _count_checks(difference: RunDifference, kind: str) -> int:
    return len({pair.record.check for pair in difference.verdicts_that(kind)})


def _failures(results: Results, told: set[tuple[str, str]]) -> str:
    groups = [
        (record, count) for record, count in to_tell(results.records) if (record.check, record.expectation) not in told
    ]
    if not groups:
        return ""
    first = None if told else groups[0][0]
    shown = _fitting(groups, lambda group: _told(*group, opened=group[0] is first), ROOM["failures"], "failure")
    return f"### {'Other failures' if told else 'Failures'}\n\n{shown}"


def _told(record: Record, count: int = 1, *, before: str = "", opened: bool = False) -> str:
    """One verdict, folded: where the test stands, why it failed, and how to see it again."""
    outcome = f"{before} → {record.outcome}" if before else record.outcome
    expectation = f" ({code(record.expectation)})" if record.expectation else ""
    name = code(record.check.rpartition("::")[2])
    more = f"\n\nand {counted(count - 1, 'more check')} of {code(record.target)} for the same reason" * (count > 1)
    reason = "\n".join((record.verdict.reason, *record.verdict.details))
    return (
        f"<details{' open' if opened else ''}><summary>{SYMBOLS[record.outcome]} {outcome} {name} on "
        f"{code(record.target)}{expectation}</summary>\n\n"
        f"{code(f'{repository_path(record.file)}:{record.line}', REASON)}\n\n"
        f"{_pre(cut(reason, TEXT, 'results.parquet'))}{more}\n\n"
        f"{_pre(cut(reproduce(record), TEXT))}\n\n</details>"
    )


def _table(head: Sequence[str], rows: Sequence[T], cells: Callable[[T], Sequence[str]], room: int, noun: str) -> str:
    """Cells are escaped already."""
    begin = "\n".join((_line(head), f"|{' --- |' * len(head)}"))
    body = _fitting(rows, lambda row: _line(cells(row)), room - len(begin), noun, "\n")
    return f"{begin}\n{body}" if rows else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _matrix(results: Results) -> str:
    shown = grid(results.records)
    if not shown.rows:
        return ""
    bad = ("failed", "error")
    rows = sorted(shown.rows, key=lambda row: not any(cell.outcome in bad for cell in row[1]))
    head = ("test", *map(code, shown.targets[:COLUMNS]))
    table = _table(
        head, rows, lambda row: (code(row[0]), *(cell.text for cell in row[1][:COLUMNS])), ROOM["matrix"], "test"
    )
    legend = " · ".join(f"{symbol} {outcome}" for outcome, symbol in SYMBOLS.items() if outcome in results.outcomes)
    left = len(shown.targets) - COLUMNS
    more = [f"… and {counted(left, 'more target')}"] if left > 0 else []
    return "\n\n".join(["### Tests × targets", table, *more, f"{legend}; checks passed/judged"])


def _decision(results: Results) -> str:
    summaries, decision = summarize(results), decide(results)
    gates = {gate.candidate: gate for gate in decision.gates}
    known = [one for one in summaries if one.values][:COLUMNS]
    names = [one.candidate.name for one in known]
    words = [f"{compared.GATES[gates[name].word]} {gates[name].word}" if name in gates else "" for name in names]
    rows = [("gate", *words)] if gates else []
    rows += [
        (row.title, *(f"{cell.text} {compared.MARKS[cell.standing]}".strip() for cell in row.cells))
        for row in compared.rows(known, everything=False)
    ]
    reasons = [
        (f"{compared.GATES[gate.word]} {gate.word} {code(gate.candidate)}", reason, "")
        for gate in decision.gates
        for reason in (compared.gate_reasons(gate, results.measured) if results.measured else ())
    ]
    room = ROOM["decision"] // 2
    parts = [
        f"### Decision\n\n**{code(decision.sentence, REASON)}**",
        f"budget: {code(compared.budget_line(results), REASON)}" if gates else "",
        _table(("", *map(code, names)), rows, lambda row: row, room, "figure"),
        "▲ better, ▼ worse than the baseline",
        _fitting(reasons, _note, room, "reason", "\n"),
        f"Pareto set: {code(compared.pareto_line(decision, summaries), REASON)}",
    ]
    return "\n\n".join(filter(None, parts))


def _changes(difference: RunDifference) -> str:
    """In what the two runs themselves differ."""
    changes = (*difference.changes, *(change for target in difference.targets for change in target.changes))
    if not changes:
        return ""
    head = ("of", "", "before", "now")
    return f"### What else changed\n\n{_table(head, changes, _change, ROOM['changes'], 'change')}"


def _change(change: Change) -> tuple[str, ...]:
    return tuple(code(text, VALUE) if text else "–" for text in (change.of, change.name, change.before, change.after))


def _origin(results: Results) -> str:
    """How the run was made, in short."""
    libraries = results.environment.get("libraries")
    versions = libraries.items() if isinstance(libraries, Mapping) else ()
    known = " ".join(f"{name} {version}" for name, version in versions if name in ("torch", "transformers"))
    return " · ".join(code(part) for part in (results.command, requests_line(results), known) if part)
