"""Token views: what did not pass, token by token beside what it is held against. Data only: the page draws it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import islice
from typing import Any

from harness.divergence import first_difference
from harness.record import Completion, TargetFacts
from harness.reports import visible
from harness.reports.token_sides import Scene, Scenes, Side
from harness.store import Results
from harness.wording import counted

VIEWS, SIZE = 300, 4_000_000  # views of a page, and their bytes
TOKENS, LEAST = 200, 40  # of a side: at most, and how few they may become where there are many views
TOKEN_SIZE = 125  # bytes of one with its likeliest, about
BEFORE = 0.25  # of the tokens that are shown stand before the first difference, where there are too many
LIKELIEST = 5
TEXT = 60  # characters of a token
TEAR = 3  # tokens by which a match may shift a side, for each token that it matches

_SPECIAL = re.compile(
    r"<\|[^|\s]+\|>|</?s>|<(?:pad|eos|bos|unk|mask|cls|sep|extra_id_\d+|(?:start|end)_of_turn)>"
    r"|\[(?:PAD|EOS|BOS|UNK|MASK|CLS|SEP|/?INST)\]"
)

View = dict[str, Any]
Pairs = list[tuple[int | None, int | None]]
Columns = list[list[int | None]]


def views(results: Results) -> dict[str, View]:
    """By check id the views of what did not pass, and as `compare::CANDIDATE::PROMPT` those of a comparison.

    Failures come first; after `VIEWS` views or `SIZE` bytes there are no more: all tokens are in tokens.parquet.
    """
    facts = {fact.target: fact for fact in results.facts}
    scenes = list(islice(Scenes(results).all(), VIEWS))
    room = _room(scenes)
    made: dict[str, View] = {}
    size = 0
    for scene in scenes:
        view = _view(scene, facts, room)
        size += len(json.dumps(view, separators=(",", ":")))
        if size > SIZE:
            break
        made[scene.key] = view
    return made


def texts(results: Results, made: Mapping[str, View]) -> dict[str, dict[int, str]]:
    """By target: what the tokens of these views and the likeliest beside them say, where that is known."""
    found: dict[str, dict[int, str]] = {}
    for side in (side for view in made.values() for side in view["sides"]):
        said, ours = results.texts.get(side["target"], {}), found.setdefault(side["target"], {})
        for text, own, _, _, top in side["tokens"]:
            ours[own] = text
            ours.update({token: _shown(said[token]) for token, _ in top if token not in ours and token in said})
    return found


def _room(scenes: Sequence[Scene]) -> int:
    """How many tokens of a side are shown: where there are many views, fewer, so that each has some."""
    lengths = [min(len(side.done.ids), TOKENS) for scene in scenes for side in scene.sides]
    if sum(lengths) * TOKEN_SIZE <= SIZE:
        return TOKENS
    return max(LEAST, SIZE // TOKEN_SIZE // len(lengths))


def _view(scene: Scene, facts: Mapping[str, TargetFacts], room: int) -> View:
    sides = scene.sides
    by_text = len({facts[side.target].tokenizer_digest for side in sides if side.target in facts}) > 1
    rows = [side.done.tokens if by_text else side.done.ids for side in sides]
    parted = _parted(sides, rows)
    start = 0
    if parted and parted[1] >= room * (1 - BEFORE) and max(map(len, rows)) > room:
        start = parted[1] - int(room * BEFORE)
    starts = [max(0, start - side.skips) for side in sides]
    shown = [row[begin : begin + room] for begin, row in zip(starts, rows, strict=True)]
    skips = [max(0, side.skips - start) for side in sides]
    others = [align(shown[0], row, skipped) for row, skipped in zip(shown[1:], skips[1:], strict=True)]
    columns = _columns(len(shown[0]), others)
    notes = [*scene.notes, *(["another tokenizer: aligned by what tokens say"] if by_text else [])]
    if any(len(some) < len(row) for some, row in zip(shown, rows, strict=True)):
        notes.append(f"at most {room} tokens of a side are shown, the rest is in tokens.parquet")
    return {
        "title": visible(scene.title),
        "note": visible("; ".join(notes)),
        "by_text": by_text,
        "sides": [_side(side, facts, begin, room) for side, begin in zip(sides, starts, strict=True)],
        "aligned": columns,
        "divergence": _divergence(sides, parted, starts, columns, by_text=by_text) if parted else None,
    }


def _side(side: Side, facts: Mapping[str, TargetFacts], start: int, room: int) -> View:
    done, fact = side.done, facts.get(side.target) or TargetFacts(side.target)
    end = min(start + room, len(done.ids))
    made: View = {
        "name": visible(side.name),
        "target": side.target,
        "judged": side.judged,
        "finish": done.finish if done.request.kind == "generate" else "",
        "pads": done.pads,
        "padding": done.padding,
        "tail": _tail(done, fact),
        "count": len(done.ids),
        "start": start,
        "tokens": [_token(done, fact, index) for index in range(start, end)],
    }
    return made | ({"kl": [_number(one) for one in side.kl[start:end]]} if side.kl else {})


def _token(done: Completion, fact: TargetFacts, index: int) -> list[Any]:
    token = done.ids[index]
    text = done.tokens[index] if index < len(done.tokens) else f"#{token}"
    special = token in fact.eos_token_ids or token == fact.pad_token_id or _looks_special(text)
    if index >= len(done.steps):
        return [_shown(text), token, None, special, []]
    step = done.steps[index]
    top = zip(step.top_ids[:LIKELIEST], step.top_logprobs[:LIKELIEST], strict=False)
    return [_shown(text), token, _number(step.logprob), special, [[one, _number(value)] for one, value in top]]


def _tail(done: Completion, fact: TargetFacts) -> str:
    """What stands after the row's own end, where other rows of its batch went on."""
    others = sum(token != fact.pad_token_id for token in done.tail)
    if not others:
        return f"then {len(done.tail)} pad" if done.tail else ""
    return f"then {counted(len(done.tail), 'token')}, {others} not pad"


