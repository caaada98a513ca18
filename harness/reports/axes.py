"""From numbers to places along a line, and the round numbers that stand beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

TICKS = 6
MARGIN = 0.12  # of the range, on each side
SPREAD = 30.0  # the largest over the smallest number, from which an axis is one of powers
LEAST = 1e-6  # of the largest number: what is smaller stands with zero on such an axis
ZERO = 0.09  # of such an axis, between zero and the least power
FEW = 1  # decades, up to which halves and fifths of them are numbered, too
MOST_DECADES = 4  # above which every second is


@dataclass(frozen=True)
class Tick:
    """One number at an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` stand from `start` to `end`, which may be the smaller of the two."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: bool = False  # of a log axis: at `start` stands zero, and all that is below `low`

    def place(self, value: float) -> float:
        """Where it stands; at an end what lies beyond it."""
        if not self.log:
            share = (value - self.low) / (self.high - self.low)
        elif value < self.low:
            return round(self.start, 1)
        else:
            share = math.log10(value / self.low) / math.log10(self.high / self.low)
        if self.zero:
            share = ZERO + (1 - ZERO) * share
        return round(self.start + (self.end - self.start) * min(max(share, 0.0), 1.0), 1)

    def value(self, at: float) -> float:
        """What stands there; between zero and the least power there is only the latter."""
        share = (at - self.start) / (self.end - self.start)
        if not self.log:
            return self.low + (self.high - self.low) * share
        share = max(0.0, (share - ZERO) / (1 - ZERO)) if self.zero else share
        return float(self.low * (self.high / self.low) ** share)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        if not self.log:
            return tuple(Tick(self.place(at), written(at)) for at in _steps(self.low, self.high))
        zero = (Tick(self.place(-math.inf), "0"),) if self.zero else ()
        return (*zero, *(Tick(self.place(at), written(at)) for at in _powers(self.low, self.high)))


def axis(values: Sequence[float], start: float, end: float, *, from_zero: bool = False, powers: bool = True) -> Axis:
    """One on which all of them stand that are finite; of powers, where they differ by much."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    positive = [value for value in finite if value > high * LEAST]
    if powers and positive and low > -high * LEAST and high / min(positive) >= SPREAD:
        return _of_powers(min(positive), high, start, end, zero=low < min(positive))
    room = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    bottom = max(0.0, low - room) if low >= 0 else low - room
    return Axis(0.0 if from_zero and low >= 0 else bottom, high + (0 if from_zero and high > 0 else room), start, end)


def written(value: float) -> str:
    """`0`, `0.05`, `1,000`, `1e-6`."""
    text = f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    mantissa, power, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if power else text


def _of_powers(low: float, high: float, start: float, end: float, *, zero: bool) -> Axis:
    bottom = 10.0 ** math.floor(math.log10(low) + 1e-9)
    return Axis(bottom, max(high, bottom * 10), start, end, log=True, zero=zero)


def _steps(low: float, high: float) -> Iterator[float]:
    """Round numbers."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    first = math.ceil(low / step)
    return takewhile(lambda at: at <= high, (step * number for number in count(first)))


def _powers(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), math.floor(math.log10(high) + 1e-9)
    step = 2 if last - first > MOST_DECADES else 1
    found = [float(f"1e{exponent}") for exponent in range(first, last + 1, step)]
    if last - first <= FEW:
        found += [nice * power for power in found for nice in (2, 5) if nice * power <= high]
    return sorted(found)
