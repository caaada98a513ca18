"""The end of a run in a terminal: what passed where, what failed and why, and one verdict."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.divergence import draw, first_difference
from harness.pins.pin import as_completion
from harness.record import Record
from harness.reports import (
    SYMBOLS,
    cut,
    grid,
    headline,
    one_line,
    reproduce,
    requests_line,
    to_tell,
    untold_errors,
    visible,
    warnings_counted,
)
from harness.reports.drawing import Drawing, found
from harness.store import Results
from harness.wording import counted

STYLES = {
    "failed": "bold red",
    "error": "bold magenta",
    "xpassed": "yellow",
    "xfailed": "yellow",
    "skipped": "dim",
    "passed": "green",
}
VERDICTS = {"FAILED": "bold red", "ERROR": "bold magenta", "PASSED": "bold green"}
SHOWN = 40  # failures told in full; a run where everything fails must not bury its verdict
LONGEST = 4000  # characters of one line of details
WARNING = 160
GAP = 2
INDENT = 4
# `what       3 of 8 prompts`, `expected: a`: where such a line goes on, below what it says.
LABEL = re.compile(r" *[\w ]{1,16}?(?:: +| {2,})(?=\S)")
# For consoles that cannot say them (LANG=C, some Windows code pages).
PLAIN = str.maketrans(
    {"✓": "ok", "✗": "FAIL", "–": "-", "…": "...", "×": "x", "→": "->", "≥": ">=", "∞": "inf", "▲": "+", "▼": "-"}
)
Line = tuple[str, Sequence[tuple[str, str]]]  # the name of a row, and each cell's text and style


def summary(results: Results, console: Console, verbose: bool = False, report: Path | None = None) -> None:
    """Print the outcome of a run; the last line is the verdict."""
    shown = grid(results.records)
    rows = [(test, [(cell.text, STYLES.get(cell.outcome, "")) for cell in cells]) for test, cells in shown.rows]
    tables(console, "test", shown.targets, rows)
    _legend(results, console)
    _failures(results, console, verbose)
    _others(results, console, verbose)
    for error in untold_errors(results):
        tell(console, f"{SYMBOLS['error']} not loaded  {visible(error)}", style=STYLES["error"])
    for text, count in warnings_counted(results):
        first = one_line(text)
        more = "…" if len(first) > WARNING and not verbose else ""
        tell(console, f"warning  {count:,} × {first if verbose else first[:WARNING]}{more}", style="yellow")
    for lack in results.lacks:
        tell(console, f"INCOMPLETE  {one_line(lack)}", style="yellow")
    say(console, f"requests: {requests_line(results)}")
    if report:
        say(console, f"report: {visible(str(report))}")
    word, sentence = headline(results)
    say(console, (f"{word}  ", VERDICTS.get(word, "bold yellow")), sentence)


def say(console: Console, *parts: str | tuple[str, str], style: str = "") -> None:
    """One line as it stands: no markup, no wrapping, nothing that the console's encoding cannot say."""
    text = Text(style=style)
    for part in parts:
        words, look = (part, "") if isinstance(part, str) else part
        text.append(sayable(words, console), look)
    console.print(text, soft_wrap=True)


def tell(console: Console, text: str, indent: int = 0, style: str = "") -> None:
    """Prose, line by line: a terminal's are folded below where they began, a file's stay whole."""
    for line in sayable(text, console).split("\n"):
        for shown in _folded(line, console, console.width - indent) if console.is_terminal else [line]:
            say(console, f"{' ' * indent}{shown}", style=style)


def _folded(line: str, console: Console, width: int) -> Iterator[str]:
    label = LABEL.match(line)
    lead = label[0] if label and cell_len(label[0]) <= width // 2 else ""
    for part in Text(line[len(lead) :]).wrap(console, max(1, width - cell_len(lead)), overflow="fold"):
        yield f"{lead}{part.plain.rstrip()}"
        lead = " " * cell_len(lead)


def details(console: Console, lines: Sequence[str], longest: int = LONGEST) -> None:
    """What stands below a verdict, with the differences drawn in the width that there is."""
    for part in found([visible(line) for line in lines]):
        if isinstance(part, Drawing):
            _show(console, part)
        else:
            tell(console, cut(part, longest, "results.parquet"), INDENT)


def _show(console: Console, drawing: Drawing) -> None:
    more = sayable("…", console)
    for line in drawing.said(lambda text: sayable(text, console)).fitted(console.width - INDENT, more):
        say(console, " " * INDENT, *line)


def sayable(text: str, console: Console) -> str:
    if console.encoding.lower().startswith("utf"):
        return text
    return text.translate(PLAIN).encode(console.encoding, "backslashreplace").decode(console.encoding)


