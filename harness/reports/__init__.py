"""What every report shares: words and symbols of outcomes, the headline, and how foreign text is made safe to show."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.record import Record
from harness.store import Results, outcome_by_check
from harness.wording import counted

# In the order in which a reader wants to see them.
SYMBOLS = {"failed": "✗", "error": "!", "xpassed": "X", "xfailed": "x", "passed": "✓", "skipped": "–"}

# Controls (ANSI escapes begin with one), bidi overrides, invisible characters and halves of surrogate pairs: what a
# model wrote must neither drive the terminal nor look like something else. Newline and tab stay.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""The text with every character that would act instead of being seen written as an escape (`\x1b`, `\u202e`)."""
    return _UNSEEN.sub(lambda match: _escape(ord(match[0])), text)


def one_line(text: str) -> str:
    """Visible, on one line."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def cut(text: str, limit: int, file: str = "tokens.parquet") -> str:
    """At most `limit` characters, and where the rest is."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… and {len(text) - limit:,} more characters; all of it in {file}"


def _escape(code: int) -> str:
    if code == 0x0D:
        return "\\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@dataclass(frozen=True)
class Cell:
    """How the checks of one test went on one target."""

    counts: Counter[str]

    @property
    def outcome(self) -> str:
        """The one that a reader must not miss."""
        return next((outcome for outcome in SYMBOLS if self.counts[outcome]), "")

    @property
    def text(self) -> str:
        """`✗ 1/3`: the symbol of every outcome (passed only where nothing else came of it), then passed of judged."""
        if not self.counts:
            return ""
        told = [outcome for outcome in SYMBOLS if self.counts[outcome]]
        symbols = "".join(SYMBOLS[outcome] for outcome in told if outcome != "passed" or told[0] == "passed")
        judged = self.counts.total() - self.counts["skipped"]
        if not judged:
            return f"{symbols} skipped"
        return f"{symbols} {self.counts['passed'] + self.counts['xpassed']}/{judged}"

    @property
    def words(self) -> str:
        """`2 failed, 1 passed`."""
        return ", ".join(f"{self.counts[outcome]} {outcome}" for outcome in SYMBOLS if self.counts[outcome])


@dataclass(frozen=True)
class Grid:
    """Test × target, in the order of the suite."""

    targets: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def grid(records: Iterable[Record]) -> Grid:
    checks: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        checks.setdefault((record.test, record.target), []).append(record)
    targets = dict.fromkeys(target for _, target in checks)
    counts: dict[str, dict[str, Counter[str]]] = {}
    for (test, target), group in checks.items():
        counts.setdefault(test, {})[target] = Counter(outcome_by_check(group).values())
    rows = ((test, tuple(Cell(row.get(target, Counter())) for target in targets)) for test, row in counts.items())
    return Grid(tuple(targets), tuple(rows))


def headline(results: Results) -> tuple[str, str]:
    """The verdict on the whole run: one word, one sentence."""
    counts = Counter(results.outcomes)
    word = _word(results, counts)
    total, passed = counts.total(), counts["passed"]
    if not total:
        first = "no checks were judged"
    elif word == "FAILED":
        first = f"{counts['failed']} of {counted(total, 'check')} failed"
    else:
        first = f"{passed} of {counted(total, 'check')} passed"
    notes = (
        (counts["error"], counted(counts["error"], "error")),
        (counts["xfailed"], f"{counted(counts['xfailed'], 'known failure')} (xfail)"),
        (counts["xpassed"], f"{counts['xpassed']} unexpectedly passed (xpass)"),
        (counts["skipped"], f"{counts['skipped']} skipped"),
        (len(results.errors), f"{counted(len(results.errors), 'target')} not loaded"),
        (not results.complete, "read in part" if results.lacks else "stopped before the end"),
    )
    return word, ", ".join([first, *(note for count, note in notes if count)]) + f"  in {duration(results.seconds)}"


def _word(results: Results, counts: Counter[str]) -> str:
    if counts["failed"]:
        return "FAILED"
    if counts["error"] or (results.errors and not counts):
        return "ERROR"
    if not results.complete:
        return "INCOMPLETE"
    if not counts:
        return "EMPTY"
    return "SKIPPED" if counts["skipped"] == counts.total() else "PASSED"


def lacking(results: Results) -> tuple[str, ...]:
    """Why it is not the whole run; nothing where it is."""
    stopped = "the run was stopped before the end: what was not reached is missing"
    return results.lacks or (() if results.complete else (stopped,))


def to_tell(records: Iterable[Record]) -> list[tuple[Record, int]]:
    """Failures and errors; an error that many checks of a target share is told once, with how many there are."""
    told: dict[tuple[object, ...], list[Record]] = {}
    for place, record in enumerate(records):
        if record.outcome == "failed":
            told[(place,)] = [record]
        elif record.outcome == "error":
            told.setdefault((record.target, record.verdict.reason), []).append(record)
    return [(alike[0], len({record.check for record in alike})) for alike in told.values()]


def untold_errors(results: Results) -> list[str]:
    """Targets that could not be loaded, where no check says so already."""
    reasons = {record.verdict.reason for record in results.records if record.outcome in ("error", "skipped")}
    return [error for error in results.errors if not any(reason and reason in error for reason in reasons)]


def reproduce(record: Record) -> str:
    """The command that judges this check again."""
    plain = not re.search(r'["$`\\!\x00-\x1f]', record.check)
    return f'pytest "{record.check}"' if plain else f"pytest {shlex.quote(record.check)}"


def warnings_counted(results: Results) -> list[tuple[str, int]]:
    """Each warning that was captured and how often it was given, the most frequent first."""
    counts: dict[str, float] = {}
    for _, done in results.completions:
        for text, count in done.warnings.items():
            # Like `seconds`, the warnings of a batch stand on each of its rows.
            counts[text] = counts.get(text, 0) + count / done.batch_size
    for fact in results.facts:
        for text, count in fact.warnings.items():
            counts[text] = counts.get(text, 0) + count
    whole = ((text, max(1, round(count))) for text, count in counts.items())
    return sorted(whole, key=lambda item: -item[1])


def requests_line(results: Results) -> str:
    """`asked 40, distinct 22, generated 22`."""
    return ", ".join(f"{name} {count:,}" for name, count in results.counts.items())


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def ordered(records: Sequence[Record]) -> list[Record]:
    """What went wrong first."""
    order = list(SYMBOLS)
    return sorted(records, key=lambda record: order.index(record.outcome))
