"""Where lines over the tokens of an answer stand, and how numbers are spread. charts.html.j2 draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.cells import cell_len

from harness.comparison.figures import number
from harness.reports.axes import LEAST, Axis, Tick, axis
from harness.reports.charts import BELOW, GAP, INSET, LEFT, LETTER, LINE, TOP, Frame, told_apart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LINES_WIDTH, LINES_HEIGHT = 280.0, 190.0
LEADER = 26.0  # from the end of a line to its name
AT_ONCE = 6  # lines that can be told from one another

LANES_WIDTH, LANE = 320.0, 56.0  # each with a line of words, a histogram and a strip below it
BARS = 40
BAR_TOP, BAR_BOTTOM, STRIP = 18.0, 38.0, 43.0  # from the top of a lane


# --- lines ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line: places along x and what is there; a number that is not finite is a gap."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line as it is drawn, and its name at the end of it."""

    label: str
    path: str
    leader: str
    words_x: float
    words_y: float
    look: int  # which colour and dashes


@dataclass(frozen=True)
class Lines:
    """A chart of lines."""

    frame: Frame
    curves: tuple[Curve, ...]
    text: str
    kind: str = "lines"


def lines(series: Sequence[Series], x: str, y: str, texts: Sequence[str], *, share: bool = False) -> list[Lines]:
    """A chart for so many lines as can be told apart, all on the same axes; `texts`: one for each line, in words.

    share: the numbers are shares, that step from one to the next.
    """
    points = [point for one in series for point in one.points]
    across = axis([at for at, _ in points], LEFT, LEFT + LINES_WIDTH, from_zero=True, powers=False)
    values = [0.0, 1.0] if share else [value for _, value in points]
    upright = axis(values, TOP + LINES_HEIGHT, TOP + INSET, from_zero=True, powers=not share)
    labels = told_apart([one.name for one in series])
    names = [labels[one.name] for one in series]
    room = LETTER * max(map(cell_len, names), default=0) + GAP
    edges = (LEFT, LEFT + LINES_WIDTH, TOP, TOP + LINES_HEIGHT, LEFT + LINES_WIDTH + LEADER + GAP + room)
    ticks = (
        tuple(Tick(tick.at, f"{100 * float(tick.text):.0f} %") for tick in upright.ticks) if share else upright.ticks
    )
    frame = Frame(*edges, TOP + LINES_HEIGHT + BELOW, _whole(across.ticks), ticks, x, y)
    made = []
    each = math.ceil(len(series) / math.ceil(len(series) / AT_ONCE)) if series else 1
    for first in range(0, len(series), each):
        some = slice(first, first + each)
        drawn = [([(across.place(at), _height(value, upright)) for at, value in one.points]) for one in series[some]]
        text = f"{y} over {x}. {'; '.join(texts[some])}"
        made.append(Lines(frame, tuple(_curves(names[some], drawn, frame, stepped=share)), text))
    return made


