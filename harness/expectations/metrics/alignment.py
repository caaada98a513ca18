"""How two sequences align: edits between them, and what they have in common. Whole rows as bits of one integer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache


def edit_distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The least number of items to insert, delete or replace to make one of the other."""
    short, long = sorted((one, other), key=len)
    places, every = _places(long), (1 << len(long)) - 1
    more, less = every, 0  # where the distance rises or falls by one from a row to the next
    for item in short:
        equal = places(item)
        vertical = equal | less
        horizontal = (((equal & more) + more) ^ more) | equal
        rises = less | (every ^ ((horizontal | more) & every))
        falls = more & horizontal
        rises, falls = rises << 1 | 1, falls << 1
        more = (falls | (every ^ ((vertical | rises) & every))) & every
        less = rises & vertical
    return len(short) + more.bit_count() - less.bit_count()


def in_common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest sequence that both hold in this order, with anything in between."""
    short, long = sorted((one, other), key=len)
    places, every = _places(long), (1 << len(long)) - 1
    free = every
    for item in short:
        taken = free & places(item)
        free = ((free + taken) | (free - taken)) & every
    return len(long) - free.bit_count()


def similarity(one: str, other: str) -> float:
    """1 for equal texts, 0 for texts without a character in common."""
    longer = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longer if longer else 1.0


def _places(items: Sequence[Hashable]) -> Callable[[Hashable], int]:
    """Where an item stands in the sequence, as the bits of an integer."""
    found: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        found.setdefault(item, []).append(place)

    @lru_cache(maxsize=4096)
    def bits(item: Hashable) -> int:
        flags = bytearray(len(items) // 8 + 1)
        for place in found.get(item, ()):
            flags[place >> 3] |= 1 << (place & 7)
        return int.from_bytes(flags, "little")

    return bits
