"""What a person does with a report: opens it, filters, sorts, walks it by keyboard, follows a failure, copies."""

import re
from collections import Counter
from dataclasses import replace

import pytest
from browser import missing, until, watched

pytestmark = pytest.mark.browser
ROW = "#rows tbody tr[aria-rowindex]"
FOCUSED = "document.activeElement"


def shown(page):
    """How many rows are shown, and of how many."""
    match = re.fullmatch(r"([\d,]+) of ([\d,]+).*", page.locator("#shown").inner_text().strip(), re.S)
    assert match, page.locator("#shown").inner_text()
    return tuple(int(count.replace(",", "")) for count in match.groups())


def state(page):
    return page.evaluate("decodeURIComponent(location.hash.replaceAll('+', ' '))")


def is_shown(page, count):
    until(page, "count => document.querySelector('#shown').textContent.trim().startsWith(count + ' of ')", f"{count:,}")


def cells(page, column):
    """What the rows on the screen say in one column."""
    place = page.evaluate(
        "name => document.querySelector(`#rows [data-sort='${name}']`).closest('th').cellIndex", column
    )
    return page.evaluate(
        "([row, place]) => [...document.querySelectorAll(row)].map(one => one.cells[place].textContent.trim())",
        [ROW, place],
    )


def focused_row(page):
    return page.evaluate(f"Number({FOCUSED}.closest('tr')?.getAttribute('aria-rowindex') ?? 0)")


def walked_to(page, selector):
    """Press Tab until the focus is on such an element; every stop on the way is in sight and marked."""
    for _ in range(300):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """selector => {
                const at = document.activeElement, style = getComputedStyle(at);
                const box = [...at.getClientRects()].find((one) => one.width) ?? at.getBoundingClientRect();
                const middle = Math.min(Math.max((box.top + box.bottom) / 2, box.top + 2), innerHeight - 1);
                const over = document.elementFromPoint(Math.max(box.left, 0) + 2, middle);
                return {
                    there: at.matches(selector), name: at.outerHTML.slice(0, 120), page: at === document.body,
                    marked: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1,
                    seen: box.bottom > 0 && box.top < innerHeight && box.width > 0,
                    covered: over && !at.contains(over) && !over.contains(at) ? over.outerHTML.slice(0, 80) : "",
                };
            }""",
            selector,
        )
        assert not stop["page"], f"the walk left the page before {selector}"
        assert stop["marked"], f"no focus is to be seen on {stop['name']}"
        assert stop["seen"], f"the focus is out of sight on {stop['name']}"
        assert not stop["covered"], f"{stop['covered']} lies over the focus on {stop['name']}"
        if stop["there"]:
            return
    pytest.fail(f"{selector} is not reached by Tab")


def first_of(run, outcome, expectation=None):
    return next(
        record
        for record in run.records
        if record.outcome == outcome and (expectation is None or record.expectation == expectation)
    )


def counted(run, **fields):
    return sum(all(getattr(record, name) == value for name, value in fields.items()) for record in run.records)


def test_a_page_that_complains_or_asks_for_files_is_noticed(browser, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<meta http-equiv=Content-Security-Policy content=\"script-src 'none'\"><script>1</script>"
        "<img src=beside.png><img src=https://example.org/far.png>"
    )
    with watched(browser) as (page, watch):
        page.goto((tmp_path / "bad.html").as_uri())
        assert any("Content Security Policy" in complaint for complaint in watch.complaints)
        assert {request.rpartition("/")[2] for request in watch.requests} == {"beside.png", "far.png"}


def test_the_page_loads_nothing_and_says_so_to_the_browser(visit, run_file):
    page = visit(run_file)
    policy = page.get_attribute("meta[http-equiv='Content-Security-Policy']", "content")
    sources = dict(part.strip().split(" ", 1) for part in policy.split(";") if part.strip())
    assert sources.pop("default-src") == "'none'"
    assert sources.pop("base-uri") == sources.pop("form-action") == "'none'"
    assert sources.keys() == {"script-src", "style-src"}
    assert all(re.fullmatch(r"'sha256-[\w+/=]+'", source) for source in sources.values())
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_it_opens_on_what_failed(visit, run, run_file):
    page = visit(run_file)
    assert page.evaluate("scrollY") == 0
    assert "FAILED" in page.locator("header h1").inner_text()
    assert page.input_value("#filter-outcome") == "failed"
    assert shown(page) == (counted(run, outcome="failed"), len(run.records))
    assert {re.sub(r"\W", "", cell) for cell in cells(page, "outcome")} == {"failed"}
    assert set(cells(page, "text")) <= {record.text[:200].strip() for record in run.records}  # they came after the rows
    places = page.evaluate(
        "['failures', 'matrix', 'results'].map(id => document.getElementById(id).getBoundingClientRect().top)"
    )
    assert places == sorted(places)
    assert page.locator("#failures").get_by_text(first_of(run, "failed").verdict.reason).first.is_visible()


