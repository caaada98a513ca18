"""A run as data, and the page that documents it."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from harness import frame, store, tables
from harness.comparison.measured import Measured, Passage, Timing
from harness.comparison.summary import STATISTICS
from harness.pins.pin import Pin
from harness.record import Failure, Target, TargetFacts, Verdict
from harness.reports.data import JSON_COLUMNS, ONLY_IN_PARQUET, csv_text, json_lines, json_text, write_parquet
from harness.runs import Run
from harness.store import save

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EVIL = "=1+1 \x1b[31m\u202e\ud800\x00 \uffff </script>\u2028 é"


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def read_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def with_verdict(results, **changes):
    record, *others = results.records
    changes = {"verdict": Verdict("failed", "no", {"margin": -0.5}, ("a", "b"))} | changes
    return dataclasses.replace(results, records=(dataclasses.replace(record, **changes), *others))


def test_csv_has_a_row_for_each_verdict_with_the_columns_of_the_table(compared):
    results = with_verdict(compared(), new_tokens=7, marks=("slow", "gpu"))
    rows = read_csv(csv_text(results, "verdicts"))
    assert list(rows[0]) == list(tables.result_types())
    assert [row["target"] for row in rows] == ["fp32", "int8", "nf4"]
    first = rows[0]
    assert (first["outcome"], first["line"], first["new_tokens"]) == ("failed", "3", "7")
    assert json.loads(first["numbers"]) == {"margin": -0.5}
    assert json.loads(first["marks"]) == ["slow", "gpu"]
    assert rows[1]["new_tokens"] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\n", "＝", "－", "＋", "＠"])
def test_no_cell_of_a_csv_begins_a_formula(compared, start):
    text = f'{start}cmd|" /C calc"!A0'
    row = read_csv(csv_text(with_verdict(compared(), text=text), "verdicts"))[0]
    assert row["text"] == f"'{text}"


def test_what_only_looks_like_a_formula_inside_stays(compared):
    row = read_csv(csv_text(with_verdict(compared(), text="1 = 1, a-b @ c"), "verdicts"))[0]
    assert row["text"] == "1 = 1, a-b @ c"


def test_a_carriage_return_at_the_start_of_a_cell_is_seen_and_not_obeyed(compared):
    row = read_csv(csv_text(with_verdict(compared(), text="\r=1"), "verdicts"))[0]
    assert row["text"] == "\\r=1"


def test_numbers_of_a_csv_are_numbers(compared):
    frame = pd.read_csv(io.StringIO(csv_text(with_verdict(compared(), seconds=-1.5), "verdicts")))
    assert frame["seconds"][0] == -1.5
    assert frame["line"].tolist() == [3, 3, 3]
    assert ",-1.5\n" in csv_text(with_verdict(compared(), seconds=-1.5), "verdicts")


def test_a_csv_shows_what_would_act(compared):
    text = csv_text(with_verdict(compared(), text=EVIL, verdict=Verdict("failed", "x\ud800")), "verdicts")
    row = read_csv(text)[0]
    assert row["text"] == "'=1+1 \\x1b[31m\\u202e\\ud800\\x00 \uffff </script>\\u2028 é"
    assert row["reason"] == "x\\ud800"
    assert text.encode("utf-8")


def test_a_text_of_a_megabyte_is_whole(compared):
    text = 'a "quoted", line\n' * 65_000
    results = with_verdict(compared(), text=text)
    assert read_lines(json_lines(results, "verdicts"))[0]["text"] == text
    csv.field_size_limit(10_000_000)
    assert read_csv(csv_text(results, "verdicts"))[0]["text"] == text


def test_json_lines_hold_texts_as_they_are_on_a_line_each(compared):
    lines = json_lines(with_verdict(compared(), text=EVIL.replace("\ud800", "")), "verdicts")
    assert lines.count("\n") == 3
    first = read_lines(lines)[0]
    assert list(first) == list(tables.result_types())
    assert first["text"] == EVIL.replace("\ud800", "")
    assert (first["numbers"], first["details"]) == ({"margin": -0.5}, ["a", "b"])
    assert first["new_tokens"] is None


def test_nothing_in_json_lines_acts_before_it_is_read(compared):
    lines = json_lines(with_verdict(compared(), text=EVIL), "verdicts")
    assert all(character.isprintable() for character in lines.replace("\n", ""))
    assert "é" in lines
    assert read_lines(lines)[0]["text"] == EVIL.replace("\ud800", "\\ud800")


def test_json_has_no_number_that_is_none(compared):
    verdict = Verdict("failed", "no", {"kl": float("nan"), "most": float("inf")})
    text = json_lines(with_verdict(compared(), verdict=verdict), "verdicts")
    numbers = json.loads(text.splitlines()[0], parse_constant=pytest.fail)["numbers"]
    assert numbers == {"kl": "NaN", "most": "Infinity"}


def test_generations_are_rows_with_what_was_asked_as_objects(compared):
    plain = compared()
    target, done = plain.completions[0]
    failure = Failure(done.request.replace(repeat=1), "numeric", "NaN in the logits")
    rows = read_lines(json_lines(dataclasses.replace(plain, failures=((target, failure),)), "generations"))
    assert len(rows) == len(plain.completions) + 1
    assert list(rows[0]) == [name for name in tables.token_types() if name not in ONLY_IN_PARQUET]
    assert (rows[0]["target"], rows[0]["text"], rows[0]["ids"]) == ("fp32", "one two", [100, 101, 102, 200])
    assert rows[0]["prompt"]["text"] == "Say p0"
    assert rows[0]["generation"] == {"max_new_tokens": 64, "do_sample": False}
    assert rows[0]["layout"] == "any"
    assert (rows[-1]["error"], rows[-1]["error_message"]) == ("numeric", "NaN in the logits")
    assert len(read_csv(csv_text(plain, "generations"))) == len(plain.completions)


def test_parquet_is_that_of_a_run_folder(compared, tmp_path):
    results = compared()
    folder = save(results, tmp_path)
    for name, rows in (("results", "verdicts"), ("tokens", "generations")):
        write_parquet(results, rows, tmp_path / f"{name}.parquet")
        assert pq.read_table(tmp_path / f"{name}.parquet").equals(pq.read_table(folder / f"{name}.parquet"))


def test_the_document_tells_the_verdict_and_the_decision(compared):
    document = json.loads(json_text(compared(seconds=float("inf"))), parse_constant=pytest.fail)
    assert document["format"] == store.FORMAT
    assert (document["verdict"], document["sentence"][:22]) == ("FAILED", "1 of 3 checks failed, ")
    assert document["seconds"] == "Infinity"
    assert [row["outcome"] for row in document["verdicts"]] == ["passed", "passed", "failed"]
    assert document["verdicts"][0]["numbers"] == {}
    decision = document["decision"]
    assert (decision["cheapest"], decision["sentence"]) == ("int8", "ship int8: it alone keeps the budget")
    assert [one["gate"] for one in decision["candidates"]] == ["do not ship", "ship", "do not ship", "cannot tell"]
    assert [one["flips"] for one in decision["candidates"]] == [0, 0, 8, 0]
    assert decision["candidates"][3]["kl"] is None
    assert json.loads(json_text(compared(measured=None)))["decision"] is None


# The page


def sections():
    """Title -> the tables under it, each a list of its rows' cells."""
    found = {}
    title = previous = ""
    for line in DOCUMENT.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
            found.setdefault(title, [])
        elif line.startswith("|") and (cells := [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]):
            if not previous.startswith("|"):
                found[title].append([])
            found[title][-1].append(cells)
        previous = line
    return found


