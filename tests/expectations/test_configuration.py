"""config and bare_call: on configurations made up by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations.arguments import ARGUMENTS, NEUTRAL, told
from harness.expectations.configuration import BareCall, EffectiveConfig
from harness.inputs import GREEDY, Generation
from harness.record import Completion, Rendering, Request, Text, Verdict

Build = Callable[..., Completion]

# What generate() leaves in its config where the model says nothing.
SILENT = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beams": 1,
    "min_length": 0,
    "max_length": 70,
    "eos_token_id": 1,
}
CHAT = Rendering(
    "", (), (), (), "", chat=True, special_tokens={"<end>": 2, "<eos>": 1}, closing_ids=(2, 1), pad_token_id=0
)
PLAIN = Rendering("", (), (), (), "")


def look(
    build: Build,
    config: EffectiveConfig | None = None,
    *,
    generation: Generation = GREEDY,
    rendering: Rendering | None = PLAIN,
    bare: dict[str, Any] | None = None,
    **effective: Any,
) -> Verdict:
    """The verdict where the model's own configuration says what is effective, as the suite does."""
    own = SILENT | {"pad_token_id": 0} | effective
    request = Request(Text(text="x"), generation)
    return (config or EffectiveConfig()).judge(
        [
            build(request=request, generation_config=SILENT | generation.arguments() | effective),
            build(rendering=rendering),
            build(generation_config=own if bare is None else bare),
        ]
    )


def test_it_looks_at_the_test_as_it_is_generated_at_the_prompt_and_at_a_bare_call() -> None:
    request = Request(Text(text="x"), GREEDY)
    done, rendered, bare = EffectiveConfig().needs(request, (request,))
    assert done == request
    assert (rendered.kind, rendered.layout) == ("render", "alone")
    assert (bare.kind, bare.layout) == ("bare_generate", "alone")


def test_a_model_that_says_nothing_of_its_own_passes(completion: Build) -> None:
    verdict = look(completion)
    assert (verdict.status, verdict.reason) == ("passed", "greedy, EOS 1, pad 0: as the suite says")
    assert verdict.numbers == {"do_sample": False}


def test_sampling_that_only_the_model_asks_for_fails_and_is_told_with_what_shapes_it(completion: Build) -> None:
    verdict = look(completion, generation=Generation(max_new_tokens=5), do_sample=True, temperature=0.6)
    assert verdict.status == "failed"
    assert verdict.reason == (
        "it samples (temperature 0.6): the model's own generation config says do_sample: true, "
        "the generation of this test says do_sample: unset"
    )
    assert verdict.details == (f"do_sample: {verdict.reason}. Write `do_sample: false` in the generation of this test",)
    assert verdict.numbers == {"do_sample": True, "problems": "do_sample"}


def test_who_switched_sampling_on_is_told_from_the_bare_call(completion: Build) -> None:
    verdict = look(completion, do_sample=True, bare=SILENT | {"pad_token_id": 0})
    assert "something between the suite and generate() says do_sample: true" in verdict.reason
    assert "the generation of this test says do_sample: false" in verdict.reason


