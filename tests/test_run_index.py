"""The index of run folders: what it takes from them, and that it is never in the way."""

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from harness import run_index, run_outcomes
from harness.errors import UsageError
from harness.inputs import GREEDY
from harness.record import Completion, Record, Request, TargetFacts, Text, Verdict
from harness.run_index import FORMAT, INDEX, past
from harness.store import Results, save
from harness.trend import history

START = datetime(2026, 1, 1, tzinfo=UTC)
HELLO, BYE, SCORED = (Request(Text(text), GREEDY) for text in ("Hello", "Bye", "Scored"))
SCORED = SCORED.replace(kind="replay")


def record(label="t[a]", outcome="passed", **changes):
    known = {"xfail": "known"} if outcome in ("xfailed", "xpassed") else {}
    status = {"xfailed": "failed", "xpassed": "passed"}.get(outcome, outcome)
    plain = Record(
        check=f"suites/s.yaml::m::{label}",
        suite="s",
        file="suites/s.yaml",
        line=1,
        test=label.partition("[")[0],
        target="m",
        model="m",
        quantization="none",
        prompt="a",
        generation="greedy",
        expectation="contains",
        verdict=Verdict(status, "so it is"),
        requests=(HELLO.id,),
    )
    return dataclasses.replace(plain, **(known | changes))


def completion(request=HELLO, tokens=4, seconds=1.0, rows=2):
    return Completion(
        request, "Hello", (1,), tuple(range(tokens)), ("x",) * tokens, "x", "eos", seconds=seconds, batch_size=rows
    )


def results(number=0, *records, **changes):
    plain = Results(
        records=records or (record(), record("t[b]")),
        completions=(("m", completion()),),
        failures=(),
        facts=(TargetFacts("m", device="cpu", dtype="float32", weights_digest="w1", generation_config={"top_k": 1}),),
        counts={},
        suites=({"name": "s", "file": "suites/s.yaml", "sha256": "s1"},),
        started=(START + timedelta(hours=number)).isoformat(),
        seconds=12.5,
        environment={
            "python": "3.11.7",
            "cpu": "fast",
            "libraries": {"torch": "2.13.0"},
            "torch": {"threads": 2},
            "git": {"commit": "c0ffee", "dirty": False},
        },
        command="harness run",
    )
    return dataclasses.replace(plain, **changes)


