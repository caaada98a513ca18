"""The nouns of a run as rows of tables, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
import typing
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from harness.errors import CannotRun
from harness.inputs import Generation
from harness.record import Batch, Completion, Failure, Record, Request, Returned, Step, Text, Verdict, to_data

if TYPE_CHECKING:
    from harness.comparison.measured import Answered

FORMAT = b"harness.format"  # in the metadata of each file: a table may be copied away from its run.json
NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # JSON has no such numbers: they are written as these words
Noun = Callable[[Any, str], Any]  # of a kind, from JSON
STEPS = ("logprob", "top_ids", "top_logprobs", "max_logit")
# Fields that are columns just as they are.
OF_REQUEST = (
    *("kind", "repeat", "fresh_process", "row", "continuation", "position_ids", "float32", "resume_after", "whole"),
)
OF_COMPLETION = (
    *("prompt_text", "prompt_ids", "ids", "tokens", "text", "finish", "precision", "padding", "pads", "batch_size"),
    *("split_after_oom", "seconds", "memory_bytes", "tail", "cache", "attention"),
)


def from_data(kind: Any, data: Any) -> Any:
    """The noun of this type that `to_data` made plain. What it has no field for is left out."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _either(parts, data)
    if origin is tuple or origin is Sequence:
        return tuple(from_data(parts[0], item) for item in data)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: from_data(parts[1], item) for key, item in data.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**{name: from_data(hint, data[name]) for name, hint in _hints(kind).items() if name in data})
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate(data)
    if kind is float:
        return float(data)
    return _revived(data) if kind is Any else data


def _either(kinds: Sequence[Any], data: Any) -> Any:
    if isinstance(data, (dict, list)):
        return from_data(next(kind for kind in kinds if kind is not type(None)), data)
    return float(data) if float in kinds and data in NOT_FINITE else data


def _revived(data: Any) -> Any:
    """Numbers that are not finite are numbers again."""
    if isinstance(data, dict):
        return {key: _revived(item) for key, item in data.items()}
    if isinstance(data, list):
        return [_revived(item) for item in data]
    return float(data) if isinstance(data, str) and data in NOT_FINITE else data


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def as_json(value: Any, indent: int | None = None) -> str:
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


def result_row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = to_data(record)
    verdict = row.pop("verdict")
    return row | {
        "outcome": record.outcome,
        "verdict": verdict["status"],
        "reason": verdict["reason"],
        "numbers": as_json(verdict["numbers"]),
        "details": verdict["details"],
    }


def records(table: Any) -> tuple[Record, ...]:
    """The records of results.parquet, as they were judged."""
    return tuple(record(row) for row in table.to_pylist())


def record(row: dict[str, Any]) -> Record:
    """The other way round."""
    row.pop("outcome")
    numbers = _revived(json.loads(row.pop("numbers")))
    verdict = Verdict(row["verdict"], row.pop("reason"), numbers, tuple(row.pop("details")))
    lists = {name: tuple(row[name]) for name in ("marks", "requests")}
    return Record(**(row | lists | {"verdict": verdict}))


def token_rows(
    completions: Iterable[tuple[str, Completion]], failures: Iterable[tuple[str, Failure]]
) -> list[dict[str, Any]]:
    rows = [_request_row(target, done.request) | _completion_row(done) for target, done in completions]
    return rows + [
        _request_row(target, failure.request) | {"error": failure.kind, "error_message": failure.message}
        for target, failure in failures
    ]


def _request_row(target: str, request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in OF_REQUEST} | {
        "request": request.id,
        "target": target,
        "prompt": as_json(request.prompt),
        "generation": as_json(request.generation),
        "layout": request.layout if isinstance(request.layout, str) else as_json(request.layout),
        "asked_attention": request.attention,
    }


def _completion_row(done: Completion) -> dict[str, Any]:
    return {name: getattr(done, name) for name in OF_COMPLETION} | {
        "logprob": [step.logprob for step in done.steps],
        "top_ids": [step.top_ids for step in done.steps],
        "top_logprobs": [step.top_logprobs for step in done.steps],
        "max_logit": [step.max_logit for step in done.steps],
        "generation_config": as_json(done.generation_config),
        "warnings": as_json(done.warnings),
        "returned": as_json(done.returned),
    }


@dataclasses.dataclass(frozen=True)
class Answers:
    """What tokens.parquet holds."""

    completions: tuple[tuple[str, Completion], ...]
    failures: tuple[tuple[str, Failure], ...]
    renamed: Mapping[str, str]  # ids of requests that another version of the harness would give another id
    untold: int  # rows that do not say what was asked


def answers(table: Any) -> Answers:
    """The completions and failures of tokens.parquet: all of them but for whole logits, which are not kept there."""
    completions, failures, renamed, untold = [], [], {}, 0
    noun = functools.cache(lambda kind, text: from_data(kind, json.loads(text)))
    tells_kind = "kind" in table.column_names  # format 1 does not
    for row in _rows(table):
        request = _request(row, noun)
        if request.id != row["request"]:
            if not tells_kind:
                untold += 1
                continue
            renamed[row["request"]] = request.id
        if row["error"] is None:
            completions.append((row["target"], _completion(row, request, noun)))
        else:
            failures.append((row["target"], Failure(request, row["error"], row["error_message"])))
    return Answers(tuple(completions), tuple(failures), renamed, untold)


def _rows(table: Any) -> Iterable[dict[str, Any]]:
    for batch in table.to_batches():
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        steps = _steps(*(columns.pop(name) for name in STEPS))
        values = {name: _values(column) for name, column in columns.items()} | {"steps": steps}
        for row in zip(*values.values(), strict=True):
            yield dict(zip(values, row, strict=True))