def tables(console: Console, corner: str, columns: Sequence[str], rows: Sequence[Line]) -> None:
    """A table, cut into several that fit beside the names of its rows; at least one column each."""
    corner, *heads = (sayable(one_line(name), console) for name in (corner, *columns))
    lines = [
        (sayable(one_line(name), console), [(sayable(text, console), style) for text, style in cells])
        for name, cells in rows
    ]
    widths = [max(map(cell_len, (name, *(cells[i][0] for _, cells in lines)))) + GAP for i, name in enumerate(heads)]
    names = max(map(cell_len, (corner, *(name for name, _ in lines)))) + GAP
    start = 0
    while start < len(heads):
        end, used = start + 1, names + widths[start]
        while end < len(heads) and used + widths[end] <= console.width:
            used += widths[end]
            end += 1
        console.print(_table(corner, heads[start:end], [(name, cells[start:end]) for name, cells in lines]))
        say(console)
        start = end


def _table(corner: str, columns: Sequence[str], rows: Sequence[Line]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in (corner, *columns):
        table.add_column(Text(name), overflow="fold")
    for name, cells in rows:
        table.add_row(Text(name), *(Text(text, style) for text, style in cells))
    return table


def _legend(results: Results, console: Console) -> None:
    seen = [f"{symbol} {outcome}" for outcome, symbol in SYMBOLS.items() if outcome in results.outcomes]
    if seen:
        say(console, "  ".join(seen), style="dim")
        say(console)


def _failures(results: Results, console: Console, verbose: bool) -> None:
    told = to_tell(results.records)
    shown = told if verbose else told[:SHOWN]
    for record, count in shown:
        say(console, _mark(record.outcome), one_line(record.check), (_expectation(record), "dim"))
        lines = (record.verdict.reason, *record.verdict.details, *_held_to(results, record))
        details(console, lines, sys.maxsize if verbose else LONGEST)
        if verbose:
            _numbers(console, record)
        if count > 1:
            tell(console, f"and {count - 1:,} more of {one_line(record.target)} for the same reason", INDENT)
        say(console, (f"{' ' * INDENT}{one_line(reproduce(record))}", "cyan"))
        say(console)
    if len(told) > len(shown):
        say(console, f"… and {len(told) - len(shown):,} more, not shown here: --verbose")
        say(console)


def _numbers(console: Console, record: Record) -> None:
    """What the verdict was reached by, and on what."""
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in record.verdict.numbers.items())
    answer = [counted(record.new_tokens, "token")] if record.new_tokens is not None else []
    answer += [record.finish] if record.finish else []
    answer += [f"{record.seconds:.3g} s"] if record.seconds is not None else []
    for label, text in (("numbers", numbers), ("answer", ", ".join(answer)), ("text", record.text)):
        if text:
            tell(console, f"{label:<7}  {one_line(text)}", INDENT, style="dim")


def _number(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _held_to(results: Results, record: Record) -> tuple[str, ...]:
    """Where what is said now parts from what was pinned."""
    pin = results.pins.get(record.check)
    if pin is None or not record.expectation.startswith("pinned"):
        return ()
    own = [done for name, done in results.completions if name == record.target and done.request.id in record.requests]
    now = next((done for done in own if done.request.kind == "generate"), None)
    if now is None:
        return ()
    pinned = as_completion(pin, now, results.texts.get(record.target, {}))
    difference = first_difference(pinned, now)
    return draw(difference, pin=pinned, now=now) if difference else ()


def _others(results: Results, console: Console, verbose: bool) -> None:
    """What needs no action: told by reason, or one by one when verbose."""
    if verbose:
        for record in results.records:
            if record.outcome not in ("failed", "error"):
                words = f"{one_line(record.check)}{_expectation(record)}  {one_line(record.verdict.reason)}"
                say(console, _mark(record.outcome), words)
                details(console, record.verdict.details, sys.maxsize)
                _numbers(console, record)
        say(console)
        return
    reasons: Counter[tuple[str, str]] = Counter()
    for record in results.records:
        if record.outcome == "skipped":
            reasons[record.outcome, record.verdict.reason] += 1
        elif record.xfail:
            reasons[record.outcome, record.xfail] += 1
    for (outcome, reason), count in reasons.items():
        if outcome in ("skipped", "xfailed", "xpassed"):
            told = one_line(cut(reason, LONGEST, "results.parquet"))
            tell(console, f"{_mark(outcome)[0]}{count:,} × {told}")


def _expectation(record: Record) -> str:
    return f"  ({one_line(record.expectation)})" if record.expectation else ""


def _mark(outcome: str) -> tuple[str, str]:
    return f"{SYMBOLS[outcome]} {outcome}  ", STYLES[outcome]
