"""Which candidate to ship: each against the budget, the Pareto set, the cheapest that passes. Pure.

A limit is kept or broken only if the whole interval says so; else it cannot be told, and how many prompts would tell.
To add a limit: a field of Budget, and a row in LIMITS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from harness.comparison import statistics
from harness.comparison.figures import figure
from harness.comparison.statistics import Interval, prompts_needed
from harness.comparison.summary import Side, Summary, sides, summarize
from harness.store import Results
from harness.suite import Budget

Word = Literal["ship", "do not ship", "cannot tell"]
# Beyond this the machine was busy with something else beside one of the two, and speeds say nothing.
DRIFT = 1.15
UNTESTED = ("skipped",)


@dataclass(frozen=True)
class Limit:
    """One line of a budget: the statistic that it bounds, and on which side."""

    statistic: str
    upper: bool
    unit: str = ""
    more: str = "prompts"  # what there has to be more of, to tell

    def holds(self, value: Interval, limit: float) -> bool | None:
        if value.low is None and value.high is None and value.units == 1:  # measured once, without an interval
            return value.value <= limit if self.upper else value.value >= limit
        return value.below(limit) if self.upper else value.above(limit)


LIMITS: Mapping[str, Limit] = {
    "max_kl": Limit("kl", upper=True, unit=" nats"),
    "min_top1": Limit("top1", upper=False),
    "max_perplexity_ratio": Limit("perplexity_ratio", upper=True, unit="×", more="paragraphs"),
    "min_speedup": Limit("speedup", upper=False, unit="×", more="repeats"),
    "max_memory_mb": Limit("peak_mb", upper=True, unit=" MB"),
}


@dataclass(frozen=True)
class Finding:
    """One limit and one candidate."""

    limit: str
    holds: bool | None  # None: cannot tell
    sentence: str


@dataclass(frozen=True)
class Gate:
    """Whether one candidate may be shipped."""

    candidate: str
    findings: tuple[Finding, ...]

    @property
    def word(self) -> Word:
        if any(finding.holds is False for finding in self.findings):
            return "do not ship"
        return "cannot tell" if any(finding.holds is None for finding in self.findings) else "ship"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What blocks it; or else what leaves it open."""
        wanted = {"do not ship": False, "cannot tell": None}.get(self.word, True)
        return tuple(finding.sentence for finding in self.findings if finding.holds is wanted and wanted is not True)


@dataclass(frozen=True)
class Difference:
    """Two candidates on the same prompts."""

    one: str
    other: str
    statistic: str
    value: Interval  # of the one, less that of the other
    better: str  # the name of the better one; "" where they are equal, or where it cannot be told
    prompts: int | None  # that would tell


@dataclass(frozen=True)
class Decision:
    """What to ship."""

    gates: tuple[Gate, ...]  # none without a budget
    pareto: tuple[str, ...]  # no other candidate is as good in quality, memory and speed, and better in one
    cheapest: str  # of those that may be shipped, the one that takes the least memory; "" where there is none
    differences: tuple[Difference, ...]

    @property
    def sentence(self) -> str:
        shipped = [gate.candidate for gate in self.gates if gate.word == "ship"]
        open_ones = [gate.candidate for gate in self.gates if gate.word == "cannot tell"]
        if not self.gates:
            return "no budget: the suite says nothing of what may be shipped"
        if shipped:
            among = (
                f"the cheapest of {len(shipped)} that keep the budget" if shipped[1:] else "it alone keeps the budget"
            )
            return f"ship {self.cheapest}: {among}"
        if open_ones:
            return f"nothing is known to keep the budget; it cannot be told of {', '.join(open_ones)}"
        return "nothing keeps the budget: ship none of them"


def decide(results: Results) -> Decision:
    """The decision on everything that was measured."""
    if "decision" not in results.worked_out:
        results.worked_out["decision"] = _decision(results)
    decision: Decision = results.worked_out["decision"]
    return decision


def _decision(results: Results) -> Decision:
    summaries = summarize(results)
    budget = Budget.model_validate(results.budget) if results.budget else None
    found = sides(results)
    gates = tuple(_gate(one, budget, found[one.candidate.name]) for one in summaries) if budget else ()
    return Decision(
        gates=gates,
        pareto=_pareto(summaries),
        cheapest=_cheapest(summaries, [gate.candidate for gate in gates if gate.word == "ship"]),
        differences=tuple(_differences(list(found.values())[1:])),
    )


def _gate(summary: Summary, budget: Budget, side: Side) -> Gate:
    findings = [
        _finding(name, limit, float(wanted), summary)
        for name, limit in LIMITS.items()
        if (wanted := getattr(budget, name)) is not None
    ]
    tests = [_passes(test, side) for test in budget.must_pass or ()]
    return Gate(summary.candidate.name, (*findings, *tests))


