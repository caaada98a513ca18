"""What the page says against an earlier run: what got worse first, then all else that is not as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.comparison.difference import RunDifference, VerdictPair
from harness.comparison.runs import compare_runs
from harness.record import Record
from harness.reports import SYMBOLS, cut
from harness.reports.rows import row_link
from harness.reports.run_difference import COLUMNS, cells, open_lines, other_verdicts, verdict
from harness.store import Results
from harness.wording import counted

SHOWN = 100  # verdicts of a kind that are named
REASON = 400
LOOKS = {"WORSE": "failed", "CHANGED": "known", "SAME": "passed"}


def since(results: Results, before: Results | None) -> dict[str, Any] | None:
    """For the template; None where no earlier run is named."""
    if before is None:
        return None
    difference = compare_runs(before, results)
    word, sentence = verdict(difference)
    return {
        "before": difference.before,
        "word": word,
        "look": LOOKS[word],
        "sentence": sentence,
        "kinds": [_kind(difference, "regressed", "failed"), _kind(difference, "fixed", "passed")],
        "others": [f"{counted(count, 'verdict')} {what}" for count, what in other_verdicts(difference)],
        "changes": [*difference.changes, *(change for target in difference.targets for change in target.changes)],
        "columns": COLUMNS,
        "targets": [(target.name, cells(target)) for target in difference.targets],
        "notes": [cut(note, REASON, "the run") for note in open_lines(difference)],
    }


def _kind(difference: RunDifference, kind: str, outcome: str) -> dict[str, Any]:
    pairs: Sequence[VerdictPair] = difference.verdicts_that(kind)
    return {
        "word": kind,
        "look": outcome,
        "symbol": SYMBOLS[outcome],
        "pairs": [
            (pair.record, row_link(pair.record), _told(pair.before), _told(pair.after)) for pair in pairs[:SHOWN]
        ],
        "more": len(pairs) - SHOWN,
    }


def _told(record: Record | None) -> str:
    return f"{record.outcome}: {cut(record.verdict.reason, REASON, 'results.parquet')}" if record else "–"
