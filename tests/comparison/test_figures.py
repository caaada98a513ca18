import math

import pytest

from harness.comparison.figures import figure, number, signed
from harness.comparison.statistics import Interval


@pytest.mark.parametrize(
    ("value", "low", "high", "told"),
    [
        (0.2913, 0.2134, 0.4012, "0.291 [0.21, 0.40]"),  # known to 0.19: two decimals
        (0.00108, 0.0008, 0.0015, "0.00108 [0.00080, 0.00150]"),  # known to 0.00070: five
        (0.931, 0.594, 0.992, "0.931 [0.59, 0.99]"),
        (1.0012, 1.0003, 1.0021, "1.0012 [1.0003, 1.0021]"),
        (312.4, 305.2, 340.9, "312 [305, 341]"),
        (1234.5, 1200.4, 1300.2, "1,234 [1,200, 1,300]"),
        (4.1e-8, 3e-8, 5.2e-8, "4.1e-8 [3.0e-8, 5.2e-8]"),
        (0.99, 0.98, 1.0, "0.990 [0.980, 1]"),
        (-0.33, -1.24, 0.51, "-0.33 [-1.2, 0.5]"),
        (0.3123, None, 0.42, "0.312 [?, 0.42]"),
        (4.861, 4.861, None, "≥ 4.86"),  # the largest that was seen
        (0.0, 0.0, 0.0, "0"),
        (538.2, None, None, "538"),  # measured once
        (math.inf, None, None, "∞"),
        (1.0, 1.0, math.inf, "1 [1, ∞]"),
        (math.nan, None, None, "–"),
    ],
)
def test_an_interval_is_told_to_what_it_knows(value, low, high, told):
    assert figure(Interval(value, low, high, 9)) == told


def test_what_was_not_measured_is_a_dash():
    assert figure(None) == "–"


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (2.0, "2"), (9.996, "10.0"), (0.0999999, "0.100"), (-3.3, "-3.30"), (1234.4, "1,234"), (3e9, "3.0e9")],
)
def test_a_number_has_three_digits(value, told):
    assert number(value) == told


def test_a_change_has_its_sign():
    assert [signed(value) for value in (1.25, 0.0, -1.25)] == ["+1.25", "0", "-1.25"]