def test_where_all_passed_it_opens_on_everything(visit, run, all_passed_file):
    page = visit(all_passed_file)
    count = counted(run, outcome="passed")
    assert shown(page) == (count, count)
    assert page.input_value("#filter-outcome") == ""


@pytest.mark.parametrize("outcome", ["failed", "error", "xfailed", "xpassed", "passed", "skipped"])
def test_rows_of_one_outcome(visit, run, run_file, outcome):
    page = visit(run_file)
    page.select_option("#filter-outcome", outcome)
    is_shown(page, counted(run, outcome=outcome))
    assert all(re.search(rf"\b{outcome}\b", cell) for cell in cells(page, "outcome"))


def test_filters_together_leave_what_matches_all_of_them(visit, run, run_file):
    page = visit(run_file)
    one = first_of(run, "passed")
    page.select_option("#filter-outcome", "")
    is_shown(page, len(run.records))
    page.select_option("#filter-test", one.test)
    is_shown(page, counted(run, test=one.test))
    page.select_option("#filter-target", one.target)
    is_shown(page, counted(run, test=one.test, target=one.target))
    page.select_option("#filter-expectation", one.expectation)
    is_shown(page, counted(run, test=one.test, target=one.target, expectation=one.expectation))
    page.fill("#filter-text", one.prompt.upper())
    is_shown(page, 1)
    page.fill("#filter-text", "nothing says this")
    is_shown(page, 0)
    page.fill("#filter-text", "")
    is_shown(page, counted(run, test=one.test, target=one.target))


@pytest.mark.parametrize("column", ["seconds", "new_tokens"])
def test_numbers_are_sorted_as_numbers_both_ways(visit, run, run_file, column):
    page = visit(run_file, "outcome=")
    header = page.locator(f"#rows button[data-sort='{column}']")
    values = sorted(getattr(record, column) for record in run.records)
    orders = {}
    for _ in range(2):
        header.click()
        page.wait_for_timeout(200)
        order = header.locator("xpath=ancestor::th").get_attribute("aria-sort")
        orders[order] = [float(cell.replace(",", "").split()[0]) for cell in cells(page, column)[:8]]
    assert orders.keys() == {"ascending", "descending"}
    assert orders["ascending"] == pytest.approx(values[:8], rel=0.05)
    assert orders["descending"] == pytest.approx(values[:-9:-1], rel=0.05)
    assert page.locator("#rows [aria-sort='ascending'], #rows [aria-sort='descending']").count() == 1


def test_words_are_sorted_as_words(visit, run, run_file):
    page = visit(run_file, "outcome=")
    page.click("#rows button[data-sort='prompt']")
    page.wait_for_timeout(200)
    assert cells(page, "prompt")[:8] == sorted(record.prompt for record in run.records)[:8]


def test_filters_sort_and_row_outlive_a_reload(visit, run, run_file):
    page = visit(run_file)
    one = first_of(run, "failed")
    page.select_option("#filter-test", one.test)
    page.fill("#filter-text", "prompt")
    page.click("#rows button[data-sort='seconds']")
    page.click("#rows button[data-sort='seconds']")
    page.locator(ROW).filter(has_text=one.target).first.click()
    page.locator("#detail").wait_for()
    page.wait_for_timeout(300)
    told = state(page)
    assert "outcome=failed" in told
    assert f"test={one.test}" in told
    assert "q=prompt" in told
    assert "sort=-seconds" in told
    assert f"::{one.target}::{one.test}[" in told
    before = (shown(page), cells(page, "seconds"), page.locator("#detail h3").inner_text())
    page.reload()
    until(page, "performance.getEntriesByName('harness:ready').length > 0")
    page.locator("#detail").wait_for()
    assert (shown(page), cells(page, "seconds"), page.locator("#detail h3").inner_text()) == before
    assert page.input_value("#filter-test") == one.test
    assert page.input_value("#filter-text") == "prompt"


def test_an_address_that_is_typed_into_an_open_page_is_followed(visit, run, run_file):
    page = visit(run_file)
    page.evaluate("location.hash = '#outcome=passed&target=smollm2-nf4'")
    is_shown(page, counted(run, outcome="passed", target="smollm2-nf4"))
    assert page.input_value("#filter-target") == "smollm2-nf4"


