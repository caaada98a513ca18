"""Arithmetic of differences, against torch's own idea of a number's neighbours."""

from __future__ import annotations

from array import array

import pytest

from harness.divergence import SHOWN, agree, coarser, draw, first_difference, ulp
from harness.inputs import GREEDY
from harness.record import Completion, Request, Step, Text

HEIGHT = 27.0  # of the largest logit: 2 ulp of bfloat16 are 0.25 nats there, of float16 0.03125


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("magnitude", [0.75, 1.0, 1.5, 15.9, 16.0, 27.3, 31.99, 32.0])
def test_an_ulp_is_the_distance_to_the_next_number(precision: str, magnitude: float) -> None:
    import torch

    value = torch.tensor(magnitude, dtype=getattr(torch, precision))
    value = value if float(value) <= magnitude else torch.nextafter(value, torch.tensor(0.0, dtype=value.dtype))
    up = torch.nextafter(value, torch.tensor(float("inf"), dtype=value.dtype))

    assert ulp(precision, magnitude) == float(up) - float(value)


def test_negative_logits_have_the_same_spacing() -> None:
    assert ulp("bfloat16", -27.0) == ulp("bfloat16", 27.0) == 0.125


@pytest.mark.parametrize("magnitude", [0.0, float("nan"), float("inf")])
def test_no_number_no_spacing(magnitude: float) -> None:
    assert ulp("bfloat16", magnitude) == 0.0


def test_the_coarser_of_two_precisions_decides() -> None:
    assert coarser("float32", "bfloat16") == "bfloat16"
    assert coarser("float16", "float32") == "float16"


def made(*tokens: tuple[int, float], recorded: bool = True, precision: str = "bfloat16") -> Completion:
    """A completion from tokens and how far below each the token 9 stood."""
    ids = tuple(token for token, _ in tokens)
    steps = tuple(Step(-0.1, array("i", (token, 9)), array("f", (-0.1, -0.1 - gap)), HEIGHT) for token, gap in tokens)
    request = Request(Text(text="a"), GREEDY)
    return Completion(request, "a", (1,), ids, ("t",) * len(ids), "t", "length", steps if recorded else (), precision)


def other(*ids: int, gap: float = 0.0, beside: int = 5, recorded: bool = True) -> Completion:
    """A completion whose runner-up is `beside`, this much below."""
    steps = tuple(Step(-0.1, (token, beside), (-0.1, -0.1 - gap), HEIGHT) for token in ids)
    built = made(*((token, 0.0) for token in ids), recorded=recorded)
    return Completion(**{**vars(built), "steps": steps if recorded else ()})


def test_equal_tokens_have_no_difference() -> None:
    one = made((5, 0.1), (6, 0.1))

    assert first_difference(one, one) is None
    assert agree(one, one)


@pytest.mark.parametrize(
    ("mine", "its", "harmless"), [(0.2, 0.2, True), (0.25, 0.1, True), (0.2, 0.3, False), (0.3, 0.2, False)]
)
def test_both_sides_must_have_seen_a_near_tie(mine: float, its: float, harmless: bool) -> None:
    difference = first_difference(made((5, mine)), other(9, gap=its))

    assert difference is not None
    assert difference.margin == pytest.approx(max(mine, its), abs=1e-6)
    assert difference.tolerance == 0.25
    assert difference.is_harmless is harmless
    assert agree(made((5, mine)), other(9, gap=its)) is harmless


def test_in_float32_no_difference_is_harmless() -> None:
    one, two = made((5, 0.0), precision="float32"), made((9, 0.0), precision="float32", recorded=False)
    difference = first_difference(one, two)

    assert difference is not None
    assert difference.is_rounding
    assert not difference.is_harmless
    assert not agree(one, two)


@pytest.mark.parametrize(("gap", "harmless"), [(0.2, True), (0.3, False)])
def test_of_a_side_that_recorded_nothing_the_other_must_do(gap: float, harmless: bool) -> None:
    assert agree(made((5, gap)), other(9, recorded=False)) is harmless
    assert agree(other(9, recorded=False), made((5, gap))) is harmless


