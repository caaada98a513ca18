"""One run against another, on results made by hand."""

import dataclasses
import math
from array import array

import pytest

from harness.comparison.measured import Measured
from harness.comparison.provenance import Change
from harness.comparison.runs import SPEED_NOTE, compare_runs
from harness.errors import UsageError
from harness.inputs import GREEDY, Generation, Model
from harness.record import Batch, Completion, Failure, Record, Request, Step, Target, TargetFacts, Text, Verdict
from harness.store import Results, read, save

PARIS = Request(Text("What is the capital of France?"), GREEDY)
COUNT = Request(Text("1, 2, 3,"), GREEDY)
ENVIRONMENT = {
    "python": "3.11.7",
    "cores": 2,
    "libraries": {"torch": "2.6", "transformers": "4.57", "gone": "1"},
    "torch": {"threads": 2, "cuda": False},
    "variables": {},
    "git": {"commit": "aa", "dirty": False},
}


def between(token, *chances):
    """A step whose whole vocabulary is `token` and 99."""
    return Step(math.log(chances[0]), array("i", (token, 99)), array("f", map(math.log, chances)), 10.0)


def step(token, logprob=-0.5, runner=99, margin=2.0, height=10.0):
    return Step(logprob, array("i", (token, runner)), array("f", (logprob, logprob - margin)), height)


def completion(request=PARIS, ids=(5, 6, 7), text="It is Paris.", steps=None, **changes):
    plain = Completion(
        request=request,
        prompt_text="p",
        prompt_ids=(1, 2),
        ids=tuple(ids),
        tokens=tuple(f"t{token}" for token in ids),
        text=text,
        finish="eos",
        steps=tuple(step(token) for token in ids) if steps is None else tuple(steps),
        generation_config={"do_sample": False},
        seconds=0.5,
    )
    return dataclasses.replace(plain, **changes)


def record(prompt="capital", status="passed", target="m", expectation="contains", **changes):
    plain = Record(
        check=f"suites/basics.yaml::{target}::knows[{prompt}]",
        suite="basics",
        file="suites/basics.yaml",
        line=3,
        test="knows",
        target=target,
        model="m",
        quantization="none",
        prompt=prompt,
        generation="greedy",
        expectation=expectation,
        verdict=Verdict(status, "because"),
        requests=((PARIS if prompt == "capital" else COUNT).id,),
    )
    return dataclasses.replace(plain, **changes)


def facts(**changes):
    return dataclasses.replace(TargetFacts("m", dtype="float32", tokenizer_digest="words", weight_bytes=100), **changes)


def run(*completions, **changes):
    plain = Results(
        records=(record(),),
        completions=tuple(("m", done) for done in completions),
        failures=(),
        facts=(facts(),),
        counts={},
        suites=({"name": "basics", "file": "suites/basics.yaml", "sha256": "ab"},),
        started="2025-03-04T05:06:07+00:00",
        seconds=1.0,
        environment=ENVIRONMENT,
        command="harness run",
        targets=(Target("m", "m", Model(path="some/model")),),
    )
    return dataclasses.replace(plain, **changes)


def only(difference):
    (target,) = difference.targets
    return target


def test_a_run_against_itself_is_the_same():
    several = run(completion(), completion(COUNT, ids=(8,), text="4"))
    difference = compare_runs(several, several)
    target = only(difference)
    assert (difference.changes, difference.notes) == ((), (SPEED_NOTE,))
    assert [pair.kind for pair in difference.verdicts] == ["same"]
    assert [pair.judgement for pair in target.pairs] == ["equal", "equal"]
    assert [pair.prompt for pair in target.pairs] == ["capital", "1, 2, 3,"]
    assert (target.name, target.changes, target.notes) == ("m", (), ())
    assert (target.mean_more_tokens, target.finish_changed, target.mean_similarity) == (0, 0, 1)
    assert target.mean_kl_at_least == 0
    assert target.speed_ratio == 1


