"""Past runs on a terminal: what fails now and since when, what flakes, what changed under which conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console

from harness.reports import SYMBOLS, one_line
from harness.reports.terminal import STYLES, say
from harness.run_index import PastRun
from harness.trend import FEW, Change, CheckTrend, Flake, History, TestTrend
from harness.wording import counted

ROWS = 40  # tests up to which the steady ones are shown, too
SHOWN = 20  # failing tests, flaky checks, changes
NAMED = 5  # checks of one change, and differences
STRIP = 40  # runs drawn, at most …
SHORTEST = 8  # … and at least
INDENT = "  "
# Letters where symbols cannot be said: each run is one character.
LETTERS = {"failed": "F", "error": "E", "xpassed": "X", "xfailed": "x", "passed": ".", "skipped": "s", "": " "}
WORDS = {"FAILING": "bold red", "FLAKY": "bold yellow", "STEADY": "bold green"}

One = TypeVar("One")


def show(history: History, console: Console, *, verbose: bool = False) -> None:
    """Print the history of some runs; the last line is the verdict."""
    _tests(history, console, verbose=verbose)
    _some(history.failing, _failing, console, verbose=verbose)
    _some(history.flaky, _flaky, console, verbose=verbose)
    _some(history.changes, _change, console, verbose=verbose)
    for note in history.notes:
        say(console, ("note  ", "yellow"), one_line(note))
    word, sentence = headline(history)
    say(console, (f"{word}  ", WORDS[word]), sentence)


def headline(history: History) -> tuple[str, str]:
    """One word, one sentence."""
    failing, flaky = len(history.failing), len(history.flaky)
    word = "FAILING" if failing else "FLAKY" if flaky else "STEADY"
    targets = counted(len(history.targets), "target")
    fails = f"{failing} of {counted(len(history.tests), 'test')} on {targets} fail now" if failing else "nothing fails"
    pairs = any(test.flake.pairs for test in history.tests)
    flakes = f"{counted(flaky, 'check')} flaked" if pairs else "no two runs of the same conditions: no flake can show"
    return word, f"{fails}, {flakes}, in {counted(len(history.runs), 'run')}{span(history.runs)}"


def span(runs: Sequence[PastRun]) -> str:
    """` from 2026-01-01 to 2026-02-01`."""
    days = [f"{run.started:%Y-%m-%d}" for run in (runs[0], runs[-1])] if runs else ["", ""]
    return f" from {days[0]} to {days[1]}" if days[0] != days[1] else f" of {days[0]}" if runs else ""


def percent(share: float) -> str:
    """Never 0 % or 100 % of what is not."""
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def rate_words(test: TestTrend) -> str:
    return percent(test.pass_rate) if sum(test.judged) else "–"


def flake_words(flake: Flake) -> str:
    """`2 of 49 pairs, 4 % [1 %, 14 %]`."""
    if not flake.pairs:
        return "no pairs"
    counts = f"{flake.changed} of {counted(flake.pairs, 'pair')}"
    if not flake.changed:
        return counts
    low, high = flake.interval
    few = ", few" if flake.pairs < FEW else ""
    return f"{counts}, {percent(flake.rate)} [{percent(low)}, {percent(high)}]{few}"


def since_words(test: TestTrend) -> str:
    """Since when it fails."""
    if not test.failing:
        return ""
    runs = counted(len(test.failing), "run")
    first = f"first in {test.runs[test.failing[0]].name}"
    if test.before_failing is None:
        return f"for {runs} or longer, {first}"
    before = f"{test.outcomes[test.before_failing]} in {test.runs[test.before_failing].name}"
    return f"for {runs}, {first}; {before}"


def differs_words(differs: Sequence[str]) -> str:
    """What was not the same; the first of it."""
    more = f", and {len(differs) - NAMED} more" if len(differs) > NAMED else ""
    return ", ".join(differs[:NAMED]) + more if differs else "nothing that is recorded"


def failing_words(test: TestTrend) -> str:
    """How much of it fails in the last run, and since when."""
    judged = test.judged[test.last]
    return f"{judged - test.passed[test.last]} of {counted(judged, 'check')}, {since_words(test)}"


def _tests(history: History, console: Console, *, verbose: bool) -> None:
    told = [test for test in history.tests if verbose or len(history.tests) <= ROWS or not test.steady]
    for (suite, target), group in groupby(told, key=lambda test: (test.suite, test.target)):
        some = list(group)
        runs = counted(len(some[0].runs), "run")
        say(console, (f"{one_line(suite)} on {one_line(target)}", "bold"), f"  {runs}{_speed(history, target)}")
        _table(some, console)
        say(console)
    if len(told) < len(history.tests):
        steady = counted(len(history.tests) - len(told), "test")
        say(console, f"{steady} more failed in no run: --verbose", style="dim")
        say(console)


def _speed(history: History, name: str) -> str:
    speeds = [speed for one in history.targets if one.target == name for speed in one.tokens_per_second if speed]
    if not speeds:
        return ""
    return f", {speeds[-1]:,.1f} tokens/s in the last ({min(speeds):,.1f} to {max(speeds):,.1f})"


def _table(tests: Sequence[TestTrend], console: Console) -> None:
    names = [one_line(test.test) for test in tests]
    cells = [(_now(test), rate_words(test), flake_words(test.flake)) for test in tests]
    wide = max(map(cell_len, [*names, "test"]))
    widths = [max(map(cell_len, column)) for column in zip(*cells, ("now", "passed", "flake"), strict=True)]
    room = console.width - (len(INDENT) * 5 + wide + sum(widths))
    strip = min(STRIP, max(SHORTEST, room), max(len(test.runs) for test in tests))
    head = f"last {strip}" if strip >= 7 else "runs"
    shown = max(strip, len(head))
    line = (f"{'test':<{wide}}", f"{'now':<{widths[0]}}", f"{head:<{shown}}", f"{'passed':>{widths[1]}}", "flake")
    say(console, INDENT + INDENT.join(line), style="dim")
    for name, (now, rate, flake), test in zip(names, cells, tests, strict=True):
        drawn = _strip(test.outcomes[-strip:], console)
        say(
            console,
            f"{INDENT}{_filled(name, wide)}{INDENT}",
            (_filled(now, widths[0]), STYLES.get(test.outcome, "")),
            f"{INDENT}{drawn:<{shown}}{INDENT}{rate:>{widths[1]}}{INDENT}",
            (flake, "yellow" if test.flake.changed else "dim"),
        )


def _filled(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _now(test: TestTrend) -> str:
    word = f"{SYMBOLS[test.outcome]} {test.outcome}"
    if test.removed:
        return f"{word}, then gone"
    ago = len(test.runs) - 1 - test.last
    return f"{word} {counted(ago, 'run')} ago" if ago else word


def _strip(outcomes: Iterable[str], console: Console) -> str:
    words = {**SYMBOLS, "": " "} if console.encoding.lower().startswith("utf") else LETTERS
    return "".join(words[outcome] for outcome in outcomes)


def _some(found: Sequence[One], tell: Callable[[One, Console], None], console: Console, *, verbose: bool) -> None:
    shown = found if verbose else found[:SHOWN]
    for one in shown:
        tell(one, console)
    if len(found) > len(shown):
        say(console, f"… and {len(found) - len(shown):,} more: --verbose", style="dim")
    if found:
        say(console)


def _failing(test: TestTrend, console: Console) -> None:
    name = f"{one_line(test.suite)}::{one_line(test.test)} on {one_line(test.target)}"
    mark = (f"{SYMBOLS[test.outcome]} {test.outcome}  ", STYLES[test.outcome])
    say(console, mark, f"{name}: {one_line(failing_words(test))}")
    if test.before_failing is not None:
        say(console, f"{INDENT * 2}what differs between the two: {one_line(differs_words(test.what_differed))}")


def _flaky(check: CheckTrend, console: Console) -> None:
    name = f"{one_line(check.suite)}::{one_line(check.name.label)} on {one_line(check.target)}"
    last = f"; last in {one_line(check.flaked.name)}" if check.flaked else ""
    say(console, ("~ flaked  ", "yellow"), f"{name}: another outcome in {flake_words(check.flake)}{last}")


def _change(change: Change, console: Console) -> None:
    where = f"{one_line(change.suite)} on {one_line(change.target)}"
    what = one_line(differs_words(change.differs))
    say(console, ("→ changed  ", "bold"), f"{where} in {one_line(change.after.name)}: {what}")
    for check in change.checks[:NAMED]:
        flaky = ("  (flaky)", "yellow") if check.flaky else ""
        say(console, f"{INDENT * 2}{one_line(check.label)}: {check.before} → {check.after}", flaky)
    if len(change.checks) > NAMED:
        say(console, f"{INDENT * 2}… and {counted(len(change.checks) - NAMED, 'check')} more")