def _whole(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """There is no half token."""
    return tuple(tick for tick in ticks if "." not in tick.text)


def _height(value: float, on: Axis) -> float | None:
    return on.place(value) if math.isfinite(value) else None


def _curves(
    names: Sequence[str], drawn: Sequence[Sequence[tuple[float, float | None]]], frame: Frame, *, stepped: bool
) -> Iterator[Curve]:
    ends = [next(((x, y) for x, y in reversed(places) if y is not None), None) for places in drawn]
    heights = _apart([end[1] if end else frame.bottom for end in ends], frame.top, frame.bottom)
    words_x = frame.right + LEADER + GAP
    for look, (name, places, end, height) in enumerate(zip(names, drawn, ends, heights, strict=True)):
        leader = f"M {end[0]} {end[1]} L {frame.right + LEADER / 2} {height} h {LEADER / 2}" if end else ""
        yield Curve(name, _path(places, stepped=stepped), leader, words_x, round(height + LINE / 4, 1), look)


def _apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Moved as little as it takes for every line of words to have its own place."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(heights[index], placed[-1] + LINE if placed else top))
    for back in range(len(placed) - 1, -1, -1):
        placed[back] = min(placed[back], placed[back + 1] - LINE if back + 1 < len(placed) else bottom)
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def _path(places: Sequence[tuple[float, float | None]], *, stepped: bool) -> str:
    parts: list[str] = []
    on = False
    for x, y in places:
        if y is None:
            on = False
            continue
        # A length of nothing, with round ends, is a dot: one place between two gaps is seen, too.
        parts.append((f"H {x} V {y}" if stepped else f"L {x} {y}") if on else f"M {x} {y} h 0")
        on = True
    return " ".join(parts)


# --- lanes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lane:
    """How the numbers of one target are spread."""

    label: str
    said: str  # at the right end
    y: float
    bars: str
    ends: tuple[float, float]  # least and largest
    most: tuple[float, float]  # 5 % and 95 %
    half: tuple[float, float]  # 25 % and 75 %
    median: float

    @property
    def strip(self) -> float:
        return self.y + STRIP


@dataclass(frozen=True)
class Lanes:
    """A chart of spreads, one below the other on one axis."""

    frame: Frame
    lanes: tuple[Lane, ...]
    text: str
    kind: str = "lanes"


@dataclass(frozen=True)
class Spread:
    """Finite numbers in order, and whose they are."""

    name: str
    values: NDArray[np.float64]

    def quantile(self, level: float) -> float:
        place = level * (len(self.values) - 1)
        below, above = float(self.values[math.floor(place)]), float(self.values[math.ceil(place)])
        return below + (above - below) * (place - math.floor(place))


def lanes(spreads: Sequence[Spread], x: str, text: str) -> Lanes:
    """Each with as many histogram bars as there is room for, in the same bins."""
    across, bars, whole = _binned(spreads)
    labels = told_apart([one.name for one in spreads])
    made = tuple(_lane(labels[one.name], one, LANE * number, across, bars) for number, one in enumerate(spreads))
    bottom = LANE * len(spreads)
    edges = (across.start, across.end, 0.0, bottom, LANES_WIDTH, bottom + BELOW)
    return Lanes(Frame(*edges, _whole(across.ticks) if whole else across.ticks, (), x, ""), made, text)


def _binned(spreads: Sequence[Spread]) -> tuple[Axis, int, bool]:
    """Whole numbers have bins of whole numbers, each in its middle."""
    start, end = INSET, LANES_WIDTH - INSET
    largest = max((one.quantile(1) for one in spreads), default=0.0)
    above_zero = [one.values[one.values.searchsorted(largest * LEAST, "right") :] for one in spreads]
    ends = [one.quantile(level) for one in spreads for level in (0, 1)]
    ends += [float(values[0]) for values in above_zero if len(values)]
    whole = all((one.values == one.values.round()).all() for one in spreads)
    across = axis(ends, start, end, from_zero=True, powers=not whole)
    if not whole:
        return across, BARS, whole
    width = max(1, math.ceil((across.high - across.low + 1) / BARS))
    bars = math.ceil((across.high - across.low + 1) / width)
    return Axis(across.low - 0.5, across.low + bars * width - 0.5, start, end), bars, whole


def _lane(label: str, spread: Spread, top: float, across: Axis, bars: int) -> Lane:
    width = (across.end - across.start) / bars
    borders = [across.value(across.start + index * width) for index in range(1, bars)]
    below = [0, *spread.values.searchsorted(borders).tolist(), len(spread.values)]
    counts = [after - before for before, after in pairwise(below)]
    tallest = max(counts)
    path = " ".join(
        f"M {across.start + index * width:.1f} {top + BAR_BOTTOM} "
        f"v -{max(1.0, number / tallest * (BAR_BOTTOM - BAR_TOP)):.1f} h {width:.1f} V {top + BAR_BOTTOM}"
        for index, number in enumerate(counts)
        if number
    )

    def places(low: float, high: float) -> tuple[float, float]:
        return across.place(spread.quantile(low)), across.place(spread.quantile(high))

    ends, most, half = places(0, 1), places(0.05, 0.95), places(0.25, 0.75)
    middle = across.place(spread.quantile(0.5))
    said = f"median {number(spread.quantile(0.5))}"
    return Lane(label, said, top, path, ends, most, half, middle)
