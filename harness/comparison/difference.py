"""The nouns of one run against another. Frozen; what a table shows of them is a property."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from harness.comparison.measured import Measured
from harness.comparison.provenance import Change
from harness.divergence import Difference
from harness.expectations.metrics.alignment import similarity
from harness.record import Completion, Failure, Record

WELL, BADLY = ("passed", "xpassed"), ("failed", "error")


@dataclass(frozen=True)
class VerdictPair:
    """One expectation of one check, as each run judged it; None where a run did not."""

    before: Record | None
    after: Record | None

    @property
    def record(self) -> Record:
        """The later of the two."""
        return self.after or self.before  # type: ignore[return-value]

    @property
    def kind(self) -> Literal["same", "regressed", "fixed", "changed", "only before", "only after"]:
        if self.before is None:
            return "only after"
        if self.after is None:
            return "only before"
        was, now = self.before.outcome, self.after.outcome
        if was in WELL and now in BADLY:
            return "regressed"
        if was in (*BADLY, "xfailed") and now in WELL:
            return "fixed"
        return "same" if was == now else "changed"


@dataclass(frozen=True)
class Pair:
    """One request, as each run answered it."""

    prompt: str
    generation: str
    before: Completion
    after: Completion
    why_not: str = ""  # why their tokens are not compared
    difference: Difference | None = None  # where the tokens part
    kl_at_least: tuple[float, ...] = ()  # nats at each token up to there; none where nothing was recorded

    @property
    def judgement(self) -> Literal["equal", "rounding", "change", "sampled", "not compared"]:
        if self.why_not:
            return "not compared"
        if self.difference is None:
            return "equal"
        if any(side.generation_config.get("do_sample") for side in (self.before, self.after)):
            return "sampled"  # a draw is no preference: its margin tells nothing
        return "rounding" if self.difference.is_rounding else "change"

    @cached_property
    def similarity(self) -> float:
        """Of the texts, from 0 to 1. To be looked at, never a verdict."""
        return similarity(self.before.text, self.after.text)

    @property
    def finish_changed(self) -> bool:
        return self.before.finish != self.after.finish

    @property
    def more_tokens(self) -> int:
        return self.after.new_tokens - self.before.new_tokens

    @property
    def more_characters(self) -> int:
        return len(self.after.text) - len(self.before.text)


@dataclass(frozen=True)
class Unanswered:
    """A request that only one run could answer."""

    prompt: str
    failed: Literal["before", "after"]
    failure: Failure


@dataclass(frozen=True)
class Speed:
    """How fast and how large a target was over a whole run; None where that is not known."""

    tokens_per_second: float | None
    memory_bytes: int | None  # the peak while generating
    weight_bytes: int | None
    load_seconds: float | None


@dataclass(frozen=True)
class TargetDifference:
    """One target in two runs."""

    before: str  # its name
    after: str
    changes: tuple[Change, ...]
    pairs: tuple[Pair, ...]
    unanswered: tuple[Unanswered, ...]
    only_before: int  # requests that the other run does not have
    only_after: int
    speed_before: Speed
    speed_after: Speed
    same_vocabulary: bool = True
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.after if self.before == self.after else f"{self.before} → {self.after}"

    @property
    def compared(self) -> tuple[Pair, ...]:
        """Those whose tokens are compared."""
        return tuple(pair for pair in self.pairs if not pair.why_not)

    def count(self, judgement: str) -> int:
        return sum(pair.judgement == judgement for pair in self.pairs)

    @property
    def finish_changed(self) -> int:
        return sum(pair.finish_changed for pair in self.pairs)

    @property
    def mean_more_tokens(self) -> float | None:
        """Tokens that an answer is longer than before; nothing where a token is not the same in both runs."""
        return _mean([pair.more_tokens for pair in self.pairs]) if self.same_vocabulary else None

    @property
    def mean_more_characters(self) -> float | None:
        return _mean([pair.more_characters for pair in self.pairs])

    @property
    def mean_similarity(self) -> float | None:
        return _mean([pair.similarity for pair in self.pairs])

    @property
    def mean_kl_at_least(self) -> float | None:
        """Over all tokens that both runs wrote after the same text."""
        return _mean([nats for pair in self.pairs for nats in pair.kl_at_least])

    @property
    def speed_ratio(self) -> float | None:
        old, new = self.speed_before.tokens_per_second, self.speed_after.tokens_per_second
        return new / old if old and new else None


@dataclass(frozen=True)
class RunDifference:
    """What came of the same checks in two runs, and in what the runs themselves differ."""

    before: str  # where it was read from, or when it began
    after: str
    changes: tuple[Change, ...]  # of machine and libraries; each target has its own
    targets: tuple[TargetDifference, ...]
    only_before: tuple[str, ...]  # targets
    only_after: tuple[str, ...]
    verdicts: tuple[VerdictPair, ...]
    notes: tuple[str, ...]
    measured: tuple[Measured, Measured] | None = None  # when both runs compared their targets

    def verdicts_that(self, kind: str) -> tuple[VerdictPair, ...]:
        """Those of one kind: same, regressed, fixed, changed, only before, only after."""
        return tuple(pair for pair in self.verdicts if pair.kind == kind)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
