"""How soon a large run is on the screen, in time of the processor: what a clock shows is the machine's, too.

`python benchmarks/report.py` shows both.
"""

import re

import pytest
from browser import opened, watched
from report import filter_times, opening_times, sort_times

pytestmark = pytest.mark.browser


def least(times):
    """Milliseconds."""
    return min(one.own for one in times)


def test_ten_thousand_rows_are_painted_in_half_a_second(browser, ten_thousand):
    assert least(opening_times(browser, ten_thousand)["ready"]) < 500


def test_the_first_rows_stand_there_before_the_rest_is_read(visit, run_file):
    early = """document.addEventListener("DOMContentLoaded", () => {
        window.early = [...document.querySelectorAll("#rows tbody td.prompt")].map((cell) => cell.textContent);
    })"""
    page = visit(run_file, prepare=lambda page: page.add_init_script(early))
    cells = "[...document.querySelectorAll('#rows tbody td.prompt')].map((cell) => cell.textContent)"
    assert page.evaluate("window.early") == page.evaluate(cells) != []


def test_ten_thousand_rows_are_filtered_and_sorted_in_a_tenth_of_a_second(browser, ten_thousand):
    with watched(browser) as (page, _):
        opened(page, ten_thousand)
        assert least(filter_times(page)) < 100
        assert least(sort_times(page)) < 100


def test_only_rows_that_are_seen_are_elements(visit, ten_thousand):
    page = visit(ten_thousand, "outcome=")
    assert page.get_attribute("#rows", "aria-rowcount") in ("10000", "10001")
    assert page.evaluate("document.getElementsByTagName('*').length") < 5_000


def test_a_hundred_thousand_rows_open_on_what_failed(visit, hundred_thousand):
    page = visit(hundred_thousand)
    shown, total = re.findall(r"[\d,]+", page.locator("#shown").inner_text())[:2]
    assert total == "100,000"
    assert 5_000 < int(shown.replace(",", "")) <= 20_000
    assert "results.parquet" in page.locator("#results").inner_text()
    assert page.evaluate("performance.getEntriesByName('harness:ready')[0].startTime") < 5_000
    page.locator("#matrix td").first.wait_for()  # counts all 100,000
    assert hundred_thousand.stat().st_size < 20_000_000
