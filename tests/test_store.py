import dataclasses
import errno
import json
import re
from array import array

import pyarrow.parquet as pq
import pytest

from harness.errors import CannotRun, UsageError
from harness.inputs import GREEDY, Model
from harness.record import Batch, Completion, Failure, Record, Request, Step, Target, TargetFacts, Text, Verdict
from harness.store import Results, outcome_by_check, read, save

REQUEST = Request(Text("Hello"), GREEDY)


def record(check="basics.yaml::m::t[a]", status="passed", **changes):
    record = Record(
        check=check,
        suite="basics",
        file="basics.yaml",
        line=7,
        test="t",
        target="m",
        model="m",
        quantization="none",
        prompt="a",
        generation="greedy",
        expectation="contains",
        verdict=Verdict(status, "it says so", {"margin": 0.5, "index": 3}, ("expected: a", "got:      b")),
        marks=("slow",),
        requests=(REQUEST.id,),
        text="Hi there",
        new_tokens=2,
        finish="eos",
        seconds=0.25,
    )
    return dataclasses.replace(record, **changes)


def completion(**changes):
    done = Completion(
        request=REQUEST,
        prompt_text="Hello",
        prompt_ids=(1, 2),
        ids=(3, 4),
        tokens=("Hi", " there"),
        text="Hi there",
        finish="eos",
        steps=(
            Step(-0.5, array("i", (3, 9)), array("f", (-0.5, -1.5)), 11.0),
            Step(-0.25, (4, 8), (-0.25, -2.0), 12.5),
        ),
        generation_config={"do_sample": False, "dtype": object},
        padding="left",
        pads=3,
        batch_size=2,
        seconds=0.5,
        memory_bytes=10_000_000_000,
        warnings={"careful": 2},
    )
    return dataclasses.replace(done, **changes)


def results(**changes):
    plain = Results(
        records=(record(), record("basics.yaml::m::t[b]", "failed", new_tokens=None, seconds=None)),
        completions=(("m", completion()),),
        failures=(("m", Failure(REQUEST.replace(repeat=1), "numeric", "NaN in the logits")),),
        facts=(TargetFacts("m", dtype="float32", eos_token_ids=(2,), modules={"Linear": 3}),),
        counts={"asked": 3, "distinct": 2, "generated": 2},
        suites=({"name": "basics", "file": "basics.yaml", "sha256": "ab12"},),
        started="2025-03-04T05:06:07+00:00",
        seconds=1.5,
        environment={"python": "3.11.7"},
        command="harness run basics.yaml",
        targets=(Target("m", "m", Model(path="some/model")),),
    )
    return dataclasses.replace(plain, **changes)


def test_a_run_comes_back_as_it_was(tmp_path):
    outcome = results()
    run = read(save(outcome, tmp_path))
    assert run.records() == outcome.records
    assert run.meta["counts"] == {"asked": 3, "distinct": 2, "generated": 2}
    assert run.meta["outcomes"] == {"passed": 1, "failed": 1}
    assert run.meta["facts"][0]["eos_token_ids"] == [2]
    assert run.meta["targets"][0]["model"] == {"path": "some/model"}
    assert run.meta["suites"] == [{"name": "basics", "file": "basics.yaml", "sha256": "ab12"}]
    assert (run.meta["format"], run.meta["complete"], run.meta["command"]) == (1, True, "harness run basics.yaml")


def test_a_completion_is_one_row_with_all_that_was_recorded(tmp_path):
    row, _ = read(save(results(), tmp_path)).tokens().to_pylist()
    done = completion()
    for name in ("prompt_text", "text", "finish", "padding", "pads", "batch_size", "seconds", "memory_bytes"):
        assert row[name] == getattr(done, name), name
    assert (row["request"], row["target"], row["layout"]) == (REQUEST.id, "m", "any")
    assert (row["prompt_ids"], row["ids"], row["tokens"]) == ([1, 2], [3, 4], ["Hi", " there"])
    assert row["logprob"] == [-0.5, -0.25]
    assert row["top_ids"] == [[3, 9], [4, 8]]
    assert row["top_logprobs"] == [[-0.5, -1.5], [-0.25, -2.0]]
    assert row["max_logit"] == [11.0, 12.5]
    assert json.loads(row["generation_config"]) == {"do_sample": False, "dtype": "<class 'object'>"}
    assert json.loads(row["warnings"]) == {"careful": 2}
    assert json.loads(row["prompt"])["text"] == "Hello"
    assert row["error"] is None


def test_a_failure_is_a_row_without_tokens(tmp_path):
    _, row = read(save(results(), tmp_path)).tokens().to_pylist()
    assert (row["error"], row["error_message"], row["repeat"]) == ("numeric", "NaN in the logits", 1)
    assert row["ids"] is None
    assert row["text"] is None


def test_a_fixed_batch_is_told_in_full(tmp_path):
    layout = Batch((Text("Hello"), Text("Hi")), "right")
    done = completion(request=REQUEST.replace(layout=layout))
    row = read(save(results(completions=(("m", done),)), tmp_path)).tokens().to_pylist()[0]
    assert json.loads(row["layout"])["padding"] == "right"
    assert [text["text"] for text in json.loads(row["layout"])["rows"]] == ["Hello", "Hi"]