def test_a_run_that_was_read_back_is_the_same_as_the_fresh_one(tmp_path):
    fresh = run(completion(), completion(COUNT, ids=(8,)), failures=(("m", Failure(PARIS.replace(repeat=1), "e", "")),))
    difference = compare_runs(fresh, read(save(fresh, tmp_path)))
    assert (difference.changes, only(difference).changes, difference.notes) == ((), (), (SPEED_NOTE,))
    assert only(difference).count("equal") == 2
    assert difference.after.startswith(str(tmp_path))
    assert difference.before == "run of 2025-03-04T05:06:07+00:00"


class TestGenerations:
    def test_where_tokens_part_it_is_told_by_how_little(self):
        near = [step(5), step(6, runner=9, margin=0.0625), step(7)]
        flipped = [step(5), step(9, runner=6, margin=0.0625), step(7)]
        before = completion(steps=near, precision="bfloat16")
        after = completion(ids=(5, 9, 7), text="It is Rome.", steps=flipped, precision="bfloat16")
        (pair,) = only(compare_runs(run(before), run(after))).pairs
        # 2 ulp of bfloat16 at a logit of 10 are 2 * 2**(3-7) = 0.125 nats
        assert (pair.judgement, pair.difference.index) == ("rounding", 1)
        assert pair.difference.margin == pytest.approx(0.0625)
        assert pair.difference.tolerance == pytest.approx(0.125)
        sure = completion(ids=(5, 9, 7), steps=[step(5), step(9, runner=6, margin=0.5), step(7)], precision="bfloat16")
        assert only(compare_runs(run(before), run(sure))).count("change") == 1

    def test_sampled_tokens_are_not_judged_by_margins(self):
        sampled = {"generation_config": {"do_sample": True}}
        target = only(compare_runs(run(completion(**sampled)), run(completion(ids=(5, 9, 7), **sampled))))
        assert (target.count("sampled"), target.count("change")) == (1, 0)
        assert only(compare_runs(run(completion(**sampled)), run(completion(**sampled)))).count("equal") == 1

    def test_nats_are_counted_up_to_the_token_where_they_part(self):
        # KL of (1/2, 1/2) from (1/4, 3/4), and of (3/4, 1/4) from (1/4, 3/4)
        first, second = math.log(2) / 2 + math.log(2 / 3) / 2, 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
        before = completion(steps=[between(5, 0.5, 0.5), between(6, 0.75, 0.25), step(7)])
        after = completion(ids=(5, 99, 7), steps=[between(5, 0.25, 0.75), between(6, 0.25, 0.75), step(7, -9)])
        target = only(compare_runs(run(before), run(after)))
        assert target.pairs[0].kl_at_least == pytest.approx((first, second), abs=1e-6)
        longer = completion(COUNT, ids=(5, 6), steps=[step(5, -1.0), step(6, -1.0)])
        shorter = completion(COUNT, ids=(5,), steps=[step(5, -1.0)])
        both = only(compare_runs(run(before, longer), run(after, shorter)))
        assert both.pairs[1].kl_at_least == (0.0,)
        assert both.mean_kl_at_least == pytest.approx((first + second) / 3, abs=1e-6)

    def test_without_recorded_steps_no_nats_are_told(self):
        target = only(compare_runs(run(completion(steps=())), run(completion(ids=(5, 9), steps=()))))
        assert (target.pairs[0].kl_at_least, target.mean_kl_at_least) == ((), None)
        assert target.count("change") == 1

    def test_ends_and_lengths(self):
        after = run(completion(ids=(5, 6, 7, 8), text="It is Paris. Yes", finish="length"), completion(COUNT))
        target = only(compare_runs(run(completion(), completion(COUNT)), after))
        assert [pair.finish_changed for pair in target.pairs] == [True, False]
        assert (target.finish_changed, target.mean_more_tokens, target.mean_more_characters) == (1, 0.5, 2)

    def test_similarity_is_that_of_characters(self):
        one = completion(text="The sky is blue.")
        other = completion(ids=(1,), text="The sea is blue.")
        # sky and sea: two of sixteen characters to replace
        assert only(compare_runs(run(one), run(other))).pairs[0].similarity == pytest.approx(14 / 16)
        chinese = (completion(text="今天天气好"), completion(ids=(1,), text="今天天气坏"))
        assert only(compare_runs(*map(run, chinese))).pairs[0].similarity == pytest.approx(0.8)
        assert only(compare_runs(run(one), run(completion(text="")))).pairs[0].similarity == 0

    def test_only_what_was_freely_generated_is_compared(self):
        kinds = ("replay", "likelihood", "score", "render", "processed", "bare_generate")
        forced = [completion(PARIS.replace(kind=kind)) for kind in kinds]
        target = only(compare_runs(run(completion(), *forced), run(completion(), *forced)))
        assert [pair.after.request.kind for pair in target.pairs] == ["generate"]

    def test_the_same_request_in_two_settings_is_compared_one_by_one(self):
        before = run(completion(batch_size=1), completion(batch_size=2, ids=(1,)))
        after = run(completion(batch_size=1), completion(batch_size=2, ids=(2,)))
        assert [pair.judgement for pair in only(compare_runs(before, after)).pairs] == ["equal", "change"]

    def test_what_was_split_when_memory_ran_out_is_not_compared(self):
        target = only(
            compare_runs(run(completion(), completion(COUNT)), run(completion(split_after_oom=True), completion(COUNT)))
        )
        assert [pair.after.request for pair in target.pairs] == [COUNT]
        assert target.notes == ("1 generations were split when memory ran out, and are not compared",)

    def test_other_prompt_ids_are_told_and_tokens_left_alone(self):
        after = run(completion(prompt_ids=(0, 1, 2), ids=(9,), text="Paris"), completion(COUNT))
        target = only(compare_runs(run(completion(), completion(COUNT)), after))
        assert [pair.judgement for pair in target.pairs] == ["not compared", "equal"]
        assert (target.pairs[0].why_not, target.pairs[0].kl_at_least) == ("the prompt was given as other ids", ())
        assert target.pairs[0].difference is None
        assert "1 of 2 prompts were given as other ids (tokenizer or chat template changed)" in target.notes[0]
        assert len(target.compared) == 1
        assert target.mean_more_tokens == -1

    def test_other_vocabularies_leave_texts_and_verdicts(self):
        other = run(
            completion(ids=(9,), text="It is Paris"),
            facts=(facts(tokenizer_digest="bytes"),),
            records=(record(status="failed"),),
        )
        difference = compare_runs(run(completion()), other)
        target = only(difference)
        assert (target.same_vocabulary, target.compared, target.mean_kl_at_least) == (False, (), None)
        assert (target.mean_more_tokens, target.mean_more_characters) == (None, -1)
        assert "the vocabularies differ" in target.notes[0]
        # It is Paris. against It is Paris: one of twelve characters to delete
        assert target.mean_similarity == pytest.approx(11 / 12)
        assert len(difference.verdicts_that("regressed")) == 1
        unknown = run(completion(), facts=(facts(tokenizer_digest=""),))
        assert only(compare_runs(run(completion()), unknown)).count("equal") == 1

    def test_what_only_one_run_could_answer(self):
        failure = Failure(PARIS, "out_of_memory", "not even one row fits")
        failing = run(completion(COUNT), failures=(("m", failure),))
        target = only(compare_runs(run(completion(), completion(COUNT)), failing))
        assert [(one.prompt, one.failed, one.failure) for one in target.unanswered] == [("capital", "after", failure)]
        back = only(compare_runs(failing, run(completion(), completion(COUNT))))
        assert [one.failed for one in back.unanswered] == ["before"]
        assert only(compare_runs(failing, failing)).unanswered == ()

    def test_requests_that_only_one_run_has_are_counted(self):
        more = run(completion(), completion(COUNT), completion(PARIS.replace(layout=Batch((PARIS.prompt,)))))
        target = only(compare_runs(run(completion()), more))
        assert (target.only_before, target.only_after, len(target.pairs)) == (0, 2, 1)
        assert only(compare_runs(more, run(completion()))).only_before == 2


