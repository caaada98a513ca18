"""Where marks and words of a chart stand. Numbers only: the page draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from rich.cells import cell_len

from harness.comparison.figures import number

LEFT, TOP, WIDTH, HEIGHT = 64.0, 12.0, 600.0, 300.0  # of the area in which points stand
RIGHT = 24.0
BELOW = 44.0  # for the ticks and the name of the axis
LETTER, LINE = 6.7, 16.0  # room that a letter and a line of text take, at most
RADIUS = 6.0
GAP = 5.0  # between a point and its words
TICKS = 5
MARGIN = 0.12  # of the range, on each side


@dataclass(frozen=True)
class Point:
    """One candidate in two numbers."""

    label: str
    x: float
    y: float
    filled: bool  # in the Pareto set


@dataclass(frozen=True)
class Box:
    """A piece of the chart that is taken."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not apart and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class Mark:
    """A point, its words and where they stand."""

    point: Point
    x: float
    y: float
    box: Box  # of the words
    far: bool  # from the point: a line joins them

    @property
    def anchor(self) -> str:
        """Which end of the words is beside the point."""
        return "start" if self.box.left > self.x else "end"

    @property
    def words_x(self) -> float:
        return self.box.left if self.anchor == "start" else self.box.right

    @property
    def words_y(self) -> float:
        return self.box.bottom - LINE / 4


@dataclass(frozen=True)
class Tick:
    """One number at an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Scatter:
    """A chart of points."""

    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: float
    width: float = LEFT + WIDTH + RIGHT
    left: float = LEFT
    right: float = LEFT + WIDTH
    top: float = TOP
    bottom: float = TOP + HEIGHT


def scatter(points: Sequence[Point]) -> Scatter:
    """Every point with its words beside it, and no words over others or over a point."""
    low_x, high_x = _range([point.x for point in points])
    low_y, high_y = _range([point.y for point in points])
    placed = [
        (point, LEFT + WIDTH * (point.x - low_x) / (high_x - low_x), _height(point.y, low_y, high_y))
        for point in sorted(points, key=lambda point: (-point.y, point.x))
    ]
    marks = tuple(_marks(placed))
    lowest = max((mark.box.bottom for mark in marks), default=0.0)
    return Scatter(
        marks=marks,
        x_ticks=tuple(Tick(LEFT + WIDTH * (at - low_x) / (high_x - low_x), number(at)) for at in _ticks(low_x, high_x)),
        y_ticks=tuple(Tick(_height(at, low_y, high_y), number(at)) for at in _ticks(low_y, high_y)),
        height=max(TOP + HEIGHT + BELOW, lowest + LINE / 2),
    )


def _height(value: float, low: float, high: float) -> float:
    return TOP + HEIGHT * (high - value) / (high - low)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    first = math.ceil(low / step)
    return takewhile(lambda at: at <= high, (step * number for number in count(first)))


def _marks(placed: Sequence[tuple[Point, float, float]]) -> Iterator[Mark]:
    taken = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for _, x, y in placed]
    # Words that find no room among the points stand below the axis, not on it.
    taken.append(Box(0.0, TOP + HEIGHT, LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW))
    for point, x, y in placed:
        box = next(box for box in _places(point, x, y) if not any(box.meets(other) for other in taken))
        taken.append(box)
        yield Mark(point, x, y, box, far=abs((box.top + box.bottom) / 2 - y) > LINE / 2)


def _places(point: Point, x: float, y: float) -> Iterator[Box]:
    """Beside the point, then ever farther above and below it; downwards there is always room."""
    length = LETTER * cell_len(point.label)
    for step in count():
        for middle in dict.fromkeys((y + step * LINE / 2, y - step * LINE / 2)):
            for left in (x + RADIUS + GAP, x - RADIUS - GAP - length):
                inside = left >= LEFT and left + length <= LEFT + WIDTH + RIGHT
                if middle - LINE / 2 >= 0 and (inside or length > WIDTH / 2):
                    left = min(max(left, 0.0), max(0.0, LEFT + WIDTH + RIGHT - length))
                    yield Box(left, middle - LINE / 2, left + length, middle + LINE / 2)
