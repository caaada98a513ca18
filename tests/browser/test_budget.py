"""How soon a large run is on the screen. The best of several counts: a busy machine makes some of them slow.

Where others take the machine all the while, what the page's main thread took of a processor is judged in its place.
"""

import re
import time

import pytest
from browser import opened, watched
from report import filter_times, first_paint, sort_times

pytestmark = pytest.mark.browser


def is_busy():
    """Whether this process itself gets less than most of a processor just now."""
    wall, own = time.perf_counter(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    return time.perf_counter() - wall > 1.1 * 0.3


def best(budget, measure, *arguments):
    """Milliseconds; of up to 20 tries, as many as it takes to keep the budget."""
    times, busy = [], False
    for _ in range(5):
        busy = busy or is_busy()
        times += measure(*arguments, repeats=4)
        if min(one.wall for one in times) < budget:
            break
    return min(one.own if busy and one.wall >= budget else one.wall for one in times)


def test_ten_thousand_rows_are_painted_in_half_a_second(browser, ten_thousand):
    assert best(500, first_paint, browser, ten_thousand) < 500


def test_ten_thousand_rows_are_filtered_and_sorted_in_a_tenth_of_a_second(browser, ten_thousand):
    with watched(browser) as (page, _):
        opened(page, ten_thousand)
        assert best(100, filter_times, page) < 100
        assert best(100, sort_times, page) < 100


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