@pytest.mark.parametrize(
    "typed", ["outcome=eaten&test=none&sort=-nothing&row=gone", "%E0%A4%A&&==&q=%", "row=%3Cscript%3E"]
)
def test_an_address_that_means_nothing_does_no_harm(visit, run, run_file, typed):
    page = visit(run_file, typed)
    assert shown(page)[1] == len(run.records)
    page.select_option("#filter-outcome", "passed")
    page.fill("#filter-text", "")
    assert not page.locator("#detail").is_visible()


def test_a_cell_of_the_matrix_leads_to_its_rows(visit, run, run_file):
    page = visit(run_file)
    one = first_of(run, "failed")
    cell = page.locator("#matrix tr", has=page.get_by_role("rowheader", name=one.test, exact=True)).locator(
        f"td:nth-of-type({list(dict.fromkeys(r.target for r in run.records)).index(one.target) + 1})"
    )
    cell.locator("a, button").click()
    page.wait_for_timeout(300)
    assert page.input_value("#filter-test") == one.test
    assert page.input_value("#filter-target") == one.target
    wanted = counted(run, test=one.test, target=one.target, outcome=page.input_value("#filter-outcome") or "failed")
    assert shown(page)[0] in (wanted, counted(run, test=one.test, target=one.target))
    assert page.locator("#viewport").evaluate("one => one.getBoundingClientRect().top < innerHeight")


def test_a_row_leads_to_all_that_is_known_of_it(visit, run, run_file):
    page = visit(run_file)
    one = first_of(run, "failed", "pinned")
    page.select_option("#filter-expectation", "pinned")
    page.select_option("#filter-target", one.target)
    page.fill("#filter-text", one.prompt)
    is_shown(page, 1)
    page.locator(ROW).click()
    detail = page.get_by_role("region").and_(page.locator("#detail"))
    detail.wait_for()
    said = detail.inner_text()
    asked = next(done for _, done in run.completions if done.request.id == one.requests[0])
    for part in (
        one.check,
        one.verdict.reason,
        *one.verdict.details,
        one.text,
        asked.prompt_text,
        f'pytest "{one.check}"',
    ):
        assert re.sub(r"\s+", " ", part) in re.sub(r"\s+", " ", said)
    assert detail.get_attribute("aria-label") or detail.get_attribute("aria-labelledby")


def test_the_table_is_walked_by_keyboard(visit, run, run_file):
    page = visit(run_file, "outcome=")
    count = len(run.records)
    walked_to(page, ROW)
    first = focused_row(page)
    assert page.locator(f"{ROW}[tabindex='0']").count() == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert focused_row(page) == first + 1
    page.keyboard.press("PageDown")
    assert focused_row(page) > first + 3
    page.keyboard.press("End")
    page.wait_for_timeout(100)
    last = int(page.get_attribute("#rows", "aria-rowcount"))
    assert last in (count, count + 1)  # the header may be counted
    assert focused_row(page) == last
    page.keyboard.press("PageUp")
    page.wait_for_timeout(100)
    assert first < focused_row(page) < last - 3
    page.keyboard.press("Home")
    page.wait_for_timeout(100)
    assert focused_row(page) == first
    page.keyboard.press("ArrowUp")
    assert focused_row(page) == first
    assert page.evaluate(f"getComputedStyle({FOCUSED}).outlineStyle") != "none"
    box = page.evaluate(f"{FOCUSED}.getBoundingClientRect().toJSON()")
    assert 0 <= box["top"] < page.viewport_size["height"]


def test_enter_opens_a_row_and_escape_gives_the_focus_back(visit, run_file):
    page = visit(run_file)
    walked_to(page, ROW)
    page.keyboard.press("ArrowDown")
    row = focused_row(page)
    page.keyboard.press("Enter")
    page.locator("#detail").wait_for()
    assert page.evaluate(f"document.querySelector('#detail').contains({FOCUSED})")
    walked_to(page, "#detail button.copy")
    page.keyboard.press("Escape")
    page.locator("#detail").wait_for(state="hidden")
    assert focused_row(page) == row
    assert "row=" not in state(page)


def test_the_focus_stays_where_rows_change_below_it(visit, run, run_file):
    page = visit(run_file)
    walked_to(page, "#filter-text")
    page.keyboard.type("prompt-0003")
    is_shown(page, sum(one.outcome == "failed" and one.prompt == "prompt-0003" for one in run.records))
    assert page.evaluate(f"{FOCUSED}.id") == "filter-text"
    walked_to(page, "#rows button[data-sort='test']")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert page.evaluate(f"{FOCUSED}.dataset.sort") == "test"


