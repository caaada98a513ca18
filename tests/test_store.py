import dataclasses
import errno
import json
import math
import re
from array import array

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import store
from harness.comparison.measured import Answered, Candidate, Measured, Passage, Replay, Timing
from harness.errors import CannotRun, UsageError
from harness.inputs import GREEDY, Generation, Message, Model, ScriptedCompletion
from harness.pins.pin import Pin
from harness.record import (
    Batch,
    Completion,
    Failure,
    Record,
    Request,
    Returned,
    Step,
    Target,
    TargetFacts,
    Text,
    Verdict,
)
from harness.store import Journal, Results, outcome_by_check, read, save

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
            Step(-0.25, array("i", (4, 8)), array("f", (-0.25, -2.0)), 12.5),
        ),
        generation_config={"do_sample": False, "eos_token_id": [2, 3], "bos_token_id": None},
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


def rows(folder, name="tokens.parquet"):
    """A table as any other program reads it."""
    return pq.read_table(folder / name).to_pylist()


def everything():
    """Results in which no field has its default, so that one that is forgotten shows."""
    turns = (Message(role="system", content="Be brief. "), Message(role="user", content="Köln?\n"))
    layout = Batch((Text("Hello"), Text(ids=(1, 2))), "right", False, 7)
    generation = Generation(do_sample=True, temperature=0.7, top_k=5, stop_strings=("\n", "."), seed=3)
    one = Request(Text(messages=turns, continued=True), generation, layout, 2, True, "replay", 1, (3, 4), True)
    one = one.replace(attention="eager", float32=True, resume_after=1, whole=False)
    steps = (
        Step(-0.5, array("i", (3, 9)), array("f", (-0.5, -1.5)), 11.0),
        Step(-0.25, array("i", (4,)), array("f", (-0.25,)), float("inf")),
    )
    done = completion(
        request=one,
        finish="stop",
        steps=steps,
        precision="bfloat16",
        generation_config={"temperature": 0.7, "eos_token_id": [2, 3], "bos_token_id": None, "limit": float("-inf")},
        split_after_oom=True,
        tail=(0, 5),
        cache="StaticCache",
        attention="eager",
        returned=(Returned((3, 4), "Hi there", -1.25), Returned((5,), "NaN")),
    )
    replay = Replay(
        (0.5, 0.0), (3, 4), (9, 4), (1.5, 0.0), (0.5, 0.0), (-0.5, -1.0), (-0.25, -2.0), (1.0, 0.0), (False, True)
    )
    nothing = Replay((), (), (), (), (), (), (), (), ())
    answered = (
        Answered("m", "a", one.id, replay),
        Answered("m", "b", REQUEST.id, why_not="it was empty"),
        Answered("m", "c", REQUEST.id, nothing),
    )
    measured = Measured(
        baseline="m",
        candidates=(Candidate("m", "m", "greedy"), Candidate("m/warm", "m", "warm")),
        answered=answered,
        passages=(Passage("m", "news", 12.5, 3, 14), Passage("m", "endless", float("inf"), 1, 1)),
        timings=(Timing("m", 1.5, 2, 3, 4, 5, (0.1, 0.2), (3.5,), (7.0, 8.0), (3.0,), (6.0, 5.0), 4, (0.01, 0.02)),),
        not_measured={"m-nf4": "no CUDA here"},
        notes=("vocabularies differ",),
    )
    facts = TargetFacts(
        *(
            "m",
            "cuda:0",
            "bfloat16",
            "sdpa",
            "DynamicCache",
            "Fast",
            "left",
            True,
            0,
            "eos",
            (2, 3),
            "digest",
            "template",
            2048,
            95,
        ),
        *("some/model", "ab12", 540, {"Linear": 3}, {"temperature": 0.6, "eos_token_id": [2]}, True, ("dynamic_rope",)),
        *(0.5, 100, 200, {"careful": 1}),
    )
    numbers = {"kind": "numeric", "at": 3, "worst": float("inf")}
    scripted = Model(backend="scripted", completions=(ScriptedCompletion(text="Hi", margin=0.5),))
    return results(
        records=(record(verdict=Verdict("failed", "no", numbers, ("a",)), xfail="known", requests=(one.id, "b")),),
        completions=(("m", done), ("m", completion(request=REQUEST.replace(row=0), steps=()))),
        failures=(("m", Failure(one.replace(kind="score"), "numeric", "NaN in the logits")),),
        facts=(facts,),
        errors=("n: no such model",),
        complete=False,
        targets=(Target("m", "m", Model(path="some/model", dtype="bfloat16")), Target("s-nf4", "s", scripted, "nf4")),
        environment={"python": "3.11.7", "torch": {"threads": 2, "devices": ["a", "b"]}, "git": {"dirty": None}},
        measured=measured,
        budget={"max_kl": 0.01, "must_pass": ["t"], "max_memory_mb": None},
        pins={"basics.yaml::m::t[a]": PIN},
        texts={"m": {3: " Hi", 9: "\n"}},
    )


