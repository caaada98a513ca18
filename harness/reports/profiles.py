"""Where targets part over the tokens of an answer, and how lengths, latencies and divergences are spread."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from harness.comparison.figures import number
from harness.comparison.summary import Side, parted, sides
from harness.pins.drift import compare
from harness.pins.pin import Pin
from harness.record import Completion, Record, Request
from harness.reports import one_line
from harness.reports.charts import Table
from harness.reports.profile_charts import Lanes, Lines, Series, Spread, lanes, lines
from harness.store import Results
from harness.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POSITIONS = 48  # along x: where there are more tokens, neighbours are taken together
CHECKS = 6  # pinned checks that are drawn, those that changed most
TOLD = 6  # targets in the words of one chart; a table has all of them
LEVELS = (("least", 0.0), ("5 %", 0.05), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("95 %", 0.95), ("most", 1.0))


@dataclass(frozen=True)
class Figure:
    """One question and the charts that answer it."""

    id: str
    title: str
    caption: str
    plots: tuple[Lines | Lanes, ...]
    table: Table


@dataclass(frozen=True)
class Profiles:
    """Two groups of figures: over the tokens of an answer, and over answers."""

    positions: tuple[Figure, ...]
    spreads: tuple[Figure, ...]


def profiles(results: Results) -> Profiles | None:
    """For the template; None where nothing was generated that could be drawn."""
    found = sides(results)
    positions = (_kl_by_position(found), _agreement(results, found), _pins(results))
    spreads = (_lengths(results), _latencies(results), _divergences(found))
    made = Profiles(*(tuple(figure for figure in group if figure) for group in (positions, spreads)))
    return made if made.positions or made.spreads else None


# --- over the tokens of an answer -------------------------------------------------------------------------------------


class Bin(NamedTuple):
    """Neighbouring tokens that are taken together."""

    first: int
    last: int

    @property
    def middle(self) -> float:
        return (self.first + self.last) / 2

    @property
    def name(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"


def binned(length: int) -> list[Bin]:
    """All positions, in as many equal parts as can be drawn."""
    width = max(1, math.ceil(length / POSITIONS))
    return [Bin(first, min(first + width, length) - 1) for first in range(0, length, width)]


def _kl_by_position(found: Mapping[str, Side]) -> Figure | None:
    base = next(iter(found), "")
    groups = {name: side.kl for name, side in found.items() if any(side.kl) and name != base}
    if not groups:
        return None
    bins = binned(max(len(values) for group in groups.values() for values in group))
    means = _means(groups, bins)
    caption = f"Mean over prompts, on the tokens that {base} wrote. Not all prompts are as long as the longest."
    return Figure(
        id="profile-kl",
        title=f"KL from {base}, by token",
        caption=caption + _left_out(_odd(groups.values())),
        plots=tuple(_kl_lines(means, bins, "mean KL, nats")),
        table=_by_position(means, bins, {"prompts": _prompts(groups, bins)}),
    )


def _means(groups: Mapping[str, Sequence[Sequence[float]]], bins: Sequence[Bin]) -> dict[str, list[float]]:
    """Of the finite values in each bin; NaN where there are none."""
    import numpy as np

    means = {}
    for name, group in groups.items():
        values = _joined(group)
        places = np.concatenate([np.arange(len(one)) for one in group]) // (bins[0].last + 1)
        finite = np.isfinite(values)
        counts = np.bincount(places[finite], minlength=len(bins))
        sums = np.bincount(places[finite], values[finite], minlength=len(bins))
        means[name] = [float(sum / count) if count else math.nan for sum, count in zip(sums, counts, strict=True)]
    return means


def _joined(group: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    import numpy as np

    return np.concatenate([np.asarray(values, np.float64) for values in group])


def _odd(groups: Iterable[Iterable[Sequence[float]]]) -> int:
    """How many values are not finite."""
    import numpy as np

    return sum(int(np.count_nonzero(~np.isfinite(_joined(group)))) for group in groups)


def _left_out(odd: int) -> str:
    return f" Left out: {counted(odd, 'value')} that {'is' if odd == 1 else 'are'} not finite." if odd else ""


def _prompts(groups: Mapping[str, Sequence[Sequence[float]]], bins: Sequence[Bin]) -> list[str]:
    most = max(groups.values(), key=lambda group: sum(map(len, group)))
    return [f"{sum(len(values) > one.first for values in most):,}" for one in bins]


def _kl_lines(means: Mapping[str, Sequence[float]], bins: Sequence[Bin], y: str) -> list[Lines]:
    drawn = {name: own for name, own in means.items() if any(map(math.isfinite, own))}
    series = [
        Series(name, [(one.middle, value) for one, value in zip(bins, own, strict=True)]) for name, own in drawn.items()
    ]
    return lines(series, "token", y, [_kl_told(name, own, bins) for name, own in drawn.items()])


def _kl_told(name: str, means: Sequence[float], bins: Sequence[Bin]) -> str:
    known = [(value, one.name) for value, one in zip(means, bins, strict=True) if math.isfinite(value)]
    (first, _), (largest, at), (last, end) = known[0], max(known), known[-1]
    return (
        f"{one_line(name)}: {number(first)} at the first token, largest {number(largest)} at token {at}, "
        f"{number(last)} at token {end}"
    )


def _by_position(
    values: Mapping[str, Sequence[float]],
    bins: Sequence[Bin],
    more: Mapping[str, Sequence[str]] | None = None,
    shown: Callable[[float], str] = number,
) -> Table:
    columns = [*(more or {}).values(), *([shown(value) for value in own] for own in values.values())]
    rows = tuple((one.name, *cells) for one, *cells in zip(bins, *columns, strict=True))
    return Table("the numbers of this chart", ("token", *(more or {}), *values), rows)


# --- agreement --------------------------------------------------------------------------------------------------------


class Parting(NamedTuple):
    """The same requests, answered by two: the index of the token at which each pair parts; None where it never does."""

    found: list[int | None]
    length: int  # of the longest answer


def _agreement(results: Results, found: Mapping[str, Side]) -> Figure | None:
    """From measured candidates, or else from targets that answered the same requests."""
    base, partings = _of_candidates(found) if found else _of_targets(results)
    if not partings:
        return None
    length = max(one.length for one in partings.values())
    shares = {name: survival(one.found, length) for name, one in partings.items()}
    texts = [_agreement_told(name, partings[name].found) for name in partings]
    series = [Series(name, _steps(own)) for name, own in shares.items()]
    bins = binned(length)
    ends = {name: [own[one.last] for one in bins] for name, own in shares.items()}
    return Figure(
        id="profile-agreement",
        title=f"Agreement with {base}, by token",
        caption="Share of prompts whose tokens are the same up to here, each generated freely.",
        plots=tuple(lines(series, "token", "prompts that still agree", texts, share=True)),
        table=_by_position(ends, bins, shown=lambda share: f"{100 * share:.0f} %"),
    )


def _steps(shares: Sequence[float]) -> list[tuple[float, float]]:
    """Only where they change, and the two ends: a long answer is not a long line."""
    last = len(shares) - 1
    return [(at, own) for at, own in enumerate(shares) if at in (0, last) or own != shares[at - 1]]


def survival(found: Sequence[int | None], length: int) -> list[float]:
    """For each position: the share of pairs that are the same up to and including it."""
    parts = [0] * (length + 1)
    for index in found:
        if index is not None:
            parts[min(index, length)] += 1
    left, shares = len(found), []
    for gone in parts[:length]:
        left -= gone
        shares.append(left / len(found))
    return shares


def _agreement_told(name: str, found: Sequence[int | None]) -> str:
    to_the_end = sum(index is None for index in found)
    early = sorted(index for index in found if index is not None)
    half = (len(found) + 1) // 2
    said = f", half have parted by token {early[half - 1]}" if len(early) >= half else ""
    return f"{one_line(name)}: {to_the_end} of {counted(len(found), 'prompt')} agree to the end{said}"


def _of_candidates(found: Mapping[str, Side]) -> tuple[str, dict[str, Parting]]:
    base = next(iter(found))
    made = {
        name: _parting([(done, found[base].completions.get(prompt)) for prompt, done in side.completions.items()])
        for name, side in found.items()
        if name != base and side.comparable
    }
    return base, {name: one for name, one in made.items() if one.found}


def _of_targets(results: Results) -> tuple[str, dict[str, Parting]]:
    """Against the first target. Sampled answers differ by chance, and other tokenizers have other tokens."""
    digests = {fact.target: fact.tokenizer_digest for fact in results.facts}
    answers: dict[str, dict[Request, Completion]] = {target.name: {} for target in results.targets}
    for target, done in results.completions:
        if results.is_free(done.request) and not _is_sampled(done):
            answers.setdefault(target, {})[done.request] = done
    base = next((name for name, own in answers.items() if own), "")
    made = {
        name: _parting([(done, answers[base].get(request)) for request, done in own.items()])
        for name, own in answers.items()
        if name != base and digests.get(name) == digests.get(base)
    }
    return base, {name: one for name, one in made.items() if one.found}


def _is_sampled(done: Completion) -> bool:
    return bool(done.generation_config.get("do_sample") or done.request.generation.do_sample)


def _parting(pairs: Iterable[tuple[Completion, Completion | None]]) -> Parting:
    both = [(done, theirs) for done, theirs in pairs if theirs is not None]
    length = max((len(done.ids) for pair in both for done in pair), default=0)
    return Parting([parted(done, theirs) for done, theirs in both] if length else [], length)


# --- pins -------------------------------------------------------------------------------------------------------------


def _pins(results: Results) -> Figure | None:
    """The change at each token of pinned checks that did not pass."""
    done = {(target, one.request.id): one for target, one in results.completions} if results.pins else {}
    found: list[tuple[Record, Sequence[float]]] = []
    for record in results.records:
        pin = results.pins.get(record.check)
        if pin and record.expectation == "pinned":
            answers = [one for id in record.requests if (one := done.get((record.target, id)))]
            changes = _changes(pin, answers)
            found += [(record, changes)] if changes else []
    worst = sorted(found, key=lambda pair: -max(filter(math.isfinite, pair[1]), default=math.inf))[:CHECKS]
    if not worst:
        return None
    names, alike = _names([record for record, _ in worst])
    groups = {name: [changes] for name, (_, changes) in zip(names, worst, strict=True)}
    bins = binned(max(len(changes) for _, changes in worst))
    means = _means(groups, bins)
    more = f" Not drawn: {counted(len(found) - CHECKS, 'check')} that changed less." if len(found) > CHECKS else ""
    caption = f"{alike}KL of today's probabilities from the pin's, at least so many nats, on the pin's own tokens."
    return Figure(
        id="profile-pins",
        title="Pinned checks that did not pass: change by token",
        caption=caption + more + _left_out(_odd(groups.values())),
        plots=tuple(_kl_lines(means, bins, "KL at least, nats")),
        table=_by_position(means, bins),
    )


def _names(records: Sequence[Record]) -> tuple[list[str], str]:
    """What differs among them is what each is called; the rest is said once."""
    parts = {part: [str(getattr(record, part)) for record in records] for part in ("target", "test", "prompt")}
    unlike = [own for own in parts.values() if len(set(own)) > 1]
    names = [" ".join(some) for some in zip(*(unlike or parts.values()), strict=True)]
    alike = ", ".join(f"{part} {own[0]}" for part, own in parts.items() if unlike and own not in unlike)
    if len(set(names)) < len(names):
        return [record.check for record in records], ""
    return names, f"All of {alike}. " if alike else ""


def _changes(pin: Pin, answers: Sequence[Completion]) -> Sequence[float]:
    """Led along the pin's tokens, or else as far as the free run said the same."""
    led = next((one for one in answers if one.request.kind == "replay" and one.request.continuation == pin.ids), None)
    if led:
        return compare(pin.steps, led.steps, pin.ids).kl
    free = next((one for one in answers if one.request.kind == "generate"), None)
    pairs = zip(pin.ids, free.ids if free else (), strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return compare(pin.steps[:same], free.steps[:same], pin.ids).kl if free else ()


# --- over answers -----------------------------------------------------------------------------------------------------


def _lengths(results: Results) -> Figure | None:
    lengths: dict[str, list[float]] = defaultdict(list)
    for target, done in _free(results):
        lengths[target].append(done.new_tokens)
    return _spread("spread-tokens", "New tokens", "new tokens", lengths, "generation")


def _latencies(results: Results) -> Figure | None:
    """The time of a batch stands on each of its rows: it is shared by all the tokens of these."""
    batches: dict[tuple[str, float, int], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for target, done in _free(results):
        if done.seconds > 0:
            seconds, tokens = batches[target, done.seconds, done.batch_size]
            batches[target, done.seconds, done.batch_size] = seconds + done.own_seconds, tokens + done.new_tokens
    latencies: dict[str, list[float]] = defaultdict(list)
    for (target, _, _), (seconds, tokens) in batches.items():
        if tokens:
            latencies[target].append(1000 * seconds / tokens)
    return _spread("spread-latency", "Time per token", "ms per new token, of a batch", latencies, "batch", "batches")


def _free(results: Results) -> Iterator[tuple[str, Completion]]:
    return ((target, done) for target, done in results.completions if results.is_free(done.request))


def _divergences(found: Mapping[str, Side]) -> Figure | None:
    base = next(iter(found), "")
    values = {name: _joined(side.kl) for name, side in found.items() if name != base and side.kl}
    return _spread("spread-kl", "KL of a token", f"KL from {base}, nats", values, "token")


def _spread(
    id: str,
    title: str,
    x: str,
    values: Mapping[str, Sequence[float] | NDArray[np.float64]],
    noun: str,
    plural: str = "",
) -> Figure | None:
    import numpy as np

    known = {name: np.asarray(own, np.float64) for name, own in values.items()}
    spreads = [Spread(name, np.sort(own[np.isfinite(own)])) for name, own in known.items() if np.isfinite(own).any()]
    if not spreads:
        return None
    told = [f"{_spread_told(one)}, of {len(one.values):,}" for one in spreads]
    more = f"; and {len(told) - TOLD} more in the table" if len(told) > TOLD else ""
    rows = tuple(
        (one.name, f"{len(one.values):,}", *(number(one.quantile(level)) for _, level in LEVELS)) for one in spreads
    )
    return Figure(
        id=id,
        title=title,
        caption=_left_out(sum(int(np.count_nonzero(~np.isfinite(own))) for own in known.values())).strip(),
        plots=(lanes(spreads, x, f"{x}. {'; '.join(told[:TOLD])}{more}"),),
        table=Table("the numbers of this chart", ("target", plural or f"{noun}s", *(name for name, _ in LEVELS)), rows),
    )


def _spread_told(one: Spread) -> str:
    quarter, median, most = (number(one.quantile(level)) for level in (0.25, 0.5, 0.75))
    return f"{one_line(one.name)}: median {median}, half between {quarter} and {most}"
