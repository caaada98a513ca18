"""The end of a run in a terminal: what passed where, what failed and why, and one verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
from harness.store import Results

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
        say(console, f"{SYMBOLS['error']} not loaded  {visible(error)}", style=STYLES["error"])
    for text, count in warnings_counted(results):
        first = one_line(text)
        say(console, f"warning  {count:,} × {first[:WARNING]}{'…' if len(first) > WARNING else ''}", style="yellow")
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
        text.append(_sayable(words, console), look)
    console.print(text, soft_wrap=True)


def _sayable(text: str, console: Console) -> str:
    if console.encoding.lower().startswith("utf"):
        return text
    return text.translate(PLAIN).encode(console.encoding, "backslashreplace").decode(console.encoding)


def tables(console: Console, corner: str, columns: Sequence[str], rows: Sequence[Line]) -> None:
    """A table, cut into several that fit beside the names of its rows; at least one column each."""
    widths = [
        max([cell_len(one_line(name)), *(cell_len(cells[i][0]) for _, cells in rows)]) + GAP
        for i, name in enumerate(columns)
    ]
    names = max(cell_len(one_line(name)) for name in (corner, *(name for name, _ in rows))) + GAP
    start = 0
    while start < len(columns):
        end, used = start + 1, names + widths[start]
        while end < len(columns) and used + widths[end] <= console.width:
            used += widths[end]
            end += 1
        part = [(name, cells[start:end]) for name, cells in rows]
        console.print(_table(corner, columns[start:end], part, console))
        say(console)
        start = end


def _table(corner: str, columns: Sequence[str], rows: Sequence[Line], console: Console) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in (corner, *columns):
        table.add_column(Text(_sayable(one_line(name), console)), overflow="fold")
    for name, cells in rows:
        shown = [Text(_sayable(text, console), style) for text, style in cells]
        table.add_row(Text(_sayable(one_line(name), console)), *shown)
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
        for line in (record.verdict.reason, *record.verdict.details):
            for part in visible(cut(line, LONGEST, "results.parquet")).split("\n"):
                say(console, f"    {part}")
        if count > 1:
            say(console, f"    and {count - 1:,} more of {one_line(record.target)} for the same reason")
        say(console, (f"    {one_line(reproduce(record))}", "cyan"))
        say(console)
    if len(told) > len(shown):
        say(console, f"… and {len(told) - len(shown):,} more, not shown here")
        say(console)


def _others(results: Results, console: Console, verbose: bool) -> None:
    """What needs no action: told by reason, or one by one when verbose."""
    if verbose:
        for record in results.records:
            if record.outcome not in ("failed", "error"):
                say(
                    console,
                    _mark(record.outcome),
                    f"{one_line(record.check)}{_expectation(record)}  {one_line(record.verdict.reason)}",
                )
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
            say(console, _mark(outcome), f"{count:,} × {one_line(cut(reason, LONGEST, 'results.parquet'))}")


def _expectation(record: Record) -> str:
    return f"  ({one_line(record.expectation)})" if record.expectation else ""


def _mark(outcome: str) -> tuple[str, str]:
    return f"{SYMBOLS[outcome]} {outcome}  ", STYLES[outcome]
