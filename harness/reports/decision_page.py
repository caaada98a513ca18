"""What the page says of a comparison: the decision first, then the figures it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.comparison.decision import LIMITS, Decision, decide
from harness.comparison.figures import figure, number
from harness.comparison.summary import Flip, Summary, summarize
from harness.reports import compared, one_line
from harness.reports.charts import Limit, Point, Scatter, Table, scatter, told_apart
from harness.store import Results
from harness.wording import counted

WORD_CLASSES = {"ship": "passed", "do not ship": "failed", "cannot tell": "known"}
FLIPS, LEAST = 30, 3  # of all candidates together, but so many of each
FAR = 3.0  # times the largest point, or the smallest through it: a limit beyond is not drawn
WORDS = 8  # candidates beside whose points is written that they are in the Pareto set; of more the shape tells it
MEMORY = {"peak_mb": "peak memory, MB", "weights_mb": "weights, MB"}
QUALITY = {"kl": "KL, nats a token", "bits_per_byte": "bits per byte of the texts"}
SPEED = {"speedup": "speed in batch, × the baseline's", "batch_tokens_per_second": "tokens/s in batch"}
UNITS = {"kl": " nats", "bits_per_byte": " bits per byte", "speedup": " ×", "batch_tokens_per_second": " tokens/s"}


def decision_page(results: Results) -> dict[str, Any] | None:
    """For the template; None where nothing was compared."""
    measured = results.measured
    if measured is None:
        return None
    summaries, decision = summarize(results), decide(results)
    return {
        "sentence": decision.sentence,
        "headline": _headline(decision, summaries),
        "baseline": measured.baseline,
        "scope": compared.scope(measured),
        "budget": compared.budget_line(results),
        "how": "" if decision.gates else compared.BUDGET,
        "gates": [
            {
                "symbol": compared.GATES[gate.word],
                "word": gate.word,
                "look": WORD_CLASSES[gate.word],
                "candidate": gate.candidate,
                "reasons": compared.gate_reasons(gate, measured),
            }
            for gate in decision.gates
        ],
        "left_out": compared.left_out(measured),
        "failed": compared.failed_checks(results),
        "candidates": [one.candidate.name for one in summaries if one.values],
        "deciding": compared.rows([one for one in summaries if one.values], everything=False),
        "rows": compared.rows([one for one in summaries if one.values], everything=True),
        "marks": compared.MARKS,
        "flips": _flips(results, summaries),
        "pareto": compared.pareto_line(decision, summaries),
        "plots": _plots(results, decision, summaries),
        "points": _points(decision, summaries),
        "differences": [compared.difference_sentence(found) for found in decision.differences],
        "notes": compared.notes(results, summaries),
    }


def _headline(decision: Decision, summaries: Sequence[Summary]) -> dict[str, str]:
    """What to ship, and what it costs beside the baseline."""
    words = {gate.word for gate in decision.gates}
    word = next((word for word in ("ship", "cannot tell", "do not ship") if word in words), "")
    chosen = next((one for one in summaries if one.candidate.name == decision.cheapest), None)
    return {
        "look": WORD_CLASSES.get(word, "soft"),
        "symbol": compared.GATES.get(word, "–"),
        "sentence": decision.sentence,
        "cost": _cost(chosen, summaries[0]) if chosen else "",
    }


def _cost(chosen: Summary, baseline: Summary) -> str:
    """`300 MB (0.5 × the baseline's), 22 tokens/s (0.71 ×), KL 0.02 nats a token`."""
    memory = _first_known(MEMORY, [chosen])
    theirs, faster = baseline.values.get(memory), chosen.values.get("speedup")
    ratio = chosen.values[memory].value / theirs.value if theirs and theirs.value else None
    parts = []
    for key, unit, times in (
        (memory, "MB of memory", ratio),
        ("batch_tokens_per_second", "tokens/s", faster and faster.value),
    ):
        if key in chosen.values:
            beside = f" ({times:.2g} × the baseline's)" if times and chosen is not baseline else ""
            parts.append(f"{number(chosen.values[key].value)} {unit}{beside}")
    quality = _first_known(QUALITY, [chosen])
    parts += [f"{QUALITY[quality]}: {figure(chosen.values[quality])}"] if quality and chosen is not baseline else []
    return ", ".join(parts)


def _first_known(keys: Mapping[str, str], summaries: Sequence[Summary]) -> str:
    return next((key for key in keys if any(key in one.values for one in summaries)), "")


# --- flips ------------------------------------------------------------------------------------------------------------


def _flips(results: Results, summaries: Sequence[Summary]) -> dict[str, Any]:
    """Where candidates hold another token for the likeliest: how often, and those that the baseline was surest of."""
    tokens = {one.candidate.name: 0 for one in summaries}
    for answered in results.measured.answered if results.measured else ():
        tokens[answered.candidate] = tokens.get(answered.candidate, 0) + len(
            answered.replay.kl if answered.replay else ()
        )
    targets = {one.candidate.name: one.candidate.target for one in summaries}
    base = targets.get(results.measured.baseline, "") if results.measured else ""
    said = _token_texts(results)
    each = max(LEAST, FLIPS // (sum(bool(one.flips) for one in summaries) or 1))
    worst = [
        flip for one in summaries for flip in sorted(one.flips, key=lambda flip: -_surest(flip.baseline_margin))[:each]
    ]
    return {
        "counts": [
            f"{one.candidate.name} {len(one.flips):,} of {counted(tokens[one.candidate.name])}"
            for one in summaries
            if one.flips
        ],
        "rows": [_flip(flip, said.get(base, {}) | said.get(targets[flip.candidate], {})) for flip in worst],
        "more": sum(len(one.flips) for one in summaries) - len(worst),
    }


def _surest(margin: float) -> float:
    return math.inf if math.isnan(margin) else margin


def _flip(flip: Flip, said: Mapping[int, str]) -> dict[str, Any]:
    return {
        "candidate": flip.candidate,
        "prompt": flip.prompt,
        "index": flip.index,
        "baseline": _token(flip.baseline, said),
        "baseline_margin": number(flip.baseline_margin),
        "own": _token(flip.own, said),
        "margin": number(flip.margin),
        "kl": number(flip.kl),
    }


def _token(token: int, said: Mapping[int, str]) -> str:
    """Spaces and line ends are part of a token: quoted, they are seen."""
    return one_line(f"'{said[token]}'") if said.get(token) else f"#{token}"


def _token_texts(results: Results) -> dict[str, dict[int, str]]:
    """By target: what its token ids say, as far as anything tells."""
    texts = {target: dict(known) for target, known in results.texts.items()}
    for target, done in results.completions:
        texts.setdefault(target, {}).update(zip(done.ids, done.tokens, strict=False))
    return texts


# --- quality, memory and speed ----------------------------------------------------------------------------------------


def _plots(results: Results, decision: Decision, summaries: Sequence[Summary]) -> list[Scatter]:
    """Speed and quality, each over the same memory: together, all three."""
    memory, speed, quality = (_first_known(keys, summaries) for keys in (MEMORY, SPEED, QUALITY))
    budget = {name: float(limit) for name, limit in (results.budget or {}).items() if isinstance(limit, (int, float))}
    across = [
        Limit(f"max_memory_mb {value:g}", value, along_x=True) for value in _limit(budget, "max_memory_mb", memory)
    ]
    upright = [Limit(f"max_kl {value:g}", value) for value in _limit(budget, "max_kl", quality)]
    made = (
        _plot((memory, speed), decision, summaries, across),
        _plot((memory, quality), decision, summaries, [*across, *upright]),
    )
    return [plot for plot in made if plot]


def _limit(budget: Mapping[str, float], name: str, statistic: str) -> list[float]:
    return [budget[name]] if name in budget and LIMITS[name].statistic == statistic else []


def _plot(
    keys: tuple[str, str], decision: Decision, summaries: Sequence[Summary], limits: Sequence[Limit]
) -> Scatter | None:
    points, told = [], []
    labels = told_apart([one.candidate.name for one in summaries if one.values])
    for one in summaries:
        x, y = (one.values.get(key) for key in keys)
        if not x or not y or not math.isfinite(x.value) or not math.isfinite(y.value):
            continue
        name, words = one.candidate.name, _words(one, decision)
        label = " · ".join((labels[name], *(word for word in words if word == "ship" or len(labels) <= WORDS)))
        points.append(Point(label, x.value, y.value, name in decision.pareto, y.low, y.high, name == decision.cheapest))
        said = f" ({', '.join(words)})" if words else ""
        told.append(f"{one_line(name)}{said}: {number(x.value)} MB, {number(y.value)}{UNITS[keys[1]]}")
    if not points:
        return None
    near = [limit for limit in limits if _is_near(limit.value, [p.x if limit.along_x else p.y for p in points])]
    x_name, y_name, less_is_better = MEMORY[keys[0]], (SPEED | QUALITY)[keys[1]], keys[1] in QUALITY
    text = f"{y_name} over {x_name}. {'; '.join(told)}"
    upwards = "less" if less_is_better else "more"
    return scatter(
        points, f"← less: {x_name}", f"↑ {upwards}: {y_name}", text, limits=near, less_is_better=less_is_better
    )


def _is_near(value: float, values: Sequence[float]) -> bool:
    """Else the points would be pressed into a corner for the sake of a line."""
    return min(values) / FAR <= value <= max(values) * FAR


def _words(one: Summary, decision: Decision) -> list[str]:
    known = ("Pareto", one.candidate.name in decision.pareto), ("ship", one.candidate.name == decision.cheapest)
    return [word for word, holds in known if holds]


def _points(decision: Decision, summaries: Sequence[Summary]) -> Table | None:
    """All that the plots show, as a table."""
    keys = [key for keys in (MEMORY, SPEED, QUALITY) if (key := _first_known(keys, summaries))]
    heads = ("candidate", "in the Pareto set", *((MEMORY | SPEED | QUALITY)[key] for key in keys))
    rows = tuple(
        (
            one.candidate.name,
            "yes" if one.candidate.name in decision.pareto else "no",
            *(figure(one.values.get(key)) for key in keys),
        )
        for one in summaries
        if one.values
    )
    return Table("the numbers of the charts", heads, rows) if keys and rows else None
