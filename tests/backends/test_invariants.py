"""Every invariant on every architecture: it holds, or says why it cannot; and planted faults are caught by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.expectations.invariance import FILLERS
from harness.expectations.invariants import BY_NAME_ONLY, DYNAMIC_ROPE, INVARIANTS, NO_PREFIX
from harness.inputs import Generation, Model
from harness.load import load as load_suite
from harness.plan import plan
from harness.record import Batch, Completion, Request, Target, Text, Verdict
from harness.runner import Runner

TRANSFORMERS_4 = version("transformers").startswith("4.")
QUICK = ("llama", "gpt2", "mistral", "qwen3", "gemma2", "phi", "mamba", "bart")
SLOW = ("opt", "gpt_neox", "mixtral", "qwen2", "gemma3_text", "bloom", "falcon", "t5")
ARCHITECTURES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
ALL = [name for name in INVARIANTS if name not in BY_NAME_ONLY]
# Longer than the window of sliding attention (16), and growing beyond it; for a tokenizer of bytes, a word is three.
WORDS = {
    "short": "w13 w4 w15 w6 w27 w8 w39 w10 w21 w5",
    "long": " ".join(f"w{number * 7 % 90}" for number in range(24)),
}
BYTES = {"short": "w1 w2 w3 w4", "long": "w13 w4 w15 w6 w27"}
SUITE = """
suite: invariants
models:
  tiny: {{path: {path}, dtype: float32, device: cpu}}
generation:
  greedy: {{do_sample: false, max_new_tokens: 8}}
prompts:
  short: {short}
  long: {long}
tests:
  - name: same-tokens
    prompts: [short, long]
    expect: {{invariants: {names}}}
