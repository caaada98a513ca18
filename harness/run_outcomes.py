"""What a history needs of one run folder: how each check went, and under which conditions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness.store import FORMAT, RESULTS, RUN, TOKENS, WORST_FIRST, suite_digest

FILES = (RUN, RESULTS, TOKENS)
LETTERS = b"efXxps"  # an outcome each, as in WORST_FIRST
COLUMNS = ["check", "suite", "test", "target", "expectation", "outcome", "requests"]
# `ids` only to be counted.
COLUMNS_OF_TOKENS = ["request", "target", "kind", "ids", "seconds", "batch_size"]
PINNED = "pinned"
SCRIPTED = "the suite"  # where the scripted backend says that its weights are


class CheckName(NamedTuple):
    """A check, but for the path of its file: that depends on where the run was started."""

    test: str
    label: str  # "stops[capital]"
    pinned: bool  # its outcome depends on files beside the suite, too


@dataclass
class LookedPart:
    """How the checks of one suite went on one target."""

    suite: str
    target: str
    conditions: Mapping[str, str]
    speed: tuple[int, float, Mapping[str, float]]  # tokens, their seconds, and the seconds of each test
    worst: dict[tuple[str, str], str] = field(default_factory=dict)  # test and label: outcome
    pinned: set[str] = field(default_factory=set)  # tests
    requests: dict[str, set[str]] = field(default_factory=dict)  # by test

    @property
    def checks(self) -> list[CheckName]:
        return [CheckName(test, label, test in self.pinned) for test, label in self.worst]

    @property
    def outcomes(self) -> bytes:
        return bytes(LETTERS[WORST_FIRST.index(outcome)] for outcome in self.worst.values())


@dataclass(frozen=True)
class Looked:
    """What was read of a run folder."""

    facts: Mapping[str, Any]  # plain data
    parts: Sequence[LookedPart]


def look(folder: Path) -> Looked | str:
    """What a run folder tells, or why it tells nothing."""
    missing = [name for name in (RUN, RESULTS) if not (folder / name).is_file()]
    if missing:
        return f"{' and '.join(missing)} missing"
    try:
        meta = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if int(meta["format"]) > FORMAT:
            return f"it was written by a newer harness: format {meta['format']}, this one reads up to {FORMAT}"
        rows = _columns(folder / RESULTS, COLUMNS).to_pylist()
        parts = _parts(rows, meta)
        lacks = _measure(folder / TOKENS, parts)
        written = (folder / RUN).stat().st_mtime_ns
        return Looked(_facts(meta, parts, lacks) | {"written": written}, parts)
    except Exception as error:  # whatever is wrong with one folder, the others are to be seen
        return f"it is damaged: {' '.join(str(error).split()) or type(error).__name__}"


def _columns(path: Path, names: Sequence[str]) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read(columns=names, use_threads=False)  # small: threads cost more than they bring


def _facts(meta: Mapping[str, Any], parts: Iterable[LookedPart], lacks: Sequence[str]) -> dict[str, Any]:
    git = meta.get("environment", {}).get("git") or {}
    outcomes = [outcome for part in parts for outcome in part.worst.values()]
    return {
        "started": datetime.fromisoformat(meta["started"]).astimezone(UTC).isoformat(),
        "seconds": float(meta["seconds"]),
        "complete": bool(meta["complete"]),
        "outcomes": {outcome: count for outcome in WORST_FIRST if (count := outcomes.count(outcome))},
        "commit": git.get("commit", ""),
        "clean": git.get("dirty") is False,
        "lacks": list(lacks),
    }


def _parts(rows: Iterable[Mapping[str, Any]], meta: Mapping[str, Any]) -> list[LookedPart]:
    parts: dict[tuple[str, str], LookedPart] = {}
    facts = {fact["target"]: fact for fact in meta.get("facts", ())}
    for row in rows:
        suite, target, test = row["suite"], row["target"], row["test"]
        if (suite, target) not in parts:
            conditions = _conditions(meta, suite, facts.get(target, {}))
            parts[suite, target] = LookedPart(suite, target, conditions, (0, 0.0, {}))
        part = parts[suite, target]
        label = row["check"].partition(f"::{target}::")[2] or row["check"]
        before = part.worst.get((test, label), WORST_FIRST[-1])
        part.worst[test, label] = min(before, row["outcome"], key=WORST_FIRST.index)
        part.requests.setdefault(test, set()).update(row["requests"])
        if (row["expectation"] or "").startswith(PINNED):
            part.pinned.add(test)
    return list(parts.values())


def _conditions(meta: Mapping[str, Any], suite: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """All that should matter to the outcome, by name; what is not known is not in it."""
    environment = meta.get("environment") or {}
    digests = [suite_digest(one) for one in meta.get("suites", ()) if one["name"] == suite]
    told = {
        "suite": " ".join(sorted(digests)) if all(digests) else "",
        "weights": facts.get("weights_digest") or (SCRIPTED if facts.get("weights") == SCRIPTED else ""),
        **{name: facts.get(name) for name in ("device", "dtype", "attention", "autocast")},
        "tokenizer": facts.get("tokenizer_digest"),
        "chat template": facts.get("template_digest"),
        "model's generation config": facts.get("generation_config"),
        **{name: environment.get(name) for name in ("python", "cpu")},
        **(environment.get("libraries") or {}),
        **{f"torch {name}": value for name, value in (environment.get("torch") or {}).items()},
    }
    return {name: _plain(value) for name, value in told.items() if value not in (None, "", {})}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _measure(path: Path, parts: Iterable[LookedPart]) -> list[str]:
    """Set the speed of each part; without the generations it is not known, and that is what the run lacks."""
    if not path.is_file():
        return [f"{path.name} is missing: its speed is not known"]
    try:
        work = _work(path)
    except Exception as error:
        return [f"{path.name} cannot be read, its speed is not known: {' '.join(str(error).split())}"]
    for part in parts:
        own = {request: work[part.target, request] for request in set().union(*part.requests.values())
               if (part.target, request) in work}  # fmt: skip
        free = [one for one in own.values() if one.tokens is not None]
        by_test = {
            test: math.fsum(own[request].seconds for request in requests if request in own)
            for test, requests in part.requests.items()
        }
        part.speed = (
            sum(one.tokens or 0 for one in free),
            math.fsum(one.seconds for one in free),
            {test: round(seconds, 6) for test, seconds in by_test.items() if seconds},
        )
    return []


class Work(NamedTuple):
    """What one request took."""

    seconds: float
    tokens: int | None  # None: it was not freely generated


def _work(path: Path) -> dict[tuple[str, str], Work]:
    import pyarrow.compute as pc

    table = _columns(path, COLUMNS_OF_TOKENS)
    if "kind" not in table.column_names:
        return {}  # format 1 does not say what was generated freely
    lengths = pc.list_value_length(table["ids"]).to_pylist()
    columns = [table[name].to_pylist() for name in ("target", "request", "kind", "seconds", "batch_size")]
    found: dict[tuple[str, str], Work] = {}
    for target, request, kind, seconds, rows, tokens in zip(*columns, lengths, strict=True):
        if seconds is None:
            continue
        before = found.get((target, request), Work(0.0, None))
        own = tokens if kind == "generate" else None
        total = before.tokens if own is None else own + (before.tokens or 0)
        found[target, request] = Work(before.seconds + seconds / (rows or 1), total)
    return found
