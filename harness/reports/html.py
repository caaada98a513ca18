"""One self-contained HTML file of a run: it loads nothing, and runs nothing but its own script."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from markupsafe import Markup

from harness.record import Batch, Completion, Record, Request, to_data
from harness.reports import (
    SYMBOLS,
    Cell,
    cut,
    grid,
    headline,
    lacking,
    one_line,
    requests_line,
    untold_errors,
    visible,
    warnings_counted,
)
from harness.reports.configuration import configs, measurements, properties, target_names
from harness.reports.decision_page import decision_page
from harness.reports.pages import digest, joined, template
from harness.reports.profiles import profiles
from harness.reports.rows import ROWS, commands, embedded, link, row_link, table
from harness.reports.since import since
from harness.reports.token_view import View
from harness.reports.token_view import texts as token_texts
from harness.reports.token_view import views as token_views
from harness.store import Results

STYLES = ("page.css", "charts.css", "token_view.css")
SCRIPTS = ("token_view.js", "detail.js", "page.js")
TEXT = 4000  # characters of one reason, text or line of details
PREVIEW = 160  # characters of a reason or a prompt that is told in passing
GROUPS = 100  # kinds of failures
ALIKE = 20  # failures of one kind that are named
PROMPTS = 200  # generated texts, side by side
SHADES = 4  # of the matrix
RESULTS, TOKENS = "results.parquet", "tokens.parquet"


def render(results: Results, before: Results | None = None) -> str:
    """The whole report as one page; against an earlier run, what got worse since comes first."""
    word, sentence = headline(results)
    style, script = page_style(), page_script()
    rows = embedded(results)
    soon, late = table(results, rows)
    views = token_views(results)
    outcomes = results.outcomes
    groups = _groups(results.records)
    page = template("report.html.j2")
    return page.render(
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=Markup(_as_data(soon)),
        words=Markup(_as_data(late)),
        tokens=Markup(_as_data(_tokens(results, views))),
        word=word,
        sentence=sentence,
        results=results,
        lacking=lacking(results),
        since=since(results, before),
        comparison=decision_page(results),
        errors=() if results.measured else untold_errors(results),  # a comparison tells of them itself
        profiles=profiles(results),
        checks=sum(outcomes.values()),
        name=" + ".join(suite["name"] for suite in results.suites) or "run",
        outcomes=[(outcome, SYMBOLS[outcome], outcomes.get(outcome, 0)) for outcome in SYMBOLS],
        failures=[_failure(group) for group in groups[:GROUPS]],
        more_failures=sum(map(len, groups[GROUPS:])),
        matrix=_matrix(results.records),
        targets=target_names(results),
        properties=properties(results),
        measurements=measurements(results),
        configs=configs(results),
        partings=_partings(results, views),
        verdicts=len(results.records),
        embedded=len(rows),
        limit=ROWS,
        texts=_texts(results),
        warnings=[(count, cut(text, TEXT, TOKENS)) for text, count in warnings_counted(results)],
        requests=requests_line(results),
        environment=[(name, _shown(value)) for name, value in results.environment.items()],
        link=link,
    )


def _tokens(results: Results, views: Mapping[str, View]) -> dict[str, Any]:
    """What the page shows token by token: by itself, for it is only read when somebody looks at it."""
    return {"views": {visible(key): view for key, view in views.items()}, "texts": token_texts(results, views)}


@cache
def page_style() -> str:
    """All rules of the page."""
    return joined(STYLES)


@cache
def page_script() -> str:
    """All that the page runs."""
    return f'"use strict";\n{joined(SCRIPTS)}'


def _policy(style: str, script: str) -> str:
    """Nothing is loaded from anywhere, and nothing else than these two may act."""
    rules = (
        "default-src 'none'",
        f"script-src '{digest(script)}'",
        f"style-src '{digest(style)}'",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _as_data(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """What failed, by test and expectation; then what broke, by target and reason."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.outcome == "failed":
            groups.setdefault(("failed", record.test, record.expectation), []).append(record)
        elif record.outcome == "error":
            groups.setdefault(("error", record.target, record.verdict.reason), []).append(record)
    return sorted(groups.values(), key=lambda group: group[0].outcome != "failed")


def _failure(group: Sequence[Record]) -> dict[str, Any]:
    """The first of them in full, the others by name."""
    first = group[0]
    verdict = first.verdict
    targets = Counter(one.target for one in group[1:])
    alike = {"test": first.test, "expectation": first.expectation} if first.outcome == "failed" else {}
    return {
        "record": first,
        "symbol": SYMBOLS[first.outcome],
        "reason": cut(verdict.reason, TEXT, RESULTS),
        "details": "\n".join(cut(line, TEXT, RESULTS) for line in verdict.details),
        "commands": commands(first),
        "link": row_link(first),
        "count": len(group),
        "targets": ", ".join(f"{target} {count:,}" for target, count in targets.items()),
        "others": [
            (one.check, one_line(cut(one.verdict.reason, PREVIEW, RESULTS)), row_link(one))
            for one in group[1 : ALIKE + 1]
        ],
        "all": link(outcome=first.outcome, **(alike or {"target": first.target})),
    }


def _matrix(records: Sequence[Record]) -> dict[str, Any]:
    """The tests by the targets; each cell leads to its rows of the table."""
    found = grid(records)
    rows = [
        (test, [_lit(cell, test, target) for target, cell in zip(found.targets, cells, strict=True)])
        for test, cells in found.rows
    ]
    return {"targets": found.targets, "rows": rows}


def _lit(cell: Cell, test: str, target: str) -> dict[str, Any]:
    return {"cell": cell, "shade": _shade(cell), "link": link(test=test, target=target)}


def _partings(results: Results, views: Mapping[str, View]) -> dict[str, Any]:
    """Where each candidate of a comparison leaves the baseline's tokens: prompt by candidate, as far as it is shown."""
    rows: dict[str, dict[str, tuple[str, str]]] = {}
    for one in results.measured.answered if results.measured else ():
        key = f"compare::{one.candidate}::{one.prompt}"
        if key in views:
            rows.setdefault(one.prompt, {})[one.candidate] = _parting(views[key]), link(row=key)
    candidates = list(dict.fromkeys(candidate for row in rows.values() for candidate in row))
    return {
        "candidates": candidates,
        "rows": rows,
        "left_out": any(len(row) < len(candidates) for row in rows.values()),
    }


def _parting(view: View) -> str:
    """`token 4, 0.13 nats`: the margin by which the baseline preferred its own."""
    found = view["divergence"]
    if not found:
        return "the same tokens"
    before = sum(column[0] is not None for column in view["aligned"][: found["column"]])
    token, margin = view["sides"][0]["start"] + before, found["margin"]
    return f"token {token}, {margin:.2g} nats" if isinstance(margin, float) else f"token {token}"


def _shade(cell: Cell) -> int:
    """0 where nothing failed, then the darker the more of the judged did."""
    judged = cell.counts.total() - cell.counts["skipped"]
    wrong = cell.counts["failed"] + cell.counts["error"]
    return 1 + round((SHADES - 1) * wrong / judged) if wrong else 0


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


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {_shown(item)}" for key, item in value.items()) or "–"
    return value if isinstance(value, str) else json.dumps(to_data(value), default=str, ensure_ascii=False)
