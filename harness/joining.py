"""What several processes did of one run, as one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from harness.record import Completion, Failure
from harness.store import Results

A = TypeVar("A", Completion, Failure)


def joined(parts: Sequence[Results], checks: int, command: str) -> Results:
    """Each process has planned all of the checks and judged some; what two of them generated is kept once."""
    records = tuple(record for part in parts for record in part.records)
    texts: dict[str, dict[int, str]] = {}
    for part in parts:
        for target, known in part.texts.items():
            texts.setdefault(target, {}).update(known)
    first = min(parts, key=lambda part: part.started)
    return replace(
        first,
        records=records,
        completions=_once(given for part in parts for given in part.completions),
        failures=_once(given for part in parts for given in part.failures),
        facts=tuple(facts for part in parts for facts in part.facts),
        counts={
            "asked": max(part.counts.get("asked", 0) for part in parts),
            "distinct": max(part.counts.get("distinct", 0) for part in parts),
            "generated": sum(part.counts.get("generated", 0) for part in parts),
        },
        suites=tuple({suite["file"]: suite for part in parts for suite in part.suites}.values()),
        targets=tuple(dict.fromkeys(target for part in parts for target in part.targets)),
        seconds=max(part.seconds for part in parts),
        command=command,
        errors=tuple(dict.fromkeys(error for part in parts for error in part.errors)),
        complete=len({record.check for record in records}) == checks and not any(part.lacks for part in parts),
        pins={check: pin for part in parts for check, pin in part.pins.items()},
        texts=texts,
        path=None,
        lacks=tuple(lack for part in parts for lack in part.lacks),
    )


def _once(given: Iterable[tuple[str, A]]) -> tuple[tuple[str, A], ...]:
    found: dict[tuple[str, str], tuple[str, A]] = {}
    for target, answer in given:
        found.setdefault((target, answer.request.id), (target, answer))
    return tuple(found.values())
