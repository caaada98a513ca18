from harness.inputs import GREEDY, Model
from harness.record import Completion, Record, Request, Target, TargetFacts, Text, Verdict
from harness.reports.configuration import configs, measurements, properties, target_names
from harness.store import Results

ASKED = Request(Text("Say hello"), GREEDY)


def results(targets=(), facts=(), completions=()):
    records = tuple(
        Record(
            *("check", "suite", "file", 3, "test", target, "m", "none", "p", "greedy", "finish"),
            Verdict("passed", "fine"),
            requests=(done.request.id,),
        )
        for target, done in completions
    )
    return Results(records, completions, (), facts, {}, (), "", 0.0, {}, "", targets=targets)


def rows(found):
    return {row.name: [(cell.text, cell.asked, cell.differs) for cell in row.cells] for row in found}


def completion(config, **changes):
    return Completion(ASKED, "Say hello", (1,), (2, 3), ("b", "c"), "bc", "eos", generation_config=config, **changes)


def test_what_was_asked_for_is_told_where_it_became_something_else():
    targets = (
        Target("half", "m", Model(path="p", dtype="float16", attention="sdpa")),
        Target("free", "m", Model(path="p"), "nf4"),
    )
    facts = (TargetFacts("half", "cpu", "bfloat16", "sdpa"), TargetFacts("free", "cpu", "bfloat16", "eager"))
    found = rows(properties(results(targets, facts)))
    assert found["dtype"] == [("bfloat16", "float16", False), ("bfloat16", "", False)]
    assert found["attention"] == [("sdpa", "", False), ("eager", "", True)]
    assert found["quantization"] == [("none", "", False), ("nf4", "", True)]
    assert found["device"] == [("cpu", "", False), ("cpu", "", False)]


def test_a_target_that_was_not_loaded_differs_in_nothing():
    targets = (Target("gone", "m", Model(path="p", attention="sdpa")), Target("tiny", "m", Model(path="p")))
    facts = (TargetFacts("tiny", "cpu", "float32", "eager", modules={"Linear/float32": 210}, eos_token_ids=(2, 7)),)
    found = rows(properties(results(targets, facts)))
    assert found["attention"] == [("sdpa (not loaded)", "", False), ("eager", "", False)]
    assert found["dtype"] == [("auto (not loaded)", "", False), ("float32", "", False)]
    assert found["modules"] == [("–", "", False), ("210 × Linear/float32", "", False)]
    assert found["end tokens"][1][0] == "2, 7"
    assert "traits" not in found  # nobody has any


def test_targets_are_those_asked_for_loaded_or_judged():
    made = results((Target("asked", "m", Model(path="p")),), (TargetFacts("loaded"),), (("judged", completion({})),))
    assert target_names(made) == ["asked", "loaded", "judged"]


def test_size_and_speed():
    facts = (TargetFacts("tiny", weight_bytes=135_000_000, load_seconds=0.5),)
    done = completion({}, seconds=4.0, batch_size=2, memory_bytes=2_500_000)
    found = rows(measurements(results(facts=facts, completions=(("tiny", done),))))
    said = {name: cells[0][0] for name, cells in found.items()}
    # two tokens in half of four seconds
    assert said == {
        "weights, MB": "135",
        "load, s": "0.5",
        "peak memory, MB": "2.5",
        "tokens/s": "1",
        "checks passed": "1/1",
    }


def test_the_effective_generation_config_is_held_against_what_was_asked_and_among_targets():
    one = {"do_sample": False, "max_new_tokens": 64, "temperature": 1.0, "top_k": 50, "max_length": 70}
    other = {"do_sample": True, "max_new_tokens": 64, "temperature": 0.6, "top_k": 50, "max_length": 90}
    (config,) = configs(results(completions=(("a", completion(one)), ("b", completion(other)))))
    assert (config.name, config.targets) == ("greedy", ("a", "b"))
    assert rows(config.rows) == {
        "do_sample": [("false", "", False), ("true", "false", True)],
        "max_new_tokens": [("64", "", False), ("64", "", False)],
        "temperature": [("1.0", "", False), ("0.6", "", True)],
    }
    assert config.rest == "top_k 50"
    assert config.differs
    (same,) = configs(results(completions=(("a", completion(one)), ("b", completion(one)))))
    assert not same.differs


def test_a_config_that_did_not_take_effect_on_the_only_target_is_told():
    (config,) = configs(results(completions=(("a", completion({"do_sample": True, "max_new_tokens": 64})),)))
    assert config.differs
    assert rows(config.rows)["do_sample"] == [("true", "false", False)]


def test_only_what_is_the_same_on_several_targets_is_said_once():
    facts = (TargetFacts("a", "cpu", "float32"), TargetFacts("b", "cpu", "bfloat16"))
    found = {row.name: row.same for row in properties(results(facts=facts))}
    assert (found["device"], found["dtype"]) == (True, False)
    alone = {row.name: row.same for row in properties(results(facts=facts[:1]))}
    assert not alone["device"]
