"""What the page says of a comparison: the decision first, then the figures it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.comparison.decision import Decision, decide
from harness.comparison.figures import number
from harness.comparison.summary import Summary, summarize
from harness.reports import compared
from harness.reports.charts import Point, scatter
from harness.store import Results

LABEL = 48  # characters of a name in the chart
WORD_CLASSES = {"ship": "passed", "do not ship": "failed", "cannot tell": "known"}


def decision_page(results: Results) -> dict[str, Any] | None:
    """For the template; None where nothing was compared."""
    measured = results.measured
    if measured is None:
        return None
    summaries, decision = summarize(results), decide(results)
    return {
        "sentence": decision.sentence,
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
        "rows": compared.rows([one for one in summaries if one.values], everything=True),
        "marks": compared.MARKS,
        "pareto": compared.pareto_line(decision, summaries),
        "chart": _chart(decision, summaries),
        "differences": [compared.difference_sentence(found) for found in decision.differences],
        "notes": compared.notes(results, summaries),
    }


def _chart(decision: Decision, summaries: Sequence[Summary]) -> dict[str, Any] | None:
    """Memory against speed, for those of which both are known."""
    memory = "peak_mb" if any("peak_mb" in one.values for one in summaries) else "weights_mb"
    points = [
        Point(
            _label(one),
            one.values[memory].value,
            one.values["batch_tokens_per_second"].value,
            filled=one.candidate.name in decision.pareto,
        )
        for one in summaries
        if memory in one.values and "batch_tokens_per_second" in one.values
    ]
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not points:
        return None
    x, y = ("peak memory" if memory == "peak_mb" else "weights") + ", MB", "tokens/s in batch"
    told = (f"{point.label}: {number(point.x)} MB, {number(point.y)} tokens/s" for point in points)
    return {"plot": scatter(points), "x": x, "y": y, "text": f"{x} against {y}. {'; '.join(told)}"}


def _label(one: Summary) -> str:
    name = one.candidate.name
    name = name if len(name) <= LABEL else f"{name[:LABEL]}…"
    for statistic, title in (("kl", "KL"), ("bits_per_byte", "bits per byte")):
        if statistic in one.values:
            return f"{name}, {title} {number(one.values[statistic].value)}"
    return name