PIN = Pin(
    *("a", "greedy", "digest", (1, 2), (3,), "eos", "Hi"),
    steps=(Step(-0.5, (3, 9), (-0.5, -1.5), float("inf")),),
    padding="left",
    processed=(Step(-0.5, (3,), (-0.5,), 1.0),),
)


NOT_KEPT = {
    "processed_steps",
    "rendering",
    "raw_logits",
    "processed_logits",
    "distributions",
}  # the last ones would be far too large


def test_a_run_comes_back_whole(tmp_path):
    outcome = everything()
    folder = save(outcome, tmp_path)
    back = read(folder)
    for field in dataclasses.fields(Results):
        if field.compare:
            assert getattr(back, field.name) == getattr(outcome, field.name), field.name
    assert back == outcome
    assert (back.path, back.lacks) == (folder, ())


@pytest.mark.parametrize("name", ["run.json", "results.parquet", "tokens.parquet", "comparison.parquet"])
def test_a_file_of_a_run_folder_stands_for_the_folder(tmp_path, name):
    folder = save(everything(), tmp_path)
    assert read(folder / name) == everything()
    assert read(folder / name).path == folder


def test_the_sample_of_everything_leaves_no_field_at_its_default():
    outcome = everything()
    nouns = [outcome, outcome.records[0], outcome.completions[0][1], outcome.completions[0][1].request]
    nouns += [outcome.facts[0], outcome.measured, outcome.measured.timings[0], outcome.targets[1]]
    for noun in nouns:
        for field in dataclasses.fields(noun):
            if field.name not in NOT_KEPT | {"path", "lacks"} and field.default is not dataclasses.MISSING:
                assert getattr(noun, field.name) != field.default, f"{type(noun).__name__}.{field.name}"


def test_a_read_request_has_the_id_that_stands_in_the_table(tmp_path):
    outcome = everything()
    folder = save(outcome, tmp_path)
    back = read(folder)
    asked = [done.request for _, done in back.completions] + [failure.request for _, failure in back.failures]
    assert [request.id for request in asked] == [row["request"] for row in rows(folder)]
    assert [request.id for request in asked] == [
        done.request.id for _, done in (*outcome.completions, *outcome.failures)
    ]


def test_run_json_says_what_a_reader_looks_for(tmp_path):
    meta = json.loads((save(results(), tmp_path) / "run.json").read_text())
    assert meta["counts"] == {"asked": 3, "distinct": 2, "generated": 2}
    assert meta["outcomes"] == {"passed": 1, "failed": 1}
    assert meta["facts"][0]["eos_token_ids"] == [2]
    assert meta["targets"][0]["model"] == {"path": "some/model"}
    assert meta["suites"] == [{"name": "basics", "file": "basics.yaml", "sha256": "ab12"}]
    assert (meta["format"], meta["complete"], meta["command"]) == (2, True, "harness run basics.yaml")


def test_a_completion_is_one_row_with_all_that_was_recorded(tmp_path):
    steps = (completion().steps[0], Step(-0.25, (4, 8), (-0.25, -2.0), 12.5))
    done = completion(steps=steps, generation_config={"do_sample": False, "dtype": object})
    row, _ = rows(save(results(completions=(("m", done),)), tmp_path))
    for name in ("prompt_text", "text", "finish", "padding", "pads", "batch_size", "seconds", "memory_bytes"):
        assert row[name] == getattr(done, name), name
    assert (row["request"], row["target"], row["layout"], row["kind"]) == (REQUEST.id, "m", "any", "generate")
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
    _, row = rows(save(results(), tmp_path))
    assert (row["error"], row["error_message"], row["repeat"]) == ("numeric", "NaN in the logits", 1)
    assert row["ids"] is None
    assert row["text"] is None


