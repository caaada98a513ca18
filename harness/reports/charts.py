"""Where marks, lines and words of a chart stand. Numbers only: charts.html.j2 draws them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from rich.cells import cell_len

from harness.reports import one_line
from harness.reports.axes import Axis, Tick, axis

LEFT, TOP, WIDTH, HEIGHT = 56.0, 30.0, 500.0, 250.0  # of the area in which points stand
RIGHT = 24.0
BELOW = 44.0  # for the ticks and the name of the axis
LETTER, LINE = 7.4, 16.0  # room that a letter and a line of text take, at most
RADIUS = 7.0
GAP = 7.0  # between a point and its words
INSET = 10.0  # no point stands on the frame
LABEL = 26  # letters of a name
SHORT = 16  # up to here, names are told whole where all of them are


@dataclass(frozen=True)
class Frame:
    """The axes of a chart, and all the room that it takes."""

    left: float
    right: float
    top: float
    bottom: float
    width: float
    height: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x: str
    y: str


@dataclass(frozen=True)
class Table:
    """The numbers of a chart, for those who do not see it or want more digits."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # the first of each is its name


@dataclass(frozen=True)
class Point:
    """One candidate in two numbers."""

    label: str
    x: float
    y: float
    filled: bool  # in the Pareto set
    low: float | None = None  # where the true y lies
    high: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Limit:
    """What the budget allows: a line across the chart."""

    label: str
    value: float
    along_x: bool = False  # it bounds x, and is drawn upright


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
    low: float | None  # ends of the line through it
    high: float | None

    @property
    def anchor(self) -> str:
        """Which end of the words is beside the point."""
        return "start" if self.box.left > self.x else "end" if self.box.right < self.x else "middle"

    @property
    def words(self) -> tuple[float, float]:
        """Where that end stands."""
        ends = {"start": self.box.left, "end": self.box.right, "middle": (self.box.left + self.box.right) / 2}
        return round(ends[self.anchor], 1), round(self.box.bottom - LINE / 4, 1)

    @property
    def nearest(self) -> tuple[float, float]:
        """The place of the words that is nearest to the point."""
        x = min(max(self.x, self.box.left), self.box.right)
        return round(x, 1), round(min(max(self.y, self.box.top), self.box.bottom), 1)


@dataclass(frozen=True)
class Border:
    """A limit, and where it and its words stand."""

    limit: Limit
    at: float
    words: Box


@dataclass(frozen=True)
class Scatter:
    """A chart of points."""

    frame: Frame
    marks: tuple[Mark, ...]
    borders: tuple[Border, ...]
    text: str
    kind: str = "scatter"


def scatter(
    points: Sequence[Point], x: str, y: str, text: str, *, limits: Sequence[Limit] = (), less_is_better: bool = False
) -> Scatter:
    """Every point with its words beside it, and no words over others or over a point; what is better stands above."""
    bounds = {along: [limit.value for limit in limits if limit.along_x is along] for along in (True, False)}
    across = axis([*(point.x for point in points), *bounds[True]], LEFT, LEFT + WIDTH, powers=False)
    ends = (TOP + INSET, TOP + HEIGHT - INSET)
    heights = [y for point in points for y in (point.y, point.low, point.high) if y is not None]
    upright = axis([*heights, *bounds[False]], *(ends if less_is_better else ends[::-1]))
    borders = tuple(_border(limit, across if limit.along_x else upright) for limit in limits)
    placed = [
        (point, across.place(point.x), upright.place(point.y))
        for point in sorted(points, key=lambda point: (-point.y, point.x))
    ]
    marks = tuple(_marks(placed, upright, [border.words for border in borders]))
    lowest = max((mark.box.bottom for mark in marks), default=0.0)
    height = max(TOP + HEIGHT + BELOW, lowest + LINE / 2)
    edges = (LEFT, LEFT + WIDTH, TOP, TOP + HEIGHT, LEFT + WIDTH + RIGHT, height)
    return Scatter(Frame(*edges, across.ticks, upright.ticks, x, y), marks, borders, text)


def _border(limit: Limit, on: Axis) -> Border:
    at, length = on.place(limit.value), LETTER * cell_len(limit.label)
    if limit.along_x:  # at the foot of the line, on the side that has room
        left = at + GAP if at + GAP + length <= LEFT + WIDTH + RIGHT else at - GAP - length
        return Border(limit, at, Box(left, TOP + HEIGHT - LINE, left + length, TOP + HEIGHT))
    return Border(limit, at, Box(LEFT + GAP, at - LINE, LEFT + GAP + length, at))


def _marks(placed: Sequence[tuple[Point, float, float]], on: Axis, words: Sequence[Box]) -> Iterator[Mark]:
    taken = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for _, x, y in placed]
    # Words that find no room among the points stand below the axis, not on it, and none on the name of the other.
    right = LEFT + WIDTH + RIGHT
    taken += [Box(0.0, TOP + HEIGHT, right, TOP + HEIGHT + BELOW), Box(0.0, 0.0, right, TOP - GAP), *words]
    for point, x, y in placed:
        box = next(box for box in _places(point, x, y) if not any(box.meets(other) for other in taken))
        taken.append(box)
        ends = (None if end is None or not math.isfinite(end) else on.place(end) for end in (point.low, point.high))
        yield Mark(point, x, y, box, abs((box.top + box.bottom) / 2 - y) > LINE / 2, *ends)


def _places(point: Point, x: float, y: float) -> Iterator[Box]:
    """Beside the point, then ever farther above and below it; downwards there is always room."""
    length = LETTER * cell_len(point.label)
    for step in count():
        for middle in dict.fromkeys((y + step * LINE / 2, y - step * LINE / 2)):
            sides = (x + RADIUS + GAP, x - RADIUS - GAP - length)
            # Right above or below it, as soon as it is not on the point.
            for left in (x - length / 2, *sides) if step > 1 else sides:
                inside = left >= LEFT and left + length <= LEFT + WIDTH + RIGHT
                if middle - LINE / 2 >= 0 and (inside or length > WIDTH / 2):
                    left = min(max(left, 0.0), max(0.0, LEFT + WIDTH + RIGHT - length))
                    yield Box(left, middle - LINE / 2, left + length, middle + LINE / 2)


def told_apart(names: Sequence[str]) -> dict[str, str]:
    """Without what all of them begin with, where they are long: beside a line or a point there is little room."""
    first = names[0] if len(names) > 1 and max(map(len, names)) > SHORT else ""
    starts = [first[: found.end()] for found in re.finditer(r"[-_./]", first)]
    known = [
        start for start in starts if all(name.startswith(start) and _says_something(name, start) for name in names)
    ]
    return {name: shortened(name.removeprefix(max(known, key=len, default=""))) for name in names}


def _says_something(name: str, start: str) -> bool:
    return any(letter.isalpha() for letter in name[len(start) :])


def shortened(name: str) -> str:
    """On one line, with its end: that is what tells `smollm2-135m-instruct-int8` from another level."""
    shown = one_line(name)
    return shown if len(shown) <= LABEL else f"{shown[: LABEL // 2 - 1]}…{shown[-LABEL // 2 :]}"
