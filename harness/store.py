"""Run folders: the whole outcome of a run on disk, written once and never changed."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import CannotRun, UsageError
from harness.record import Completion, Failure, Record, Request, Target, TargetFacts, Verdict, to_data

FORMAT = 1
RUN, RESULTS, TOKENS = "run.json", "results.parquet", "tokens.parquet"
WORST_FIRST = ("error", "failed", "xpassed", "xfailed", "passed", "skipped")


@dataclass(frozen=True)
class Results:
    """The whole outcome of a run."""

    records: tuple[Record, ...]
    completions: tuple[tuple[str, Completion], ...]  # with the name of the target
    failures: tuple[tuple[str, Failure], ...]
    facts: tuple[TargetFacts, ...]
    counts: Mapping[str, int]  # requests: asked, distinct, generated
    suites: tuple[Mapping[str, str], ...]  # each name, file and, where known, sha256
    started: str  # ISO 8601, UTC
    seconds: float
    environment: Mapping[str, Any]
    command: str
    errors: tuple[str, ...] = ()  # why targets could not be loaded
    complete: bool = True
    targets: tuple[Target, ...] = ()  # as asked for; the facts say what they became

    @property
    def outcomes(self) -> dict[str, int]:
        """How many checks had each outcome."""
        return dict(Counter(outcome_by_check(self.records).values()))


@dataclass(frozen=True)
class Run:
    """A run folder that was read."""

    folder: Path
    meta: Mapping[str, Any]

    def results(self) -> Any:
        """results.parquet as a pyarrow table: a row for each record."""
        return _read_table(self.folder / RESULTS)

    def tokens(self) -> Any:
        """tokens.parquet as a pyarrow table: a row for each completion or failure."""
        return _read_table(self.folder / TOKENS)

    def records(self) -> tuple[Record, ...]:
        """The records as they were judged (a number that is not finite comes back as its name)."""
        return tuple(_record(row) for row in self.results().to_pylist())


def outcome_by_check(records: Iterable[Record]) -> dict[str, str]:
    """Node id -> the worst outcome of the check's expectations."""
    outcomes: dict[str, str] = {}
    for record in records:
        outcomes[record.check] = min(outcomes.get(record.check, WORST_FIRST[-1]), record.outcome, key=WORST_FIRST.index)
    return outcomes


def save(results: Results, parent: Path = Path("reports"), files: Mapping[str, str] | None = None) -> Path:
    """Write a new run folder under `parent`, all of it or nothing; `files` are texts to put beside the data."""
    folder = _free_name(results, parent)
    partial = parent / f".partial-{folder.name}"
    try:
        partial.mkdir(parents=True)
        try:
            _fill(partial, results, folder.name, files or {})
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        remedy = "Free some space or choose another folder; the verdicts of this run stand as printed."
        raise CannotRun(f"cannot write {folder}: {error.strerror or error}", remedy) from error
    return folder


