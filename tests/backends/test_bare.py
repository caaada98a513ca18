"""Calls as careless code makes them, on tiny real models: what they resolve to in the installed transformers."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, __version__, pipeline

from harness import backends
from harness.backends import bare
from harness.expectations.arguments import ARGUMENTS, NEUTRAL, active
from harness.expectations.configuration import BareCall, EffectiveConfig
from harness.inputs import GREEDY, Message, Model
from harness.record import Completion, Request, Target, Text

FIVE = int(__version__.split(".")[0]) >= 5
THREE, TWENTY_FIVE = (" ".join(f"w{number}" for number in range(count)) for count in (3, 25))
SAMPLES = {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.3}
KINDS = list(bare.CALLS)


class Loaded:
    """A tiny model whose folder says what the test wants it to say."""

    def __init__(self, folder: Path) -> None:
        target = Target("tiny", "tiny", Model(path=str(folder), dtype="float32", device="cpu"))
        self.backend: Any = backends.load(target)
        self.model, self.tokenizer = self.backend.model, self.backend.tokenizer

    def call(self, kind: str, text: str = THREE) -> bare.BareCall:
        return bare.bare(kind, self.model, self.tokenizer, text, self.tokenizer(text)["input_ids"])

    def config(self, kind: str, text: str = THREE) -> dict[str, Any]:
        return dict(self.call(kind, text).generation_config)

    def answers(self, expectation: Any, prompt: Text) -> list[Completion]:
        request = Request(prompt, GREEDY)
        return [self.backend.generate([needed])[0] for needed in expectation.needs(request, (request,))]


@pytest.fixture
def shipping(tiny: Any, tmp_path: Path) -> Callable[..., Loaded]:
    """The model with these values in its generation_config.json; None takes one out."""

    def build(architecture: str = "llama", *, file: str = "generation_config.json", **values: Any) -> Loaded:
        folder = tmp_path / f"{architecture}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny(architecture), folder)
        written = json.loads((folder / file).read_text()) | values
        kept = {name: value for name, value in written.items() if value is not None}
        (folder / file).write_text(json.dumps(kept))
        return Loaded(folder)

    return build


def limits(loaded: Loaded, text: str) -> list[int | None]:
    return [loaded.config(kind, text).get("new_token_limit") for kind in KINDS]


def test_a_model_that_says_nothing(shipping: Any) -> None:
    loaded = shipping()
    assert limits(loaded, THREE) == limits(loaded, TWENTY_FIVE) == [20, bare.OWN_LIMIT, 256]
    assert [loaded.config(kind)["do_sample"] for kind in KINDS] == [False, False, True]
    assert loaded.config("bare_pipeline")["temperature"] == 0.7
    # A pipeline sets the side itself in transformers 5, and leaves the tokenizer's in 4.
    assert [loaded.config(kind)["padding_side"] for kind in KINDS] == ["right", "right", "left" if FIVE else "right"]
    assert {loaded.config(kind)[name] for kind in KINDS for name in ("dtype", "device")} == {"float32", "cpu"}


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_the_limit_is_what_the_call_really_generates(shipping: Any, architecture: str) -> None:
    """Without an EOS id, all of them come."""
    loaded = shipping(architecture, eos_token_id=None)
    ids = torch.tensor([loaded.tokenizer(THREE)["input_ids"]])
    start = 1 if architecture == "t5" else ids.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody says how many
        plainly = loaded.model.generate(ids, attention_mask=torch.ones_like(ids))
    own = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=GenerationConfig(max_new_tokens=bare.OWN_LIMIT)
    )
    assert [out.shape[1] - start for out in (plainly, own)] == limits(loaded, THREE)[:2]


def test_the_limit_of_a_pipeline_is_what_it_really_generates(shipping: Any) -> None:
    loaded = shipping(eos_token_id=None, max_length=40)
    (made,) = pipeline("text-generation", model=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer))(
        THREE, return_tensors=True
    )
    assert len(made["generated_token_ids"]) - 3 == loaded.config("bare_pipeline")["new_token_limit"] == 37


def test_nothing_more_than_one_token_is_generated(shipping: Any) -> None:
    loaded = shipping(num_beams=3)
    passes: list[int] = []
    handle = loaded.model.register_forward_hook(lambda module, args, output: passes.append(1))
    for kind in KINDS:
        assert loaded.config(kind)["num_beams"] == 3
    handle.remove()
    assert len(passes) == len(KINDS)


def test_the_models_own_sampling_and_penalties(shipping: Any) -> None:
    loaded = shipping(**SAMPLES)
    for kind in ("bare_generate", "bare_config"):
        assert SAMPLES.items() <= loaded.config(kind).items()
    # transformers 4 puts the pipeline's temperature over the model's.
    piped = loaded.config("bare_pipeline")
    assert (piped["temperature"], piped["repetition_penalty"]) == (0.6 if FIVE else 0.7, 1.3)


def test_a_config_of_ones_own_over_that_of_an_old_checkpoint(shipping: Any) -> None:
    """transformers 4 takes the model's values only from checkpoints of 4.50 and later; 5 from all."""
    config = shipping(**SAMPLES, transformers_version="4.40.0").config("bare_config")
    assert (config["do_sample"], config["repetition_penalty"]) == ((True, 1.3) if FIVE else (False, 1.0))
    assert config["eos_token_id"] == 1


