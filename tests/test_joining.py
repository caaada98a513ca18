"""Workers of one run: what each has judged counts, what two have generated counts once."""

from dataclasses import replace

from harness.inputs import GREEDY
from harness.joining import joined
from harness.record import Completion, Failure, Record, Request, TargetFacts, Text, Verdict
from harness.reports import warnings_counted
from harness.store import Results

ASKED, BROKEN = Request(Text("a"), GREEDY), Request(Text("b"), GREEDY)
SAID = Completion(ASKED, "a", (1,), (2,), ("b",), "b", "eos")


def record(check):
    return Record(check, "s", "s.yaml", 1, check, "tiny", "tiny", "none", "a", "greedy", "", Verdict("passed", "fine"))


def part(*checks, **changes):
    plain = Results(
        records=tuple(record(check) for check in checks),
        completions=(("tiny", SAID),),
        failures=(("tiny", Failure(BROKEN, "error", "broke")),),
        facts=(TargetFacts("tiny", device="cuda:0", warnings={"hot": 2}),),
        counts={"asked": 5, "distinct": 4, "generated": 3},
        suites=({"name": "s", "file": "s.yaml", "sha256": "ab"},),
        started="2026-01-02T03:04:05+00:00",
        seconds=2.0,
        environment={"python": "3.11"},
        command="worker",
    )
    return replace(plain, **changes)


def test_verdicts_of_all_make_the_run():
    run = joined([part("a", "b"), part("c")], checks=3, command="pytest -n 2")
    assert [one.check for one in run.records] == ["a", "b", "c"]
    assert run.complete
    assert run.command == "pytest -n 2"
    assert not joined([part("a", "b"), part("c")], checks=4, command="").complete


def test_it_took_from_the_first_start_as_long_as_the_longest():
    late = part("a", started="2026-01-02T03:04:09+00:00", seconds=7.0)
    run = joined([late, part("b")], checks=2, command="")
    assert (run.started, run.seconds) == ("2026-01-02T03:04:05+00:00", 7.0)


def test_what_two_generated_counts_once():
    run = joined([part("a"), part("b")], checks=2, command="")
    assert run.completions == (("tiny", SAID),)
    assert len(run.failures) == 1
    assert [suite["file"] for suite in run.suites] == ["s.yaml"]
    other = joined([part("a"), part("b", completions=(("other", SAID),))], checks=2, command="")
    assert [target for target, _ in other.completions] == ["tiny", "other"]


def test_each_has_planned_all_and_generated_its_own():
    run = joined([part("a"), part("b", counts={"asked": 5, "distinct": 4, "generated": 1})], checks=2, command="")
    assert run.counts == {"asked": 5, "distinct": 4, "generated": 4}


def test_warnings_of_a_target_that_two_have_loaded_add_up():
    again = TargetFacts("tiny", device="cuda:1", warnings={"hot": 1, "old": 1})
    run = joined([part("a"), part("b", facts=(again,))], checks=2, command="")
    assert warnings_counted(run) == [("hot", 3), ("old", 1)]


def test_what_is_known_beside_the_verdicts_is_of_all():
    one = part("a", texts={"tiny": {1: "x"}}, errors=("no GPU",), pins={"a": "pin a"}, lacks=("half",))
    other = part("b", texts={"tiny": {2: "y"}, "big": {1: "z"}}, errors=("no GPU", "no file"), pins={"b": "pin b"})
    run = joined([one, other], checks=2, command="")
    assert run.texts == {"tiny": {1: "x", 2: "y"}, "big": {1: "z"}}
    assert run.errors == ("no GPU", "no file")
    assert run.pins == {"a": "pin a", "b": "pin b"}
    assert run.lacks == ("half",)