def _finding(name: str, limit: Limit, wanted: float, summary: Summary) -> Finding:
    value = summary.values.get(limit.statistic)
    bound = f"{name} {wanted:g}"
    if value is None:
        why = f": {summary.why_not.splitlines()[0]}" if summary.why_not else ""
        return Finding(name, None, f"{bound}: not measured{why}")
    pace = summary.values.get("drift")
    if name == "min_speedup" and pace and not 1 / DRIFT <= pace.value <= DRIFT:
        sentence = f"{bound}: the machine itself ran {pace.value:.2f} times as slow beside it as beside the baseline"
        return Finding(name, None, f"{sentence}; measure again when it is quiet")
    holds = limit.holds(value, wanted)
    said = (
        f"{limit.statistic} {figure(value)}{limit.unit}, {'at most' if limit.upper else 'at least'} {wanted:g} wanted"
    )
    needed = prompts_needed(value, wanted) if holds is None else None
    more = f"; about {needed:,} {limit.more} would tell (now {value.units:,})" if needed else ""
    return Finding(name, holds, f"{said}{more}")


def _passes(test: str, side: Side) -> Finding:
    outcomes = {name: outcome for name, outcome in side.outcomes.items() if name.partition("[")[0] == test}
    judged = {name: outcome for name, outcome in outcomes.items() if outcome not in UNTESTED}
    failed = [name for name, outcome in judged.items() if outcome not in ("passed", "xpassed")]
    if failed:
        return Finding("must_pass", False, f"must_pass {failed[0]}: {judged[failed[0]]}{_more(failed)}")
    if not judged:
        return Finding("must_pass", None, f"must_pass {test}: it was not judged on this candidate")
    return Finding("must_pass", True, f"must_pass {test}: {len(judged)} passed")


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _negative(one: Summary, statistic: str) -> float | None:
    return -one.values[statistic].value if statistic in one.values else None


def _speed(one: Summary) -> float | None:
    """Over the baseline's: measured in turns, what slows the machine for a while slows both."""
    found = one.values.get("speedup") or one.values.get("batch_tokens_per_second")
    return found.value if found else None


# What makes one candidate better than another: quality, memory, speed. Each as "higher is better".
QUALITIES: Sequence[Callable[[Summary], float | None]] = (
    lambda one: _negative(one, "kl") if "kl" in one.values else _negative(one, "bits_per_byte"),
    lambda one: _negative(one, "peak_mb") if "peak_mb" in one.values else _negative(one, "weights_mb"),
    _speed,
)


def _pareto(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """Those that no other one beats: as good in everything that is known of both, and better in something."""
    points = {one.candidate.name: [quality(one) for quality in QUALITIES] for one in summaries if one.values}
    complete = {name: point for name, point in points.items() if all(map(_is_known, point))}
    return tuple(
        name for name, point in complete.items() if not any(_beats(other, point) for other in complete.values())
    )


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _beats(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _cheapest(summaries: Sequence[Summary], shipped: Sequence[str]) -> str:
    def cost(one: Summary) -> tuple[float, float]:
        memory = one.values.get("peak_mb") or one.values.get("weights_mb")
        return (memory.value if memory else float("inf")), -(_speed(one) or 0.0)

    able = [one for one in summaries if one.candidate.name in shipped]
    return min(able, key=cost).candidate.name if able else ""


def _differences(candidates: Sequence[Side]) -> list[Difference]:
    """Every two candidates, on the prompts that both have."""
    found = []
    for one, other in combinations(candidates, 2):
        shared = [prompt for prompt in one.replays if prompt in other.replays]
        if shared:
            kl = statistics.difference(*([side.replays[prompt].kl for prompt in shared] for side in (one, other)))
            found.append(_difference(one, other, "kl", kl, lower_is_better=True))
        checks = [name for name in one.outcomes if _judged(one, name) and _judged(other, name)]
        if checks:
            passed = ([side.outcomes[name] in ("passed", "xpassed") for name in checks] for side in (one, other))
            found.append(
                _difference(one, other, "checks", statistics.outcome_difference(*passed), lower_is_better=False)
            )
    return found


def _judged(side: Side, check: str) -> bool:
    return side.outcomes.get(check, "skipped") not in UNTESTED


def _difference(one: Side, other: Side, statistic: str, value: Interval, *, lower_is_better: bool) -> Difference:
    at_most, at_least = value.below(0), value.above(0)
    lower = None if at_most is at_least else one if at_most else other if at_least else None
    better = lower if lower_is_better or lower is None else (other if lower is one else one)
    return Difference(
        one.candidate.name,
        other.candidate.name,
        statistic,
        value,
        better.candidate.name if better else "",
        prompts_needed(value, 0.0) if at_most is at_least is None else None,
    )
