"""A run as data: verdicts and generations as CSV, JSON Lines and parquet, and the whole of it as one JSON document."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from harness import tables
from harness.reports import headline, visible
from harness.store import FORMAT, IN_RUN, Results

Table = Literal["verdicts", "generations"]
Row = dict[str, Any]

# A distribution for each token: twenty times everything else, and in tokens.parquet.
ONLY_IN_PARQUET = ("top_ids", "top_logprobs")
# Columns that are JSON in parquet, which has no column of mappings.
JSON_COLUMNS: Mapping[Table, tuple[str, ...]] = {
    "verdicts": ("numbers",),
    "generations": ("prompt", "generation", "layout", "generation_config", "warnings", "returned"),
}
# Pins are in run.json, with every step of theirs.
IN_JSON = tuple(name for name in IN_RUN if name != "pins")
# What a spreadsheet takes for the beginning of a formula, the wide forms included.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NOT_ASCII = re.compile(r"[^\n\x20-\x7e]")


def csv_text(results: Results, table: Table) -> str:
    """A header, and a line for each row. What would act is escaped: parquet and JSON Lines have texts as they are."""
    kinds, rows = _plain(results, table)
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(kinds)
    writer.writerows([_cell(row.get(name)) for name in kinds] for row in rows)
    return file.getvalue()


def json_lines(results: Results, table: Table) -> str:
    """One JSON object a line."""
    kinds, rows = _plain(results, table)
    nested = JSON_COLUMNS[table]
    lines = (_json({name: _parsed(row.get(name), name in nested) for name in kinds}) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def json_text(results: Results) -> str:
    """The run in one document: what run.json says, the verdict, every record, and the figures of a comparison."""
    word, sentence = headline(results)
    kinds, rows = _plain(results, "verdicts")
    document = {
        "format": FORMAT,
        "verdict": word,
        "sentence": " ".join(sentence.split()),
        **{name: getattr(results, name) for name in IN_JSON},
        "lacks": results.lacks,
        "outcomes": results.outcomes,
        "decision": _decision(results) if results.measured else None,
        "verdicts": [{name: _parsed(row.get(name), name == "numbers") for name in kinds} for row in rows],
    }
    return _json(document, indent=2) + "\n"


def write_parquet(results: Results, table: Table, path: Path) -> None:
    """The same table as in a run folder, in the format of today."""
    make, kinds = _source(table)
    tables.write_table(path, make(results), kinds(), FORMAT)


def _source(table: Table) -> tuple[Callable[[Results], list[Row]], Callable[[], dict[str, Any]]]:
    if table == "verdicts":
        return _verdicts, tables.result_types
    return _generations, tables.token_types


def _verdicts(results: Results) -> list[Row]:
    return [tables.result_row(record) for record in results.records]


def _generations(results: Results) -> list[Row]:
    return tables.token_rows(results.completions, results.failures)


def _plain(results: Results, table: Table) -> tuple[list[str], Iterable[Row]]:
    """Columns and rows, without what only parquet holds."""
    make, kinds = _source(table)
    return [name for name in kinds() if name not in ONLY_IN_PARQUET], make(results)


def _cell(value: Any) -> Any:
    """Numbers stay numbers; texts can neither act as a formula nor drive what shows them."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return value
    text = visible(value if isinstance(value, str) else tables.as_json(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _parsed(value: Any, nested: bool) -> Any:
    """JSON in a column as what it says; `any` and `alone` are words of a layout."""
    return json.loads(value) if nested and value and value[0] in "{[" else value


def _json(value: Any, indent: int | None = None) -> str:
    """Exact, and yet only what can be seen: the rest is escaped."""
    return _NOT_ASCII.sub(_escaped, tables.as_json(value, indent))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if "\ud800" <= character <= "\udfff":  # half of a pair: no reader of JSON needs to take it, so it becomes text
        return f"\\\\u{ord(character):04x}"
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _decision(results: Results) -> dict[str, Any]:
    """What to ship, and a row for each candidate, as `Run.compare()` has them."""
    from harness.comparison.decision import decide
    from harness.comparison.frames import comparison_frame

    decision = decide(results)
    frame = comparison_frame(results).reset_index().astype(object)
    return {
        "sentence": decision.sentence,
        "cheapest": decision.cheapest,
        "pareto": decision.pareto,
        "candidates": frame.where(frame.notna(), None).to_dict("records"),
    }
