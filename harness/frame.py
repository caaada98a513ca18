"""Results as pandas frames, in the words of the suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from harness.record import Completion, Record, TargetFacts
from harness.store import WORST_FIRST, Results, outcome_by_check
from harness.tables import encodable

COLUMNS = [
    "suite",
    "test",
    "target",
    "model",
    "quantization",
    "prompt",
    "generation",
    "expectation",
    "outcome",
    "verdict",
    "reason",
    "new_tokens",
    "finish",
    "seconds",
    "text",
    "xfail",
    "check",
    "file",
    "line",
    "marks",
    "numbers",
]
MEGABYTE = 1e6


def results_frame(results: Results | Iterable[Record]) -> pd.DataFrame:
    """One row for each record, in the order in which they were judged."""
    records = results.records if isinstance(results, Results) else results
    frame = pd.DataFrame([_row(record) for record in records], columns=COLUMNS)
    return frame.astype({"new_tokens": "Int64", "seconds": "float64", "line": "int64"})


def matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Test × target: checks passed/judged. Skipped ones are not judged; a pair without checks is empty."""
    if frame.empty:
        return pd.DataFrame(index=pd.Index([], name="test"), columns=pd.Index([], name="target"))
    ranks = frame["outcome"].map(WORST_FIRST.index)
    worst = frame.assign(rank=ranks).groupby(["test", "target", "check"], sort=False)["rank"].min()
    checks = worst.map(lambda rank: WORST_FIRST[rank]).rename("outcome").reset_index()
    judged = checks["outcome"] != "skipped"
    passed = checks["outcome"].isin(["passed", "xpassed"])
    cells = checks.assign(judged=judged, passed=passed).groupby(["test", "target"], sort=False)[["passed", "judged"]]
    sums = cells.sum().astype(int).astype(str)
    pivot = (sums["passed"] + "/" + sums["judged"]).unstack(fill_value="")
    return pivot.reindex(index=frame["test"].unique(), columns=frame["target"].unique()).rename_axis(
        index="test", columns="target"
    )


def targets_frame(results: Results) -> pd.DataFrame:
    """One row for each target: what it was asked to be, what it was, how its checks went, how fast it was."""
    facts = {fact.target: fact for fact in results.facts}
    asked = {target.name: target for target in results.targets}
    names = dict.fromkeys([*asked, *facts, *(record.target for record in results.records)])
    rows = []
    for name in names:
        records = [record for record in results.records if record.target == name]
        target = asked.get(name)
        row: dict[str, Any] = {
            "target": name,
            "model": target.model_name if target else records[0].model if records else "",
            "quantization": target.quantization if target else records[0].quantization if records else "",
            "asked_dtype": target.model.dtype if target else "",
            "asked_attention": (target.model.attention or "") if target else "",
            "asked_device": (target.model.device or "") if target else "",
        }
        row |= _effective(facts.get(name, TargetFacts(name)), loaded=name in facts)
        outcomes = Counter(outcome_by_check(records).values())
        row |= {"checks": outcomes.total()} | {outcome: outcomes[outcome] for outcome in WORST_FIRST}
        row |= _speed([done for owner, done in results.completions if owner == name and results.is_free(done.request)])
        rows.append({column: encodable(value) for column, value in row.items()})
    return pd.DataFrame(rows).set_index("target") if rows else pd.DataFrame(index=pd.Index([], name="target"))


def _row(record: Record) -> dict[str, Any]:
    verdict = record.verdict
    own = {"verdict": verdict.status, "reason": verdict.reason, "numbers": dict(verdict.numbers)}
    # pandas 3 keeps text as UTF-8, which has no half surrogate pairs.
    return {name: encodable(own[name] if name in own else getattr(record, name)) for name in COLUMNS}


def _effective(facts: TargetFacts, loaded: bool) -> dict[str, Any]:
    missing = float("nan")
    return {
        "device": facts.device,
        "dtype": facts.dtype,
        "attention": facts.attention,
        "weight_mb": facts.weight_bytes / MEGABYTE if loaded else missing,
        "load_seconds": facts.load_seconds if loaded else missing,
    }


def _speed(completions: list[Completion]) -> dict[str, Any]:
    seconds = sum(done.own_seconds for done in completions)
    tokens = sum(done.new_tokens for done in completions)
    memory = max((done.memory_bytes for done in completions), default=0)
    return {
        "new_tokens": tokens,
        "generation_seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else float("nan"),
        "peak_memory_mb": memory / MEGABYTE if memory else float("nan"),
    }