def test_a_fixed_batch_is_told_in_full(tmp_path):
    layout = Batch((Text("Hello"), Text("Hi")), "right")
    done = completion(request=REQUEST.replace(layout=layout))
    row = rows(save(results(completions=(("m", done),)), tmp_path))[0]
    assert json.loads(row["layout"])["padding"] == "right"
    assert [text["text"] for text in json.loads(row["layout"])["rows"]] == ["Hello", "Hi"]


def test_a_replay_is_one_row_with_a_value_a_token(tmp_path):
    first, second, third = rows(save(everything(), tmp_path), "comparison.parquet")
    assert (first["candidate"], first["prompt"], first["kl"], first["top"]) == ("m", "a", [0.5, 0.0], [9, 4])
    assert (second["kl"], second["why_not"]) == (None, "it was empty")
    assert third["kl"] == []


@pytest.mark.parametrize("kept", ["nothing", "failures", "records"])
def test_a_run_that_lacks_something_still_has_its_columns(tmp_path, kept):
    outcome = results(**{name: () for name in ("records", "completions", "failures") if name != kept})
    folder = save(outcome, tmp_path)
    assert read(folder) == outcome
    assert {"check", "outcome", "numbers"} <= set(pq.read_schema(folder / "results.parquet").names)
    assert {"request", "top_ids", "error"} <= set(pq.read_schema(folder / "tokens.parquet").names)


def test_many_completions_come_back_each_with_its_own_steps(tmp_path, monkeypatch):
    def numbered(number):
        made = [Step(-step, array("i", (number, step)), array("f", (number, -step)), 9.0) for step in range(number % 4)]
        return completion(request=REQUEST.replace(repeat=number), steps=tuple(made), ids=(number,) * (number % 3))

    written = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *args, **options: written(*args, row_group_size=7, **options))
    several = tuple(("m", numbered(number)) for number in range(50))
    outcome = results(completions=several)
    assert read(save(outcome, tmp_path)) == outcome


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
    assert read(first).command == "harness run basics.yaml"


def test_further_files_are_put_beside_the_data(tmp_path):
    folder = save(results(), tmp_path / "deep" / "reports", {"report.html": "<p>Köln \ud800</p>"})
    assert (folder / "report.html").read_text(encoding="utf-8") == r"<p>Köln \ud800</p>"
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "results.parquet",
        "run.json",
        "texts.parquet",
        "tokens.parquet",
    ]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path):
    verdict = Verdict("failed", "no", {"nan": float("nan"), "up": float("inf"), "down": float("-inf")})
    steps = (Step(float("-inf"), array("i", (1,)), array("f", (float("-inf"),)), float("inf")),)
    outcome = results(
        records=(record(verdict=verdict),),
        completions=(("m", completion(steps=steps, generation_config={"p": float("nan")})),),
        seconds=float("nan"),
    )
    folder = save(outcome, tmp_path)
    assert json.loads((folder / "run.json").read_text())["seconds"] == "NaN"
    assert json.loads(rows(folder, "results.parquet")[0]["numbers"]) == {
        "nan": "NaN",
        "up": "Infinity",
        "down": "-Infinity",
    }
    assert json.loads(rows(folder)[0]["generation_config"]) == {"p": "NaN"}
    back = read(folder)
    (_, done), numbers = back.completions[0], back.records[0].verdict.numbers
    assert math.isnan(back.seconds)
    assert math.isnan(numbers["nan"])
    assert (numbers["up"], numbers["down"]) == (float("inf"), float("-inf"))
    assert math.isnan(done.generation_config["p"])
    assert done.steps == steps


def test_half_a_surrogate_pair_is_written_visibly(tmp_path):
    odd = "a\ud83d\x00\x1b[31m\u202eb"
    outcome = results(
        records=(record(text=odd, verdict=Verdict("failed", odd, {"text": odd}, (odd,))),),
        completions=(("m", completion(request=Request(Text(odd), GREEDY), text=odd, tokens=("a", "\ud83d"))),),
        errors=(odd,),
    )
    back = read(save(outcome, tmp_path))
    written = "a\\ud83d\x00\x1b[31m\u202eb"
    assert back.records[0].text == written
    assert back.records[0].verdict.details == (written,)
    (_, done), *_ = back.completions
    assert (done.text, done.tokens) == (written, ("a", "\\ud83d"))
    assert back.errors == (odd,)
    assert done.request == Request(Text(odd), GREEDY)


