"""Words that every sentence of the harness may need: how many, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache


def counted(number: int, noun: str = "token") -> str:
    """`1 token`, `1,200 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@lru_cache(maxsize=1000)
def closest(word: str, known: tuple[str, ...]) -> str | None:
    """The name that was probably meant. Kept, because one mistake is often made many times."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def near(word: str, known: Iterable[str], there_are: str = "there are") -> str:
    """`; did you mean 'x'?`, or what there is to choose from."""
    names = tuple(known)
    close = closest(word, names)
    if close:
        return f"; did you mean '{close}'?"
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"; {there_are}: {shown}" if names else ""
