"""The verdicts of a run as the columns of the page's table: each text once, and for every row which one it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from harness.record import Completion, Record
from harness.reports import SYMBOLS, cut, ordered, reproduce, visible
from harness.store import Results

ROWS = 20_000  # embedded at most: with more, only what did not pass
LONG = 4000  # characters of one text …
SHORT = 160  # … and of one that comes after so many characters that the page would get large:
ENOUGH = 4_000_000
IN_A_ROW = ("outcome", "test", "target", "prompt", "expectation", "reason")  # what the first rows cannot do without
SCRIPT = "repro   python "  # so a line of details begins that names a script which shows the failure


def embedded(results: Results) -> list[Record]:
    """The verdicts that the page holds, what went wrong first."""
    records = ordered(results.records)
    if len(records) <= ROWS:
        return records
    return [record for record in records if record.outcome != "passed"][:ROWS]


def table(results: Results, records: Sequence[Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    """For the page's script: a column for each thing that is told of a verdict; then those that are long."""
    answers = {(target, done.request.id): done for target, done in results.completions}
    first = [_first_answer(record, answers) for record in records]
    told = {record.outcome for record in results.records}
    words = _words(records, first)
    soon = {
        "total": len(results.records),
        "count": len(records),
        "outcomes": [outcome for outcome in SYMBOLS if outcome in told],
        "symbols": SYMBOLS,
        "words": {name: words.pop(name) for name in IN_A_ROW},
        "numbers": {
            "new_tokens": [record.new_tokens for record in records],
            "seconds": [_rounded(record.seconds) for record in records],
            "line": [record.line for record in records],
        },
    }
    return soon, words


def _words(records: Sequence[Record], answers: Sequence[Completion | None]) -> dict[str, Any]:
    room = _Room()
    return {
        name: _column([value(record) for record in records], room, "results.parquet")
        for name, value in OF_RECORD.items()
    } | {
        name: _column([value(done) if done else "" for done in answers], room, "tokens.parquet")
        for name, value in OF_ANSWER.items()
    }


def row_key(record: Record) -> str:
    """By which the address of the page names a verdict."""
    return visible(f"{record.check}|{record.expectation}")


def link(**state: str) -> str:
    """An address that sets the filters of the table."""
    return "#" + urlencode({name: visible(value) for name, value in state.items() if value})


def row_link(record: Record) -> str:
    """An address that opens this verdict."""
    return link(outcome=record.outcome, row=row_key(record))


def commands(record: Record) -> list[str]:
    """What shows this verdict again."""
    scripts = (line.removeprefix("repro   ") for line in record.verdict.details if line.startswith(SCRIPT))
    return [reproduce(record), *scripts]


def _first_answer(record: Record, answers: dict[tuple[str, str], Completion]) -> Completion | None:
    return next((answers[record.target, id] for id in record.requests if (record.target, id) in answers), None)


def _numbers(record: Record) -> str:
    return "\n".join(f"{name} {_number(value)}" for name, value in record.verdict.numbers.items())


def _number(value: float | int | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _commands(record: Record) -> str:
    """Nothing where it is the check in quotes: the page has that already."""
    found = commands(record)
    return "" if found == [f'pytest "{record.check}"'] else "\n".join(found)


def _arguments(done: Completion) -> str:
    return ", ".join(f"{name} {value}" for name, value in done.request.generation.arguments().items())


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else round(seconds, 4)


OF_RECORD: dict[str, Callable[[Record], str]] = {
    "outcome": lambda record: record.outcome,
    "test": lambda record: record.test,
    "target": lambda record: record.target,
    "prompt": lambda record: record.prompt,
    "expectation": lambda record: record.expectation,
    "check": lambda record: record.check,
    "reason": lambda record: record.verdict.reason,
    "text": lambda record: record.text,
    "details": lambda record: "\n".join(record.verdict.details),
    "numbers": _numbers,
    "commands": _commands,
    "generation": lambda record: record.generation,
    "model": lambda record: record.model,
    "quantization": lambda record: record.quantization,
    "finish": lambda record: record.finish,
    "xfail": lambda record: record.xfail,
    "file": lambda record: record.file,
}
OF_ANSWER: dict[str, Callable[[Completion], str]] = {
    "said": lambda done: done.prompt_text or done.request.prompt.last,
    "arguments": _arguments,
}


@dataclass
class _Room:
    """Long texts are kept whole as long as there is room; then each is cut to its beginning."""

    taken: int = 0

    def cut(self, text: str, file: str) -> str:
        shown = visible(cut(text, LONG if self.taken < ENOUGH else SHORT, file))
        self.taken += len(shown)
        return shown


@dataclass
class _Texts:
    """Each text once, by its number."""

    room: _Room
    file: str
    shown: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        if text not in self.numbers:
            self.numbers[text] = len(self.shown)
            self.shown.append(self.room.cut(text, self.file))
        return self.numbers[text]


def _column(texts: Sequence[str], room: _Room, file: str) -> dict[str, Any]:
    """`codes` says for each row which of `values` it has; a column that says the same in each row needs none."""
    known = _Texts(room, file)
    codes = [known.number(text) for text in texts]
    return {"values": known.shown, "codes": codes if len(known.shown) > 1 else []}