def test_two_sides_that_recorded_nothing_prove_no_rounding() -> None:
    difference = first_difference(made((5, 0.0), recorded=False), other(9, recorded=False))

    assert difference is not None
    assert difference.margin is None
    assert not difference.is_harmless
    assert "outside the recorded top-k" in difference.sentence


def test_a_token_that_one_side_did_not_see_at_all_is_no_rounding() -> None:
    difference = first_difference(made((5, 0.0)), other(9, gap=0.0, beside=7))

    assert difference is not None
    assert (difference.margin, difference.is_harmless) == (None, False)


def test_only_the_first_difference_counts() -> None:
    one, two = made((5, 9.0), (6, 0.1), (7, 9.0)), other(5, 9, 8, gap=0.1, beside=6)
    difference = first_difference(one, two)

    assert difference is not None
    assert (difference.index, difference.cause, difference.is_harmless) == (1, "tokens", True)


def test_a_token_more_is_a_difference_of_length_and_never_rounding() -> None:
    one = made((5, 0.0), (6, 0.0))
    two = made((5, 0.0))
    difference = first_difference(one, two)

    assert difference is not None
    assert (difference.index, difference.cause, difference.margin) == (1, "length", None)
    assert not agree(one, two)
    assert not agree(two, one)


def test_the_coarser_side_sets_the_tolerance() -> None:
    assert agree(made((5, 0.2), precision="float16"), other(9, gap=0.2))  # the other is bfloat16
    assert not agree(made((5, 0.2), precision="float16"), made((9, 0.2), recorded=False, precision="float16"))


def said(*tokens: str) -> Completion:
    """A completion of these tokens; the id of each follows from its text."""
    ids = tuple(sum(map(ord, token)) for token in tokens)
    return Completion(Request(Text(text="a"), GREEDY), "a", (1,), ids, tokens, "".join(tokens), "length")


def drawn(one: Completion, two: Completion) -> tuple[str, ...]:
    difference = first_difference(one, two)
    assert difference is not None
    return draw(difference, first=one, again=two)


def test_a_difference_is_drawn_in_two_aligned_lines_with_its_margin() -> None:
    one, two = made((5, 0.0), (6, 0.125), (7, 0.0)), other(5, 9, gap=0.0625, beside=6)

    assert drawn(one, two) == (
        "first  't' 't' 't' <length>",
        "again  't' 't' <length>",
        "           ^ token 1, margin 0.125 nats",
    )


def test_a_margin_that_is_not_known_is_not_drawn() -> None:
    assert drawn(said(" a", " b"), said(" a"))[2] == " " * 12 + "^ token 1"


@pytest.mark.parametrize(
    ("token", "cells"),
    [("東京", 6), ("e\u0301", 3), ("\u0301", 2), ("é", 3), ("\n", 4), ("\u202e", 8), ("\ud83d", 8), ("👩", 4)],
)
def test_the_caret_stands_below_by_cells_not_by_characters(token: str, cells: int) -> None:
    """The cells with the quotes: two of a wide character, none of a combining mark, an escape as it is written."""
    lines = drawn(said(token, " x"), said(token, " y"))

    assert lines[2].index("^") == len("first  ") + cells + len(" ")


def test_tokens_with_the_same_id_and_other_texts_stay_aligned() -> None:
    one, two = said("a", "b"), said("a", "c")
    lines = drawn(one, Completion(**{**vars(two), "tokens": ("東京", "c")}))

    assert lines[:2] == ("first  'a'    'b' <length>", "again  '東京' 'c' <length>")
    assert lines[2].startswith(f"{' ' * 14}^ ")


def test_of_long_texts_the_tokens_around_the_difference_are_drawn() -> None:
    words = [f"w{number}" for number in range(40)]
    first, _, caret = drawn(said(*words), said(*words[:20], "other", *words[21:]))

    assert first.split()[1:3] == ["…", f"'w{20 - SHOWN}'"]
    assert first.split()[-2:] == [f"'w{19 + SHOWN}'", "…"]
    assert first[caret.index("^") :].startswith("'w20'")