def test_sampling_that_the_suite_asks_for_passes_and_may_be_demanded_or_refused(completion: Build) -> None:
    sampled = Generation(do_sample=True, temperature=0.7)
    assert look(completion, generation=sampled).status == "passed"
    assert look(completion, EffectiveConfig(do_sample=True), generation=sampled).status == "passed"
    refused = look(completion, EffectiveConfig(do_sample=False), generation=sampled)
    assert refused.reason == "it samples (temperature 0.7): the generation of this test says do_sample: true"
    missing = look(completion, EffectiveConfig(do_sample=True))
    assert missing.reason == "it does not sample: the generation of this test says do_sample: false"
    assert missing.details[0].endswith("Write `do_sample: true` in the generation of this test")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("repetition_penalty", 1.3, "Write `repetition_penalty: 1.0` in the generation of this test"),
        ("no_repeat_ngram_size", 3, "Write `no_repeat_ngram_size: 0` in the generation of this test"),
        ("num_beams", 4, "Write `num_beams: 1` in the generation of this test"),
        ("min_length", 10, 'Write "min_length": 0 into the model\'s generation_config.json'),
        ("suppress_tokens", [5, 6], 'Write "suppress_tokens": [] into the model\'s generation_config.json'),
        ("forced_eos_token_id", 2, "Take forced_eos_token_id out of the model's generation_config.json"),
    ],
)
def test_what_only_the_model_asks_for_fails_unless_it_is_written_or_allowed(
    completion: Build, name: str, value: Any, remedy: str
) -> None:
    verdict = look(completion, **{name: value})
    assert verdict.status == "failed"
    assert verdict.reason.startswith(f"the model's own generation config says {name}: {value}, and the suite does not")
    assert verdict.details == (f"unasked: {verdict.reason}. {remedy}, or `allow: [{name}]` here",)

    allowed = look(completion, EffectiveConfig(allow=(name,)), **{name: value})
    assert (allowed.status, allowed.details) == ("passed", (f"allowed  {name}: {value}",))
    assert look(completion, EffectiveConfig(values={name: value}), **{name: value}).status == "passed"
    if name in Generation.model_fields:
        written = Generation(do_sample=False, **{name: value})
        assert look(completion, generation=written, **{name: value}).status == "passed"


def test_the_minimum_length_that_follows_from_min_new_tokens_is_not_held_against_the_model(completion: Build) -> None:
    written = Generation(do_sample=False, min_new_tokens=3, max_new_tokens=5)
    assert look(completion, generation=written, min_length=12).status == "passed"


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("temperature", 0.6, "do_sample: true"),
        ("top_k", 20, "do_sample: true"),
        ("top_p", 0.9, "do_sample: true"),
        ("min_p", 0.1, "do_sample: true"),
        ("length_penalty", 2.0, "num_beams above 1"),
        ("early_stopping", True, "num_beams above 1"),
    ],
)
def test_arguments_without_effect_fail_unless_they_are_allowed(
    completion: Build, name: str, value: Any, what: str
) -> None:
    verdict = look(completion, **{name: value})
    assert verdict.status == "failed"
    assert verdict.reason.endswith(f", which has no effect without {what}")
    assert verdict.details[0].endswith(f"Take it out of generation_config.json, or write `allow: [{name}]` here")
    assert look(completion, EffectiveConfig(allow=(name,)), **{name: value}).status == "passed"


def test_what_shapes_the_sampling_that_the_suite_asks_for_is_to_be_written_by_it(completion: Build) -> None:
    sampled = Generation(do_sample=True, temperature=0.7)
    verdict = look(completion, generation=sampled, top_p=0.9)
    assert verdict.reason == "the model's own generation config says top_p: 0.9, and the suite does not"
    assert "Write `top_p: 1.0` in the generation of this test" in verdict.details[0]


def test_an_argument_of_the_suite_that_does_not_reach_generate_fails(completion: Build) -> None:
    verdict = look(completion, generation=Generation(do_sample=False, max_new_tokens=64), max_new_tokens=None)
    assert verdict.reason == "the generation of this test says max_new_tokens: 64, in effect it is unset"


def test_the_id_that_closes_a_turn_is_to_be_an_end(completion: Build) -> None:
    verdict = look(completion, rendering=CHAT)
    assert verdict.status == "failed"
    assert verdict.reason == (
        "the chat template closes a turn with '<end>' (2), but only 1 ends generation: "
        "answers run on into the next turn"
    )
    assert 'Write "eos_token_id": [1, 2]' in verdict.details[0]
    assert look(completion, EffectiveConfig(eos_closes_turn=False), rendering=CHAT).status == "passed"
    # The second special token stands behind the end of the turn, and need not end anything.
    assert look(completion, rendering=CHAT, eos_token_id=2).status == "passed"
    assert look(completion, rendering=CHAT, eos_token_id=[1, 2]).status == "passed"