class TestVerdicts:
    @pytest.mark.parametrize(
        ("was", "now", "kind"),
        [
            ("passed", "failed", "regressed"),
            ("passed", "error", "regressed"),
            ("xpassed", "failed", "regressed"),
            ("failed", "passed", "fixed"),
            ("error", "passed", "fixed"),
            ("xfailed", "xpassed", "fixed"),
            ("passed", "xfailed", "changed"),
            ("xfailed", "failed", "changed"),
            ("xpassed", "xfailed", "changed"),
            ("passed", "skipped", "changed"),
            ("failed", "error", "changed"),
            ("passed", "xpassed", "changed"),
            ("xfailed", "xfailed", "same"),
            ("error", "error", "same"),
        ],
    )
    def test_of_one_kind_each(self, was, now, kind):
        runs = []
        for outcome in (was, now):
            status = {"xfailed": "failed", "xpassed": "passed"}.get(outcome, outcome)
            runs.append(run(records=(record(status=status, xfail="known" if outcome.startswith("x") else ""),)))
        difference = compare_runs(*runs)
        assert [pair.kind for pair in difference.verdicts] == [kind]
        assert difference.verdicts_that(kind) == difference.verdicts
        assert difference.verdicts[0].record.outcome == now

    def test_what_only_one_run_judged(self):
        before = run(records=(record(), record("count"), record(expectation="equals")))
        after = run(records=(record("other", requests=("x",)), record("count")))
        difference = compare_runs(before, after)
        assert [(pair.kind, pair.record.prompt, pair.record.expectation) for pair in difference.verdicts] == [
            ("only before", "capital", "contains"),
            ("same", "count", "contains"),
            ("only before", "capital", "equals"),
            ("only after", "other", "contains"),
        ]

    def test_a_target_that_cannot_be_loaded_any_more_regresses_in_every_expectation(self):
        loaded = run(records=(record(), record(expectation="equals"), record("count")))
        error = [record(prompt, "error", expectation="", requests=()) for prompt in ("capital", "count")]
        broken = run(records=tuple(error), facts=(), errors=("m: there is no such file\n  Name another.",))
        difference = compare_runs(loaded, broken)
        assert [pair.kind for pair in difference.verdicts] == ["regressed"] * 3
        assert only(difference).changes == ()
        assert "the run after could not load m: there is no such file" in difference.notes
        assert [pair.kind for pair in compare_runs(broken, loaded).verdicts] == ["fixed"] * 3

    def test_the_folder_in_which_it_was_started_is_no_difference(self):
        elsewhere = record(status="failed", check="basics.yaml::m::knows[capital]", file="basics.yaml")
        assert [pair.kind for pair in compare_runs(run(), run(records=(elsewhere,))).verdicts] == ["regressed"]

    def test_two_files_with_suites_of_one_name_are_both_judged(self):
        twice = run(records=(record(), record(check="b.yaml::m::knows[capital]", status="failed")))
        assert [pair.kind for pair in compare_runs(twice, twice).verdicts] == ["same", "same"]


