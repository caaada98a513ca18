"""From what was measured to what a reader compares: each candidate's statistics, with their intervals. Pure.

To add a statistic: a function of a candidate and the baseline, and a row in STATISTICS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from harness.comparison import statistics
from harness.comparison.measured import Candidate, Measured, Passage, Replay, Timing
from harness.comparison.statistics import Interval
from harness.expectations.metrics.alignment import similarity
from harness.record import Completion
from harness.store import Results, outcome_by_check

MEGABYTE = 1e6


@dataclass(frozen=True)
class Side:
    """Everything that is known of one candidate."""

    candidate: Candidate
    replays: Mapping[str, Replay]  # by prompt
    completions: Mapping[str, Completion]  # by prompt
    passages: Mapping[str, Passage]  # by name
    timing: Timing | None
    outcomes: Mapping[str, str]  # of its checks, by what is the same for all targets: test and prompt
    comparable: bool  # token by token, with the baseline

    @cached_property
    def kl(self) -> list[Sequence[float]]:
        return [replay.kl for replay in self.replays.values()]

    @cached_property
    def agrees(self) -> list[Sequence[bool]]:
        """Whether baseline and candidate hold the same token for the likeliest, for each token of each prompt."""
        return [
            [own == theirs for own, theirs in zip(replay.top, replay.baseline_top, strict=True)]
            for replay in self.replays.values()
        ]


def sides(results: Results) -> dict[str, Side]:
    """The candidates by name, the baseline first."""
    measured = results.measured
    if measured is None:
        return {}
    done = {(target, one.request.id): one for target, one in results.completions}
    made = {}
    for candidate in measured.candidates:
        answered = [one for one in measured.answered if one.candidate == candidate.name]
        completions = {
            one.prompt: done[candidate.target, one.request]
            for one in answered
            if (candidate.target, one.request) in done
        }
        made[candidate.name] = Side(
            candidate=candidate,
            replays={one.prompt: one.replay for one in answered if one.replay},
            completions=completions,
            passages={one.text: one for one in measured.passages if one.target == candidate.target},
            timing=next((one for one in measured.timings if one.candidate == candidate.name), None),
            outcomes=_outcomes(results, candidate) if candidate.name == candidate.target else {},
            comparable=any(one.replay for one in answered),
        )
    return made


def _outcomes(results: Results, candidate: Candidate) -> dict[str, str]:
    records = [record for record in results.records if record.target == candidate.target]
    # file::target::test[prompt]: the target is what differs
    return {check.rpartition("::")[2]: outcome for check, outcome in outcome_by_check(records).items()}


@dataclass(frozen=True)
class Statistic:
    """One number of a candidate. A row of the table."""

    title: str
    of: Callable[[Side, Side], Interval | None]  # the candidate and the baseline
    better: str = ""  # "low" or "high"; "" where neither is better
    about: str = ""
    least: float = -math.inf  # what it cannot be below, …
    most: float = math.inf  # … or above, whatever its interval says
    absolute: bool = False  # of the candidate alone; else against the baseline

    def honest(self, value: Interval, *, exact: bool) -> Interval:
        """Within what is possible at all; the baseline against itself is known exactly."""
        if exact and not self.absolute:
            return Interval(value.value, value.value, value.value, value.units)
        low = None if value.low is None else max(value.low, self.least)
        high = None if value.high is None else min(value.high, self.most)
        return Interval(value.value, low, high, value.units)


def _mean(values: Callable[[Side], list[Sequence[float]]]) -> Callable[[Side, Side], Interval | None]:
    return lambda own, base: statistics.mean(groups) if (groups := values(own)) else None


def _quantile(level: float) -> Callable[[Side, Side], Interval | None]:
    return lambda own, base: statistics.quantile(own.kl, level) if own.kl else None


def _top1(own: Side, base: Side) -> Interval | None:
    return statistics.share(own.agrees) if own.agrees else None


def _kl_max(own: Side, base: Side) -> Interval | None:
    return statistics.maximum(own.kl) if own.kl else None


def _continuations(own: Side, base: Side) -> Interval | None:
    """Of the baseline's own continuations: how much less likely the candidate finds them."""
    replays = own.replays.values()
    return _ratio_of_perplexities(
        [(-sum(one.logprob), -sum(one.baseline_logprob), len(one.logprob)) for one in replays]
    )


