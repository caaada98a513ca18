"""What -k, -m, --target and --limit leave of a plan. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from harness.errors import NothingSelected, UsageError
from harness.plan import Check
from harness.wording import near

Has = Callable[[str], bool]
Fits = Callable[[Has], bool]

# The words of pytest's own -k and -m, so that an expression means the same in both places.
TOKEN = re.compile(r"[()]|[\w:+.\[\]\\/-]+")


def select(
    checks: Sequence[Check],
    *,
    keyword: str = "",
    mark: str = "",
    targets: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[Check, ...]:
    """The checks that are meant, in their order; NothingSelected when there are none."""
    known = tuple(dict.fromkeys(check.target.name for check in checks))
    for name in targets:
        if name not in known:
            raise UsageError(f"--target {name}: no such target{near(name, known)}")
    by_keyword, by_mark = expression(keyword, "-k"), expression(mark, "-m")
    chosen = [
        check
        for check in checks
        if (not targets or check.target.name in targets)
        and by_keyword(_words_of(check).__contains__)
        and by_mark(lambda word, check=check: word in check.test.marks)  # type: ignore[misc]
    ]
    if not chosen:
        given = [f"--target {name}" for name in targets]
        given += [f"{option} {text!r}" for option, text in (("-k", keyword), ("-m", mark)) if text]
        message = f"nothing selected: none of the {len(checks)} checks fits {' and '.join(given)}"
        raise NothingSelected(message, "`harness list SUITE` shows the ids of all checks.")
    return tuple(chosen) if limit is None else _first_of_each_target(chosen, limit)


def _words_of(check: Check) -> str:
    """What a keyword is searched in: the id, the suite's name and the marks."""
    return " ".join((check.id, check.suite.suite, *check.test.marks)).lower()


def _first_of_each_target(checks: Sequence[Check], limit: int) -> tuple[Check, ...]:
    """Of each suite on each target, so that a quick look sees a little of everything."""
    seen: Counter[tuple[str, str]] = Counter()
    first = []
    for check in checks:
        place = (check.suite.suite, check.target.name)
        seen[place] += 1
        if seen[place] <= limit:
            first.append(check)
    return tuple(first)


def expression(text: str, option: str) -> Fits:
    """`a and not (b or c)`, as a function; nothing written fits everything."""
    if not text.strip():
        return lambda has: True
    return _Parser(text, option).parse()


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str, option: str) -> None:
        self.text = text
        self.option = option
        self.tokens = TOKEN.findall(text)
        if "".join(self.tokens) != re.sub(r"\s", "", text):
            raise self._wrong("only words, `and`, `or`, `not` and parentheses are known")

    def parse(self) -> Fits:
        fits = self._any()
        if self.tokens:
            raise self._wrong(f"`and` or `or` is missing before {self.tokens[0]!r}")
        return fits

    def _any(self) -> Fits:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return lambda has: any(part(has) for part in parts)

    def _all(self) -> Fits:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return lambda has: all(part(has) for part in parts)

    def _one(self) -> Fits:
        if self._take("not"):
            negated = self._one()
            return lambda has: not negated(has)
        if self._take("("):
            inner = self._any()
            if not self._take(")"):
                raise self._wrong("a `)` is missing")
            return inner
        if not self.tokens or self.tokens[0] in (")", "and", "or"):
            raise self._wrong(f"a word is missing {f'before {self.tokens[0]!r}' if self.tokens else 'at the end'}")
        word = self.tokens.pop(0)
        # Names are compared without regard to case, as pytest does it; marks are exact there and here.
        sought = word.lower() if self.option == "-k" else word
        return lambda has: has(sought)

    def _take(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            self.tokens.pop(0)
            return True
        return False

    def _wrong(self, why: str) -> UsageError:
        return UsageError(f"{self.option} {self.text!r}: {why}", "Write e.g. 'padding and not (int8 or nf4)'.")
