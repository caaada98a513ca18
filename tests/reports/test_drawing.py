"""Differences fitted to a width, by hand: every cell is counted."""

import pytest
from rich.cells import cell_len

from harness.reports.drawing import Drawing, found, plain

LINES = (
    "alone   … 'a' '東京' ' is' ' known' ' as' <eos>",
    "padded  … 'a' '東京' ' is' ' also' ' so' ' on' …",
    "                           ^ token 9, margin 0.5 nats",
)


def fitted(width, lines=LINES):
    return plain(lines, width)


def test_what_fits_is_left_as_it_was_drawn():
    assert fitted(60) == list(LINES)


def test_what_does_not_fit_is_cut_on_both_sides_of_the_difference():
    # 8 cells for the names, 16 on each side of the difference, one of them for what was cut off.
    assert fitted(40) == [
        "alone   …' '東京' ' is' ' known' ' as' …",
        "padded  …' '東京' ' is' ' also' ' so' '…",
        "                        ^",
        "token 9, margin 0.5 nats",
    ]


def test_what_the_caret_stands_for_goes_to_the_side_that_has_room():
    narrow = (*LINES[:2], LINES[2].replace("9, margin 0.5 nats", "9"))
    assert fitted(40, narrow)[2:] == ["                        ^ token 9"]
    assert fitted(24, narrow)[2:] == ["        token 9 ^"]


@pytest.mark.parametrize("width", range(20, 61))
def test_every_line_fits_and_the_caret_stays_below_the_difference(width):
    first, second, *marks = fitted(width)
    assert all(cell_len(line) <= max(width, len("token 9, margin 0.5 nats")) for line in (first, second, *marks))
    column = marks[0].index("^")
    after = {line[len(_up_to(line, column)) :][:2] for line in (first, second)}
    assert after == {"' "}, "the tokens that differ begin in the column of the caret"
    assert "token 9, margin 0.5 nats" in "".join(marks)


def _up_to(line, column):
    return next(line[:end] for end in range(len(line) + 1) if cell_len(line[:end]) == column)


def test_a_short_rest_leaves_the_room_to_what_came_before():
    lines = ("old  'aaaa' 'bbbb' 'cccc' 'x' <eos>", "new  'aaaa' 'bbbb' 'cccc' <eos>", f"{' ' * 26}^ token 3")
    assert fitted(30, lines) == [
        "old  … 'bbbb' 'cccc' 'x' <eos>",
        "new  … 'bbbb' 'cccc' <eos>",
        "                     ^ token 3",
    ]


def test_a_mark_goes_with_its_letter():
    token = "'e\u0301e\u0301e\u0301e\u0301'"
    lines = (f"a  {token} 'x' <eos>", f"b  {token} 'y' <eos>", f"{' ' * 10}^ token 1")
    for width in range(13, 20):
        kept = plain(lines, width)[0].partition("…")[2]
        assert not kept.strip().startswith("\u0301")


def test_what_differs_stands_out():
    [drawing] = found(LINES)
    first, second, caret = drawing.fitted(80)
    assert ("' known'", "bold") in first
    assert ("' also'", "bold") in second
    assert ("^", "bold") in caret


def test_on_a_console_that_knows_only_ascii_the_lines_are_aligned_as_it_says_them():
    [drawing] = found(LINES)
    said = drawing.said(lambda text: text.replace("…", "...").encode("ascii", "backslashreplace").decode())
    first, _, caret = ("".join(text for text, _ in line) for line in said.fitted(100, "..."))
    assert first == r"alone   ... 'a' '\u6771\u4eac' ' is' ' known' ' as' <eos>"
    assert caret.index("^") == first.index("' known'")
    assert all(len("".join(text for text, _ in line)) <= 40 for line in said.fitted(40, "..."))


def test_other_lines_stay_as_they_are_and_in_order():
    parts = list(found(["cause   x", *LINES, "remedy  y"]))
    assert [type(part) for part in parts] == [str, Drawing, str]
    assert plain(["cause   x", *LINES, "remedy  y"], 80) == ["cause   x", *LINES, "remedy  y"]


@pytest.mark.parametrize(
    "lines",
    [
        ("expected: a", "got:      b", "             ^ token 1"),
        ("alone   'a' 'b'", "padded  'a' 'c'", "      ^ token 1"),
        ("alone   'a' 'b'", "padded   'a' 'c'", "            ^ token 1"),
        ("alone   'a' 'b'", "padded  'a' 'c'", "            ^ here"),
        ("alone   'a' 'b'", "            ^ token 1"),
        ("alone   'a' 'b'" + " 'x'" * 2000, "padded  'a' 'c'", "            ^ token 1"),
        ("", "", "^ token 1"),
    ],
)
def test_what_is_no_drawing_is_left_alone(lines):
    assert list(found(lines)) == list(lines)
    assert plain(lines, 10) == list(lines)