def _perplexity_ratio(own: Side, base: Side) -> Interval | None:
    """Of the given texts. With another tokenizer tokens are other pieces: then there is bits per byte only."""
    shared = _shared(own, base)
    if any(mine.tokens != theirs.tokens for mine, theirs in shared):
        return None
    return _ratio_of_perplexities([(mine.nats, theirs.nats, mine.tokens) for mine, theirs in shared])


def _ratio_of_perplexities(texts: Sequence[tuple[float, float, int]]) -> Interval | None:
    own, base, lengths = zip(*texts, strict=True) if texts else ((), (), ())
    return statistics.perplexity_ratio(own, base, lengths) if texts else None


def _perplexity(own: Side, base: Side) -> Interval | None:
    read = list(own.passages.values())
    return statistics.perplexity([one.nats for one in read], [one.tokens for one in read]) if read else None


def _bits_per_byte(own: Side, base: Side) -> Interval | None:
    read = list(own.passages.values())
    if not read:
        return None
    found = statistics.perplexity([one.nats for one in read], [one.bytes for one in read])
    low, high = (None if bound is None else math.log2(bound) for bound in (found.low, found.high))
    return Interval(math.log2(found.value), low, high, found.units)


def _shared(own: Side, base: Side) -> list[tuple[Passage, Passage]]:
    return [(one, base.passages[name]) for name, one in own.passages.items() if name in base.passages]


def _pairs(own: Side, base: Side) -> list[tuple[Completion, Completion]]:
    return [(one, base.completions[name]) for name, one in own.completions.items() if name in base.completions]


def _over_prompts(
    value: Callable[[Completion, Completion], float], tokens: bool = False
) -> Callable[[Side, Side], Interval | None]:
    """The mean over prompts of something about both free runs; `tokens`: only where tokens can be compared."""

    def of(own: Side, base: Side) -> Interval | None:
        pairs = _pairs(own, base)
        if not pairs or (tokens and not own.comparable):
            return None
        return statistics.mean([[value(mine, theirs)] for mine, theirs in pairs])

    return of


def _share_of_prompts(
    holds: Callable[[Completion, Completion], bool], tokens: bool = False
) -> Callable[[Side, Side], Interval | None]:
    def of(own: Side, base: Side) -> Interval | None:
        pairs = _pairs(own, base)
        if not pairs or (tokens and not own.comparable):
            return None
        return statistics.share([[holds(mine, theirs)] for mine, theirs in pairs])

    return of


def first_divergence(own: Side, base: Side) -> Interval | None:
    """Median index of the token at which free runs part, of those that do."""
    found = [index for mine, theirs in _pairs(own, base) if (index := parted(mine, theirs)) is not None]
    return Interval(median(found), None, None, len(found)) if found and own.comparable else None


def parted(one: Completion, other: Completion) -> int | None:
    if one.ids == other.ids:
        return None
    pairs = enumerate(zip(one.ids, other.ids, strict=False))
    return next((index for index, (mine, theirs) in pairs if mine != theirs), min(len(one.ids), len(other.ids)))


def _checks(own: Side, base: Side) -> Interval | None:
    judged = [outcome for outcome in own.outcomes.values() if outcome != "skipped"]
    passed = sum(outcome in ("passed", "xpassed") for outcome in judged)
    return Interval(passed / len(judged), None, None, len(judged)) if judged else None


def _processed_top1(own: Side, base: Side) -> Interval | None:
    return statistics.share([replay.processed_top1 for replay in own.replays.values()]) if own.replays else None


def _same_tokens(mine: Completion, theirs: Completion) -> bool:
    return mine.ids == theirs.ids