def test_a_maximum_length_of_the_model_is_taken_for_the_default_or_counts_the_prompt(shipping: Any) -> None:
    of_20 = shipping(max_length=20)
    assert limits(of_20, THREE) == ([17, 8, 17] if FIVE else [20, 8, 256])
    assert limits(of_20, TWENTY_FIVE) == ([None, 8, None] if FIVE else [20, 8, 256])
    assert limits(shipping(max_length=64), THREE) == [61, 8, 61]


def test_an_exception_is_a_result(shipping: Any) -> None:
    call = shipping(stop_strings=["w1"]).call("bare_generate")
    assert call.generation_config["raised"] == "ValueError"
    assert "could not locate a tokenizer" in call.generation_config["message"]
    assert call.generation_config["eos_token_id"] == 1
    assert "new_token_limit" not in call.generation_config


def test_an_exception_before_anything_is_resolved_is_one_too(shipping: Any) -> None:
    loaded = shipping()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("nothing")

    loaded.model.generate = refuse
    assert loaded.config("bare_generate") == {
        "padding_side": "right",
        "dtype": "float32",
        "device": "cpu",
        "raised": "KeyError",
        "message": "'nothing'",
    }


def test_running_out_of_memory_is_not_taken_for_what_the_call_does(shipping: Any) -> None:
    loaded = shipping()

    def fill(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    loaded.model.generate = fill
    with pytest.raises(torch.OutOfMemoryError):
        loaded.call("bare_generate")


def test_the_pad_token_stays_unset_and_only_transformers_4_warns(shipping: Any) -> None:
    call = shipping(pad_token_id=None).call("bare_generate")
    assert "pad_token_id" not in call.generation_config
    assert any("pad_token_id" in text for text in call.warnings) is not FIVE


def test_a_model_without_any_end(shipping: Any) -> None:
    loaded = shipping(pad_token_id=None, eos_token_id=None)
    assert limits(loaded, THREE) == [20, bare.OWN_LIMIT, 256]
    assert not any("eos_token_id" in loaded.config(kind) for kind in KINDS)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder(shipping: Any, architecture: str) -> None:
    loaded = shipping(architecture)
    assert limits(loaded, THREE) == [20, bare.OWN_LIMIT, 256]
    # transformers 4 has a pipeline of its own for these, with beams; 5 has none and says so.
    piped = loaded.call("bare_pipeline")
    assert (piped.generation_config["num_beams"], piped.generation_config["do_sample"]) == (
        (1, True) if FIVE else (4, False)
    )
    assert any("is not supported for text-generation" in text for text in piped.warnings) is FIVE


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_tokenizer_are_left_as_they_were(shipping: Any, kind: str) -> None:
    tasks = {"text-generation": {"do_sample": True, "max_length": 50, "prefix": "w9 "}}
    # "hybrid" is what transformers 4 unsets in the model's own configuration.
    loaded = shipping("gpt2", file="config.json", task_specific_params=tasks)
    loaded.model.generation_config.cache_implementation = "hybrid"
    loaded.tokenizer.padding_side = "right"
    own = loaded.model.generation_config
    before = (copy.deepcopy(vars(own)), copy.deepcopy(loaded.model.config.to_dict()), set(vars(loaded.model)))

    loaded.call(kind)

    assert loaded.model.generation_config is own
    assert (vars(own), loaded.model.config.to_dict(), set(vars(loaded.model))) == before
    assert loaded.tokenizer.padding_side == "right"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_model_that_a_pipeline_moves_comes_back(shipping: Any) -> None:
    loaded = shipping()
    if hasattr(loaded.model, "hf_device_map"):
        del loaded.model.hf_device_map
    assert loaded.config("bare_pipeline")["device"] == "cuda:0"
    assert loaded.model.device.type == "cpu"


def test_every_argument_that_the_library_knows_can_be_written() -> None:
    assert {name for name in vars(GenerationConfig()) if not name.startswith("_")} <= ARGUMENTS


def test_where_a_model_says_nothing_no_argument_is_flagged(shipping: Any) -> None:
    for architecture in ("llama", "t5"):
        config = shipping(architecture).config("bare_generate")
        assert list(active(config, NEUTRAL)) == []


def test_the_configuration_of_a_sound_model_passes_and_its_faults_are_told(shipping: Any) -> None:
    plain = Text(text=THREE)
    sound = shipping()
    verdict = EffectiveConfig().judge(sound.answers(EffectiveConfig(), plain))
    assert (verdict.status, verdict.reason) == ("passed", "greedy, EOS 1, pad 0: as the suite says")

    bad = shipping(**SAMPLES, pad_token_id=None)
    verdict = EffectiveConfig().judge(bad.answers(EffectiveConfig(), plain))
    assert verdict.numbers["problems"] == "no_effect, unasked, pad"
    assert "says temperature: 0.6, which has no effect without do_sample: true" in verdict.details[0]
    assert "says repetition_penalty: 1.3, and the suite does not" in verdict.details[1]


def test_a_template_that_closes_turns_with_something_else_is_told(shipping: Any) -> None:
    loaded = shipping()
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <pad> {% endfor %}"
    chat = Text(messages=(Message(role="user", content=THREE),))
    verdict = EffectiveConfig().judge(loaded.answers(EffectiveConfig(), chat))
    assert verdict.status == "failed"
    assert "closes a turn with '<pad>' (0), but only 1 ends" in verdict.reason


def test_a_bare_call_can_be_pinned_through_the_backend(shipping: Any) -> None:
    expectation = BareCall.model_validate(
        {"generate": {"do_sample": False, "new_token_limit": 20}, "pipeline": {"do_sample": True}}
    )
    completions = shipping().answers(expectation, Text(text=THREE))
    assert expectation.judge(completions).status == "passed"
    assert [completion.ids for completion in completions] == [(), ()]
    sampling = shipping(**SAMPLES).answers(expectation, Text(text=THREE))
    assert expectation.judge(sampling).reason == (
        "generate() with no arguments: do_sample is true, the suite says false"
    )


def test_chat_prompts_are_called_with_their_rendered_text(shipping: Any) -> None:
    loaded = shipping()
    chat = Text(messages=(Message(role="user", content=THREE),))
    (completion,) = loaded.answers(BareCall(generate={}), chat)
    assert completion.prompt_ids == (
        2,
        *AutoTokenizer.from_pretrained(loaded.model.name_or_path)(THREE)["input_ids"],
        3,
    )
    assert completion.generation_config["max_length"] == 20 + len(completion.prompt_ids)