class TestTargets:
    def test_of_one_name_are_compared_and_the_others_told(self):
        before = run(completion(), records=(record(), record(target="old")), completions=(("old", completion()),))
        after = run(records=(record(), record(target="new-nf4"), record(target="new-fp4")))
        difference = compare_runs(before, after)
        assert [target.name for target in difference.targets] == ["m"]
        assert (difference.only_before, difference.only_after) == (("old",), ("new-nf4", "new-fp4"))
        assert [pair.kind for pair in difference.verdicts] == ["same", "only before", "only after", "only after"]

    def test_one_each_are_compared_whatever_their_names(self):
        other = Target("n-nf4", "n", Model(path="other"), "nf4")
        after = run(
            records=(record(target="n-nf4", status="failed"),),
            completions=(("n-nf4", completion(ids=(1,))),),
            facts=(facts(target="n-nf4", dtype="bfloat16"),),
            targets=(other,),
        )
        difference = compare_runs(run(completion()), after)
        assert only(difference).name == "m → n-nf4"
        assert only(difference).count("change") == 1
        assert only(difference).changes == (Change("n-nf4", "dtype", "float32", "bfloat16"),)
        assert [pair.kind for pair in difference.verdicts] == ["regressed"]
        assert difference.notes[0].startswith("no target has the same name in both runs: 'm' before is compared")
        assert (difference.only_before, difference.only_after) == ((), ())

    def test_nothing_in_common_is_refused_with_both_sides_named(self):
        after = run(
            records=(record(target="n", suite="others"), record(target="o", suite="others")),
            suites=({"name": "others", "file": "o.yaml", "sha256": ""},),
            targets=(),
            facts=(),
        )
        with pytest.raises(UsageError, match="no verdict and no generation in common") as caught:
            compare_runs(run(), after)
        assert "suite basics; targets m\n" in caught.value.message
        assert caught.value.message.endswith("suite others; targets n, o")
        assert "harness run SUITE" in caught.value.remedy
        nothing = run(records=(), facts=(), targets=(), suites=())
        with pytest.raises(UsageError, match="suite unknown; targets none"):
            compare_runs(nothing, nothing)

    def test_speed_and_memory(self):
        # 3 tokens in half a second; then 3 in a second alone and 3 as half of a batch of two seconds
        before = run(completion(memory_bytes=50))
        after = run(completion(seconds=1.0, memory_bytes=70), completion(COUNT, seconds=2.0, batch_size=2))
        target = only(compare_runs(before, after))
        assert target.speed_before.tokens_per_second == pytest.approx(6)
        assert target.speed_after.tokens_per_second == pytest.approx(3)
        assert target.speed_ratio == pytest.approx(0.5)
        assert (target.speed_before.memory_bytes, target.speed_after.memory_bytes) == (50, 70)
        assert (target.speed_before.weight_bytes, target.speed_before.load_seconds) == (100, None)
        silent = only(compare_runs(run(), run()))
        assert (silent.speed_before.tokens_per_second, silent.speed_ratio) == (None, None)


