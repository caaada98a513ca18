"""A comparison in a terminal: the figures side by side, who keeps the budget, and what to ship."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from harness.comparison.decision import Decision, decide
from harness.comparison.figures import number
from harness.comparison.measured import Measured
from harness.comparison.summary import Flip, Summary, summarize
from harness.reports import compared, one_line
from harness.reports.compared import GATES
from harness.reports.run_difference import show_runs
from harness.reports.terminal import say, tables
from harness.store import Results
from harness.wording import counted

__all__ = ["show", "show_runs"]

STYLES = {"ship": "bold green", "do not ship": "bold red", "cannot tell": "bold yellow"}
FLIPS = 20  # of each candidate
INDENT = "    "


def show(results: Results, console: Console, *, verbose: bool = False) -> None:
    """Print a comparison; the last line is the decision."""
    measured = results.measured
    if measured is None:
        say(console, "nothing was compared in this run: `harness compare SUITE` measures the targets of a suite")
        return
    summaries, decision = summarize(results), decide(results)
    say(console, ("baseline  ", "bold"), one_line(measured.baseline))
    say(console, ("measured  ", "bold"), compared.scope(measured) or "nothing")
    say(console)
    _statistics(summaries, console, verbose=verbose)
    if verbose:
        _flips(results, summaries, console)
        _differences(decision, console)
    _left_open(results, measured, summaries, console)
    _gates(decision, results, measured, console)
    say(console, ("Pareto set  ", "bold"), one_line(compared.pareto_line(decision, summaries)))
    say(console, ("DECISION  ", _style(decision)), one_line(decision.sentence))


def _style(decision: Decision) -> str:
    words = {gate.word for gate in decision.gates}
    best = next((word for word in ("ship", "cannot tell", "do not ship") if word in words), "")
    return STYLES.get(best, "bold")


def _statistics(summaries: Sequence[Summary], console: Console, *, verbose: bool) -> None:
    rows = [
        (row.title, [(cell.text, "") for cell in row.cells]) for row in compared.rows(summaries, everything=verbose)
    ]
    measured = [index for index, one in enumerate(summaries) if one.values]
    shown = [(title, [cells[index] for index in measured]) for title, cells in rows]
    tables(console, "", [summaries[index].candidate.name for index in measured], shown)


def _flips(results: Results, summaries: Sequence[Summary], console: Console) -> None:
    texts = _token_texts(results)
    base = texts.get(summaries[0].candidate.target, {}) if summaries else {}
    for one in summaries:
        known = base | texts.get(one.candidate.target, {})  # flips are of those with the baseline's tokenizer
        worst = sorted(one.flips, key=lambda flip: -flip.baseline_margin)[:FLIPS]
        if worst:
            many = f"{counted(len(one.flips), 'flip')} of {one_line(one.candidate.name)}"
            say(console, f"{many}: where it holds another token for the likeliest; margins in nats", style="bold")
            rows = [(flip.prompt, _flip(flip, known)) for flip in worst]
            tables(console, "prompt", ("token", "baseline's", "margin", "its own", "margin", "KL"), rows)
            if len(one.flips) > len(worst):
                say(console, f"… and {len(one.flips) - len(worst):,} more, at smaller margins of the baseline")
                say(console)


def _flip(flip: Flip, texts: Mapping[int, str]) -> list[tuple[str, str]]:
    cells = (
        str(flip.index),
        _token(flip.baseline, texts),
        number(flip.baseline_margin),
        _token(flip.own, texts),
        number(flip.margin),
        number(flip.kl),
    )
    return [(cell, "") for cell in cells]


def _token(token: int, texts: Mapping[int, str]) -> str:
    return f"{token} {one_line(repr(texts[token]))}" if token in texts else str(token)


def _token_texts(results: Results) -> dict[str, dict[int, str]]:
    """By target: what its token ids say, as far as any of its completions tells."""
    texts: dict[str, dict[int, str]] = {}
    for target, done in results.completions:
        texts.setdefault(target, {}).update(zip(done.ids, done.tokens, strict=False))
    return texts


def _differences(decision: Decision, console: Console) -> None:
    if decision.differences:
        say(console, "every two candidates, on the same prompts", style="bold")
        for found in decision.differences:
            say(console, f"  {one_line(compared.difference_sentence(found))}")
        say(console)


def _left_open(results: Results, measured: Measured, summaries: Sequence[Summary], console: Console) -> None:
    lines = list(_open_lines(results, measured, summaries))
    for mark, text in lines:
        say(console, (f"{mark}  ", "yellow"), one_line(text))
    if lines:
        say(console)


def _open_lines(results: Results, measured: Measured, summaries: Sequence[Summary]) -> Iterator[tuple[str, str]]:
    for names, reason in compared.left_out(measured):
        yield "–", f"{names}  {reason}"
    for note in compared.notes(results, summaries):
        yield "note", note
    failed = compared.failed_checks(results)
    for target, counts in failed:
        yield "✗", f"{target}  {counts}"
    if failed:
        file = shlex.quote(results.suites[0]["file"]) if results.suites else "SUITE"
        yield "  ", f"why: report.html, or `harness run {file} --target {shlex.quote(failed[0][0])}`"


def _gates(decision: Decision, results: Results, measured: Measured, console: Console) -> None:
    if not decision.gates:
        say(console, "To be told what to ship, write into the suite what a target may cost:")
        for line in compared.BUDGET.splitlines():
            say(console, f"{INDENT}{line}", style="cyan")
        say(console)
        return
    say(console, ("budget  ", "bold"), one_line(compared.budget_line(results)))
    width = max(len(f"{GATES[gate.word]} {gate.word}") for gate in decision.gates)
    for gate in decision.gates:
        word = f"{GATES[gate.word]} {gate.word}"
        baseline = "  (baseline)" if gate.candidate == measured.baseline else ""
        say(console, (f"{word:<{width}}  ", STYLES[gate.word]), one_line(gate.candidate), baseline)
        for reason in compared.gate_reasons(gate, measured):
            say(console, f"{INDENT}{one_line(reason)}")
    say(console)
