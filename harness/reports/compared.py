"""What is told of a comparison, in a terminal and on a page: which rows, how each went, what is left open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.comparison.decision import DRIFT, Decision, Difference, Gate
from harness.comparison.figures import figure, number
from harness.comparison.measured import Measured
from harness.comparison.statistics import Interval
from harness.comparison.summary import STATISTICS, Summary
from harness.reports import lacking, untold_errors
from harness.store import Results, outcome_by_check
from harness.wording import counted

GATES = {"ship": "✓", "do not ship": "✗", "cannot tell": "?"}
MARKS = {"better": "▲", "worse": "▼", "": ""}
# What one decides by; the others are for those who ask further.
DECIDING = (
    *("kl", "kl_p99", "top1", "perplexity_ratio", "bits_per_byte", "same_text", "same_end", "checks"),
    *("weights_mb", "peak_mb", "first_token_ms", "tokens_per_second", "batch_tokens_per_second", "speedup"),
)
SIGNED = ("tokens_change", "characters_change")
BUDGET = """\
budget:
  max_kl: 0.1                  # nats a token
  min_top1: 0.9
  max_perplexity_ratio: 1.1    # needs `compare: {texts: …}`
  max_memory_mb: 500"""


@dataclass(frozen=True)
class Cell:
    """One statistic of one candidate."""

    text: str
    standing: str  # better or worse than the baseline; "" where neither can be said


@dataclass(frozen=True)
class Row:
    """One statistic of all candidates."""

    title: str
    about: str
    cells: tuple[Cell, ...]


def rows(summaries: Sequence[Summary], *, everything: bool) -> list[Row]:
    """All statistics, or those that decide and are known of any candidate."""
    keys = list(STATISTICS) if everything else list(_deciding(summaries))
    base = summaries[0].values if summaries else {}
    return [
        Row(
            STATISTICS[key].title,
            STATISTICS[key].about,
            tuple(Cell(_shown(key, one.values), _standing(key, one.values, base)) for one in summaries),
        )
        for key in keys
    ]


def _deciding(summaries: Sequence[Summary]) -> Iterator[str]:
    known = {key for one in summaries for key in one.values}
    for key in DECIDING:
        if key in known and key != ("perplexity_ratio" if _tokenizers_differ(summaries) else "bits_per_byte"):
            yield key


def _tokenizers_differ(summaries: Sequence[Summary]) -> bool:
    """Whether a text was read by one whose tokens are other pieces than the baseline's."""
    return any("bits_per_byte" in one.values and "perplexity_ratio" not in one.values for one in summaries)


def _shown(key: str, values: Mapping[str, Interval]) -> str:
    value = values.get(key)
    if key == "checks" and value:
        return f"{round(value.value * value.units)}/{value.units}"
    sign = "+" if key in SIGNED and value and value.value > 0 else ""
    return f"{sign}{figure(value)}"


def _standing(key: str, own: Mapping[str, Interval], base: Mapping[str, Interval]) -> str:
    """Beside the baseline, where their intervals do not overlap."""
    better, mine, theirs = STATISTICS[key].better, own.get(key), base.get(key)
    if not better or mine is None or theirs is None:
        return ""
    (lowest, low), (highest, high) = _ends(mine), _ends(theirs)
    if lowest > high:
        return "better" if better == "high" else "worse"
    if low < highest:
        return "better" if better == "low" else "worse"
    return ""


def _ends(value: Interval) -> tuple[float, float]:
    """What was measured once has no interval, and is taken as it is; an open end reaches to anywhere."""
    if value.low is None and value.high is None:
        return value.value, value.value
    return (
        float("-inf") if value.low is None else value.low,
        float("inf") if value.high is None else value.high,
    )


def scope(measured: Measured) -> str:
    """What the figures are of: `13 prompts, 312 tokens of the baseline's, 8 paragraphs`."""
    prompts = len({one.prompt for one in measured.answered})
    own = [one.replay for one in measured.answered if one.candidate == measured.baseline and one.replay]
    tokens = sum(len(replay.kl) for replay in own)
    paragraphs = len({one.text for one in measured.passages})
    repeats = max((len(one.batch) for one in measured.timings), default=0)
    sizes = {one.batch_size for one in measured.timings if one.batch_size}
    parts = (
        (prompts, counted(prompts, "prompt")),
        (tokens, f"{counted(tokens, 'token')} of its own continuations"),
        (paragraphs, f"{counted(paragraphs, 'paragraph')} of text"),
        (repeats, f"speed {counted(repeats, 'time')} in batches of {', '.join(map(str, sorted(sizes)))}"),
    )
    return ", ".join(text for count, text in parts if count)