def test_a_run_without_records_still_has_its_columns(tmp_path):
    run = read(save(results(records=(), completions=(), failures=()), tmp_path))
    assert run.records() == ()
    assert {"check", "outcome", "numbers"} <= set(run.results().column_names)
    assert {"request", "top_ids", "error"} <= set(run.tokens().column_names)


def test_the_folder_is_named_by_start_and_suites(tmp_path):
    names = [{"name": name, "file": "f", "sha256": ""} for name in ("Basics_v1.2", "../../etc", "x" * 100)]
    folder = save(results(suites=tuple(names), started="2025-03-04T07:06:07+02:00"), tmp_path)
    assert folder.parent == tmp_path
    assert re.fullmatch(r"20250304-050607-basics-v1-2-etc-x+-[0-9a-f]{4}", folder.name)
    assert len(folder.name) <= 16 + 60 + 5


def test_a_run_never_overwrites_another(tmp_path, monkeypatch):
    drawn = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr("harness.store.secrets.token_hex", lambda size: next(drawn))
    first = save(results(), tmp_path)
    second = save(results(command="another"), tmp_path)
    assert (first.name[-4:], second.name[-4:]) == ("aaaa", "bbbb")
    assert read(first).meta["command"] == "harness run basics.yaml"


def test_further_files_are_put_beside_the_data(tmp_path):
    folder = save(results(), tmp_path / "deep" / "reports", {"report.html": "<p>Köln \ud800</p>"})
    assert (folder / "report.html").read_text(encoding="utf-8") == r"<p>Köln \ud800</p>"
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "results.parquet",
        "run.json",
        "tokens.parquet",
    ]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path):
    verdict = Verdict("failed", "no", {"nan": float("nan"), "up": float("inf"), "down": float("-inf")})
    steps = (Step(float("-inf"), (1,), (float("-inf"),), float("inf")),)
    outcome = results(
        records=(record(verdict=verdict),),
        completions=(("m", completion(steps=steps, generation_config={"p": float("nan")})),),
        seconds=float("nan"),
    )
    run = read(save(outcome, tmp_path))
    assert run.meta["seconds"] == "NaN"
    assert run.records()[0].verdict.numbers == {"nan": "NaN", "up": "Infinity", "down": "-Infinity"}
    row = run.tokens().to_pylist()[0]
    assert row["logprob"] == [float("-inf")]
    assert json.loads(row["generation_config"]) == {"p": "NaN"}


def test_half_a_surrogate_pair_is_written_visibly(tmp_path):
    odd = "a\ud83d\x00\x1b[31m\u202eb"
    outcome = results(
        records=(record(text=odd, verdict=Verdict("failed", odd, {"text": odd}, (odd,))),),
        completions=(("m", completion(text=odd, tokens=("a", "\ud83d"), warnings={odd: 1})),),
        errors=(odd,),
    )
    run = read(save(outcome, tmp_path))
    written = "a\\ud83d\x00\x1b[31m\u202eb"
    assert run.records()[0].text == written
    assert run.records()[0].verdict.details == (written,)
    row = run.tokens().to_pylist()[0]
    assert (row["text"], row["tokens"]) == (written, ["a", "\\ud83d"])
    assert run.meta["errors"] == [odd]


def test_a_parent_that_cannot_be_written_is_told_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotRun, match=r"cannot write .*: (Not a directory|File exists)") as caught:
        save(results(), tmp_path / "file")
    assert "choose another folder" in caught.value.remedy


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(CannotRun, match="No space left on device"):
        save(results(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_breaks_while_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.store._meta", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(results(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"not a run folder: it has no run\.json"):
            read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "x"}', "{}", "null"])
def test_a_damaged_run_json_is_told(tmp_path, text):
    folder = save(results(), tmp_path)
    (folder / "run.json").write_text(text)
    with pytest.raises(CannotRun, match=r"run\.json is damaged"):
        read(folder)


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    folder = save(results(), tmp_path)
    (folder / "run.json").write_text('{"format": 2}')
    with pytest.raises(UsageError, match="newer harness: format 2, this one reads up to 1") as caught:
        read(folder)
    assert "pip install --upgrade harness" in caught.value.remedy


def test_missing_and_damaged_tables_are_told(tmp_path):
    folder = save(results(), tmp_path)
    (folder / "results.parquet").write_bytes((folder / "results.parquet").read_bytes()[:100])
    with pytest.raises(CannotRun, match=r"results\.parquet is damaged"):
        read(folder).results()
    (folder / "tokens.parquet").unlink()
    with pytest.raises(CannotRun, match=r"tokens\.parquet missing"):
        read(folder)


def test_a_check_is_as_bad_as_its_worst_expectation():
    records = [record("a"), record("a", "failed"), record("b", "failed", xfail="known"), record("b"), record("c")]
    assert outcome_by_check(records) == {"a": "failed", "b": "xfailed", "c": "passed"}
