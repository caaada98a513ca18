"""Where two generations part, fitted to the width that there is: two aligned lines, a caret, and what it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

CARET = re.compile(r" *\^ (?P<note>token \d+.*)")
SIDE = re.compile(r"(?P<name>\w+) {2,}(?=\S)")
# What stands at the difference: a quoted token, or how the side ended.
WORD = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+")
GAP = 2  # between the name of a side and what it says
LEAST = 10  # cells for what a side says, on however narrow a terminal
LONGEST = 2000  # characters of a line that may be one of a drawing
Piece = tuple[str, str]  # text and style


@dataclass(frozen=True)
class Side:
    """What one side says, up to the difference and from there on."""

    name: str
    head: str
    rest: str


@dataclass(frozen=True)
class Drawing:
    """A difference that `harness.divergence.draw` drew; all heads take the same number of cells."""

    sides: tuple[Side, ...]
    note: str

    def said(self, sayable: Callable[[str], str]) -> Drawing:
        """As a console says it that does not know every character."""
        sides = [replace(one, head=sayable(one.head), rest=sayable(one.rest)) for one in self.sides]
        return replace(self, sides=tuple(sides))

    def fitted(self, width: int, more: str = "…") -> Iterator[tuple[Piece, ...]]:
        """Its lines in so many cells, cut on both sides of the difference; `more` stands for what was cut off."""
        names = max(len(side.name) for side in self.sides) + GAP
        room = max(LEAST, width - names)
        head = max(cell_len(side.head) for side in self.sides)
        rest = max(cell_len(side.rest) for side in self.sides)
        if head + rest > room:
            head = min(head, max(room - rest, room // 2))
        for side in self.sides:
            shown = _first(side.rest, room - head, more)
            word = WORD.match(shown)
            end = word.end() if word else len(shown)
            yield (f"{side.name:<{names}}{_last(side.head, head, more)}", ""), (shown[:end], "bold"), (shown[end:], "")
        yield from self._marked(names + head, width)

    def _marked(self, column: int, width: int) -> Iterator[tuple[Piece, ...]]:
        """The caret, and what it stands for on that side of it where there is room."""
        if column + 2 + len(self.note) <= width:
            yield (" " * column, ""), ("^", "bold"), (f" {self.note}", "")
        elif len(self.note) < column:
            yield (f"{self.note:>{column - 1}} ", ""), ("^", "bold")
        else:
            yield (" " * column, ""), ("^", "bold")
            yield ((self.note, ""),)


def found(details: Sequence[str]) -> Iterator[str | Drawing]:
    """The lines as they are, but for those that draw a difference, which are one Drawing together."""
    index = 0
    while index < len(details):
        drawing = _drawing(details[index : index + 3])
        yield drawing or details[index]
        index += 3 if drawing else 1


def plain(details: Sequence[str], width: int) -> list[str]:
    """The lines, with what is drawn in so many cells: for terminals on which nothing else is drawn."""
    lines: list[str] = []
    for part in found(details):
        lines += [part] if isinstance(part, str) else ["".join(text for text, _ in line) for line in part.fitted(width)]
    return lines


def _drawing(lines: Sequence[str]) -> Drawing | None:
    if len(lines) < 3 or max(map(len, lines)) > LONGEST:
        return None
    caret, names = CARET.fullmatch(lines[2]), [SIDE.match(line) for line in lines[:2]]
    sides = [
        _side(line, name, caret.start("note") - 2)
        for line, name in zip(lines, names, strict=False)
        if caret and name and name.end() == (names[0] or name).end()
    ]
    whole = tuple(side for side in sides if side)
    return Drawing(whole, caret["note"]) if caret and len(whole) == 2 else None


def _side(line: str, name: re.Match[str], column: int) -> Side | None:
    """The line cut in two at the cell where the difference is; None where no word begins there."""
    said = line[name.end() :]
    for end in (0, *(space.end() for space in re.finditer(" ", said))):
        if name.end() + cell_len(said[:end]) == column and said[end : end + 1] not in ("", " "):
            return Side(name["name"], said[:end], said[end:])
    return None


def _first(text: str, room: int, more: str) -> str:
    """As much of it as fits, from its beginning."""
    if cell_len(text) <= room:
        return text
    end = len(text)
    while end and cell_len(text[:end]) + cell_len(more) > room:
        end -= 1
    return text[:end] + more


def _last(text: str, room: int, more: str) -> str:
    """As much of it as fits, up to its end, in exactly so many cells."""
    start = 0
    if cell_len(text) > room:
        while start < len(text) and cell_len(text[start:]) + cell_len(more) > room:
            start += 1
        while start < len(text) and not cell_len(text[start]):  # a mark whose letter is cut off
            start += 1
        text = more + " " * (room - cell_len(more) - cell_len(text[start:])) + text[start:]
    return text + " " * (room - cell_len(text))
