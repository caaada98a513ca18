import math
from dataclasses import replace

from harness.comparison.measured import Answered, Measured
from harness.frame import COLUMNS, matrix, results_frame, targets_frame
from harness.inputs import GREEDY, Model
from harness.record import Completion, Record, Request, Target, TargetFacts, Text, Verdict
from harness.store import Results


def record(test, target, outcome="passed", prompt="a", **changes):
    status = {"xfailed": "failed", "xpassed": "passed"}.get(outcome, outcome)
    return Record(
        **{
            "check": f"basics.yaml::{target}::{test}[{prompt}]",
            "suite": "basics",
            "file": "basics.yaml",
            "line": 3,
            "test": test,
            "target": target,
            "model": "m",
            "quantization": "none",
            "prompt": prompt,
            "generation": "greedy",
            "expectation": "contains",
            "verdict": Verdict(status, "because", {"index": 4}),
            "xfail": "known" if outcome.startswith("x") else "",
            "marks": ("slow", "gpu"),
            **changes,
        }
    )


def completion(prompt, tokens=10, seconds=2.0, batch_size=1, memory=0):
    return Completion(
        request=Request(Text(prompt), GREEDY),
        prompt_text=prompt,
        prompt_ids=(1,),
        ids=tuple(range(tokens)),
        tokens=("x",) * tokens,
        text="x" * tokens,
        finish="eos",
        batch_size=batch_size,
        seconds=seconds,
        memory_bytes=memory,
    )


def results(records=(), completions=(), facts=(), targets=()):
    return Results(
        tuple(records), tuple(completions), (), tuple(facts), {}, (), "2025-01-01T00:00:00+00:00", 1.0, {}, "",
        targets=tuple(targets),
    )  # fmt: skip


def test_a_row_for_each_record_in_the_words_of_the_suite():
    frame = results_frame(results([record("t", "m", new_tokens=7, text="hi"), record("t", "n", "xfailed")]))
    assert list(frame.columns) == COLUMNS
    first, second = frame.to_dict("records")
    assert (first["test"], first["target"], first["outcome"], first["verdict"]) == ("t", "m", "passed", "passed")
    assert (first["new_tokens"], first["text"], first["marks"]) == (7, "hi", ("slow", "gpu"))
    assert (second["outcome"], second["verdict"], second["xfail"]) == ("xfailed", "failed", "known")
    assert second["numbers"] == {"index": 4}
    assert frame["new_tokens"].isna().tolist() == [False, True]
    assert frame["new_tokens"].dtype == "Int64"


def test_no_records_make_an_empty_frame_with_its_columns():
    frame = results_frame([])
    assert list(frame.columns) == COLUMNS
    assert matrix(frame).empty
    assert targets_frame(results()).empty


def test_half_a_surrogate_pair_is_shown_visibly():
    frame = results_frame([record("t", "m", text="a\ud800", verdict=Verdict("failed", "\ud800"))])
    assert frame[["text", "reason"]].values.tolist() == [["a\\ud800", "\\ud800"]]


def test_the_matrix_counts_checks_in_the_order_of_the_suite():
    records = [
        record("zebra", "nf4"),
        record("zebra", "nf4", "failed", prompt="b"),
        record("zebra", "nf4", "xpassed", prompt="c"),
        record("zebra", "fp32", "skipped"),
        record("apple", "nf4", "error"),
        record("apple", "nf4", expectation="another"),
    ]
    cells = matrix(results_frame(records))
    assert list(cells.index) == ["zebra", "apple"]
    assert list(cells.columns) == ["nf4", "fp32"]
    assert cells.values.tolist() == [["2/3", "0/0"], ["0/1", ""]]


def test_targets_are_told_with_what_was_asked_and_what_was_effective():
    asked = Target("m-nf4", "m", Model(path="some/model", attention="sdpa"), "nf4")
    facts = TargetFacts("m-nf4", "cpu", "bfloat16", "eager", weight_bytes=250_000_000, load_seconds=1.5)
    records = [record("t", "m-nf4"), record("t", "m-nf4", "failed", prompt="b"), record("t", "gone", "error")]
    frame = targets_frame(results(records, facts=[facts], targets=[asked]))
    row = frame.loc["m-nf4"]
    assert (row["quantization"], row["asked_dtype"], row["dtype"]) == ("nf4", "auto", "bfloat16")
    assert (row["asked_attention"], row["attention"], row["device"]) == ("sdpa", "eager", "cpu")
    assert (row["weight_mb"], row["load_seconds"]) == (250, 1.5)
    assert (row["checks"], row["passed"], row["failed"], row["error"]) == (2, 1, 1, 0)
    assert frame.loc["gone", "error"] == 1
    assert math.isnan(frame.loc["gone", "weight_mb"])


def test_the_seconds_of_a_batch_are_counted_once():
    batch = [("m", completion(prompt, 10, seconds=4.0, batch_size=2, memory=3_000_000)) for prompt in "ab"]
    alone = [("m", completion("c", 30, seconds=1.0, memory=1_000_000)), ("n", completion("c", 1, seconds=0.0))]
    frame = targets_frame(results([record("t", "m"), record("t", "n")], batch + alone))
    row = frame.loc["m"]
    assert (row["new_tokens"], row["generation_seconds"], row["tokens_per_second"]) == (50, 5.0, 10.0)
    assert row["peak_memory_mb"] == 3
    assert math.isnan(frame.loc["n", "tokens_per_second"])


def test_what_was_forced_or_only_timed_is_not_what_was_generated():
    free, judged, timed = completion("a"), completion("b", 4), completion("c", 9)
    forced = replace(free, request=free.request.replace(kind="replay", continuation=(1,)))
    every = [("m", one) for one in (free, judged, timed, forced)]
    records = [record("t", "m", requests=(judged.request.id,))]
    answered = Answered("m", "a", free.request.id)

    alone = targets_frame(results(records, every))
    compared = targets_frame(replace(results(records, every), measured=Measured("m", (), (answered,))))

    assert alone.loc["m", "new_tokens"] == 23
    assert compared.loc["m", "new_tokens"] == 14