def test_texts_that_look_like_numbers_or_data_stay_texts(tmp_path):
    said = Request(Text("NaN"), Generation(stop_strings=("Infinity", "null")))
    outcome = results(
        completions=(("m", completion(request=said, text="null", generation_config={}, warnings={"NaN": 1})),),
        failures=(("m", Failure(Request(Text('{"rows": 1}'), GREEDY, layout="alone"), "NaN", "-Infinity")),),
        records=(record(text="NaN", verdict=Verdict("passed", "NaN", {}, ("Infinity",))),),
    )
    assert read(save(outcome, tmp_path)) == outcome


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


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "suite.yaml").write_text("suite: s")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for path, message in {
        tmp_path: r"not a run folder: it has no run\.json",
        tmp_path / "absent": "does not exist",
        tmp_path / "suite.yaml": "neither a run folder nor a table of one",
        tmp_path / "other.parquet": "is no table of a run",
    }.items():
        with pytest.raises(UsageError, match=message) as caught:
            read(path)
        assert "Name a folder that `harness run` wrote" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "x"}', "{}", "null", b"\xff", None])
def test_without_its_run_json_the_tables_are_read(tmp_path, text):
    outcome = results()
    folder = save(outcome, tmp_path)
    (folder / "run.json").unlink()
    if text is not None:
        (folder / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    back = read(folder)
    assert (back.records, back.completions, back.failures) == (outcome.records, outcome.completions, outcome.failures)
    assert back.suites == ({"name": "basics", "file": "basics.yaml", "sha256": ""},)
    assert (back.started, back.facts, back.complete) == ("2025-03-04T05:06:07+00:00", (), False)
    [lack] = back.lacks
    assert lack.startswith("run.json is missing: " if text is None else "run.json is damaged (")
    assert lack.endswith(": what it ran on, and whether it came to its end is not known")


def test_what_run_json_does_not_say_is_lacking_and_nothing_else(tmp_path):
    outcome = everything()
    folder = save(outcome, tmp_path)
    meta = json.loads((folder / "run.json").read_text())
    del meta["counts"], meta["environment"]
    meta |= {"facts": 3, "pins": [1], "comparison": {"baseline": "m"}, "budget": {"max_kl": "much"}}
    (folder / "run.json").write_text(json.dumps(meta))
    back = read(folder)
    assert (back.counts, back.environment, back.facts, back.pins, back.budget) == ({}, {}, (), {}, None)
    assert (back.records, back.texts, back.targets) == (outcome.records, outcome.texts, outcome.targets)
    assert (back.measured, back.complete) == (None, False)
    assert [lack.partition(" (")[0] for lack in back.lacks] == ["run.json is damaged"] * 3 + [
        "run.json does not say counts, environment",
        "run.json is damaged",
    ]
    told = [lack.rpartition(": ")[2] for lack in back.lacks]
    assert told[:3] == ["`facts` is not known", "`budget` is not known", "`pins` is not known"]
    assert told[4] == "`comparison` is not known"


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize(
    ("name", "lost", "known"),
    [
        ("results", {"records"}, "its verdicts are not known"),
        ("tokens", {"completions", "failures"}, "its generations are not known"),
        ("comparison", {"measured"}, "its comparison token by token is not known"),
        ("texts", {"texts"}, "the texts of likely tokens are not known"),
    ],
)
def test_a_run_without_one_of_its_tables_is_read_as_far_as_it_goes(tmp_path, how, name, lost, known):
    outcome = dataclasses.replace(everything(), complete=True)
    folder = save(outcome, tmp_path)
    table = folder / f"{name}.parquet"
    if how == "missing":
        table.unlink()
    else:
        table.write_bytes(table.read_bytes()[:100])
    back = read(folder)
    for field in dataclasses.fields(Results):
        if field.compare and field.name not in {*lost, "complete"}:
            assert getattr(back, field.name) == getattr(outcome, field.name), field.name
    if (name, how) == ("texts", "missing"):  # runs of before have none, and were whole
        assert (back.texts, back.complete, back.lacks) == ({}, True, ())
        return
    assert back.complete is False
    [lack] = back.lacks
    assert lack.startswith(f"{name}.parquet is {how}")
    assert lack.endswith(f": {known}")
    if name == "comparison":
        assert back.measured == dataclasses.replace(outcome.measured, answered=())
    else:
        assert all(not getattr(back, one) for one in lost)


def test_a_table_without_a_column_that_is_needed_is_lacking(tmp_path):
    folder = save(results(), tmp_path)
    for name, column, lost in (("tokens", "text", "completions"), ("results", "numbers", "records")):
        table = pq.read_table(folder / f"{name}.parquet")
        pq.write_table(table.drop_columns([column]), folder / f"{name}.parquet")
        back = read(folder)
        assert getattr(back, lost) == ()
        assert re.match(rf"{name}\.parquet is damaged \(.*'{column}'\): ", back.lacks[0])
        pq.write_table(table, folder / f"{name}.parquet")
    assert read(folder).outcomes == {"passed": 1, "failed": 1}


@pytest.mark.parametrize("meta", ["{", None])
def test_a_folder_with_nothing_that_can_be_read_is_an_error(tmp_path, meta):
    folder = save(results(), tmp_path)
    for name in ("results", "tokens"):
        (folder / f"{name}.parquet").write_bytes(b"PAR1")
    if meta is None:
        (folder / "run.json").unlink()
    else:
        (folder / "run.json").write_text(meta)
    with pytest.raises(CannotRun, match=r"is damaged: run\.json .*; tokens\.parquet is damaged .*; results\.parquet "):
        read(folder)


def test_what_a_crash_left_while_the_run_was_stored_is_read(tmp_path):
    folder = save(results(), tmp_path)
    partial = folder.rename(tmp_path / f".partial-{folder.name}")
    for name in ("run.json", "texts.parquet"):
        (partial / name).unlink()
    (partial / "tokens.parquet").write_bytes(b"PAR1 and no more")
    back = read(partial)
    assert back.records == results().records
    assert (back.started, back.path, back.complete) == ("2025-03-04T05:06:07+00:00", partial, False)
    assert [lack.split()[0] for lack in back.lacks] == ["run.json", "tokens.parquet"]


class TestJournal:
    def begun(self):
        return results(records=(), completions=(), failures=(), counts={"asked": 0}, texts={})

    def test_a_run_that_is_killed_leaves_its_verdicts(self, tmp_path):
        journal = Journal(self.begun(), tmp_path)
        first, second = record(), record("basics.yaml::m::t[b]", "failed", text="\ud83d\x1b \u2028", xfail="known")
        journal.add([first])
        journal.add([second])
        back = read(journal.folder)
        assert back.records == (first, second)
        assert (back.complete, back.command, back.targets) == (False, "harness run basics.yaml", results().targets)
        assert back.lacks == (
            "tokens.parquet is missing: its generations are not known",
            "the run was killed: verdicts.jsonl holds the verdicts until then",
        )

    def test_a_line_that_was_being_written_is_left_out(self, tmp_path):
        journal = Journal(self.begun(), tmp_path)
        journal.add([record(), record("basics.yaml::m::t[b]")])
        whole = (journal.folder / "verdicts.jsonl").read_bytes()
        (journal.folder / "verdicts.jsonl").write_bytes(whole[:-20])
        assert read(journal.folder).records == (record(),)

    def test_a_run_that_was_killed_before_its_first_verdict_holds_nothing(self, tmp_path):
        with pytest.raises(CannotRun, match=r"results\.parquet is missing"):
            read(Journal(self.begun(), tmp_path).folder)

    def test_nothing_is_left_of_it_once_the_run_is_stored(self, tmp_path):
        journal = Journal(self.begun(), tmp_path)
        journal.add([record()])
        folder = save(results(), tmp_path)
        journal.close()
        assert list(tmp_path.iterdir()) == [folder]

    def test_what_is_kept_is_the_whole_run_so_far(self, tmp_path):
        journal = Journal(self.begun(), tmp_path)
        journal.keep(results(records=(record(),)))
        journal.keep(results(records=(record(), record("basics.yaml::m::t[b]"))))
        back = read(journal.folder)
        assert len(back.records) == 2
        assert (back.completions, back.complete, back.lacks) == (results().completions, False, ())
        assert list(tmp_path.iterdir()) == [journal.folder]

    def test_where_it_cannot_be_kept_what_was_there_stays_and_nothing_is_left_in_the_end(self, tmp_path, monkeypatch):
        journal = Journal(self.begun(), tmp_path)
        journal.keep(results(records=(record(),)))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store, "_fill", full)
        journal.keep(results())
        assert read(journal.folder).records == (record(),)
        journal.close()
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_cannot_be_written_is_told_before_the_run(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(CannotRun, match="cannot write") as caught:
            Journal(self.begun(), tmp_path / "file")
        assert "--no-report" in caught.value.remedy

    def test_a_full_disk_does_not_end_the_run(self, tmp_path):
        journal = Journal(self.begun(), tmp_path)
        (journal.folder / "verdicts.jsonl").mkdir()
        journal.add([record()])


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    folder = save(results(), tmp_path)
    (folder / "run.json").write_text('{"format": 3}')
    with pytest.raises(UsageError, match="newer harness: format 3, this one reads up to 2") as caught:
        read(folder)
    assert "pip install --upgrade harness" in caught.value.remedy
    table = pq.read_table(folder / "tokens.parquet").replace_schema_metadata({"harness.format": "3"})
    pq.write_table(table, tmp_path / "newer.parquet")
    with pytest.raises(UsageError, match="newer harness: format 3"):
        read(tmp_path / "newer.parquet")


@pytest.mark.parametrize(("name", "missing"), [("tokens", "records"), ("results", "completions")])
def test_a_table_that_was_copied_away_is_read_alone(tmp_path, name, missing):
    outcome = results()
    path = tmp_path / f"{name}-before.parquet"
    (save(outcome, tmp_path) / f"{name}.parquet").rename(path)
    back = read(path)
    kept = ("completions", "failures") if name == "tokens" else ("records",)
    for one in kept:
        assert getattr(back, one) == getattr(outcome, one)
    assert getattr(back, missing) == ()
    assert back.complete is False
    assert (back.facts, back.environment, back.path) == ((), {}, path)
    assert [suite["name"] for suite in back.suites] == (["basics"] if name == "results" else [])
    assert back.lacks[0].startswith(f"{path} holds only the {'generations' if name == 'tokens' else 'verdicts'}")


def test_a_folder_of_the_first_format_is_read_as_far_as_it_goes(tmp_path):
    scored = completion(request=REQUEST.replace(kind="score"))
    outcome = results(completions=(("m", completion()), ("m", scored)))
    folder = save(outcome, tmp_path)
    table = pq.read_table(folder / "tokens.parquet")
    added = (
        "kind row continuation position_ids asked_attention float32 resume_after whole tail returned cache attention"
    )
    pq.write_table(table.drop_columns(added.split()).replace_schema_metadata(None), folder / "tokens.parquet")
    meta = json.loads((folder / "run.json").read_text())
    first = {key: value for key, value in meta.items() if key not in ("budget", "comparison")} | {"format": 1}
    (folder / "run.json").write_text(json.dumps(first))
    back = read(folder)
    assert back.completions == outcome.completions[:1]
    assert back.failures == outcome.failures
    assert back.records == outcome.records
    assert back.lacks == ("1 generations were left out: a run folder of format 1 does not say how they were made",)
    assert back.complete is False


def test_requests_that_have_another_id_by_now_are_still_those_of_their_records(tmp_path):
    outcome = dataclasses.replace(everything(), records=(record(),), completions=(("m", completion()),))
    folder = save(outcome, tmp_path)
    for name, column in (("tokens", "request"), ("results", "requests"), ("comparison", "request")):
        table = pq.read_table(folder / f"{name}.parquet")
        index, kind = table.column_names.index(column), table.schema.field(column).type
        old = json.loads(json.dumps(table[column].to_pylist()).replace(REQUEST.id, "0ld"))
        pq.write_table(table.set_column(index, column, pa.array(old, kind)), folder / f"{name}.parquet")
    assert rows(folder, "results.parquet")[0]["requests"] == ["0ld"]
    assert read(folder) == outcome


def test_a_check_is_as_bad_as_its_worst_expectation():
    records = [record("a"), record("a", "failed"), record("b", "failed", xfail="known"), record("b"), record("c")]
    assert outcome_by_check(records) == {"a": "failed", "b": "xfailed", "c": "passed"}