"""

# What an architecture cannot do at all, with words of the reason that must be given.
DRAFT = "cannot draft with its first 1 layer"  # its forward pass goes through all layers, whatever the config says
STATEFUL = "not supported with stateful models"  # a state cannot be taken back when a draft is refused
NO_CACHE = "cache"  # a state space has no keys and values
ONE_ATTENTION = "this model has no attention implementation"  # written before attention could be chosen
SEQ2SEQ = dict.fromkeys(("one_forward", "resumed_cache", "prefix"), NO_PREFIX)
CANNOT: Mapping[str, Mapping[str, str]] = {
    "gpt2": {"early_exit": DRAFT},
    "gpt_neox": {"early_exit": DRAFT},
    "opt": {} if TRANSFORMERS_4 else {"early_exit": DRAFT},
    "bloom": {"early_exit": DRAFT, "attention": ONE_ATTENTION},
    "falcon": {"early_exit": DRAFT, "attention": ONE_ATTENTION},
    "gemma2": {} if TRANSFORMERS_4 else {"attention": "attention sdpa cannot be used here"},  # it has no softcap
    "gemma3_text": {"early_exit": DRAFT} if TRANSFORMERS_4 else {},
    "mamba": {
        "prompt_lookup": STATEFUL,
        "early_exit": STATEFUL,
        "static_cache": NO_CACHE,
        "resumed_cache": NO_CACHE,
        "attention": "attention sdpa cannot be used here",
    },
    "t5": SEQ2SEQ | {"early_exit": DRAFT} | ({"attention": ONE_ATTENTION} if TRANSFORMERS_4 else {}),
    "bart": SEQ2SEQ,
}
# What the library itself does wrong: with alibi it cannot use a static cache.
ERRORS = {"falcon": {"static_cache": "Error: "}}
# The default attention of gemma2 in transformers 4 leaves the softcap out.
FAILURES = {"gemma2": {"attention": "with sdpa instead of eager"}} if TRANSFORMERS_4 else {}
# In transformers 4 penalties count the pads, and prompt lookup may write a token too many: whether that shows
# depends on the prompt.
UNSURE = ("processors", "prompt_lookup") if TRANSFORMERS_4 else ()

Judge = Callable[..., Mapping[tuple[str, str], Verdict]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose more by sharing their work than they win."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def judge(tiny: Callable[..., Path], tmp_path: Path) -> Judge:
    """The verdicts of an architecture by prompt and invariant."""

    def judged(architecture: str, names: Any = "all", prompts: Mapping[str, str] | None = None, **config: Any) -> Any:
        file = tmp_path / f"{architecture}.yaml"
        prompts = prompts or (BYTES if architecture == "qwen2" else WORDS)
        path = tiny(architecture, ends=False, **config)
        file.write_text(SUITE.format(path=path, names=names, **prompts))
        runner = Runner(plan([load_suite(file)]).checks)
        records = [record for judged in runner.run() for record in judged.records]
        runner.close()
        said = {answer.ids for _, answer in runner.results().completions if answer.request.kind == "generate"}
        assert not said or len(set().union(*said)) > 3, "a model that says one word for ever would hide any fault"
        return {(record.prompt, record.expectation): record.verdict for record in records}

    return judged


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_invariant_holds_or_says_why_it_cannot(judge: Judge, architecture: str) -> None:
    verdicts = judge(architecture)

    assert set(verdicts) == {(prompt, name) for prompt in ("short", "long") for name in ALL}
    cannot = {"flash_attention": "flash_attention_2", **CANNOT.get(architecture, {})}
    for (_, name), verdict in verdicts.items():
        if name in cannot:
            assert (verdict.status, cannot[name] in verdict.reason) == ("skipped", True), (name, verdict)
        elif name in ERRORS.get(architecture, {}):
            assert (verdict.status, ERRORS[architecture][name] in verdict.reason) == ("error", True), (name, verdict)
        elif name in FAILURES.get(architecture, {}):
            assert (verdict.status, FAILURES[architecture][name] in verdict.reason) == ("failed", True), (name, verdict)
        elif name not in UNSURE:
            assert verdict.status == "passed", (name, verdict)


def test_dynamic_rope_is_an_exception_and_says_why(judge: Judge) -> None:
    verdicts = judge("dynamic_llama")

    assert {(verdict.status, verdict.reason) for verdict in verdicts.values()} == {("skipped", DYNAMIC_ROPE)}


def test_dynamic_rope_really_depends_on_the_longest_row(tiny: Callable[..., Path]) -> None:
    model = Model(path=str(tiny("dynamic_llama", ends=False)), dtype="float32", device="cpu")
    backend = backends.load(Target("tiny", "tiny", model))
    prompt, greedy = Text(text=WORDS["short"]), Generation(do_sample=False, max_new_tokens=8)

    (alone,) = backend.generate([Request(prompt, greedy, "alone")])
    (padded,) = backend.generate([Request(prompt, greedy, Batch((prompt, FILLERS[0])))])
    backend.close()

    assert isinstance(alone, Completion)
    assert isinstance(padded, Completion)
    assert alone.ids != padded.ids


def failures(verdicts: Mapping[tuple[str, str], Verdict]) -> set[str]:
    return {name for (_, name), verdict in verdicts.items() if verdict.status == "failed"}


def causes(verdicts: Mapping[tuple[str, str], Verdict], name: str) -> set[str]:
    """What the second lines of its failures say, up to the colon."""
    found = [verdict for (_, other), verdict in verdicts.items() if other == name and verdict.status == "failed"]
    return {verdict.details[0].removeprefix("cause   ").partition(":")[0] for verdict in found}


def test_position_ids_that_count_pads_are_caught_and_named(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2LMHeadModel

    prepare = GPT2LMHeadModel.prepare_inputs_for_generation

    @functools.wraps(prepare)  # generate() reads the signature
    def forgetting(self: Any, *args: Any, **arguments: Any) -> Any:
        return prepare(self, *args, **arguments) | {"position_ids": None}

    monkeypatch.setattr(GPT2LMHeadModel, "prepare_inputs_for_generation", forgetting)
    verdicts = judge("gpt2")

    padded = {"left_padding", "any_pad_token", "static_cache", "attention"}
    assert padded <= failures(verdicts) <= padded | {"processors"}
    assert causes(verdicts, "left_padding") == causes(verdicts, "any_pad_token") == {"position ids"}


def test_a_static_cache_that_is_off_by_one_is_caught_and_named(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.cache_utils import StaticLayer

    update = StaticLayer.update

    def losing_the_first(self: Any, *args: Any, **arguments: Any) -> Any:
        keys, values = update(self, *args, **arguments)
        return keys, values.roll(1, dims=2)

    monkeypatch.setattr(StaticLayer, "update", losing_the_first)
    verdicts = judge("llama")

    assert failures(verdicts) - set(UNSURE) == {"static_cache"}
    assert causes(verdicts, "static_cache") == {"the key-value cache"}


def test_a_sliding_cache_that_forgets_too_early_is_caught_and_named(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.cache_utils import DynamicSlidingWindowLayer

    update = DynamicSlidingWindowLayer.update

    def without_the_oldest(self: Any, *args: Any, **arguments: Any) -> Any:
        keys, values = update(self, *args, **arguments)
        if args[0].shape[2] == 1 and values.shape[2] >= self.sliding_window:
            values = values.clone()
            values[:, :, 0] = 0
        return keys, values

    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", without_the_oldest)
    verdicts = judge("mistral", ["one_forward", "no_cache", "duplicate_rows", "top_k_one"])

    assert failures(verdicts) == {"one_forward", "no_cache"}
    assert causes(verdicts, "one_forward") == {"the key-value cache"}


def test_attention_that_forgets_its_mask_is_caught_and_named(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    @functools.wraps(sdpa)
    def unmasked(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **arguments: Any) -> Any:
        return sdpa(module, query, key, value, None, **arguments)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", unmasked)
    verdicts = judge("llama", ["left_padding", "any_pad_token", "duplicate_rows", "no_cache", "attention", "top_k_one"])

    assert failures(verdicts) == {"left_padding", "any_pad_token", "attention"}
    assert causes(verdicts, "left_padding") == {"the attention implementation"}


def test_penalties_that_count_pads_are_caught_and_named(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    penalize = RepetitionPenaltyLogitsProcessor.__call__

    def counting_pads(self: Any, input_ids: Any, scores: Any) -> Any:
        self.prompt_ignore_length = None
        return penalize(self, input_ids, scores)

    monkeypatch.setattr(RepetitionPenaltyLogitsProcessor, "__call__", counting_pads)
    verdicts = judge("gpt2")

    assert failures(verdicts) - {"prompt_lookup"} == {"processors"}
    assert causes(verdicts, "processors") == {"the pad token"}


def test_a_pad_token_in_the_prompt_is_taken_for_padding_where_the_mask_is_left_out(judge: Judge) -> None:
    prompts = {"short": '"w1 <pad> w2 w3"', "long": '"w1 w2 <pad> <pad> w3 w4 w5"'}

    verdicts = judge("llama", ["inferred_mask", "left_padding"], prompts)

    assert failures(verdicts) == {"inferred_mask"}
    assert causes(verdicts, "inferred_mask") == {"the attention mask is missing"}
