"""A pinned check: what is now against the pin, to a level and the sentences that explain it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from harness.pins.diagnosis import Evidence, diagnose, message, present, summary
from harness.pins.drift import Drift, measure
from harness.pins.ladder import Judgement, Limits, Ruler, is_exact, judge, judge_one
from harness.pins.packing import storage_rounding
from harness.pins.pin import Memory, Replayed

Level = Literal["tokens", "distribution"]


def judge_prompt(replayed: Replayed, memory: Memory, level: Level, limits: Limits) -> tuple[Judgement, tuple[str, ...]]:
    """One prompt: its level, and what is told, the sentence first."""
    drift = _drift(replayed)
    judgement = _strict(judge_one(drift, _ruler(memory, level, limits)), memory)
    return judgement, _told([replayed], [drift], memory, judgement, level, limits)


def judge_set(
    replayed: Sequence[Replayed], memory: Memory, level: Level, limits: Limits
) -> tuple[Judgement, tuple[str, ...]]:
    """All prompts of a test together."""
    drifts = [_drift(one) for one in replayed]
    judgement = _strict(judge(drifts, _ruler(memory, level, limits)), memory)
    return judgement, _told(replayed, drifts, memory, judgement, level, limits)


def _drift(replayed: Replayed) -> Drift:
    then, now = replayed.pin.processed, replayed.processed
    return measure(replayed, (then, now) if then and now else None)


def _strict(judgement: Judgement, memory: Memory) -> Judgement:
    """Where nothing is noise but what was measured, a small change is a change, too."""
    assert memory.header is not None
    if judgement.level != "drift" or not is_exact(memory.lane, memory.header.environment, memory.environment):
        return judgement
    return replace(judgement, level="changed", rule=f"{judgement.rule}; float32 on the same torch allows no drift")


def _ruler(memory: Memory, level: Level, limits: Limits) -> Ruler:
    assert memory.header is not None
    return Ruler(
        floor=memory.header.floor,
        limits=limits,
        storage_rounding=storage_rounding(memory.lane),
        exact=is_exact(memory.lane, memory.header.environment, memory.environment),
        tokens=level == "tokens",
    )


def _told(
    replayed: Sequence[Replayed],
    drifts: Sequence[Drift],
    memory: Memory,
    judgement: Judgement,
    level: Level,
    limits: Limits,
) -> tuple[str, ...]:
    if judgement.is_quiet:
        return (f"{judgement.level}: {judgement.rule}",)
    assert memory.header is not None
    evidence = Evidence(
        check=memory.check,
        suite_file=memory.check.split("::", maxsplit=1)[0],
        pinned=memory.header,
        now=present(memory, memory.header, replayed),
        replayed=tuple(replayed),
        drifts=tuple(drifts),
        ruler=_ruler(memory, level, limits),
    )
    diagnosis = diagnose(evidence)
    return (summary(evidence, judgement, diagnosis), *message(evidence, judgement, diagnosis))
