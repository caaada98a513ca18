"""An index of a folder of runs: what `harness history` asks of each run, so that none is read twice.

`history.sqlite` lies in the folder and can be deleted at any time: it is filled again from the run folders.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from harness import run_outcomes
from harness.errors import CannotRun, UsageError
from harness.pins.locking import locked
from harness.run_outcomes import FILES, CheckName, Looked
from harness.store import RUN

INDEX = "history.sqlite"
FORMAT = 1
WAIT = 30.0  # seconds for another writer: each holds the index for milliseconds
AT_ONCE = 64  # runs that are written in one transaction
PARTIAL = ".partial-"  # as `harness.store` names a folder until it is whole
SCHEMA = """
CREATE TABLE runs (id INTEGER PRIMARY KEY, folder TEXT NOT NULL UNIQUE, stamp TEXT NOT NULL, left_out TEXT NOT NULL,
  facts TEXT NOT NULL);
CREATE TABLE checks (id TEXT PRIMARY KEY, names TEXT NOT NULL);
CREATE TABLE conditions (id TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE parts (run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, suite TEXT NOT NULL, target TEXT NOT NULL,
  checks TEXT NOT NULL REFERENCES checks, outcomes BLOB NOT NULL, conditions TEXT NOT NULL REFERENCES conditions,
  speed TEXT NOT NULL);
CREATE INDEX parts_of_run ON parts (run);
"""
# The index is whole, but this process may not write it, or cannot at the moment.
NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
UNUSABLE = (sqlite3.Error, ValueError, KeyError, TypeError)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class PastRun:
    """One run folder."""

    folder: Path
    started: datetime  # UTC
    seconds: float
    complete: bool
    outcomes: Mapping[str, int]  # of its checks
    commit: str  # "" where there was no git
    clean: bool  # nothing was changed since that commit
    written: int = 0  # when: of two that started in one second, the one that was written first is the earlier one

    @property
    def name(self) -> str:
        return self.folder.name


class Part(NamedTuple):
    """How the checks of one suite went on one target in one run."""

    run: int  # its place among the runs
    suite: str
    target: str
    checks: Sequence[CheckName]
    outcomes: bytes  # a letter for each check
    conditions: Mapping[str, str]
    tokens: int  # freely generated for its checks, in so many …
    seconds: float
    seconds_by_test: Mapping[str, float]  # of all that its checks needed


@dataclass(frozen=True)
class Past:
    """All that is known of the runs of some folders, the oldest first."""

    runs: tuple[PastRun, ...]
    parts: tuple[Part, ...]  # in the order of their runs
    notes: tuple[str, ...]  # what was left out, and what happened to the index


def past(folders: Sequence[Path], *, rebuild: bool = False, tell: Tell = lambda _: None) -> Past:
    """What the run folders in these folders say, by way of their indexes; a run that lies in two counts once."""
    runs: dict[str, PastRun] = {}
    parts: dict[str, Sequence[Part]] = {}
    notes: list[str] = []
    for folder in folders:
        _check_folder(folder)
        found, more = _by_index(folder, rebuild, tell)
        notes += more
        for run, of_run in found:
            if run.name not in runs:
                runs[run.name], parts[run.name] = run, of_run
    names = sorted(runs, key=lambda name: (runs[name].started, runs[name].written, name))
    ordered = (part._replace(run=place) for place, name in enumerate(names) for part in parts[name])
    return Past(tuple(runs[name] for name in names), tuple(ordered), tuple(notes))


def _check_folder(folder: Path) -> None:
    if (folder / RUN).is_file():
        remedy = f"Name the folder that it lies in: harness history {folder.parent}"
        raise UsageError(f"{folder} is one run; its history is in the folder of runs", remedy)
    if not folder.is_dir():
        remedy = "Name a folder in which `harness run` made its run folders; without one it is reports/."
        raise UsageError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}", remedy)


Found = list[tuple[PastRun, list[Part]]]


def _by_index(folder: Path, rebuild: bool, tell: Tell) -> tuple[Found, list[str]]:
    path = folder / INDEX
    notes: list[str] = []
    if not path.exists() and not _stamps(folder):
        return [], []  # nothing to be kept: perhaps another folder was meant
    while True:
        try:
            found, more = _filled(str(path), folder, rebuild, tell)
            return found, notes + more
        except UNUSABLE as error:
            if notes or _cannot_write(error) or not _deleted(path):
                why = f"{path} cannot be used ({error}): the run folders were read without an index"
                break
            notes.append(f"{path} was damaged ({error}) and is made again from the run folders")
    found, more = _filled(":memory:", folder, False, tell)
    return found, [why, *more]


def _cannot_write(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in NOT_DAMAGE


def _deleted(path: Path) -> bool:
    """Whether there is no damaged index any more."""
    with suppress(OSError, CannotRun), locked(path):  # else two would delete each other's new one
        if not _is_whole(path):
            # The journal first: it must never meet an index that it does not belong to.
            for end in ("-wal", "-shm", ""):
                path.with_name(path.name + end).unlink(missing_ok=True)
        return True
    return False


def _is_whole(path: Path) -> bool:
    """Whether another process has made it again in the meantime."""
    with suppress(*UNUSABLE), closing(_connected(str(path))) as index:
        list(_stored(index, path.parent))
        return bool(index.execute("PRAGMA quick_check").fetchone() == ("ok",) and _version(index) == FORMAT)
    return False


def _filled(path: str, folder: Path, rebuild: bool, tell: Tell) -> tuple[Found, list[str]]:
    with closing(_connected(path)) as index:
        notes = _prepare(index, path, rebuild)
        partial = _fill(index, folder, tell)
        left_out = index.execute("SELECT folder, left_out FROM runs WHERE left_out != '' ORDER BY folder").fetchall()
        told = [f"{folder / name} was left out: {why}" for name, why in [*left_out, *partial]]
        found = list(_stored(index, folder))
        lacking = [f"{run.folder}: {lack}" for run, _, lacks in found for lack in lacks]
        return [(run, parts) for run, parts, _ in found], [*notes, *told, *lacking]


def _connected(path: str) -> sqlite3.Connection:
    index = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    try:
        index.execute("PRAGMA foreign_keys = ON")
        index.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        index.close()
        raise
    return index


@contextmanager
def _transaction(index: sqlite3.Connection) -> Iterator[None]:
    index.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        index.execute("ROLLBACK")
        raise
    index.execute("COMMIT")


def _version(index: sqlite3.Connection) -> int:
    return int(index.execute("PRAGMA user_version").fetchone()[0])


def _prepare(index: sqlite3.Connection, path: str, rebuild: bool) -> list[str]:
    """Make it an empty index of this format, unless it is one already."""
    if not rebuild and _version(index) == FORMAT:
        return []
    with suppress(sqlite3.OperationalError):  # two that begin at once cannot both; the next one will
        index.execute("PRAGMA journal_mode = WAL")
    notes = []
    with _transaction(index):
        version = _version(index)  # another process may have been faster
        if version == FORMAT and not rebuild:
            return []
        if version not in (0, FORMAT):
            notes.append(f"{path} was of format {version}, this harness writes {FORMAT}: it is made again")
        for (table,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            index.execute(f'DROP TABLE "{table.replace(chr(34), chr(34) * 2)}"')
        for statement in filter(str.strip, SCHEMA.split(";")):
            index.execute(statement)
        index.execute(f"PRAGMA user_version = {FORMAT}")
    return notes


def _fill(index: sqlite3.Connection, folder: Path, tell: Tell) -> list[tuple[str, str]]:
    """Bring the index to what lies in the folder; what is there in part only is given back."""
    stamps = _stamps(folder)
    partial = {name: "it is being written, or its run ended early" for name in stamps if name.startswith(PARTIAL)}
    known = dict(index.execute("SELECT folder, stamp FROM runs"))
    gone = [name for name in known if not (folder / name).is_dir()]
    new = sorted(name for name, stamp in stamps.items() if known.get(name) != stamp and name not in partial)
    if len(new) > AT_ONCE:
        tell(f"reading {len(new):,} runs into {folder / INDEX}")
    waiting = iter(new)
    while some := list(islice(waiting, AT_ONCE)):
        looked = [(name, run_outcomes.look(folder / name)) for name in some]
        with _transaction(index):
            for name, run in looked:
                _insert(index, name, stamps[name], run)
    if gone:
        with _transaction(index):
            index.executemany("DELETE FROM runs WHERE folder = ?", [(name,) for name in gone])
            index.execute("DELETE FROM checks WHERE id NOT IN (SELECT checks FROM parts)")
            index.execute("DELETE FROM conditions WHERE id NOT IN (SELECT conditions FROM parts)")
    return sorted(partial.items())


def _stamps(folder: Path) -> dict[str, str]:
    """The run folders, and what is in them."""
    return {entry.name: stamp for entry in folder.iterdir() if entry.is_dir() and (stamp := _stamp(entry))}


def _stamp(folder: Path) -> str:
    """Another one when a file of the run was changed; "" when it is no run's folder."""
    told = []
    for name in FILES:
        with suppress(OSError):
            file = (folder / name).stat()
            told.append(f"{name} {file.st_size} {file.st_mtime_ns}")
    return "; ".join(told)


def _insert(index: sqlite3.Connection, name: str, stamp: str, run: Looked | str) -> None:
    index.execute("DELETE FROM runs WHERE folder = ?", (name,))
    left_out, facts, parts = (run, {}, []) if isinstance(run, str) else ("", run.facts, run.parts)
    values = (name, stamp, left_out, json.dumps(facts))
    number = index.execute("INSERT INTO runs (folder, stamp, left_out, facts) VALUES (?, ?, ?, ?)", values).lastrowid
    for part in parts:
        row = (
            *(number, part.suite, part.target),
            _kept(index, "checks (id, names)", part.checks),
            part.outcomes,
            _kept(index, "conditions (id, facts)", part.conditions),
            json.dumps(part.speed),
        )
        index.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def _kept(index: sqlite3.Connection, where: str, value: Any) -> str:
    """Its id: what many runs have in common is stored once."""
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    index.execute(f"INSERT OR IGNORE INTO {where} VALUES (?, ?)", (digest, text))
    return digest


def _stored(index: sqlite3.Connection, folder: Path) -> Iterator[tuple[PastRun, list[Part], Sequence[str]]]:
    """Every run with its parts and what it lacks."""
    checks = {id: tuple(CheckName(*one) for one in json.loads(text)) for id, text in _rows(index, "checks")}
    conditions = {id: json.loads(text) for id, text in _rows(index, "conditions")}
    by_run: dict[int, list[Part]] = {}
    for run, suite, target, names, outcomes, facts, speed in _rows(index, "parts"):
        if len(outcomes) != len(checks[names]) or outcomes.strip(run_outcomes.LETTERS):
            raise ValueError(f"the outcomes of run {run} are not those of its checks")
        part = Part(0, suite, target, checks[names], outcomes, conditions[facts], *json.loads(speed))
        by_run.setdefault(run, []).append(part)
    for id, name, text in index.execute("SELECT id, folder, facts FROM runs WHERE left_out = ''"):
        facts = json.loads(text)
        lacks = facts.pop("lacks")
        started = datetime.fromisoformat(facts.pop("started")).astimezone(UTC)
        yield PastRun(folder / name, started, **facts), by_run.get(id, []), lacks


def _rows(index: sqlite3.Connection, table: str) -> Iterable[tuple[Any, ...]]:
    return index.execute(f"SELECT * FROM {table}")
