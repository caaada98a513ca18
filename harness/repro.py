"""A failure as calls of a model whose answers are not as they should be, made as small as it can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Ids = tuple[int, ...]
Item = TypeVar("Item")

RUNS = 120  # of the model, at most, to make one failure smaller
DEFAULT_LENGTH = 20  # new tokens where nothing is said: the library's own
# Without these the model's own config decides: what then differs may differ for another reason.
KEPT = ("do_sample", "max_new_tokens")


@dataclass(frozen=True)
class Weights:
    """Where a model comes from, and how transformers is told to load it."""

    path: str  # a folder or a Hub id
    revision: str | None = None  # the commit, for a Hub id
    origin: str = ""  # what the suite says, where that is not the path
    dtype: str = "auto"
    attention: str = ""  # "": the library's choice
    device: str = "cpu"  # or "auto"
    quantization: Mapping[str, Any] = field(default_factory=dict)  # arguments of BitsAndBytesConfig
    trust_remote_code: bool = False
    encoder_decoder: bool = False


@dataclass(frozen=True)
class Side:
    """One call of `generate()`, and the row of its batch that is looked at."""

    name: str
    rows: tuple[Ids, ...]
    pad_token_id: int
    arguments: Mapping[str, Any]
    row: int = 0
    padding: str = "left"
    attention_mask: bool = True
    attention: str = ""  # set before the call, where the sides differ in it
    seed: int = 0

    @property
    def prompt(self) -> Ids:
        return self.rows[self.row]

    @property
    def length(self) -> int:
        """At most so many new tokens."""
        return int(self.arguments.get("max_new_tokens") or DEFAULT_LENGTH)


@dataclass(frozen=True)
class Pinned:
    """What a call should give: these tokens, each about as likely as it was."""

    ids: Ids
    logprobs: tuple[float, ...] = ()  # where the tokens are the same, and these are what changed
    tolerance: float = 0.0  # nats by which each of them may be off


@dataclass(frozen=True)
class Scores:
    """What a forward pass over the prompt and these tokens should give: about the scores that were recorded."""

    ids: Ids
    recorded: tuple[tuple[tuple[int, float], ...], ...]  # at each token: ids and log-probabilities, its own first
    limit: float  # of the root mean square of their changes, in nats


@dataclass(frozen=True)
class Output:
    """What a call gives and should not."""

    sequences: tuple[Ids, ...] = ()
    compared: int | None = None  # so many of the first tokens tell; None: all of them
    lacks: bool = False  # what was asked for: then prompt and length are part of the failure


@dataclass(frozen=True)
class Reproduction:
    """What shows a failure: two sides that should give the same tokens, or one and what is known of it."""

    weights: Weights
    sides: tuple[Side, ...]
    evidence: Pinned | Scores | Output | None = None
    shows: str = ""  # a sentence


Fails = Callable[[Reproduction], bool]


def minimise(reproduction: Reproduction, fails: Fails, runs: int = RUNS) -> Reproduction:
    """The same failure with fewer new tokens, rows and arguments and shorter prompts: every step is run again."""
    tries = _Tries(fails, runs)
    for step in _steps(reproduction.evidence):
        reproduction = step(reproduction, tries)
    return reproduction


def _steps(evidence: Pinned | Scores | Output | None) -> Sequence[Callable[[Reproduction, Fails], Reproduction]]:
    """Of a pinned call only the end is cut: what another prompt or batch would have given was never recorded."""
    if isinstance(evidence, Pinned):
        return (_fewer_tokens,)
    if isinstance(evidence, Scores):
        return (_fewer_scores,)
    if isinstance(evidence, Output) and evidence.lacks:
        return (_fewer_rows, _fewer_arguments)
    return (_fewer_tokens, _fewer_rows, _fewer_arguments, _shorter_prompts, _fewer_tokens)


class _Tries:
    """Runs each candidate once, and none when it has run enough of them."""

    def __init__(self, fails: Fails, runs: int) -> None:
        self._fails = fails
        self._left = runs

    def __call__(self, candidate: Reproduction) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._fails(candidate)


def _fewer_tokens(now: Reproduction, fails: Fails) -> Reproduction:
    """The least length at which it fails: greedy search goes the same way to whatever end."""
    passing, failing = 0, max(side.length for side in now.sides)
    while failing - passing > 1:
        length = (passing + failing) // 2
        candidate = limited(now, length)
        if fails(candidate):
            now, failing = candidate, length
        else:
            passing = length
    return now


def limited(now: Reproduction, length: int) -> Reproduction:
    """The same calls, with at most so many new tokens."""

    def limits(side: Side) -> Mapping[str, Any]:
        ends = {"max_new_tokens": min(side.length, length)}
        if "min_new_tokens" in side.arguments:
            ends["min_new_tokens"] = min(side.arguments["min_new_tokens"], length)
        return {**side.arguments, **ends}

    shorter = _with(now, lambda side: {"arguments": limits(side)})
    pin = now.evidence
    if isinstance(pin, Pinned):
        pin = dataclasses.replace(pin, ids=pin.ids[:length], logprobs=pin.logprobs[:length])
    return dataclasses.replace(shorter, evidence=pin)


def _fewer_scores(now: Reproduction, fails: Fails) -> Reproduction:
    """The least number of ids at each token that shows it: the token's own, and the likeliest others."""
    scores = now.evidence
    assert isinstance(scores, Scores)
    count = 1
    while count < max(map(len, scores.recorded)):
        fewer = dataclasses.replace(scores, recorded=tuple(likely[:count] for likely in scores.recorded))
        candidate = dataclasses.replace(now, evidence=fewer)
        if fails(candidate):
            return candidate
        count *= 2
    return now