def _same_text(mine: Completion, theirs: Completion) -> bool:
    return mine.text == theirs.text


def _same_end(mine: Completion, theirs: Completion) -> bool:
    return mine.finish == theirs.finish


def _similarity(mine: Completion, theirs: Completion) -> float:
    return similarity(mine.text, theirs.text)


def _more_tokens(mine: Completion, theirs: Completion) -> float:
    return mine.new_tokens - theirs.new_tokens


def _more_characters(mine: Completion, theirs: Completion) -> float:
    return len(mine.text) - len(theirs.text)


def _first_token(timing: Timing) -> Sequence[float]:
    return [1000 * seconds for seconds in timing.first_token]


def _single(timing: Timing) -> Sequence[float]:
    return timing.single


def _batch(timing: Timing) -> Sequence[float]:
    return timing.batch


def _beside_single(timing: Timing) -> Sequence[float]:
    return timing.beside_single


def _beside_batch(timing: Timing) -> Sequence[float]:
    return timing.beside_batch


def _size(title: str, size: Callable[[Timing], int]) -> Statistic:
    return Statistic(title, _once(lambda timing: size(timing) / MEGABYTE), "low", absolute=True)


def _once(value: Callable[[Timing], float]) -> Callable[[Side, Side], Interval | None]:
    def of(own: Side, base: Side) -> Interval | None:
        found = value(own.timing) if own.timing else 0.0
        return Interval(found, None, None, 1) if found else None

    return of


def _repeated(values: Callable[[Timing], Sequence[float]]) -> Callable[[Side, Side], Interval | None]:
    def of(own: Side, base: Side) -> Interval | None:
        samples = values(own.timing) if own.timing else ()
        return Interval(*statistics.spread(samples), len(samples)) if samples else None

    return of


def _speedup(
    values: Callable[[Timing], Sequence[float]], beside: Callable[[Timing], Sequence[float]]
) -> Callable[[Side, Side], Interval | None]:
    def of(own: Side, base: Side) -> Interval | None:
        if own.timing and beside(own.timing):
            return statistics.paired_speed_ratio(values(own.timing), beside(own.timing))
        mine, theirs = (values(side.timing) if side.timing else () for side in (own, base))
        return statistics.speed_ratio(mine, theirs) if mine and theirs else None

    return of


def drift(own: Side, base: Side) -> Interval | None:
    """How much slower the machine itself was beside this candidate than beside the baseline."""
    mine, theirs = (side.timing.yardstick if side.timing else () for side in (own, base))
    if not mine or not theirs or (own.timing and own.timing.beside_batch):  # in turns, both were slowed alike
        return None
    ratios = [one / other for one in mine for other in theirs]
    return Interval(median(ratios), min(ratios), max(ratios), len(mine))


