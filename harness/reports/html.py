"""One self-contained HTML file of a run: no script, nothing loaded from anywhere."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.frame import targets_frame
from harness.record import Batch, Completion, Record, Request, to_data
from harness.reports import (
    SYMBOLS,
    cut,
    grid,
    headline,
    ordered,
    reproduce,
    requests_line,
    to_tell,
    untold_errors,
    visible,
    warnings_counted,
)
from harness.reports.decision_page import decision_page
from harness.store import Results
from harness.tables import encodable

TEXT = 4000  # characters of one generated text, reason or line of details
PREVIEW = 160  # characters of a text in the table of all results
ROWS = 5000  # rows of the table of all results; a browser is slow with more
FOLDED = 200  # rows above which the table begins closed
PROMPTS = 200  # generated texts, side by side


def render(results: Results) -> str:
    """The whole report as one page."""
    word, sentence = headline(results)
    told = to_tell(results.records)
    return _template().render(
        word=word,
        sentence=sentence,
        results=results,
        comparison=decision_page(results),
        errors=() if results.measured else untold_errors(results),  # a comparison tells of them itself
        checks=sum(results.outcomes.values()),
        name=" + ".join(suite["name"] for suite in results.suites) or "run",
        outcomes=[(outcome, SYMBOLS[outcome], results.outcomes.get(outcome, 0)) for outcome in SYMBOLS],
        symbols=SYMBOLS,
        failures=[_failure(record, count) for record, count in told[:FOLDED]],
        more_failures=len(told) - FOLDED,
        grid=grid(results.records),
        targets=_targets(results),
        rows=[_row(record) for record in ordered(results.records)[:ROWS]],
        folded=len(results.records) > FOLDED,
        more_rows=len(results.records) - ROWS,
        texts=_texts(results),
        warnings=[(count, cut(text, TEXT, "tokens.parquet")) for text, count in warnings_counted(results)],
        requests=requests_line(results),
        environment=[(name, _shown(value)) for name, value in results.environment.items()],
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _finalize(value: Any) -> Any:
    """Every {{ value }} passes here on its way to the page, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _failure(record: Record, count: int) -> dict[str, Any]:
    verdict = record.verdict
    return {
        "record": record,
        "symbol": SYMBOLS[record.outcome],
        "reason": cut(verdict.reason, TEXT, "results.parquet"),
        "details": "\n".join(cut(line, TEXT, "results.parquet") for line in verdict.details),
        "more": count - 1,
        "command": reproduce(record),
    }


def _row(record: Record) -> dict[str, Any]:
    text = record.text if len(record.text) <= PREVIEW else f"{record.text[:PREVIEW]}…"
    return {
        "record": record,
        "symbol": SYMBOLS[record.outcome],
        "reason": cut(record.verdict.reason, PREVIEW, "results.parquet"),
        "text": text,
    }


def _targets(results: Results) -> list[dict[str, Any]]:
    """What each target was asked to be and what it really was."""
    facts = {encodable(fact.target): fact for fact in results.facts}
    rows = []
    for name, row in targets_frame(results).to_dict("index").items():
        fact = facts.get(str(name))
        modules = fact.modules.items() if fact else ()
        rows.append(
            {"name": name, "loaded": fact is not None}
            | {str(column): value for column, value in row.items()}
            | {column: _number(row[column]) for column in row if isinstance(row[column], float)}
            | {
                "modules": ", ".join(f"{count} × {kind}" for kind, count in modules),
                "padding": fact.padding_side if fact else "",
                "weights": fact.weights if fact else "",
            }
        )
    return rows


def _texts(results: Results) -> dict[str, Any]:
    """Who wrote what: a row for each request, a column for each target."""
    names = _prompts_by_request(results)
    rows: dict[str, dict[str, Any]] = {}
    targets: dict[str, None] = {}
    shown = [(target, done) for target, done in results.completions if done.request.id in names]
    for target, done in shown:
        targets[target] = None
        if done.request.id not in rows:
            if len(rows) == PROMPTS:
                continue
            rows[done.request.id] = _heading(done.request, names[done.request.id])
        rows[done.request.id]["texts"][target] = _text(done)
    distinct = {done.request.id for _, done in shown}
    return {"targets": list(targets), "rows": list(rows.values()), "more": len(distinct) - len(rows)}


def _prompts_by_request(results: Results) -> dict[str, str]:
    """What was generated to be read, and the name of its prompt; not what only measures speed or likelihood."""
    names: dict[str, str] = {}
    for record in results.records:
        for request in record.requests:
            names[request] = names.get(request) or record.prompt
    for one in results.measured.answered if results.measured else ():
        names[one.request] = names.get(one.request) or one.prompt
    return names


def _heading(request: Request, name: str) -> dict[str, Any]:
    layout = request.layout
    manner = [f"in a batch of {len(layout.rows)}, padding {layout.padding}"] if isinstance(layout, Batch) else []
    manner += ["alone"] if layout == "alone" else []
    manner += [f"repeat {request.repeat}"] if request.repeat else []
    manner += ["in a fresh process"] if request.fresh_process else []
    return {"name": name, "prompt": cut(request.prompt.last, PREVIEW), "manner": ", ".join(manner), "texts": {}}


def _text(done: Completion) -> dict[str, Any]:
    return {"text": cut(done.text, TEXT), "finish": done.finish, "new_tokens": done.new_tokens}


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {_shown(item)}" for key, item in value.items()) or "–"
    return value if isinstance(value, str) else json.dumps(to_data(value), default=str, ensure_ascii=False)