def test_every_row_is_announced_with_its_place(visit, run, run_file):
    page = visit(run_file, "outcome=")
    table = page.get_by_role("table").and_(page.locator("#rows"))
    assert table.count() + page.get_by_role("grid").and_(page.locator("#rows")).count() == 1
    headers = page.locator("#rows thead th")
    assert headers.count() > 5
    assert all(header.get_attribute("scope") == "col" for header in headers.all())
    page.locator("#viewport").evaluate("one => one.scrollTo(0, one.scrollHeight)")
    last = page.get_attribute("#rows", "aria-rowcount")
    page.locator(f"#rows tr[aria-rowindex='{last}']").wait_for()
    places = [int(row.get_attribute("aria-rowindex")) for row in page.locator(ROW).all()]
    assert places == list(range(places[0], int(last) + 1))
    assert page.locator("#shown").get_attribute("aria-live") == "polite"


def test_scrolling_brings_every_row_once(visit, run, run_file):
    page = visit(run_file, "outcome=")
    seen = {}
    for _ in range(200):
        for row in page.evaluate(
            "row => [...document.querySelectorAll(row)].map(one => [one.ariaRowIndex, one.textContent])", ROW
        ):
            assert seen.setdefault(row[0], row[1]) == row[1]
        at_end = page.evaluate(
            "(() => { const one = document.querySelector('#viewport'); const top = one.scrollTop;"
            " one.scrollBy(0, one.clientHeight * 0.8); return one.scrollTop === top; })()"
        )
        page.wait_for_timeout(40)
        if at_end:
            break
    assert len(seen) == len(run.records)


def test_a_button_copies_what_reproduces_a_failure(visit, run, run_file):
    page = visit(run_file, permissions=["clipboard-read", "clipboard-write"])
    button = page.locator("#failures button.copy").first
    button.click()
    page.wait_for_timeout(200)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied in {f'pytest "{one.check}"' for one in run.records if one.outcome in ("failed", "error")}
    assert re.search("copied", button.inner_text() + page.locator("body").inner_text(), re.I)


def test_without_a_clipboard_the_command_is_there_to_copy_by_hand(visit, run, run_file):
    page = visit(
        run_file,
        prepare=lambda page: page.add_init_script(
            "Object.defineProperty(navigator, 'clipboard', {value: undefined}); document.execCommand = () => false;"
        ),
    )
    page.locator("#failures button.copy").first.click()
    page.wait_for_timeout(200)
    selected = page.evaluate("getSelection().toString()").strip()
    assert selected in {f'pytest "{one.check}"' for one in run.records if one.outcome in ("failed", "error")}


def test_back_leaves_the_page_and_not_the_last_filter(visit, run_file):
    page = visit(run_file)
    before = page.evaluate("history.length")
    for outcome in ("passed", "error", ""):
        page.select_option("#filter-outcome", outcome)
    assert page.evaluate("history.length") == before


@pytest.mark.parametrize("kind", ["run_file", "comparison_file"])
def test_a_phone_shows_it_without_scrolling_sideways(visit, request, kind):
    page = visit(request.getfixturevalue(kind), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.select_option("#filter-outcome", "")
    page.locator(ROW).first.tap()
    page.locator("#detail").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#detail").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


@pytest.mark.parametrize("kind", ["run_file", "comparison_file"])
def test_text_twice_as_large_is_still_read(visit, request, kind):
    page = visit(request.getfixturevalue(kind), viewport={"width": 640, "height": 900})
    page.add_init_script("addEventListener('DOMContentLoaded', () => document.documentElement.style.fontSize = '200%')")
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= 640


def test_without_script_it_tells_what_failed(browser, run, run_file):
    with watched(browser, java_script_enabled=False) as (page, watch):
        page.goto(run_file.as_uri())
        assert "FAILED" in page.locator("header h1").inner_text()
        assert page.locator("#failures").get_by_text(first_of(run, "failed").verdict.reason).first.is_visible()
        assert page.locator("#matrix table").get_by_text(first_of(run, "failed").test).is_visible()
        assert re.search("script", page.locator("noscript").first.inner_text(), re.I)
        assert watch.requests == []


def test_a_run_without_verdicts_opens(visit, written, run):
    page = visit(written(replace(run, records=(), completions=(), pins={}, complete=False)))
    assert shown(page) == (0, 0)
    assert "INCOMPLETE" in page.locator("header").inner_text()


def test_what_is_the_matter_is_told_where_the_browser_is_missing(monkeypatch):
    monkeypatch.setattr("browser.shutil.which", lambda name: None)
    assert missing() == "Chromium is not installed: apt-get install chromium"


def test_outcomes_are_told_by_word_and_symbol(visit, run, run_file):
    page = visit(run_file, "outcome=")
    page.click("#rows button[data-sort='outcome']")
    counts = Counter(record.outcome for record in run.records)
    for outcome in counts:
        page.select_option("#filter-outcome", outcome)
        is_shown(page, counts[outcome])
        cell = cells(page, "outcome")[0]
        assert re.fullmatch(rf"\S {outcome}", cell), cell
