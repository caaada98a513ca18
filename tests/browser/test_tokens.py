"""The tokens of two sides, one above the other, and what each side held for likely."""

import re
from urllib.parse import urlencode

import pytest

pytestmark = pytest.mark.browser
ROW = "#rows tbody tr[aria-rowindex]"
TOKEN = "#detail .token-view button.token"


@pytest.fixture
def pinned(visit, run, run_file):
    """The page at a pinned output that changed, and the record of it."""
    record = next(one for one in run.records if one.check in run.pins)
    page = visit(run_file, urlencode({"outcome": "failed", "row": f"{record.check}|{record.expectation}"}))
    page.locator("#detail .token-view").wait_for()
    return page, record


@pytest.fixture
def sides(pinned, run):
    """What was pinned and what came, as token ids."""
    _, record = pinned
    answers = dict(((target, done.request.id), done.ids) for target, done in run.completions)
    return run.pins[record.check].ids, answers[record.target, record.requests[0]]


def likely(page):
    """What is told of the tokens that are looked at."""
    return page.locator("#detail .token-view [aria-live]").inner_text()


def test_what_was_pinned_stands_above_what_came_now(pinned, run, sides):
    page, record = pinned
    shown = [
        [cell.replace("·", " ") for cell in page.locator(f"{TOKEN}[data-side='{side}'] .token-text").all_inner_texts()]
        for side in range(page.locator("#detail .token-sides li").count())
    ]
    pin, now = ([run.texts[record.target][number] for number in ids] for ids in sides)
    assert shown[0] == pin
    assert now in shown[1:]


def test_it_opens_where_the_sides_part(pinned, sides):
    page, _ = pinned
    parting = next(place for place, (pin, now) in enumerate(zip(*sides, strict=True)) if pin != now)
    assert re.search(rf"token {parting}\b", page.locator("#detail .token-view .token-divergence").inner_text())
    told = likely(page)
    assert re.search(rf"token {parting}\b.*\bid {sides[0][parting]}\b", told)
    assert re.search(rf"token {parting}\b.*\bid {sides[1][parting]}\b", told)


def test_hover_and_focus_tell_what_was_likely_on_both_sides(pinned):
    page, _ = pinned
    before = likely(page)
    last = page.locator(f"{TOKEN}[data-side='0']").last
    last.hover()
    hovered = likely(page)
    assert hovered != before
    assert hovered.count("%") >= 10  # the five likeliest of either side
    page.locator(f"{TOKEN}[data-side='1']").nth(3).focus()
    assert likely(page) not in (before, hovered)
    last.focus()
    assert likely(page) == hovered


def test_tokens_are_walked_with_arrows_and_each_side_is_one_stop(pinned):
    page, _ = pinned
    assert page.locator(f"{TOKEN}[data-side='0'][tabindex='0']").count() == 1
    page.locator(f"{TOKEN}[data-side='0']").first.focus()
    stops = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        stops.append(page.evaluate("['side', 'column'].map(name => Number(document.activeElement.dataset[name]))"))
    right, further, left, below, above = stops
    assert right[0] == further[0] == left[0] == above[0] == 0
    assert below[0] == 1
    assert 0 < right[1] < further[1]
    assert left == right
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("End")
    assert page.evaluate("Number(document.activeElement.dataset.column)") > further[1]
    page.keyboard.press("Escape")
    page.locator("#detail").wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_how_likely_is_one_scale_of_lightness(pinned, scheme):
    page, _ = pinned
    page.emulate_media(color_scheme=scheme)
    shades = page.evaluate(
        """() => {
            const place = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            place.fillStyle = getComputedStyle(document.body).backgroundColor;
            place.fillRect(0, 0, 1, 1);
            return [...document.querySelectorAll("#detail .token-key [class*='token-shade-']")].map((one) => {
                place.fillStyle = getComputedStyle(one).backgroundColor;
                place.fillRect(0, 0, 1, 1);
                const [red, green, blue] = place.getImageData(0, 0, 1, 1).data;
                return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
            });
        }"""
    )
    assert len(shades) >= 4
    assert shades in (sorted(shades), sorted(shades, reverse=True))
    assert len(set(shades)) == len(shades)


def test_the_tokens_of_a_real_comparison_are_shown(visit, comparison_file):
    page = visit(comparison_file, "outcome=failed")
    page.locator(ROW).filter(has_text="knows-capitals").first.click()
    page.locator(TOKEN).first.wait_for()
    assert "<|im_end|>" in page.locator("#detail .token-lines").inner_text()  # special, and seen
    assert page.locator("#detail .token-special").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_a_phone_shows_tokens_without_scrolling_sideways(visit, comparison_file):
    page = visit(comparison_file, "outcome=failed", viewport={"width": 360, "height": 740})
    page.locator(ROW).first.click()
    page.locator(TOKEN).first.wait_for()
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1200, "height": 740})
    page.wait_for_timeout(200)
    assert page.locator(TOKEN).first.is_visible()