def test_without_any_end_only_the_limit_ends(completion: Build) -> None:
    for rendering, ids in ((PLAIN, "ID"), (CHAT, "[2]")):
        verdict = look(completion, rendering=rendering, eos_token_id=None)
        assert verdict.reason == "no eos_token_id is in effect: only the limit ends generation"
        assert f'Write "eos_token_id": {ids} into' in verdict.details[0]


def test_a_pad_token_that_generate_does_not_know_fails(completion: Build) -> None:
    verdict = look(completion, bare=SILENT, rendering=CHAT, eos_token_id=2)
    assert verdict.reason == "the tokenizer pads with 0, but generate() does not know: it pads with EOS (1)"
    assert 'Write "pad_token_id": 0' in verdict.details[0]
    neither = look(completion, bare=SILENT)
    assert neither.reason == "no pad token is set: it pads with EOS (1)"
    assert look(completion, EffectiveConfig(pad="any"), bare=SILENT).status == "passed"
    # The bare call raised before anything was resolved: nothing is known of pads.
    assert look(completion, bare={"raised": "ValueError", "message": "no"}).status == "passed"


def test_values_are_exact(completion: Build) -> None:
    config = EffectiveConfig(values={"top_p": 1.0, "eos_token_id": [1], "use_cache": "unset"})
    assert look(completion, config).status == "passed"
    wrong = look(completion, config, use_cache=True, eos_token_id=[1, 2])
    assert wrong.reason == "eos_token_id is [1, 2], not [1] (and 1 more problem)"
    assert wrong.details[1] == "values: use_cache is true, not unset. Take use_cache out of the model's " + (
        "generation_config.json"
    )
    # 1 is no true.
    assert look(completion, EffectiveConfig(values={"use_cache": 1}), use_cache=True).status == "failed"


def test_every_problem_is_told(completion: Build) -> None:
    verdict = look(completion, rendering=CHAT, repetition_penalty=1.3, temperature=0.6)
    assert verdict.reason.endswith("(and 2 more problems)")
    assert [line.split(":")[0] for line in verdict.details] == ["no_effect", "unasked", "eos"]
    assert verdict.numbers["problems"] == "no_effect, unasked, eos"


def test_a_backend_without_a_configuration_is_skipped(completion: Build) -> None:
    assert look(completion, rendering=None).status == "skipped"
    assert BareCall().judge([completion()] * 3).status == "skipped"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"allow": ["repetition_penalti"]}, "'repetition_penalti' is no argument of generate(); did you mean "),
        ({"values": {"topp": 1.0}}, "'topp' is no argument of generate(); did you mean 'top_p'?"),
        ({"values": {"xyzzy": 1.0}}, "take a name that GenerationConfig has"),
        ({"values": {"do_sample": True}}, "write do_sample beside allow and values"),
        ({"pad": "sett"}, "'set' or 'any'"),
    ],
)
def test_wrong_config_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        EffectiveConfig.model_validate(fields)


def test_the_table_of_neutral_values_names_arguments_only() -> None:
    assert set(NEUTRAL) <= ARGUMENTS
    assert told({"do_sample": True, "top_k": 5, "num_beams": 2, "length_penalty": 2.0}) == (
        "samples (top_k 5), length_penalty 2.0, num_beams 2"
    )


PIPELINE = SILENT | {"do_sample": True, "temperature": 0.7, "new_token_limit": 256, "padding_side": "left"}
GENERATE = SILENT | {"new_token_limit": 20, "padding_side": "right"}
RAISED = SILENT | {"raised": "ValueError", "message": "too long"}


