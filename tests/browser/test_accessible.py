"""What axe-core finds, in both colour schemes, on what a person comes across; and that both schemes are real."""

from itertools import pairwise

import pytest

pytestmark = pytest.mark.browser
ROW = "#rows tbody tr[aria-rowindex]"
PAGES = ["run_file", "comparison_file"]
SCHEMES = ["light", "dark"]


def luminance(page):
    """Of the page's background: 0 is black, 1 white."""
    channels = page.evaluate(
        """() => {
            const place = document.createElement("canvas").getContext("2d");
            place.fillStyle = getComputedStyle(document.body).backgroundColor;
            place.fillRect(0, 0, 1, 1);
            return [...place.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
    )
    return sum(channels) / 3 / 255


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", PAGES)
def test_nothing_serious_is_found(visit, request, serious, kind, scheme):
    page = visit(request.getfixturevalue(kind), "outcome=", color_scheme=scheme)
    assert serious(page) == []
    page.locator(ROW).first.click()
    page.locator("#detail").wait_for()
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_timeout(200)
    assert serious(page) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_serious_is_found_on_a_phone(visit, run_file, serious, scheme):
    page = visit(run_file, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert serious(page) == []


def test_a_serious_fault_would_be_found(visit, run_file, serious):
    page = visit(run_file)
    page.evaluate("document.querySelector('#filter-test').removeAttribute('aria-label')")
    page.evaluate(
        "document.querySelectorAll('label').forEach(one => one.replaceWith(one.querySelector('select,input') ?? ''))"
    )
    page.evaluate("document.querySelector('header h1').style.color = '#888'")
    page.evaluate("document.querySelector('header').style.background = '#777'")
    found = "\n".join(serious(page))
    assert "accessible name" in found
    assert "contrast" in found


def test_both_schemes_are_real(visit, run_file):
    assert luminance(visit(run_file, color_scheme="light")) > 0.9
    assert luminance(visit(run_file, color_scheme="dark")) < 0.2


def test_colours_that_the_system_forces_leave_everything_readable(visit, run_file):
    page = visit(run_file, forced_colors="active")
    assert page.locator(ROW).first.is_visible()


def test_landmarks_and_headings_lead_through_the_page(visit, comparison_file):
    page = visit(comparison_file)
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("navigation").count() >= 1
    assert page.locator("h1").count() == 1
    for section in page.locator("main section[id]").all():
        heading = page.locator(f"#{section.get_attribute('aria-labelledby')}")
        assert heading.inner_text().strip()
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map(one => Number(one.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for link in page.get_by_role("navigation").first.locator("a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_charts_have_words_for_who_cannot_see_them(visit, comparison_file):
    page = visit(comparison_file)
    charts = page.locator("main svg")
    assert charts.count() >= 1
    for chart in charts.all():
        hidden = chart.get_attribute("aria-hidden") == "true"
        assert hidden or chart.get_attribute("role") == "img" or chart.locator("xpath=ancestor::*[@role='img']").count()
        named = (
            chart.get_attribute("aria-label")
            or chart.get_attribute("aria-labelledby")
            or chart.locator("title").count()
        )
        assert hidden or named