def left_out(measured: Measured) -> list[tuple[str, str]]:
    """Names of candidates, and why they, or some of their prompts, were not compared; each reason once."""
    named: dict[str, list[str]] = {}
    for one in measured.candidates:
        if one.name in measured.not_measured:
            reasons = [f"not measured: {_one_sentence(measured.not_measured[one.name])}"]
        else:
            asked = [answered for answered in measured.answered if answered.candidate == one.name]
            counts = Counter(_one_sentence(answered.why_not) for answered in asked if answered.why_not)
            reasons = [
                f"{count} of {counted(len(asked), 'prompt')} not compared: {reason}"
                for reason, count in counts.items()
                if not any(reason in note for note in measured.notes)
            ]
        for reason in reasons:
            named.setdefault(reason, []).append(one.name)
    return [(", ".join(names), reason) for reason, names in named.items()]


def _one_sentence(message: str) -> str:
    """Message and remedy on one line."""
    lines = [line.strip() for line in message.split("\n") if line.strip()]
    return " ".join(line if line.endswith((".", ":", ",")) or line is lines[-1] else f"{line}." for line in lines)


def notes(results: Results, summaries: Sequence[Summary]) -> list[str]:
    """What else limits the comparison."""
    measured = results.measured
    told = [*(measured.notes if measured else ())]
    reasons = [reason.splitlines()[0] for reason in (measured.not_measured if measured else {}).values() if reason]
    told += [
        f"not loaded: {error}" for error in untold_errors(results) if not any(reason in error for reason in reasons)
    ]
    told += lacking(results)
    for one in summaries:
        pace = one.values.get("drift")
        if pace and not 1 / DRIFT <= pace.value <= DRIFT:
            told.append(
                f"{one.candidate.name}: the machine itself took {number(pace.value)} times as long for the same work "
                "as beside the baseline; measure its speed again when nothing else runs"
            )
    return told


def gate_reasons(gate: Gate, measured: Measured) -> tuple[str, ...]:
    """What blocks it or leaves it open; that nothing was measured is said once, and not for each limit."""
    return ("it was not measured",) if gate.candidate in measured.not_measured else gate.reasons


def budget_line(results: Results) -> str:
    """`max_kl 0.1, must_pass counts-on`."""
    return ", ".join(
        f"{name} {' '.join(map(str, limit)) if isinstance(limit, (list, tuple)) else limit}"
        for name, limit in (results.budget or {}).items()
    )


def pareto_line(decision: Decision, summaries: Sequence[Summary]) -> str:
    """Who is in the Pareto set, and of what."""
    known = {key for one in summaries if one.candidate.name in decision.pareto for key in one.values}
    if not decision.pareto:
        return "not known: quality, memory and speed have to be measured for it"
    quality = "KL" if "kl" in known else "bits per byte"
    memory = "peak memory" if "peak_mb" in known else "weights"
    return f"{', '.join(decision.pareto)}: no other candidate is as good in {quality}, {memory} and speed"


def difference_sentence(found: Difference) -> str:
    """`int8 better than nf4 in KL by 0.26 [0.20, 0.33]`; or that it cannot be told."""
    value = found.value
    what = STATISTICS[found.statistic].title.partition(",")[0]
    if value.low == value.high == 0:
        return f"{found.one} equals {found.other} in {what}"
    if found.better:
        worse = found.other if found.better == found.one else found.one
        return f"{found.better} better than {worse} in {what} by {figure(_positive(value))}"
    enough = f"; about {counted(found.prompts, 'prompt')} would tell (now {value.units:,})" if found.prompts else ""
    enough = "; one alone does not tell" if value.units < 2 else enough
    return f"cannot tell {found.one} from {found.other} in {what}: {figure(value)}{enough}"


def _positive(value: Interval) -> Interval:
    if value.value >= 0:
        return value
    low, high = (None if bound is None else -bound for bound in (value.high, value.low))
    return Interval(-value.value, low, high, value.units)


def failed_checks(results: Results) -> list[tuple[str, str]]:
    """Targets with checks that failed or broke, and how many."""
    told = []
    for target in dict.fromkeys(record.target for record in results.records):
        outcomes = Counter(outcome_by_check(one for one in results.records if one.target == target).values())
        bad = [
            f"{outcomes[word]} {noun}" for word, noun in (("failed", "failed"), ("error", "error")) if outcomes[word]
        ]
        if bad:
            told.append((target, f"{', '.join(bad)} of {counted(outcomes.total(), 'check')}"))
    return told