def test_bare_calls_are_recorded_by_the_names_that_pin_them(completion: Build) -> None:
    request = Request(Text(text="x"), GREEDY)
    kinds = [needed.kind for needed in BareCall.model_validate(True).needs(request, (request,))]
    assert kinds == ["bare_generate", "bare_config", "bare_pipeline"]

    made = [completion(generation_config=config) for config in (GENERATE, RAISED, PIPELINE)]
    verdict = BareCall().judge(made)
    assert verdict.status == "passed"
    assert verdict.reason == (
        "generate() with no arguments: greedy, at most 20 new tokens; "
        "generate() with a GenerationConfig of one's own: raises ValueError: 'too long'; "
        "pipeline() with no arguments: samples (temperature 0.7), at most 256 new tokens"
    )
    assert verdict.numbers == {
        "generate.do_sample": False,
        "generate.new_token_limit": 20,
        "generation_config.do_sample": False,
        "generation_config.raised": "ValueError",
        "pipeline.do_sample": True,
        "pipeline.new_token_limit": 256,
        "pipeline.temperature": 0.7,
        "pipeline.padding_side": "left",
    }

    written: dict[str, dict[str, Any]] = {}
    for key, value in verdict.numbers.items():
        written.setdefault(key.split(".")[0], {})[key.split(".")[1]] = value
    assert BareCall.model_validate(written).judge(made).status == "passed"


def test_a_bare_call_that_does_otherwise_fails_with_what_to_type(completion: Build) -> None:
    expectation = BareCall.model_validate({"pipeline": {"do_sample": False, "new_token_limit": 20, "top_k": 50}})
    request = Request(Text(text="x"), GREEDY)
    assert [needed.kind for needed in expectation.needs(request, (request,))] == ["bare_pipeline"]

    verdict = expectation.judge([completion(generation_config=PIPELINE)])
    assert verdict.status == "failed"
    assert verdict.reason == (
        "pipeline() with no arguments: do_sample is true, the suite says false, "
        "new_token_limit is 256, the suite says 20"
    )
    assert verdict.details == (
        "pipeline() with no arguments: samples (temperature 0.7), at most 256 new tokens",
        "remedy  pass do_sample=False, max_new_tokens=20 wherever it is called, "
        "or write what holds now: `pipeline: {do_sample: true, new_token_limit: 256}`",
    )


def test_an_exception_can_be_demanded_or_ruled_out(completion: Build) -> None:
    raised, fine = completion(generation_config=RAISED), completion(generation_config=GENERATE)
    for values, passes in (({"raised": "ValueError"}, raised), ({"raised": "unset"}, fine)):
        expectation = BareCall(generate=values)
        assert expectation.judge([passes]).status == "passed"
        assert expectation.judge([fine if passes is raised else raised]).status == "failed"
    verdict = BareCall(generate={"raised": "unset"}).judge([raised])
    assert verdict.reason == 'generate() with no arguments: raised is "ValueError", the suite says unset'
    assert verdict.details[1] == 'remedy  write what holds now: `generate: {raised: "ValueError"}`'


def test_warnings_are_held_to_be_exactly_those_that_are_written(completion: Build) -> None:
    text = "Setting `pad_token_id` to `eos_token_id`:1 for open-end generation."
    warns, quiet = (completion(generation_config=GENERATE, warnings=said) for said in ({text: 1}, {}))
    none, pad = BareCall(generate={"warnings": []}), BareCall(generate={"warnings": ["pad_token_id"]})
    assert [none.judge([quiet]).status, pad.judge([warns]).status] == ["passed", "passed"]
    assert none.judge([warns]).reason.endswith("it warns 1 time, the suite says of nothing")
    assert none.judge([warns]).details[-1] == f"warns  generate() with no arguments: {text!r}"
    assert "write what holds now: `generate: {warnings: [" in none.judge([warns]).details[1]
    assert pad.judge([quiet]).reason.endswith('it warns of nothing, the suite says of ["pad_token_id"]')
    assert pad.judge([completion(generation_config=GENERATE, warnings={text: 1, "another": 1})]).status == "failed"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"generate": {"new_tokens_limit": 20}}, "did you mean 'new_token_limit'?"),
        ({"pipeline": {"warnings": "one"}}, "warnings is a list of texts"),
        ({"pipelines": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_bare_call_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem.replace("?", r"\?")):
        BareCall.model_validate(fields)


def test_both_are_hashable_as_every_noun_of_a_suite_is() -> None:
    assert hash(EffectiveConfig(values={"top_k": 5})) == hash(EffectiveConfig(values={"top_k": 5}))
    assert hash(BareCall(generate={"top_k": 5})) != hash(BareCall(generate={"top_k": 6}))
