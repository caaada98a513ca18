"""A comparison as pandas frames."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.comparison.decision import decide
from harness.comparison.summary import STATISTICS, parted, sides, summarize
from harness.expectations.metrics.alignment import similarity
from harness.store import Results
from harness.tables import encodable


def comparison_frame(results: Results) -> pd.DataFrame:
    """A row for each candidate: every statistic, with the bounds of its interval as NAME_low and NAME_high."""
    gates = {gate.candidate: gate for gate in decide(results).gates}
    rows = []
    for one in summarize(results):
        gate = gates.get(one.candidate.name)
        row: dict[str, Any] = {
            "candidate": one.candidate.name,
            "target": one.candidate.target,
            "generation": one.candidate.generation,
            "gate": gate.word if gate else "",
            "reasons": "; ".join(gate.reasons) if gate else "",
            "flips": len(one.flips),
        }
        for name in STATISTICS:
            value = one.values.get(name)
            row[name] = value.value if value else None
            row[f"{name}_low"] = value.low if value else None
            row[f"{name}_high"] = value.high if value else None
        rows.append(row | {"not_measured": one.why_not})
    numbers = [f"{name}{bound}" for name in STATISTICS for bound in ("", "_low", "_high")]
    columns = ["candidate", "target", "generation", "gate", "reasons", "flips", *numbers, "not_measured"]
    return _frame(rows, columns).astype(dict.fromkeys(numbers, "float64")).set_index("candidate")


def prompts_frame(results: Results) -> pd.DataFrame:
    """A row for each prompt of each candidate: what it wrote beside the baseline, and its replay in sum."""
    found = sides(results)
    base = next(iter(found.values()), None)
    rows = []
    for name, side in found.items():
        for prompt, done in side.completions.items():
            theirs = base.completions.get(prompt) if base else None
            replay = side.replays.get(prompt)
            same = [own == their for own, their in zip(replay.top, replay.baseline_top, strict=True)] if replay else []
            rows.append(
                {
                    "candidate": name,
                    "prompt": prompt,
                    "text": encodable(done.text),
                    "new_tokens": done.new_tokens,
                    "finish": done.finish,
                    "same_text": theirs.text == done.text if theirs else None,
                    "similarity": similarity(done.text, theirs.text) if theirs else None,
                    "first_divergence": parted(done, theirs) if theirs and side.comparable else None,
                    "tokens_replayed": len(same),
                    "kl": sum(replay.kl) / len(same) if replay and same else None,
                    "kl_max": max(replay.kl) if replay and same else None,
                    "top1": sum(same) / len(same) if same else None,
                    "processed_distance": sum(replay.processed_distance) / len(same) if replay and same else None,
                }
            )
    columns = (
        "candidate prompt text new_tokens finish same_text similarity first_divergence tokens_replayed kl kl_max top1 "
        "processed_distance"
    )
    return _frame(rows, columns.split())


def tokens_frame(results: Results) -> pd.DataFrame:
    """A row for each token of the baseline's continuations, on which each candidate was replayed."""
    rows = [
        {"candidate": name, "prompt": prompt, "index": index}
        | {column: values[index] for column, values in vars(replay).items()}
        for name, side in sides(results).items()
        for prompt, replay in side.replays.items()
        for index in range(len(replay.kl))
    ]
    columns = (
        "candidate prompt index kl baseline_top top baseline_margin margin baseline_logprob logprob "
        "processed_distance processed_top1"
    )
    return _frame(rows, columns.split())


def flips_frame(results: Results) -> pd.DataFrame:
    """A row for each place where a candidate holds another token for the likeliest, with the margins there."""
    rows = [vars(flip) for one in summarize(results) for flip in one.flips]
    return _frame(rows, ["candidate", "prompt", "index", "baseline", "own", "baseline_margin", "margin", "kl"])


def differences_frame(results: Results) -> pd.DataFrame:
    """A row for every two candidates and statistic: their difference on the same prompts, and which is better."""
    rows = [
        {
            "one": found.one,
            "other": found.other,
            "statistic": found.statistic,
            "difference": found.value.value,
            "low": found.value.low,
            "high": found.value.high,
            "better": found.better or "cannot tell",
            "prompts": found.value.units,
            "prompts_needed": found.prompts,
        }
        for found in decide(results).differences
    ]
    return _frame(
        rows, ["one", "other", "statistic", "difference", "low", "high", "better", "prompts", "prompts_needed"]
    )


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)
