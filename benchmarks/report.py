"""How large a report is, how long it takes to build, and how soon a browser shows, filters and sorts its rows.

    make browser && .venv/bin/python benchmarks/report.py [10000 100000 …]

Results are made up: eight tests, four targets, 40 to 60 words a text; one verdict in sixteen is a failure.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from browser import chromium, opened, until, watched

from harness.inputs import GREEDY, Model
from harness.pins.pin import Pin
from harness.record import Completion, Record, Request, Step, Target, TargetFacts, Text, Verdict
from harness.reports.html import render
from harness.store import Results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TESTS = {
    "greedy-is-deterministic": "deterministic",
    "stops-at-eos": "stops_at_eos",
    "padding-invariant": "padding_invariant",
    "batch-invariant": "batch_invariant",
    "pinned-output": "pinned",
    "answers-capitals": "contains",
    "length-budget": "new_tokens",
    "json-valid": "json_schema",
}
TARGETS = ("smollm2-none", "smollm2-int8", "smollm2-nf4", "smollm2-fp4")
WORDS = (
    "the",
    "of",
    "France",
    "is",
    "Paris",
    "also",
    "known",
    "as",
    "City",
    "Light",
    "famous",
    "for",
    "art",
    "fashion",
)
TOKENS = 24
REPEATS = 7
SETTLED = 1000  # milliseconds in which a new tab has come up: it is the page that is timed


def made(rows: int) -> Results:
    """A run with so many verdicts; the same number gives the same run."""
    chance = random.Random(rows)
    answers: list[tuple[str, Completion]] = []
    records = tuple(_verdicts(rows, chance, answers))
    pinned = [record for record in records if record.expectation == "pinned" and record.outcome == "failed"]
    return Results(
        records=records,
        completions=tuple(answers),
        failures=(),
        facts=tuple(TargetFacts(name, device="cpu", dtype="float32", attention="sdpa") for name in TARGETS),
        counts={"asked": rows, "distinct": rows, "generated": rows},
        suites=({"name": "made-up", "file": "suites/made-up.yaml", "sha256": "ab12" * 16},),
        started="2026-01-02T03:04:05+00:00",
        seconds=4321.0,
        environment={"python": "3.11", "libraries": {"torch": "2.13.0", "transformers": "5.23.0"}},
        command="harness run suites/made-up.yaml",
        targets=tuple(Target(name, "smollm2", Model(path="somewhere"), name.split("-")[1]) for name in TARGETS),
        pins={record.check: _pin(record) for record in pinned},
        texts={name: {number: f" {word}" for number, word in enumerate(WORDS)} for name in TARGETS},
    )


def _verdicts(rows: int, chance: random.Random, answers: list[tuple[str, Completion]]) -> Iterator[Record]:
    columns = [(test, target) for test in TESTS for target in TARGETS]
    steps = _steps(chance)
    for row in range(rows):
        test, target = columns[row % len(columns)]
        prompt = f"prompt-{row // len(columns):04}"
        request = _request(f"{prompt} {test}")
        text = _words(chance, chance.randint(40, 60))
        failed = chance.random() < 1 / 16
        ids = _ids(request.prompt.last, chance.randrange(1, TOKENS) if failed else TOKENS)
        tokens = tuple(f" {WORDS[number]}" for number in ids)
        answers.append((target, Completion(request, request.prompt.last, (1, 2), ids, tokens, text, "length", steps)))
        yield Record(
            check=f"suites/made-up.yaml::{target}::{test}[{prompt}]",
            suite="made-up",
            file="suites/made-up.yaml",
            line=10 + row % len(columns),
            test=test,
            target=target,
            model="smollm2",
            quantization=target.split("-")[1],
            prompt=prompt,
            generation="greedy",
            expectation=TESTS[test],
            verdict=_verdict(failed, chance),
            requests=(request.id,),
            text=text,
            new_tokens=TOKENS + row % 40,
            finish="length",
            seconds=round(chance.uniform(0.1, 9), 3),
        )


@cache
def _request(prompt: str) -> Request:
    return Request(Text(prompt), GREEDY)


def _ids(prompt: str, right: int = TOKENS) -> tuple[int, ...]:
    """What is generated for a prompt; another token stands where the first so many are right."""
    chance = random.Random(prompt)
    ids = [chance.randrange(len(WORDS)) for _ in range(TOKENS)]
    ids[right : right + 1] = [(one + 1) % len(WORDS) for one in ids[right : right + 1]]
    return tuple(ids)


def _verdict(failed: bool, chance: random.Random) -> Verdict:
    if not failed:
        return Verdict("passed", "as expected", {"margin": round(chance.random(), 3)})
    reason = f"differs at token {chance.randint(1, TOKENS)}: margin {chance.random():.2f} nat"
    return Verdict(
        "failed", reason, {"kl": chance.random()}, (f"expected: {_words(chance, 9)}", f"got: {_words(chance, 9)}")
    )


def _steps(chance: random.Random) -> tuple[Step, ...]:
    likely = tuple(range(10))
    falling = tuple(-0.1 - number for number in likely)
    return tuple(Step(-chance.expovariate(1), likely, falling, 20.0) for _ in range(TOKENS))


def _pin(record: Record) -> Pin:
    ids = _ids(f"{record.prompt} {record.test}")
    text = " ".join(WORDS[number] for number in ids)
    return Pin(record.prompt, "greedy", "ab12", (1, 2), ids, "length", text, _steps(random.Random(record.check)))


def _words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


class Took(NamedTuple):
    """Milliseconds."""

    wall: float  # as the page itself has measured it
    own: float  # of a processor, by the page's main thread: the same on a busy machine


def opening_times(browser: Browser, file: Path, repeats: int = REPEATS) -> dict[str, list[Took]]:
    """From the start of loading to the first rows on the screen, and to a page that is whole and answers.

    Each time in a new profile, in a tab that is up. The processor's time is that of the whole page in both.
    """
    times: dict[str, list[Took]] = {"rows": [], "ready": []}
    for _ in range(repeats):
        with watched(browser) as (page, _):
            page.wait_for_timeout(SETTLED)
            clock = _clock(page)
            opened(page, file)
            own = clock()
            for mark, taken in times.items():
                taken.append(Took(page.evaluate(f"performance.getEntriesByName('harness:{mark}')[0].startTime"), own))
    return times


def filter_times(page: Page, repeats: int = REPEATS) -> list[Took]:
    """From a typed filter over all rows to the frame that shows what it left."""
    page.select_option("#filter-outcome", "")
    words = [f"{word} {other}" for word, other in pairwise(WORDS)]
    return _measured(page, "filter", [partial(page.fill, "#filter-text", word) for word in words[:repeats]])


def sort_times(page: Page, repeats: int = REPEATS) -> list[Took]:
    """From a click on a header to the frame that shows all rows in that order."""
    page.fill("#filter-text", "")
    page.select_option("#filter-outcome", "")
    columns = ("test", "seconds", "prompt", "text", "seconds", "prompt", "test")
    headers = [f"#rows button[data-sort='{column}']" for column in columns]
    return _measured(page, "sort", [partial(page.click, header) for header in headers[:repeats]])


def _measured(page: Page, what: str, acts: Sequence[Callable[[], None]]) -> list[Took]:
    clock, name = _clock(page), f"harness:{what}"
    times = []
    for act in acts:
        page.wait_for_timeout(150)  # what went before is over
        page.evaluate("name => performance.clearMeasures(name)", name)
        before = clock()
        act()
        until(page, "name => performance.getEntriesByName(name).length > 0", name)
        own = clock() - before
        times.append(Took(page.evaluate("name => performance.getEntriesByName(name).at(-1).duration", name), own))
    return times


def _clock(page: Page) -> Callable[[], float]:
    """Tells the processor's time of the page's main thread so far."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def clock() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    return clock