def _fewer_rows(now: Reproduction, fails: Fails) -> Reproduction:
    """Without neighbours that are not needed; one that stands in both batches leaves both of them."""
    neighbours = [row for side in now.sides for place, row in enumerate(side.rows) if place != side.row]

    def keeping(kept: Collection[Ids]) -> Reproduction:
        return _with(now, lambda side: _rows_of(side, kept))

    return keeping(_shrunk(tuple(dict.fromkeys(neighbours)), lambda kept: fails(keeping(kept))))


def _rows_of(side: Side, kept: Collection[Ids]) -> dict[str, Any]:
    places = [place for place, row in enumerate(side.rows) if place == side.row or row in kept]
    return {"rows": tuple(side.rows[place] for place in places), "row": places.index(side.row)}


def _fewer_arguments(now: Reproduction, fails: Fails) -> Reproduction:
    """Without arguments that all sides have; those in which they differ are what is shown."""
    first, *others = (side.arguments for side in now.sides)
    shared = [name for name in first if name not in KEPT and all(first[name] == other.get(name) for other in others)]

    def keeping(kept: Collection[str]) -> Reproduction:
        gone = {*shared} - {*kept}
        return _with(now, lambda side: {"arguments": {k: v for k, v in side.arguments.items() if k not in gone}})

    return keeping(_shrunk(tuple(shared), lambda kept: fails(keeping(kept))))


def _shorter_prompts(now: Reproduction, fails: Fails) -> Reproduction:
    """Ids cut out of prompts, those that are looked at first."""
    for prompt in dict.fromkeys(row for side in now.sides for row in (side.prompt, *side.rows)):
        now = _shorter(now, prompt, fails)
    return now


def _shorter(now: Reproduction, prompt: Ids, fails: Fails) -> Reproduction:
    """One prompt cut wherever it stands, from the left on; its last id stays, for generation goes on from it."""
    *begin, last = prompt

    def cut_to(kept: Ids) -> Reproduction:
        return _with(now, lambda side: {"rows": tuple((*kept, last) if row == prompt else row for row in side.rows)})

    return cut_to(_shrunk(tuple(begin), lambda kept: fails(cut_to(kept))))


def _shrunk(items: tuple[Item, ...], fails: Callable[[tuple[Item, ...]], bool]) -> tuple[Item, ...]:
    """Without whatever can be left out: all of it, then halves, quarters … down to single items."""
    size = len(items)
    while size:
        start = 0
        while start < len(items):
            fewer = items[:start] + items[start + size :]
            if fails(fewer):
                items = fewer
            else:
                start += size
        size //= 2
    return items


def _with(now: Reproduction, change: Callable[[Side], Mapping[str, Any]]) -> Reproduction:
    return dataclasses.replace(now, sides=tuple(dataclasses.replace(side, **change(side)) for side in now.sides))
