"""Run folders: the whole outcome of a run on disk, written once, never changed, and read back whole."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import tables
from harness.errors import CannotRun, UsageError
from harness.pins.pin import Pin
from harness.record import Completion, Failure, Record, Request, Target, TargetFacts, to_data
from harness.suite import Budget
from harness.tables import encodable

if TYPE_CHECKING:
    from harness.comparison.measured import Measured

FORMAT = 2
RUN, RESULTS, TOKENS, COMPARISON = "run.json", "results.parquet", "tokens.parquet", "comparison.parquet"
TEXTS = "texts.parquet"
# What run.json holds of the results, as they are.
IN_RUN = (
    *("started", "seconds", "complete", "command", "suites", "counts", "errors", "targets", "facts"),
    *("environment", "budget", "pins"),
)
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
    measured: Measured | None = None  # when targets were compared
    budget: Mapping[str, Any] | None = None  # the suite's, as plain data
    pins: Mapping[str, Pin] = field(default_factory=dict)  # by check: what one that did not pass was held to
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # by target and id: what likely tokens say
    path: Path | None = field(default=None, compare=False)  # what it was read from
    lacks: tuple[str, ...] = field(default=(), compare=False)  # what that did not hold, in sentences

    def is_free(self, request: Request) -> bool:
        """Whether it was generated to be judged or compared; others are forced, or scored, or only take the time."""
        return request.kind == "generate" and (self.measured is None or request.id in self._named)

    @cached_property
    def _named(self) -> frozenset[str]:
        answered = self.measured.answered if self.measured else ()
        judged = (request for record in self.records for request in record.requests)
        return frozenset((*judged, *(one.request for one in answered)))

    @property
    def outcomes(self) -> dict[str, int]:
        """How many checks had each outcome."""
        return dict(Counter(outcome_by_check(self.records).values()))


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


def read(path: Path) -> Results:
    """What `save` wrote: a run folder, its run.json, or one of its tables that was copied away alone."""
    folder = path if path.is_dir() else path.parent
    if (folder / RUN).is_file() and (path == folder or path.name in (RUN, RESULTS, TOKENS, COMPARISON)):
        return _whole(folder)
    remedy = f"Name a folder that `harness run` wrote, its {RUN}, or a {RESULTS} or {TOKENS} that was copied from one."
    if path.is_dir():
        raise UsageError(f"{path} is not a run folder: it has no {RUN}", remedy)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", remedy)
    if path.suffix != ".parquet":
        raise UsageError(f"{path} is neither a run folder nor a table of one", remedy)
    table = tables.read_table(path)
    _check_version(path, tables.version_of(table))
    try:
        alone = _alone(path, table)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise tables.damaged(path, error) from error
    if alone is None:
        raise UsageError(f"{path} is no table of a run", remedy)
    return alone


def _whole(folder: Path) -> Results:
    from harness.comparison.measured import Measured

    try:
        meta = json.loads((folder / RUN).read_text(encoding="utf-8"))
        version = int(meta["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise tables.damaged(folder / RUN, error) from error
    _check_version(folder, version)
    names = (RESULTS, TOKENS, *([COMPARISON] if meta.get("comparison") else []))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CannotRun(f"{folder} is damaged: {' and '.join(missing)} missing", "Run again to get a whole one.")
    loaded = {name: tables.read_table(folder / name) for name in names}
    try:
        answers = tables.answers(loaded[TOKENS])
        records = _renamed(tables.records(loaded[RESULTS]), answers.renamed)
        kinds = typing.get_type_hints(Results, localns={"Measured": Measured})
        if meta.get("budget"):
            Budget.model_validate(meta["budget"])
        plain = {name: tables.from_data(kinds[name], meta[name]) for name in IN_RUN if name in meta}
        if (folder / TEXTS).is_file():  # runs of before have none
            plain["texts"] = tables.texts(tables.read_table(folder / TEXTS))
        results = Results(records, answers.completions, answers.failures, **plain, path=folder, lacks=_lacks(answers))
        if COMPARISON not in loaded:
            return results
        rest: Measured = tables.from_data(kinds["measured"], meta["comparison"])
        answered = tables.answered(loaded[COMPARISON])
        asked = tuple(replace(one, request=answers.renamed.get(one.request, one.request)) for one in answered)
        return replace(results, measured=replace(rest, answered=asked))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise tables.damaged(folder, error) from error


def _alone(path: Path, table: Any) -> Results | None:
    """What one table tells of a run; None when it is not of a run."""
    names = set(table.column_names)
    empty = Results((), (), (), (), {}, (), "", 0.0, {}, "", complete=False, path=path)
    if {"check", "verdict"} <= names:
        records = tables.records(table)
        files = dict.fromkeys((record.suite, record.file) for record in records)
        suites = tuple({"name": name, "file": file, "sha256": ""} for name, file in files)
        return replace(empty, records=records, suites=suites, lacks=(f"{path} holds only the verdicts of its run",))
    if {"request", "top_ids"} <= names:
        answers = tables.answers(table)
        lacks = (f"{path} holds only the generations of its run", *_lacks(answers))
        return replace(empty, completions=answers.completions, failures=answers.failures, lacks=lacks)
    return None


def _lacks(answers: tables.Answers) -> tuple[str, ...]:
    why = "a run folder of format 1 does not say how they were made"
    return (f"{answers.untold} generations were left out: {why}",) if answers.untold else ()


def _renamed(records: tuple[Record, ...], ids: Mapping[str, str]) -> tuple[Record, ...]:
    """Requests may have other ids than in the version that wrote them: records follow."""
    if not ids:
        return records
    return tuple(replace(one, requests=tuple(ids.get(id, id) for id in one.requests)) for one in records)


def _check_version(path: Path, version: int) -> None:
    if version > FORMAT:
        message = f"{path} was written by a newer harness: format {version}, this one reads up to {FORMAT}"
        raise UsageError(message, "Upgrade harness: pip install --upgrade harness")


def _free_name(results: Results, parent: Path) -> Path:
    started = datetime.fromisoformat(results.started).astimezone(UTC)
    names = "-".join(suite["name"] for suite in results.suites)
    slug = re.sub(r"[^a-z0-9]+", "-", names.lower())[:60].strip("-") or "run"
    while True:
        folder = parent / f"{started:%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(2)}"
        if not os.path.lexists(folder):
            return folder


def _fill(folder: Path, results: Results, name: str, files: Mapping[str, str]) -> None:
    rows = [tables.result_row(record) for record in results.records]
    tables.write_table(folder / RESULTS, rows, tables.result_types(), FORMAT)
    rows = tables.token_rows(results.completions, results.failures)
    tables.write_table(folder / TOKENS, rows, tables.token_types(), FORMAT)
    tables.write_table(folder / TEXTS, tables.text_rows(results.texts), tables.text_types(), FORMAT)
    if results.measured:
        rows = tables.answered_rows(results.measured.answered)
        tables.write_table(folder / COMPARISON, rows, tables.answered_types(), FORMAT)
    for file, text in files.items():
        _write_text(folder / file, text)
    # Last, so that a folder with a run.json is a whole one.
    _write_text(folder / RUN, tables.as_json(_meta(results, name), indent=2))


def _meta(results: Results, name: str) -> dict[str, Any]:
    comparison = to_data(replace(results.measured, answered=())) if results.measured else None
    return {
        "format": FORMAT,
        "name": name,
        **{field: getattr(results, field) for field in IN_RUN},
        "outcomes": results.outcomes,
        "comparison": comparison,
    }


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(encodable(text).encode())
        file.flush()
        os.fsync(file.fileno())