def edit(folder, **changes):
    """Another run.json."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def reports(tmp_path):
    """A folder of three runs."""
    for number in range(3):
        save(results(number), tmp_path)
    return tmp_path


@pytest.fixture
def looked(monkeypatch):
    """The names of the run folders that are read from here on."""
    names = []
    look = run_outcomes.look
    monkeypatch.setattr(run_outcomes, "look", lambda folder: names.append(folder.name) or look(folder))
    return names


def test_a_run_is_read_once(reports, looked):
    first = past([reports])
    assert len(looked) == 3
    assert past([reports]) == first
    assert len(looked) == 3
    assert [run.started for run in first.runs] == [START + timedelta(hours=number) for number in range(3)]
    assert (reports / INDEX).is_file()


def test_what_a_run_says(tmp_path):
    folder = save(results(0, record(), record("t[b]", "failed"), record("t[b]"), record("u[a]", "xfailed")), tmp_path)
    found = past([tmp_path])
    (run,), (part,) = found.runs, found.parts
    assert (run.folder, run.seconds, run.complete, run.commit, run.clean) == (folder, 12.5, True, "c0ffee", True)
    assert run.outcomes == {"failed": 1, "xfailed": 1, "passed": 1}
    assert (part.run, part.suite, part.target) == (0, "s", "m")
    # The worst of a check's expectations counts.
    assert [(check.label, chr(letter)) for check, letter in zip(part.checks, part.outcomes, strict=True)] == [
        ("t[a]", "p"),
        ("t[b]", "f"),
        ("u[a]", "x"),
    ]
    assert part.conditions == {
        "suite": "s1",
        "weights": "w1",
        "device": "cpu",
        "dtype": "float32",
        "autocast": "false",
        "model's generation config": '{"top_k": 1}',
        "python": "3.11.7",
        "cpu": "fast",
        "torch": "2.13.0",
        "torch threads": "2",
    }
    assert found.notes == ()


def test_a_check_is_the_same_wherever_the_run_was_started(tmp_path):
    save(results(0, record()), tmp_path)
    save(results(1, record(check="../elsewhere/s.yaml::m::t[a]", file="../elsewhere/s.yaml")), tmp_path)
    first, second = past([tmp_path]).parts
    assert first.checks == second.checks == (("t", "t[a]", False),)


def test_pinned_tests_are_known_by_their_expectations(tmp_path):
    save(
        results(0, record(), record(expectation="pinned"), record("u[*]", expectation="pinned_set"), record("v")),
        tmp_path,
    )
    (part,) = past([tmp_path]).parts
    assert part.checks == (("t", "t[a]", True), ("u", "u[*]", True), ("v", "v", False))


def test_speed_is_that_of_what_was_freely_generated(tmp_path):
    asked = (HELLO.id, BYE.id, SCORED.id)
    save(
        results(
            0,
            record(requests=asked),
            record("u[a]", requests=(HELLO.id,)),
            completions=(
                ("m", completion(HELLO, tokens=4, seconds=1.0, rows=2)),
                ("m", completion(BYE, tokens=6, seconds=3.0, rows=1)),
                ("m", completion(SCORED, tokens=50, seconds=8.0, rows=4)),
                ("m", completion(HELLO.replace(repeat=1), tokens=99, seconds=99.0)),  # that no check asked for
                ("other", completion(HELLO, tokens=99, seconds=99.0)),
            ),
        ),
        tmp_path,
    )
    (part,) = past([tmp_path]).parts
    assert (part.tokens, part.seconds) == (10, 3.5)
    assert part.seconds_by_test == {"t": 5.5, "u": 0.5}


def test_without_its_generations_a_run_still_counts(reports):
    folder = past([reports]).runs[1].folder
    (folder / "tokens.parquet").unlink()
    found = past([reports])
    assert len(found.runs) == 3
    assert (found.parts[1].tokens, found.parts[1].seconds_by_test) == (0, {})
    assert found.notes == (f"{folder}: tokens.parquet is missing: its speed is not known",)
    (folder / "tokens.parquet").write_bytes(b"PAR1")
    (note,) = past([reports]).notes
    assert note.startswith(f"{folder}: tokens.parquet cannot be read, its speed is not known: ")


def test_a_run_of_the_first_format_has_no_speed(tmp_path):
    folder = save(results(), tmp_path)
    pq.write_table(pq.read_table(folder / "tokens.parquet").drop_columns(["kind"]), folder / "tokens.parquet")
    edit(folder, format=1)
    found = past([tmp_path])
    assert (found.parts[0].tokens, found.notes) == (0, ())


def test_only_the_columns_that_are_needed_are_read(reports, monkeypatch):
    asked = []
    read = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, columns=None, **more: asked.append(columns) or read(self, columns, **more)
    )
    past([reports])
    assert len(asked) == 6
    assert {name for columns in asked for name in columns} == {
        *("check", "suite", "test", "target", "expectation", "outcome", "requests"),
        *("request", "kind", "ids", "seconds", "batch_size"),
    }


def test_deleted_new_and_changed_folders_are_noticed(reports, looked):
    first, second, third = past([reports]).runs
    shutil.rmtree(second.folder)
    new = save(results(7, record("other[a]")), reports)
    edit(third.folder, seconds=99)
    looked.clear()
    found = past([reports])
    assert [run.folder for run in found.runs] == [first.folder, third.folder, new]
    assert found.runs[1].seconds == 99
    assert sorted(looked) == sorted([third.name, new.name])
    with sqlite3.connect(reports / INDEX) as index:
        assert index.execute("SELECT count(*) FROM parts").fetchone() == (3,)
        assert index.execute("SELECT count(*) FROM checks").fetchone() == (2,)
    index.close()


def test_nothing_is_left_of_what_no_run_needs(reports):
    past([reports])
    for folder in reports.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    assert past([reports]).runs == ()
    with sqlite3.connect(reports / INDEX) as index:
        for table in ("runs", "parts", "checks", "conditions"):
            assert index.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    index.close()


BROKEN = {
    "run.json": (b"{", "it is damaged: Expecting property name"),
    "results.parquet": (b"PAR1 and no more", "it is damaged: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_cannot_be_read_is_told_and_left_out(reports, name, looked):
    content, why = BROKEN[name]
    folder = past([reports]).runs[1].folder
    (folder / name).write_bytes(content)
    found = past([reports])
    assert len(found.runs) == 2
    (note,) = found.notes
    assert note.startswith(f"{folder} was left out: {why}")
    looked.clear()
    assert past([reports]).notes == (note,)
    assert looked == []


@pytest.mark.parametrize("changes", [{"started": "yesterday"}, {"facts": 3}, {"suites": [{}]}, {"seconds": None}])
def test_whatever_stands_in_a_run_json_is_not_fatal(reports, changes):
    folder = past([reports]).runs[0].folder
    edit(folder, **changes)
    found = past([reports])
    assert len(found.runs) == 2
    assert found.notes[0].startswith(f"{folder} was left out: it is damaged")


def test_partial_folders_and_those_of_a_newer_harness_are_told(reports):
    first, second, third = (run.folder for run in past([reports]).runs)
    (first / "run.json").unlink()
    edit(second, format=99)
    partial = third.rename(reports / f".partial-{third.name}")
    (reports / "something else").mkdir()
    found = past([reports])
    assert found.runs == ()
    assert found.notes == (
        f"{first} was left out: run.json missing",
        f"{second} was left out: it was written by a newer harness: format 99, this one reads up to 2",
        f"{partial} was left out: it is being written, or its run ended early",
    )


def garbage(path):
    path.write_bytes(b"this is no database" * 400)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:5000])


def overwritten(path):
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    path.write_bytes(content)


def without_a_table(path):
    with sqlite3.connect(path) as index:
        index.execute("DROP TABLE parts")
    index.close()


def with_foreign_outcomes(path):
    with sqlite3.connect(path) as index:
        index.execute("UPDATE parts SET outcomes = ?", (b"?!",))
    index.close()


def with_too_few_outcomes(path):
    with sqlite3.connect(path) as index:
        index.execute("UPDATE parts SET outcomes = ?", (b"p",))
    index.close()


def without_conditions(path):
    with sqlite3.connect(path) as index:
        index.execute("UPDATE conditions SET facts = 'x'")
    index.close()


@pytest.mark.parametrize(
    "damage",
    [garbage, cut_off, overwritten, without_a_table, with_foreign_outcomes, with_too_few_outcomes, without_conditions],
)
def test_a_damaged_index_is_made_again_with_a_note(reports, damage, looked):
    whole = past([reports])
    damage(reports / INDEX)
    found = past([reports])
    (note,) = found.notes
    assert note.startswith(f"{reports / INDEX} was damaged (")
    assert note.endswith(") and is made again from the run folders")
    assert (found.runs, found.parts) == (whole.runs, whole.parts)
    looked.clear()
    assert past([reports]) == whole
    assert looked == []


@pytest.mark.parametrize("version", [FORMAT + 1, FORMAT - 1])
def test_an_index_of_another_format_is_made_again(reports, version):
    past([reports])
    with sqlite3.connect(reports / INDEX) as index:
        index.execute('CREATE TABLE "of another ""version" (x)')
        index.execute(f"PRAGMA user_version = {version}")
    index.close()
    found = past([reports])
    assert len(found.runs) == 3
    told = (f"{reports / INDEX} was of format {version}, this harness writes {FORMAT}: it is made again",)
    assert found.notes == (told if version else ())
    assert past([reports]).notes == ()


def test_rebuild_reads_every_run_again(reports, looked):
    first = past([reports])
    looked.clear()
    assert past([reports], rebuild=True) == first
    assert len(looked) == 3


def test_where_no_index_can_be_written_the_runs_are_read_without_one(reports):
    (reports / INDEX).mkdir()
    found = past([reports])
    assert len(found.runs) == 3
    assert found.notes == (
        f"{reports / INDEX} cannot be used (unable to open database file): the run folders were read without an index",
    )


def test_an_index_that_another_process_holds_for_long_is_done_without(reports, monkeypatch):
    monkeypatch.setattr("harness.run_index.WAIT", 0.1)
    past([reports])
    save(results(9), reports)
    holder = sqlite3.connect(reports / INDEX, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    found = past([reports])
    holder.execute("ROLLBACK")
    holder.close()
    assert len(found.runs) == 4
    assert "database is locked" in found.notes[0]
    assert past([reports]).notes == ()


WRITER = """
import sys
from pathlib import Path
from harness.run_index import past
for round in range(5):
    found = past([Path(sys.argv[1])], rebuild=round == int(sys.argv[2]))
    assert len(found.runs) == 3, found
    assert not found.notes, found.notes
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_several_may_write_at_once(reports, damaged):
    script = WRITER.replace("assert not found.notes, found.notes", "pass") if damaged else WRITER
    if damaged:
        garbage(reports / INDEX)
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(reports), str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    told = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], told
    found = past([reports])
    assert (len(found.runs), found.notes) == (3, ())
    with sqlite3.connect(reports / INDEX) as index:
        assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert index.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert index.execute("SELECT count(*) FROM parts").fetchone() == (3,)
    index.close()