def read(folder: Path) -> Run:
    """Open a run folder that `save` wrote."""
    if not (folder / RUN).is_file():
        raise UsageError(f"{folder} is not a run folder: it has no {RUN}", "Name a folder that `harness run` wrote.")
    try:
        meta = json.loads((folder / RUN).read_text(encoding="utf-8"))
        version = int(meta["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / RUN, error) from error
    if version > FORMAT:
        message = f"{folder} was written by a newer harness: format {version}, this one reads up to {FORMAT}"
        raise UsageError(message, "Upgrade harness: pip install --upgrade harness")
    missing = [name for name in (RESULTS, TOKENS) if not (folder / name).is_file()]
    if missing:
        raise CannotRun(f"{folder} is damaged: {' and '.join(missing)} missing", "Run again to get a whole one.")
    return Run(folder, meta)


def _free_name(results: Results, parent: Path) -> Path:
    started = datetime.fromisoformat(results.started).astimezone(UTC)
    names = "-".join(suite["name"] for suite in results.suites)
    slug = re.sub(r"[^a-z0-9]+", "-", names.lower())[:60].strip("-") or "run"
    while True:
        folder = parent / f"{started:%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(2)}"
        if not os.path.lexists(folder):
            return folder


def _fill(folder: Path, results: Results, name: str, files: Mapping[str, str]) -> None:
    _write_table(folder / RESULTS, [_result_row(record) for record in results.records], _result_types())
    _write_table(folder / TOKENS, _token_rows(results), _token_types())
    for file, text in files.items():
        _write_text(folder / file, text)
    # Last, so that a folder with a run.json is a whole one.
    _write_text(folder / RUN, _json(_meta(results, name), indent=2))


def _meta(results: Results, name: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": name,
        "started": results.started,
        "seconds": results.seconds,
        "complete": results.complete,
        "command": results.command,
        "suites": results.suites,
        "counts": results.counts,
        "outcomes": results.outcomes,
        "errors": results.errors,
        "targets": results.targets,
        "facts": results.facts,
        "environment": results.environment,
    }


def _result_row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = to_data(record)
    verdict = row.pop("verdict")
    return row | {
        "outcome": record.outcome,
        "verdict": verdict["status"],
        "reason": verdict["reason"],
        "numbers": _json(verdict["numbers"]),
        "details": verdict["details"],
    }


def _record(row: dict[str, Any]) -> Record:
    row.pop("outcome")
    verdict = Verdict(row["verdict"], row.pop("reason"), json.loads(row.pop("numbers")), tuple(row.pop("details")))
    lists = {name: tuple(row[name]) for name in ("marks", "requests")}
    return Record(**(row | lists | {"verdict": verdict}))


def _token_rows(results: Results) -> list[dict[str, Any]]:
    rows = [_request_row(target, done.request) | _completion_row(done) for target, done in results.completions]
    return rows + [
        _request_row(target, failure.request) | {"error": failure.kind, "error_message": failure.message}
        for target, failure in results.failures
    ]


def _request_row(target: str, request: Request) -> dict[str, Any]:
    return {
        "request": request.id,
        "target": target,
        "prompt": _json(request.prompt),
        "generation": _json(request.generation),
        "layout": request.layout if isinstance(request.layout, str) else _json(request.layout),
        "repeat": request.repeat,
        "fresh_process": request.fresh_process,
    }


def _completion_row(done: Completion) -> dict[str, Any]:
    plain = (
        "prompt_text prompt_ids ids tokens text finish precision padding pads batch_size "
        "split_after_oom seconds memory_bytes"
    )
    return {name: getattr(done, name) for name in plain.split()} | {
        "logprob": [step.logprob for step in done.steps],
        "top_ids": [step.top_ids for step in done.steps],
        "top_logprobs": [step.top_logprobs for step in done.steps],
        "max_logit": [step.max_logit for step in done.steps],
        "generation_config": _json(done.generation_config),
        "warnings": _json(done.warnings),
    }


def _result_types() -> dict[str, Any]:
    """Columns of results.parquet; said in full, because a run without records still has them."""
    import pyarrow as pa

    names = (
        "check suite file line test target model quantization prompt generation expectation outcome verdict reason "
        "numbers details xfail marks requests text new_tokens finish seconds"
    )
    texts = pa.list_(pa.string())
    other = {"line": pa.int64(), "new_tokens": pa.int64(), "seconds": pa.float64()}
    other |= {"details": texts, "marks": texts, "requests": texts}
    return {name: other.get(name, pa.string()) for name in names.split()}


def _token_types() -> dict[str, Any]:
    import pyarrow as pa

    names = (
        "request target prompt generation layout repeat fresh_process prompt_text prompt_ids ids tokens text finish "
        "logprob top_ids top_logprobs max_logit precision padding pads batch_size split_after_oom seconds "
        "memory_bytes generation_config warnings error error_message"
    )
    whole, real = pa.int64(), pa.float64()
    other = dict.fromkeys(("repeat", "pads", "batch_size", "memory_bytes"), whole)
    other |= {"fresh_process": pa.bool_(), "split_after_oom": pa.bool_(), "seconds": real}
    other |= {"prompt_ids": pa.list_(whole), "ids": pa.list_(whole), "tokens": pa.list_(pa.string())}
    other |= {"logprob": pa.list_(real), "max_logit": pa.list_(real)}
    other |= {"top_ids": pa.list_(pa.list_(whole)), "top_logprobs": pa.list_(pa.list_(pa.float32()))}
    return {name: other.get(name, pa.string()) for name in names.split()}


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array([encodable(row.get(name)) for row in rows], kind) for name, kind in types.items()]
    with path.open("wb") as file:
        pq.write_table(pa.table(columns, names=list(types)), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def _read_table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(encodable(text).encode())
        file.flush()
        os.fsync(file.fileno())


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(to_data(value)), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    """JSON has no NaN, no infinity and no foreign objects: each is written as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def encodable(value: Any) -> Any:
    r"""Half a surrogate pair has no UTF-8: it is written as \udXXX, so that it can still be seen."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
        return type(value)(encodable(item) for item in value)
    return value


def _damaged(path: Path, error: Exception) -> CannotRun:
    return CannotRun(f"{path} is damaged: {error}", "Run again to get a whole run folder.")