def align(first: Sequence[Any], other: Sequence[Any], skipped: int = 0) -> Pairs:
    """Both in order, equal ones beside each other: all up to the first difference, then as few changes as look right.

    `skipped`: how many of the first stand before the other begins.
    """
    rest = first[skipped:]
    same = _first_unequal(rest, other)
    # The first that differ stand beside each other, too: there both sides had the same text before them.
    same += same < min(len(rest), len(other))
    matcher = SequenceMatcher(None, rest[same:], other[same:], autojunk=False)
    pairs: Pairs = [(i, None) for i in range(min(skipped, len(first)))]
    pairs += [(skipped + i, i) for i in range(same)]
    left = right = same
    for one in matcher.get_matching_blocks():
        i, j = one.a + same, one.b + same
        # A comma that both have far apart says nothing, and would tear the rows apart.
        if one.size and abs((i - left) - (j - right)) > TEAR * one.size:
            continue
        beside = min(i - left, j - right)
        pairs += [(skipped + left + k, right + k) for k in range(beside)]
        pairs += [(skipped + k, None) for k in range(left + beside, i)]
        pairs += [(None, k) for k in range(right + beside, j)]
        pairs += [(skipped + i + k, j + k) for k in range(one.size)]
        left, right = i + one.size, j + one.size
    return pairs


def _first_unequal(one: Sequence[Any], other: Sequence[Any]) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _columns(length: int, others: Sequence[Pairs]) -> Columns:
    """Several alignments with the same first side as one."""
    beside = [{i: j for i, j in pairs if i is not None} for pairs in others]
    between = [_between(pairs) for pairs in others]
    columns: Columns = []
    for place in range(length + 1):
        extra = [one.get(place, []) for one in between]
        for k in range(max(map(len, extra), default=0)):
            columns.append([None, *(one[k] if k < len(one) else None for one in extra)])
        if place < length:
            columns.append([place, *(one.get(place) for one in beside)])
    return columns


def _between(pairs: Pairs) -> dict[int, list[int | None]]:
    """What the other side has that the first one has not, by the first one's token that follows."""
    found: dict[int, list[int | None]] = {}
    place = 0
    for i, j in pairs:
        if i is None:
            found.setdefault(place, []).append(j)
        else:
            place = i + 1
    return found


def _parted(sides: Sequence[Side], rows: Sequence[Sequence[Any]]) -> tuple[int, int] | None:
    """Which side is not like the first one, and from which token on: those that were judged stand before others."""
    for number in range(1, len(sides)):
        skips = sides[number].skips
        rest, other = rows[0][skips:], rows[number]
        if rest != other:
            return number, skips + _first_unequal(rest, other)
    return None


def _divergence(
    sides: Sequence[Side], parted: tuple[int, int], starts: Sequence[int], columns: Columns, *, by_text: bool
) -> View:
    number, index = parted
    first, other = sides[0], sides[number]
    places = (index - starts[0], index - other.skips - starts[number])
    column = next(at for at, row in enumerate(columns) if row[0] == places[0] or row[number] == places[1])
    sentence, margin = _told(first, other, chr(ord("A") + number), index, by_text=by_text)
    return {"column": column, "margin": margin, "sentence": sentence}


def _told(first: Side, other: Side, letter: str, index: int, *, by_text: bool) -> tuple[str, float | str | None]:
    """How the first side, which is A, and another one part, and by which margin."""
    lengths = (len(first.done.ids), len(other.done.ids) + other.skips)
    if index >= min(lengths):
        ends, goes_on = ("A", letter) if lengths[0] < lengths[1] else (letter, "A")
        return f"{ends} ends before token {index}, {goes_on} goes on", None
    sentence = f"A and {letter} part at token {index}"
    if by_text:
        return f"{sentence}; their tokenizers differ", None
    if not first.done.steps and not other.done.steps:
        return f"{sentence}; no log-probabilities were recorded", None
    difference = first_difference(_from(first.done, other.skips), other.done)
    assert difference is not None
    margin = None if difference.margin is None else _number(difference.margin)
    return f"{sentence}: {difference.sentence}", margin


def _from(done: Completion, index: int) -> Completion:
    return replace(done, ids=done.ids[index:], tokens=done.tokens[index:], steps=done.steps[index:])


@lru_cache(maxsize=100_000)
def _looks_special(text: str) -> bool:
    return bool(_SPECIAL.fullmatch(text))


@lru_cache(maxsize=100_000)
def _shown(text: str) -> str:
    return visible(text if len(text) <= TEXT else f"{text[: TEXT - 1]}…")


def _number(value: float) -> float | str:
    """JSON has neither infinity nor NaN."""
    return (round(value, 4) or 0.0) if math.isfinite(value) else str(value)