def test_nobody_writes_between_what_is_asked_and_what_is_done_about_it(reports, monkeypatch):
    version, refused = run_index._version, []

    def asked(index):
        if index.in_transaction:
            with (
                closing(sqlite3.connect(reports / INDEX, timeout=0)) as other,
                pytest.raises(sqlite3.OperationalError) as error,
            ):
                other.execute("BEGIN IMMEDIATE")
            refused.append(str(error.value))
        return version(index)

    monkeypatch.setattr(run_index, "_version", asked)
    assert len(past([reports]).runs) == 3
    assert refused == ["database is locked"]


def test_a_run_that_lies_in_two_folders_counts_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    early, late = save(results(1), one), save(results(0), two)
    shutil.copytree(early, two / early.name)
    found = past([one, two])
    assert [run.folder for run in found.runs] == [late, early]
    assert [part.run for part in found.parts] == [0, 1]


def test_many_new_runs_are_announced(reports, monkeypatch):
    monkeypatch.setattr("harness.run_index.AT_ONCE", 2)
    told = []
    past([reports], tell=told.append)
    past([reports], tell=told.append)
    assert told == [f"reading 3 runs into {reports / INDEX}"]


@pytest.mark.slow
def test_a_thousand_runs_of_a_thousand_checks_are_read_in_well_under_a_second(tmp_path):
    letters = {True: "passed", False: "failed"}
    with closing(run_index._connected(str(tmp_path / INDEX))) as index:
        run_index._prepare(index, "", False)
        for number in range(1000):
            (tmp_path / f"run-{number}").mkdir()
            part = run_outcomes.LookedPart(
                "s", "m", {"suite": "s1", "weights": "w", "device": "cpu", "python": "3"}, (1, 1.0, {})
            )
            part.worst = {(f"t{one}", f"t{one}"): letters[one % 97 != number % 101] for one in range(1000)}
            facts = {"seconds": 1.0, "complete": True, "outcomes": {}, "commit": "", "clean": False, "lacks": []}
            looked = run_outcomes.Looked(facts | {"started": (START + timedelta(hours=number)).isoformat()}, [part])
            with run_index._transaction(index):
                run_index._insert(index, f"run-{number}", "", looked)
    began = time.process_time()
    found = past([tmp_path])
    read = time.process_time() - began
    assert sum(len(part.outcomes) for part in found.parts) == 1_000_000
    told = history(found)
    took = time.process_time() - began
    assert len(told.tests) == 1000
    assert read < 0.5
    assert took < 2.0  # each of them a test of its own: the most there can be to tell


def test_names_that_are_no_folders_of_runs_are_refused(reports, tmp_path):
    with pytest.raises(UsageError, match="is one run; its history is in the folder of runs\n  Name the folder"):
        past([next(folder for folder in reports.iterdir() if folder.is_dir())])
    with pytest.raises(UsageError, match="does not exist"):
        past([tmp_path / "none"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        past([tmp_path / "file"])


def test_runs_that_started_in_the_same_second_are_in_the_order_in_which_they_were_written(tmp_path):
    folders = [save(results(0), tmp_path) for _ in range(5)]
    assert [run.folder for run in past([tmp_path]).runs] == folders


def test_a_folder_without_runs_is_left_as_it_is(tmp_path):
    (tmp_path / "something else").mkdir()
    assert past([tmp_path]).runs == ()
    assert not (tmp_path / INDEX).exists()
