"""What a model wrote is shown as it is and does nothing."""

import re
from dataclasses import replace

import pytest
from browser import until, watched

from harness.record import Verdict

pytestmark = pytest.mark.browser
ROW = "#rows tbody tr[aria-rowindex]"


@pytest.fixture(scope="module")
def foreign_file(written, with_texts, foreign):
    return written(with_texts(list(foreign)))


def unharmed(page):
    return page.evaluate("window.harmed === undefined && document.querySelectorAll('img, iframe').length === 0")


def executable(page):
    """How many scripts are not data."""
    return page.locator("script:not([type='application/json'])").count()


def test_it_does_nothing_and_is_seen(visit, foreign, foreign_file):
    page = visit(foreign_file)
    assert unharmed(page)
    assert executable(page) == 1
    for place, seen in enumerate(foreign.values()):
        page.select_option("#filter-test", f"t{place}")
        page.locator(ROW).first.click()
        page.locator("#detail").wait_for()
        said = page.locator("#detail").inner_text()
        assert f"reason {seen}" in said
        assert f"got: {seen}" in said
        assert unharmed(page)
        page.keyboard.press("Escape")


def test_it_does_nothing_on_a_page_without_script(browser, foreign, foreign_file):
    with watched(browser, java_script_enabled=False) as (page, watch):
        page.goto(foreign_file.as_uri())
        said = page.locator("#failures").inner_text()
        assert all(f"reason {seen}" in said for seen in foreign.values())
        assert executable(page) == 1
        assert watch.requests == []


def test_nothing_that_acts_is_in_the_page(foreign_file):
    text = foreign_file.read_bytes().decode("utf-8")
    assert not re.search(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )


def test_a_row_is_found_by_what_it_shows(visit, foreign_file):
    page = visit(foreign_file)
    page.fill("#filter-text", r"\x1b[31mred")
    until(page, "document.querySelector('#shown').textContent.trim().startsWith('1 of')")


def test_the_address_of_such_a_row_leads_back_to_it(visit, foreign, foreign_file):
    page = visit(foreign_file)
    page.select_option("#filter-test", "t2")
    page.locator(ROW).first.click()
    page.wait_for_timeout(200)
    again = visit(foreign_file, page.evaluate("location.hash.slice(1)"))
    again.locator("#detail").wait_for()
    assert "</script>" in again.locator("#detail").inner_text()
    assert unharmed(again)


@pytest.mark.parametrize(
    "long", ["x" * 1_000_000, "many words " * 90_000, "line\n" * 200_000], ids=["one-word", "words", "lines"]
)
def test_a_megabyte_is_shown_in_part_and_the_rest_is_named(visit, written, run, long):
    record = replace(run.records[0], text=long, verdict=Verdict("failed", long, {}, (long,)), xfail="")
    target, done = run.completions[0]
    changed = replace(
        run, records=(record, *run.records[1:]), completions=((target, replace(done, text=long)), *run.completions[1:])
    )
    file = written(changed)
    assert file.stat().st_size < 1_500_000
    page = visit(file, f"test={record.test}&target={record.target}&q={record.prompt}")
    page.locator(ROW).first.click()
    page.locator("#detail").wait_for()
    said = page.locator("#detail").inner_text()
    assert long[:300].strip() in said
    assert re.search(r"more characters.*(results|tokens)\.parquet", said)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