def _steps(logprob: Any, top_ids: Any, top_logprobs: Any, max_logit: Any) -> list[tuple[Step, ...]]:
    """Step by step, but made of whole columns: there are millions of numbers."""
    ids, chances = _arrays("i", top_ids.flatten()), _arrays("f", top_logprobs.flatten())
    made = map(Step, logprob.flatten().to_pylist(), ids, chances, max_logit.flatten().to_pylist())
    return _slices(list(made), logprob)


def _arrays(code: str, lists: Any) -> list[array[Any]]:
    numbers = array(code)
    numbers.frombytes(lists.flatten().to_numpy().astype(code).tobytes())
    return [numbers[start:end] for start, end in _bounds(lists)]


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    is_list = pa.types.is_list(column.type)
    return _slices(column.flatten().to_pylist(), column) if is_list else list(column.to_pylist())


def _slices(items: Sequence[Any], lists: Any) -> list[tuple[Any, ...]]:
    return [tuple(items[start:end]) for start, end in _bounds(lists)]


def _bounds(lists: Any) -> Iterable[tuple[int, int]]:
    """Where each list begins and ends among all their items; `flatten` leaves out what a slice leaves out."""
    offsets = lists.offsets.to_numpy()
    return pairwise((offsets - offsets[0]).tolist())


def _request(row: Mapping[str, Any], noun: Noun) -> Request:
    plain = {name: row[name] for name in OF_REQUEST if row.get(name) is not None}
    layout = row["layout"]
    return Request(
        prompt=noun(Text, row["prompt"]),
        generation=noun(Generation, row["generation"]),
        layout=noun(Batch, layout) if layout.startswith("{") else layout,
        attention=row.get("asked_attention") or "",
        **plain,
    )


def _completion(row: Mapping[str, Any], request: Request, noun: Noun) -> Completion:
    return Completion(
        request=request,
        steps=row["steps"],
        generation_config=noun(Mapping[str, Any], row["generation_config"]),
        warnings=noun(Mapping[str, int], row["warnings"]),
        returned=noun(tuple[Returned, ...], row.get("returned") or "[]"),
        **{name: row[name] for name in OF_COMPLETION if name in row},
    )


def result_types() -> dict[str, Any]:
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


def token_types() -> dict[str, Any]:
    """Columns of tokens.parquet."""
    import pyarrow as pa

    names = (
        "request target kind prompt generation layout row repeat fresh_process continuation position_ids "
        "asked_attention float32 resume_after whole prompt_text prompt_ids ids tokens text finish "
        "logprob top_ids top_logprobs max_logit tail returned precision padding pads batch_size split_after_oom "
        "seconds memory_bytes cache attention generation_config warnings error error_message"
    )
    whole, real, wholes = pa.int64(), pa.float64(), pa.list_(pa.int64())
    other = dict.fromkeys(("row", "repeat", "resume_after", "pads", "batch_size", "memory_bytes"), whole)
    other |= dict.fromkeys(("fresh_process", "position_ids", "float32", "whole", "split_after_oom"), pa.bool_())
    other |= dict.fromkeys(("continuation", "prompt_ids", "ids", "tail"), wholes)
    other |= {"tokens": pa.list_(pa.string()), "seconds": real}
    other |= {"logprob": pa.list_(real), "max_logit": pa.list_(real)}
    other |= {"top_ids": pa.list_(wholes), "top_logprobs": pa.list_(pa.list_(pa.float32()))}
    return {name: other.get(name, pa.string()) for name in names.split()}


def text_rows(texts: Mapping[str, Mapping[int, str]]) -> list[dict[str, Any]]:
    return [{"target": target, "id": id, "text": text} for target, named in texts.items() for id, text in named.items()]


def texts(table: Any) -> dict[str, dict[int, str]]:
    """What texts.parquet holds: by target and id."""
    found: dict[str, dict[int, str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["target"], {})[row["id"]] = row["text"]
    return found


def text_types() -> dict[str, Any]:
    """Columns of texts.parquet."""
    import pyarrow as pa

    return {"target": pa.string(), "id": pa.int64(), "text": pa.string()}


def answered_rows(answered: Iterable[Answered]) -> list[dict[str, Any]]:
    from harness.comparison.measured import Replay

    rows = []
    for one in answered:
        row = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        replay = row.pop("replay")
        rows.append(row | ({name: getattr(replay, name) for name in _hints(Replay)} if replay else {}))
    return rows


def answered(table: Any) -> tuple[Answered, ...]:
    """What comparison.parquet holds: a prompt by a candidate in each row."""
    from harness.comparison.measured import Answered, Replay

    made = []
    for row in table.to_pylist():
        columns = {name: row.pop(name) for name in _hints(Replay)}
        known = columns["kl"] is not None
        made.append(Answered(**row, replay=from_data(Replay, columns) if known else None))
    return tuple(made)


def answered_types() -> dict[str, Any]:
    """Columns of comparison.parquet: a replay has a list of its tokens' values in each of its own."""
    import pyarrow as pa

    from harness.comparison.measured import Answered, Replay

    kinds = {float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    plain = {field.name: pa.string() for field in dataclasses.fields(Answered) if field.name != "replay"}
    return plain | {name: pa.list_(kinds[typing.get_args(kind)[0]]) for name, kind in _hints(Replay).items()}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Any], version: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array([encodable(row.get(name)) for row in rows], kind) for name, kind in kinds.items()]
    table = pa.table(columns, names=list(kinds)).replace_schema_metadata({FORMAT: str(version)})
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def read_table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def version_of(table: Any) -> int:
    """The format that the table was written in; the first one did not say so."""
    return int((table.schema.metadata or {}).get(FORMAT, 1))


def damaged(path: Path, error: Exception) -> CannotRun:
    return CannotRun(f"{path} is damaged: {error}", "Run again to get a whole run folder.")