def documented(title, table=0):
    """The names in the first column of a table."""
    return [row[0].strip("`") for row in sections()[title][table][2:]]


def fields(noun):
    return [field.name for field in dataclasses.fields(noun)]


def test_the_page_names_the_format():
    assert f"**format {store.FORMAT}**" in DOCUMENT


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("results.parquet", tables.result_types),
        ("tokens.parquet", tables.token_types),
        ("texts.parquet", tables.text_types),
        ("comparison.parquet", tables.answered_types),
    ],
)
def test_every_column_of_a_table_is_documented_with_its_type(title, kinds):
    told = [(row[0].strip("`"), row[1]) for row in sections()[title][0][2:]]
    assert told == [(name, str(kind).replace("item: ", "")) for name, kind in kinds().items()]


@pytest.mark.parametrize(
    ("title", "noun"),
    [
        ("targets", Target),
        ("facts", TargetFacts),
        ("pins", Pin),
        ("comparison", Measured),
        ("passages", Passage),
        ("timings", Timing),
    ],
)
def test_every_key_of_a_noun_is_documented(title, noun):
    assert documented(title) == fields(noun)


def test_every_key_of_run_json_is_documented(compared, tmp_path):
    meta = json.loads((save(compared(), tmp_path) / "run.json").read_text())
    assert documented("run.json") == list(meta)


def test_every_file_of_a_run_folder_is_documented(compared, tmp_path):
    folder = save(compared(), tmp_path, {"report.html": ""})
    assert f"`{store.VERDICTS}`" in DOCUMENT
    assert sorted(documented("The run folder")) == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("method", ["prompts", "tokens", "flips", "differences"])
def test_every_column_of_a_frame_is_documented(compared, method):
    assert documented(method) == list(getattr(Run(compared()), method)().columns)


def test_every_column_of_the_frames_of_verdicts_targets_and_candidates_is_documented(compared):
    run = Run(compared())
    assert documented("frame") == frame.COLUMNS
    # `targets` is a key of run.json and a frame.
    assert documented("targets", 1) == list(run.targets().columns)
    figures = documented("compare", 1)
    assert figures == list(STATISTICS)
    bounds = [f"{name}{bound}" for name in figures for bound in ("", "_low", "_high")]
    assert sorted(documented("compare") + bounds) == sorted(run.compare().columns)


def test_every_key_of_the_json_document_is_documented(compared):
    assert documented("JSON") == list(json.loads(json_text(compared())))


def test_columns_that_are_json_in_parquet_are_documented_as_such(compared):
    for title, rows in (("results.parquet", "verdicts"), ("tokens.parquet", "generations")):
        told = {row[0].strip("`") for row in sections()[title][0][2:] if "JSON" in row[2]}
        assert told == set(JSON_COLUMNS[rows])