class TestProvenance:
    def test_what_differs_in_machine_and_libraries(self):
        now = ENVIRONMENT | {
            "cores": 4,
            "libraries": {"torch": "2.7", "transformers": "4.57", "new": "2"},
            "variables": {"OMP_NUM_THREADS": "1"},
            "git": {},
            "torch": {"threads": 2, "cuda": True},
        }
        assert compare_runs(run(), run(environment=now)).changes == (
            Change("machine", "cores", "2", "4"),
            Change("libraries", "torch", "2.6", "2.7"),
            Change("libraries", "gone", "1", ""),
            Change("libraries", "new", "", "2"),
            Change("torch", "cuda", "false", "true"),
            Change("variables", "OMP_NUM_THREADS", "", "1"),
            Change("git", "commit", "aa", ""),
            Change("git", "dirty", "false", ""),
        )
        assert compare_runs(run(), run(environment={})).changes == ()

    def test_what_differs_in_a_target(self):
        before = facts(generation_config={"temperature": 0.6, "dtype": float}, modules={"Linear": 3}, load_seconds=1.0)
        after = facts(
            generation_config={"temperature": math.nan, "dtype": "<class 'float'>"},
            modules={"Linear": 2, "Linear4bit/uint8": 1},
            weights_digest="ff",
            chat_template=True,
            eos_token_ids=(2, 3),
            load_seconds=9.0,
            held_before_bytes=5,
            load_peak_bytes=6,
        )
        difference = compare_runs(run(facts=(before,)), run(facts=(after,)))
        assert only(difference).changes == (
            Change("m", "chat_template", "false", "true"),
            Change("m", "eos_token_ids", "[]", "[2, 3]"),
            Change("m", "weights_digest", "", "ff"),
            Change("m", "modules.Linear", "3", "2"),
            Change("m", "modules.Linear4bit/uint8", "", "1"),
            Change("m", "generation_config.temperature", "0.6", "NaN"),
        )

    def test_suites_that_were_edited_or_are_others(self):
        edited = {"name": "basics", "file": "suites/basics.yaml", "sha256": "cd"}
        more = {"name": "more", "file": "m.yaml", "sha256": "ef"}
        notes = compare_runs(run(), run(suites=(edited, more))).notes
        assert notes[:2] == (
            "suite 'more' is only in the run after",
            "suite 'basics', or a file that it names, was changed between the runs",
        )
        assert "suite 'more' is only in the run before" in compare_runs(run(suites=(edited, more)), run()).notes
        other_base = {"name": "basics", "file": "suites/basics.yaml", "sha256": "ab", "reads": "01"}
        assert notes[1] in compare_runs(run(), run(suites=(other_base,))).notes
        gone = edited | {"sha256": ""}
        assert compare_runs(run(), run(suites=(gone,))).notes == (SPEED_NOTE,)

    def test_a_prompt_of_which_only_the_name_is_the_same(self):
        edited = Request(Text("What is the capital of Italy?"), GREEDY)
        after = run(completion(edited), records=(record(requests=(edited.id,)),))
        difference = compare_runs(run(completion()), after)
        assert difference.notes[0] == "prompt 'capital' is not the same in both runs"
        assert only(difference).pairs == ()
        assert [pair.kind for pair in difference.verdicts] == ["same"]
        without_texts = run(records=(record(requests=(edited.id,)),))
        assert compare_runs(run(), without_texts).notes[0] == "prompt 'capital' is not the same in both runs"

    def test_a_prompt_that_is_the_same_under_another_generation_config(self):
        shorter = PARIS.replace(generation=Generation(do_sample=False, max_new_tokens=5))
        after = run(completion(shorter), records=(record(requests=(shorter.id,)),))
        (note, _) = compare_runs(run(completion()), after).notes
        assert note.startswith("prompt 'capital' is the same in both runs, but no request is: its generation config")

    def test_a_prompt_that_was_asked_for_in_more_ways_is_the_same(self):
        padded = PARIS.replace(layout=Batch((PARIS.prompt, COUNT.prompt)))
        after = run(completion(), completion(padded), records=(record(requests=(padded.id, PARIS.id)),))
        assert compare_runs(run(completion()), after).notes == (SPEED_NOTE,)

    def test_runs_that_are_not_whole_say_so(self, tmp_path):
        notes = compare_runs(run(complete=False), run()).notes
        assert notes[0] == "the run before was interrupted: not all of its checks were judged"
        table = tmp_path / "only.parquet"
        (save(run(completion(), completion(COUNT)), tmp_path) / "tokens.parquet").rename(table)
        alone = read(table)
        difference = compare_runs(run(completion()), alone)
        assert f"the run after: {table} holds only the generations of its run" in difference.notes
        assert (difference.verdicts, difference.changes, only(difference).count("equal")) == ((), (), 1)
        silent, telling = run(), run(completion())
        assert only(compare_runs(silent, telling)).only_after == 0
        assert only(compare_runs(telling, silent)).only_before == 0

    def test_comparisons_of_both_runs_are_handed_on(self):
        measured = Measured("m", ())
        assert compare_runs(run(measured=measured), run(measured=measured)).measured == (measured, measured)
        assert compare_runs(run(measured=measured), run()).measured is None
