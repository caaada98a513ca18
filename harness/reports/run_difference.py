"""One run against another in a terminal: what else changed, what the models say now, which verdicts got worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console

from harness.comparison.difference import Pair, RunDifference, TargetDifference, VerdictPair
from harness.comparison.figures import UNKNOWN, number, signed
from harness.comparison.provenance import Change
from harness.divergence import draw
from harness.record import Record
from harness.reports import SYMBOLS, cut, one_line
from harness.reports.terminal import INDENT, SHOWN, STYLES, details, say, tables, tell
from harness.wording import counted

COLUMNS = (
    *("compared", "equal", "rounding", "change", "sampled", "other end", "length", "KL at least"),
    "tokens/s",
)
PAIRS = 5  # generations that are drawn
CHANGES = 20  # lines of what else changed
VALUE = 60  # characters of what something was and is
REASON = 400
VERDICTS = {"WORSE": "bold red", "CHANGED": "bold yellow", "SAME": "bold green"}


def show_runs(difference: RunDifference, console: Console, *, verbose: bool = False) -> None:
    """Print what is not as it was; the last line is the verdict."""
    say(console, ("before  ", "bold"), one_line(difference.before))
    say(console, ("after   ", "bold"), one_line(difference.after))
    say(console)
    _changes(difference, console, verbose=verbose)
    if difference.targets:
        rows = [(target.name, [(cell, "") for cell in cells(target)]) for target in difference.targets]
        tables(console, "target", COLUMNS, rows)
    _verdicts(difference, console, verbose=verbose)
    _generations(difference, console, verbose=verbose)
    _notes(difference, console)
    word, sentence = verdict(difference)
    say(console, (f"{word}  ", VERDICTS[word]), sentence)


def _changes(difference: RunDifference, console: Console, *, verbose: bool) -> None:
    changes = [*difference.changes, *(change for target in difference.targets for change in target.changes)]
    shown = changes if verbose else changes[:CHANGES]
    for change in shown:
        say(console, f"{one_line(change.of)}: {one_line(change.name)}  {_was_and_is(change, verbose=verbose)}")
    if len(changes) > len(shown):
        say(console, f"… and {len(changes) - len(shown):,} more that changed: --verbose")
    if changes:
        say(console)


def _was_and_is(change: Change, *, verbose: bool) -> str:
    values = (one_line(value) or "(nothing)" for value in (change.before, change.after))
    return " → ".join(value if verbose or len(value) <= VALUE else f"{value[:VALUE]}…" for value in values)


def cells(target: TargetDifference) -> list[str]:
    compared, asked = len(target.compared), len(target.pairs)
    kinds = ("equal", "rounding", "change", "sampled")
    kl = target.mean_kl_at_least
    return [
        str(compared) if compared == asked else f"{compared} of {asked}",
        *(str(target.count(kind)) for kind in kinds),
        str(target.finish_changed),
        _length(target),
        UNKNOWN if kl is None else number(kl),
        _speed(target),
    ]


def _length(target: TargetDifference) -> str:
    if target.mean_more_tokens is not None:
        return f"{signed(target.mean_more_tokens)} tokens"
    if target.mean_more_characters is not None:
        return f"{signed(target.mean_more_characters)} characters"
    return UNKNOWN


def _speed(target: TargetDifference) -> str:
    rates = (target.speed_before.tokens_per_second, target.speed_after.tokens_per_second)
    if rates == (None, None):
        return UNKNOWN
    return " → ".join(UNKNOWN if rate is None else number(rate) for rate in rates)


def _verdicts(difference: RunDifference, console: Console, *, verbose: bool) -> None:
    for look, word in (("failed", "regressed"), ("passed", "fixed")):
        pairs = difference.verdicts_that(word)
        shown = pairs if verbose else pairs[:SHOWN]
        for pair in shown:
            _one_verdict(pair, look, word, console)
        if len(pairs) > len(shown):
            say(console, f"… and {len(pairs) - len(shown):,} more {word}: --verbose")
    for count, what in other_verdicts(difference):
        say(console, f"{counted(count, 'verdict')} {what}", style="dim")
    if difference.verdicts:
        say(console)


def _one_verdict(pair: VerdictPair, look: str, word: str, console: Console) -> None:
    expectation = f"  ({one_line(pair.record.expectation)})" if pair.record.expectation else ""
    say(console, (f"{SYMBOLS[look]} {word}  ", STYLES[look]), one_line(pair.record.check), (expectation, "dim"))
    for side, record in (("before", pair.before), ("after", pair.after)):
        if record and word == "regressed":
            tell(console, f"{side:<6}  {_outcome(record)}", INDENT)


def _outcome(record: Record) -> str:
    return f"{record.outcome}: {cut(one_line(record.verdict.reason), REASON, 'results.parquet')}"


def other_verdicts(difference: RunDifference) -> Iterator[tuple[int, str]]:
    changed: Counter[str] = Counter(
        f"{pair.before.outcome} → {pair.after.outcome}"
        for pair in difference.verdicts_that("changed")
        if pair.before and pair.after
    )
    yield from ((count, f"went {what}") for what, count in changed.items())
    told = (("same", "as before"), ("only before", "only in the run before"), ("only after", "only in the run after"))
    yield from ((count, what) for kind, what in told if (count := len(difference.verdicts_that(kind))))


def _generations(difference: RunDifference, console: Console, *, verbose: bool) -> None:
    changed = [(target, pair) for target in difference.targets for pair in target.pairs if pair.judgement == "change"]
    shown = changed if verbose else changed[:PAIRS]
    for target, pair in shown:
        _draw(target, pair, console)
    if len(changed) > len(shown):
        say(console, f"… and {counted(len(changed) - len(shown), 'generation')} more that changed: --verbose")
        say(console)


def _draw(target: TargetDifference, pair: Pair, console: Console) -> None:
    if pair.difference is None:
        return
    generation = f" ({one_line(pair.generation)})" if pair.generation else ""
    say(console, (one_line(pair.prompt), "bold"), f"{generation}, {one_line(target.name)}: {pair.difference.sentence}")
    details(console, draw(pair.difference, before=pair.before, after=pair.after))
    say(console)


def _notes(difference: RunDifference, console: Console) -> None:
    for note in open_lines(difference):
        tell(console, f"note  {one_line(cut(note, REASON, 'the run'))}", style="yellow")


def open_lines(difference: RunDifference) -> Iterator[str]:
    for name in difference.only_before:
        yield f"target {name} is only in the run before"
    for name in difference.only_after:
        yield f"target {name} is only in the run after"
    for target in difference.targets:
        for lacking in target.unanswered:
            why = f"has no answer in the run {lacking.failed}: {lacking.failure.message}"
            yield f"{target.name}: '{lacking.prompt}' {why}"
        yield from (f"{target.name}: {note}" for note in target.notes)
        for count, run in ((target.only_before, "before"), (target.only_after, "after")):
            if count:
                yield f"{target.name}: {counted(count, 'generation')} only in the run {run}"
    yield from difference.notes
    if difference.measured:
        yield "both runs measured their targets: `harness compare RUN` shows what each found"


def verdict(difference: RunDifference) -> tuple[str, str]:
    """One word, one sentence."""
    regressed = _checks(difference.verdicts_that("regressed"))
    fixed = _checks(difference.verdicts_that("fixed"))
    others = len(difference.verdicts_that("changed"))
    pairs = [pair.judgement for target in difference.targets for pair in target.pairs]
    kinds = Counter(pairs)
    unanswered = sum(len(target.unanswered) for target in difference.targets)
    parts = (
        (regressed, f"{counted(regressed, 'check')} regressed"),
        (fixed, f"{counted(fixed, 'check')} fixed"),
        (others, f"{counted(others, 'verdict')} otherwise"),
        (kinds["change"], f"{kinds['change']:,} of {counted(len(pairs), 'generation')} changed"),
        (kinds["sampled"], f"{kinds['sampled']:,} sampled otherwise"),
        (kinds["not compared"], f"{kinds['not compared']:,} not comparable"),
        (unanswered, f"{unanswered:,} answered in one run only"),
    )
    told = [text for count, text in parts if count]
    near = [f"{kinds['rounding']:,} differ by rounding"] if kinds["rounding"] else []
    if told:
        return ("WORSE" if regressed else "CHANGED"), ", ".join([*told, *near])
    alike = (
        (len(difference.verdicts_that("same")), "verdict"),
        (len(pairs), "generation"),
    )
    same = " and ".join(counted(count, noun) for count, noun in alike if count)
    return "SAME", ", ".join([f"{same or 'nothing'} as before", *near])


def _checks(pairs: Sequence[VerdictPair]) -> int:
    return len({pair.record.check for pair in pairs})