def main(counts: Sequence[int]) -> None:
    print(f"\n## Reports in a browser ({datetime.now(UTC):%Y-%m-%d})\n")
    print(
        "`python benchmarks/report.py`: made-up results, opened from disk. Milliseconds: the median of 7, in brackets"
    )
    print("the best, and the least that the page's main thread took of a processor. Build: of a processor, too.\n")
    print("| verdicts | build, s | file, kB | first rows | whole | filter | sort | elements |")
    print("|---|---|---|---|---|---|---|---|")
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        for count in counts:
            results = made(count)
            began = time.process_time()
            html = render(results)
            built = time.process_time() - began
            file = Path(folder, f"{count}.html")
            file.write_text(html, encoding="utf-8")
            opening = opening_times(browser, file)
            with watched(browser) as (page, _):
                opened(page, file)
                times = (*opening.values(), filter_times(page), sort_times(page))
                elements = page.evaluate("document.getElementsByTagName('*').length")
            cells = " | ".join(_told(one) for one in times)
            size = file.stat().st_size / 1000
            print(f"| {count:,} | {built:.2f} | {size:,.0f} | {cells} | {elements:,} |", flush=True)


def _told(times: Sequence[Took]) -> str:
    walls = [one.wall for one in times]
    return f"{statistics.median(walls):.0f} ({min(walls):.0f}; {min(one.own for one in times):.0f})"


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [10_000, 100_000])
