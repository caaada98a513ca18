"""A real browser for reports. Every page that a test opens is watched: a complaint or a request fails the test."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from browser import AXE, chromium, missing, opened, watched
from report import made

from harness.record import Record, Verdict
from harness.reports.html import render
from harness.store import read

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "reports" / "example"
REQUIRED = os.environ.get("HARNESS_BROWSER") == "required"  # `make browser` sets it: nothing may be skipped there
VERDICTS = 320


@pytest.fixture(scope="session")
def browser():
    if reason := missing():
        (pytest.fail if REQUIRED else pytest.skip)(reason)
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser):
    """visit(file, state, **options): its page, once it answers; options are those of the context."""
    watches = []
    with ExitStack() as stack:

        def visit(file, state="", prepare=None, **options):
            page, watch = stack.enter_context(watched(browser, **options))
            watches.append(watch)
            page.set_default_timeout(20_000)
            if prepare:
                prepare(page)
            opened(page, file, state)
            return page

        yield visit
    assert [watch.complaints for watch in watches if watch.complaints] == []
    assert [watch.requests for watch in watches if watch.requests] == []


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """written(results): the file of their report."""
    folder = tmp_path_factory.mktemp("reports")

    def written(results):
        file = folder / f"{len(list(folder.iterdir()))}.html"
        file.write_text(render(results), encoding="utf-8")
        return file

    return written


@pytest.fixture(scope="session")
def run():
    """A run in which every outcome occurs."""
    results = made(VERDICTS)
    passed = [place for place, record in enumerate(results.records) if record.outcome == "passed"]
    changes = (
        {"verdict": Verdict("error", "out of memory", details=("asked for 3 GB",))},
        {"verdict": Verdict("skipped", "needs sampling")},
        {"verdict": Verdict("failed", "too long"), "xfail": "rambles on"},
        {"verdict": Verdict("passed", "short"), "xfail": "rambles on"},
    )
    records = list(results.records)
    for place, change in zip(passed, changes, strict=False):
        records[place] = replace(records[place], **change)
    return replace(results, records=tuple(records))


@pytest.fixture(scope="session")
def run_file(written, run):
    return written(run)


@pytest.fixture(scope="session")
def comparison_file(written):
    """The page of the shipped example: a comparison, measured on a real model."""
    return written(read(EXAMPLE))


@pytest.fixture(scope="session")
def all_passed_file(written, run):
    return written(replace(run, records=tuple(record for record in run.records if record.outcome == "passed"), pins={}))


@pytest.fixture(scope="session")
def ten_thousand(written):
    return written(made(10_000))


@pytest.fixture(scope="session")
def hundred_thousand(written):
    return written(made(100_000))


@pytest.fixture
def serious():
    """serious(page): what axe-core finds of serious or critical faults, in sentences."""
    source = AXE.read_text(encoding="utf-8")

    def serious(page):
        page.evaluate(f"{source};0")
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{fault['impact']}: {fault['help']}\n{node['target']}\n{node['failureSummary']}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"][:4]
        ]

    return serious


@pytest.fixture(scope="session")
def foreign():
    """What models write that would do something, and how a page shows it."""
    return {
        "<script>window.harmed = 1</script>": "<script>window.harmed = 1</script>",
        "<img src=x onerror='window.harmed = 1'>": "<img src=x onerror='window.harmed = 1'>",
        "</script><script>window.harmed = 1</script>": "</script><script>window.harmed = 1</script>",
        "</title></style><!--": "</title></style><!--",
        "javascript:window.harmed=1": "javascript:window.harmed=1",
        "{{ 7 * 7 }}${7 * 7}": "{{ 7 * 7 }}${7 * 7}",
        "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
        "abc\u202egnp.exe": r"abc\u202egnp.exe",
        "zero\u200bwidth": r"zero\u200bwidth",
        "\x00\x07\x9b": r"\x00\x07\x9b",
        "half \ud83d": r"half \ud83d",
        "line\u2028separator": r"line\u2028separator",
        "__proto__": "__proto__",
    }


@pytest.fixture(scope="session")
def with_texts(run):
    """with_texts(texts): the run with a failure for each, which says so everywhere a model or a suite can."""

    def saying(place: int, text: str) -> Record:
        record = run.records[place]
        verdict = Verdict("failed", f"reason {text}", {"text": text}, (f"expected: {text}", f"got: {text}"))
        return replace(record, prompt=f"foreign {text}", text=text, verdict=verdict, test=f"t{place}", xfail="")

    def with_texts(texts):
        return replace(run, records=(*(saying(place, text) for place, text in enumerate(texts)), *run.records[50:]))

    return with_texts
