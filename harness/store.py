"""Run folders: the whole outcome of a run on disk, written once, never changed, and read back as far as it goes."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
TEXTS, VERDICTS = "texts.parquet", "verdicts.jsonl"
# What run.json holds of the results, as they are.
IN_RUN = (
    *("started", "seconds", "complete", "command", "suites", "counts", "errors", "targets", "facts"),
    *("environment", "budget", "pins"),
)
ALWAYS = ("started", "seconds", "command", "suites", "counts", "facts", "environment")  # in every format
# What is not known of a run without its file.
WITHOUT = {
    RUN: "what it ran on, and whether it came to its end",
    RESULTS: "its verdicts",
    TOKENS: "its generations",
    TEXTS: "the texts of likely tokens",
    COMPARISON: "its comparison token by token",
}
DAMAGE = (CannotRun, OSError, ValueError, KeyError, TypeError, AttributeError)
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
    worked_out: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)  # once

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


def suite_digest(suite: Mapping[str, str]) -> str:
    """What the suite's file said, and the others of which it is made; "" where that is not known."""
    return f"{suite['sha256']} {suite.get('reads', '')}".strip() if suite.get("sha256") else ""


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
    whole = [name for name in (RUN, RESULTS, TOKENS, VERDICTS) if (folder / name).is_file()]
    if whole and (path == folder or (path.name in (*WITHOUT, VERDICTS) and RUN in whole)):
        return _Folder(folder).results()
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
    except DAMAGE as error:
        raise tables.damaged(path, error) from error
    if alone is None:
        raise UsageError(f"{path} is no table of a run", remedy)
    return alone


class _Folder:
    """A run folder, read as far as it goes: what is missing or damaged is left out, and said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lacks: list[str] = []

    def results(self) -> Results:
        meta, answers = self._meta(), None
        with self._lacking(TOKENS):
            answers = tables.answers(self._table(TOKENS))
        records, renamed = self._records(), answers.renamed if answers else {}
        if records is None and answers is None:
            raise CannotRun(f"{self.path} is damaged: {'; '.join(self.lacks)}", "Run again to get a whole run folder.")
        found: dict[str, Any] = {"records": _renamed(records or (), renamed), "suites": _suites(records or ())}
        found |= self._plain(meta)
        if answers:
            found |= {"completions": answers.completions, "failures": answers.failures}
            self.lacks += _lacks(answers)
        if (self.path / TEXTS).is_file():  # runs of before have none
            with self._lacking(TEXTS):
                found["texts"] = tables.texts(self._table(TEXTS))
        if meta.get("comparison"):
            found |= self._measured(meta["comparison"], renamed)
        complete = bool(found.pop("complete", False)) and not self.lacks
        return replace(_unknown(self.path), **found, complete=complete, lacks=tuple(self.lacks))

    @contextmanager
    def _lacking(self, name: str, what: str = "") -> Iterator[None]:
        """What goes wrong meanwhile is no error: it is said, and left out."""
        lost = f"{what or WITHOUT[name]} {'are' if (what or WITHOUT[name]).endswith('s') else 'is'} not known"
        try:
            yield
        except FileNotFoundError:
            self.lacks.append(f"{name} is missing: {lost}")
        except DAMAGE as error:
            why = (
                f"without {error}" if isinstance(error, KeyError) else str(error.__cause__ or error).partition("\n")[0]
            )
            self.lacks.append(f"{name} is damaged ({why}): {lost}")

    def _table(self, name: str) -> Any:
        if not (self.path / name).is_file():
            raise FileNotFoundError(name)
        table = tables.read_table(self.path / name)
        _check_version(self.path, tables.version_of(table))
        return table

    def _meta(self) -> dict[str, Any]:
        with self._lacking(RUN):
            meta: dict[str, Any] = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            _check_version(self.path, int(meta["format"]))
            return meta
        return {}

    def _plain(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json holds as it is."""
        from harness.comparison.measured import Measured

        kinds, found = typing.get_type_hints(Results, localns={"Measured": Measured}), {}
        for name in [name for name in IN_RUN if name in meta]:
            with self._lacking(RUN, f"`{name}`"):
                if name == "budget" and meta[name]:
                    Budget.model_validate(meta[name])
                found[name] = tables.from_data(kinds[name], meta[name])
        unsaid = [name for name in ALWAYS if name not in meta]
        if meta and unsaid:
            self.lacks.append(f"{RUN} does not say {', '.join(unsaid)}")
        return found

    def _records(self) -> tuple[Record, ...] | None:
        if not (self.path / RESULTS).is_file() and (self.path / VERDICTS).is_file():
            self.lacks.append(f"the run was killed: {VERDICTS} holds the verdicts until then")
            return tuple(_lines(self.path / VERDICTS))
        with self._lacking(RESULTS):
            return tables.records(self._table(RESULTS))
        return None

    def _measured(self, data: Any, renamed: Mapping[str, str]) -> dict[str, Measured]:
        from harness.comparison.measured import Measured

        found: dict[str, Measured] = {}
        with self._lacking(RUN, "`comparison`"):
            found["measured"] = tables.from_data(Measured, data)
            with self._lacking(COMPARISON):
                answered = tables.answered(self._table(COMPARISON))
                asked = tuple(replace(one, request=renamed.get(one.request, one.request)) for one in answered)
                found["measured"] = replace(found["measured"], answered=asked)
        return found