STATISTICS: Mapping[str, Statistic] = {
    "kl": Statistic("KL, mean", _mean(lambda side: side.kl), "low", about="nats a token", least=0),
    "kl_median": Statistic("KL, median", _quantile(0.5), "low", least=0),
    "kl_p99": Statistic("KL, p99", _quantile(0.99), "low", least=0),
    "kl_max": Statistic("KL, largest", _kl_max, "low", least=0),
    "top1": Statistic("top-1 agreement", _top1, "high", about="the same token is likeliest"),
    "continuation_ratio": Statistic("perplexity of the baseline's output, ×", _continuations, "low"),
    "perplexity_ratio": Statistic("perplexity of the texts, ×", _perplexity_ratio, "low"),
    "perplexity": Statistic("perplexity of the texts", _perplexity, "low", absolute=True),
    "bits_per_byte": Statistic("bits per byte of the texts", _bits_per_byte, "low", least=0, absolute=True),
    "processed_distance": Statistic(
        "processed, distance",
        _mean(lambda side: [replay.processed_distance for replay in side.replays.values()]),
        "low",
        about="total variation after all processors",
        least=0,
        most=1,
    ),
    "processed_top1": Statistic("processed, top-1", _processed_top1, "high"),
    "same_tokens": Statistic("same tokens", _share_of_prompts(_same_tokens, tokens=True), "high"),
    "first_divergence": Statistic("first divergence, token", first_divergence, "high"),
    "same_text": Statistic("same text", _share_of_prompts(_same_text), "high"),
    "similarity": Statistic("similarity of texts", _over_prompts(_similarity), "high", least=0, most=1),
    "same_end": Statistic("same end", _share_of_prompts(_same_end), "high", about="EOS, stop string or limit"),
    "tokens_change": Statistic("length, tokens", _over_prompts(_more_tokens, tokens=True)),
    "characters_change": Statistic("length, characters", _over_prompts(_more_characters)),
    "checks": Statistic("checks passed", _checks, "high", absolute=True),
    "weights_mb": _size("weights, MB", lambda timing: timing.weight_bytes),
    "peak_mb": _size("peak memory, MB", lambda timing: timing.peak_bytes),
    "kept_mb": _size("kept once closed, MB", lambda timing: timing.kept_bytes),
    "load_peak_mb": _size("peak, loading, MB", lambda timing: timing.load_peak_bytes),
    "load_seconds": Statistic("loading, s", _once(lambda timing: timing.load_seconds), "low", absolute=True),
    "first_token_ms": Statistic("first token, ms", _repeated(_first_token), "low", absolute=True),
    "tokens_per_second": Statistic("tokens/s, alone", _repeated(_single), "high", absolute=True),
    "batch_tokens_per_second": Statistic("tokens/s, batch", _repeated(_batch), "high", absolute=True),
    "single_speedup": Statistic("speed alone, ×", _speedup(_single, _beside_single), "high"),
    "speedup": Statistic("speed in batch, ×", _speedup(_batch, _beside_batch), "high"),
    "drift": Statistic("the machine's pace, ×", drift, about="above 1: slower than beside the baseline"),
}


@dataclass(frozen=True)
class Flip:
    """A place where a candidate holds another token for the likeliest than the baseline."""

    candidate: str
    prompt: str
    index: int
    baseline: int  # token id
    own: int
    baseline_margin: float  # nats by which each prefers its own
    margin: float
    kl: float


@dataclass(frozen=True)
class Summary:
    """One candidate against the baseline."""

    candidate: Candidate
    values: Mapping[str, Interval]
    flips: tuple[Flip, ...]
    why_not: str = ""


def summarize(results: Results) -> tuple[Summary, ...]:
    """Every candidate, the baseline first. What could not be measured is not in its values."""
    if "summaries" not in results.worked_out:  # several reports ask, and intervals take time
        results.worked_out["summaries"] = _summaries(results)
    summaries: tuple[Summary, ...] = results.worked_out["summaries"]
    return summaries


def _summaries(results: Results) -> tuple[Summary, ...]:
    measured, found = results.measured, sides(results)
    if measured is None:
        return ()
    nothing = Side(Candidate("", "", ""), {}, {}, {}, None, {}, comparable=False)
    base = found.get(measured.baseline, nothing)
    return tuple(
        Summary(
            candidate=side.candidate,
            values={
                key: row.honest(value, exact=name == measured.baseline)
                for key, row in STATISTICS.items()
                if (value := row.of(side, base)) is not None
            },
            flips=tuple(_flips(side)),
            why_not=_why_not(measured, name),
        )
        for name, side in found.items()
    )


def _flips(side: Side) -> Iterable[Flip]:
    for prompt, replay in side.replays.items():
        for index, (own, theirs) in enumerate(zip(replay.top, replay.baseline_top, strict=True)):
            if own != theirs:
                margins = replay.baseline_margin[index], replay.margin[index]
                yield Flip(side.candidate.name, prompt, index, theirs, own, *margins, replay.kl[index])


def _why_not(measured: Measured, name: str) -> str:
    reasons = [one.why_not for one in measured.answered if one.candidate == name and one.why_not]
    return measured.not_measured.get(name, reasons[0] if reasons else "")
