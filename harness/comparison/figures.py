"""Numbers as a reader needs them: no more digits than are known."""

from __future__ import annotations

import math

from harness.comparison.statistics import Interval

DIGITS = 3  # of a number whose error is not known
LARGE, SMALL = 1e7, 1e-4  # beyond these as a power of ten
DIGITS_OF_ERROR = 2
MOST_DECIMALS = 6
UNKNOWN = "–"


def number(value: float) -> str:
    """`0.291`, `1,234`, `4.1e-8`."""
    if _is_odd(value):
        return _odd(value)
    if _needs_power(value):
        return _power(value)
    return f"{value:,.0f}" if value == round(value) else f"{value:,.{_decimals(value)}f}"


def figure(interval: Interval | None) -> str:
    """`0.291 [0.21, 0.40]`: the bounds to what their distance allows, the value to at most one digit more."""
    if interval is None or math.isnan(interval.value):
        return UNKNOWN
    value, low, high = interval.value, interval.low, interval.high
    if (low is None and high is None) or low == value == high or _is_odd(value):
        return number(value)
    if low == value and high is None:
        return f"≥ {number(value)}"
    bounds = [bound for bound in (low, high) if bound is not None]
    if any(_is_odd(bound) for bound in bounds) or _needs_power(max(map(abs, (value, *bounds)))):
        return f"{number(value)} [{_bound(low)}, {_bound(high)}]"
    error = max(value, *bounds) - min(value, *bounds)
    known = min(max(0, _decimals_of_error(error)), MOST_DECIMALS)
    shown = min(max(_decimals(value), known), known + 1)
    ends = ("?" if bound is None else _plain(bound, known) for bound in (low, high))
    return f"{_plain(value, shown)} [{', '.join(ends)}]"


def signed(value: float) -> str:
    """`+1.2`, `-0.5`, `0`."""
    return f"+{number(value)}" if value > 0 else number(value)


def _plain(value: float, decimals: int) -> str:
    if value == round(value):  # a limit that it has by nature, or a count
        return f"{value:,.0f}"
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def _bound(value: float | None) -> str:
    return "?" if value is None else number(value)


def _is_odd(value: float) -> bool:
    return not math.isfinite(value)


def _odd(value: float) -> str:
    return UNKNOWN if math.isnan(value) else "∞" if value > 0 else "-∞"


def _needs_power(value: float) -> bool:
    return abs(value) >= LARGE or 0 < abs(value) < SMALL


def _power(value: float) -> str:
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _decimals(value: float) -> int:
    """After the point, for so many digits in all."""
    return max(0, DIGITS - 1 - _magnitude(value))


def _decimals_of_error(error: float) -> int:
    return DIGITS_OF_ERROR - 1 - _magnitude(error)


def _magnitude(value: float) -> int:
    """The exponent, once it is rounded: 9.996 is 10.0."""
    return int(f"{value:.{DIGITS - 1}e}".partition("e")[2])