def _unknown(path: Path) -> Results:
    """Of a run of which nothing is known but, from the name of its folder, when it began."""
    empty = Results((), (), (), (), {}, (), "", 0.0, {}, "", complete=False, path=path)
    began = re.search(r"\d{8}-\d{6}(?=-)", path.name)
    with suppress(ValueError):  # digits that are no time
        start = datetime.strptime(began[0] if began else "", "%Y%m%d-%H%M%S")
        return replace(empty, started=start.replace(tzinfo=UTC).isoformat())
    return empty


def _alone(path: Path, table: Any) -> Results | None:
    """What one table tells of a run; None when it is not of a run."""
    names = set(table.column_names)
    if {"check", "verdict"} <= names:
        records = tables.records(table)
        lack = f"{path} holds only the verdicts of its run"
        return replace(_unknown(path), records=records, suites=_suites(records), lacks=(lack,))
    if {"request", "top_ids"} <= names:
        answers = tables.answers(table)
        lacks = (f"{path} holds only the generations of its run", *_lacks(answers))
        return replace(_unknown(path), completions=answers.completions, failures=answers.failures, lacks=lacks)
    return None


def _suites(records: Iterable[Record]) -> tuple[Mapping[str, str], ...]:
    files = dict.fromkeys((record.suite, record.file) for record in records)
    return tuple({"name": name, "file": file, "sha256": ""} for name, file in files)


def _lacks(answers: tables.Answers) -> tuple[str, ...]:
    why = "a run folder of format 1 does not say how they were made"
    return (f"{answers.untold} generations were left out: {why}",) if answers.untold else ()


class Journal:
    """What is known until now, in a folder that begins with a dot: all that is left of a run that is killed."""

    def __init__(self, begun: Results, parent: Path = Path("reports")) -> None:
        name = f".partial-{_free_name(begun, parent).name}"
        self.folder = parent / name
        self._fresh = parent / f"{name}-"  # takes its place, whole
        try:
            self.folder.mkdir(parents=True)
            _write_text(self.folder / RUN, tables.as_json(_meta(replace(begun, complete=False), name), indent=2))
        except OSError as error:
            remedy = "Free some space, choose another folder with --out, or store nothing with --no-report."
            raise CannotRun(f"cannot write {self.folder}: {error.strerror or error}", remedy) from error

    def add(self, records: Iterable[Record]) -> None:
        """Append them. A full disk is told when the run is stored: it is not to cost the rest of the run."""
        with suppress(OSError), (self.folder / VERDICTS).open("a", errors="backslashreplace", encoding="utf-8") as file:
            file.writelines(f"{tables.as_json(tables.result_row(record))}\n" for record in records)

    def keep(self, results: Results) -> None:
        """All of it in place of what is there."""
        with suppress(OSError):
            shutil.rmtree(self._fresh, ignore_errors=True)
            self._fresh.mkdir()
            _fill(self._fresh, replace(results, complete=False), self.folder.name, {})
            shutil.rmtree(self.folder)
            self._fresh.rename(self.folder)

    def close(self) -> None:
        """The run is stored, and this is needed no more."""
        for folder in (self.folder, self._fresh):
            shutil.rmtree(folder, ignore_errors=True)


def _lines(path: Path) -> Iterator[Record]:
    """The verdicts of a journal, up to a line that was being written when the run was killed."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield tables.record(json.loads(line))
            except (ValueError, KeyError, TypeError):
                return


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
