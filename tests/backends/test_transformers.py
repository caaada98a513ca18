"""The transformers backend on tiny real models: what it generates, records and refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.errors import LevelMismatch, ModelUnavailable
from harness.inputs import Generation, Message, Model
from harness.record import Batch, Completion, Failure, Request, Target, Text

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "opt"]
GREEDY = Generation(do_sample=False, max_new_tokens=12)
SHORT, LONG = Text(text="w1 w2 w3"), Text(text=" ".join(f"w{n}" for n in range(5, 25)))


def target(path: Path, quantization: str = "none", **model: Any) -> Target:
    return Target(
        "tiny", "tiny", Model(path=str(path), **({"dtype": "float32", "device": "cpu"} | model)), quantization
    )


@pytest.fixture
def load() -> Callable[..., Any]:
    """Load a tiny model. Nothing is closed: collecting garbage takes longer than most tests here."""

    def build(*args: Any, **kwargs: Any) -> Any:
        return backends.load(target(*args, **kwargs))

    return build


def one(backend: Any, request: Request) -> Completion:
    (answer,) = backend.generate([request])
    assert isinstance(answer, Completion), answer
    return answer


def failure(backend: Any, request: Request) -> Failure:
    (answer,) = backend.generate([request])
    assert isinstance(answer, Failure)
    return answer


def greedy_by_hand(backend: Any, ids: tuple[int, ...], steps: int) -> tuple[list[int], list[Any]]:
    """Argmax over one full forward pass per token: no cache, no generate()."""
    import torch

    row, logprobs = list(ids), []
    with torch.inference_mode():
        for _ in range(steps):
            logits = backend.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
            logprobs.append(logits.log_softmax(-1))
            row.append(int(logits.argmax()))
            if row[-1] == 1:
                break
    return row[len(ids) :], logprobs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generates_what_a_loop_by_hand_generates(tiny: Any, load: Any, architecture: str) -> None:
    backend = load(tiny(architecture))
    completion = one(backend, Request(SHORT, GREEDY))
    ids, logprobs = greedy_by_hand(backend, completion.prompt_ids, 12)

    assert list(completion.ids) == ids
    for step, token, expected in zip(completion.steps, ids, logprobs, strict=True):
        assert step.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        assert list(step.top_logprobs) == pytest.approx(expected.topk(20).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding_changes_nothing(tiny: Any, load: Any, architecture: str) -> None:
    backend = load(tiny(architecture))
    alone = one(backend, Request(SHORT, GREEDY, "alone"))
    padded = one(backend, Request(SHORT, GREEDY, Batch((SHORT, LONG))))

    assert padded.ids == alone.ids
    assert (padded.pads, padded.padding, padded.batch_size) == (17, "left", 2)
    assert (alone.pads, alone.padding, alone.batch_size) == (0, "", 1)


def test_right_padding_changes_the_tokens(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    prompts = [Text(text=f"w{n} w{n + 1} w{n + 2}") for n in range(6)]

    padded = [one(backend, Request(prompt, GREEDY, Batch((prompt, LONG), "right"))) for prompt in prompts]

    assert {completion.padding for completion in padded} == {"right"}
    assert [completion.ids for completion in padded] != [one(backend, Request(p, GREEDY)).ids for p in prompts]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_what_one_would_pass_by_hand(tiny: Any, load: Any, side: str) -> None:
    import torch

    backend = load(tiny("llama"))
    completion = one(backend, Request(SHORT, GREEDY, Batch((SHORT, LONG), side)))  # type: ignore[arg-type]
    short, long = completion.prompt_ids, one(backend, Request(LONG, GREEDY)).prompt_ids
    pads = (0,) * (len(long) - len(short))
    rows = [pads + short if side == "left" else short + pads, long]
    ids = torch.tensor(rows)
    mask = (ids != 0).long()

    by_hand = backend.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0)

    assert completion.ids == tuple(by_hand[0, len(long) :].tolist())[: completion.new_tokens]


def test_a_mask_left_out_changes_the_tokens_where_pad_is_eos(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    alone = one(backend, Request(SHORT, GREEDY, "alone"))
    maskless = Request(SHORT, GREEDY, Batch((SHORT, LONG), "left", False))

    assert one(backend, maskless).ids == alone.ids  # the library infers it from a pad token of its own
    backend.facts = dataclasses.replace(backend.facts, pad_token_id=1)
    assert one(backend, maskless).ids != alone.ids


def test_shipped_side_is_the_tokenizers_unless_the_model_says(tiny: Any, load: Any) -> None:
    shipped = Request(SHORT, GREEDY, Batch((SHORT, LONG), "shipped"))

    assert one(load(tiny("llama")), shipped).padding == "right"
    assert one(load(tiny("llama"), padding_side="left"), shipped).padding == "left"


def test_a_batch_answers_each_row_as_it_would_alone(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    requests = [Request(text, GREEDY) for text in (LONG, SHORT, Text(text="w40"))]

    together = backend.generate(requests)

    assert [answer.ids for answer in together] == [one(backend, request).ids for request in requests]
    assert [answer.request for answer in together] == requests


def test_the_row_ends_at_its_own_eos(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    free = one(backend, Request(SHORT, Generation(do_sample=False, max_new_tokens=12)))
    backend.model.generation_config.eos_token_id = [1, free.ids[4]]

    (stopped, other) = backend.generate([Request(SHORT, GREEDY), Request(LONG, GREEDY)])

    first = free.ids.index(free.ids[4])
    assert stopped.ids == free.ids[: first + 1]
    assert stopped.finish == "eos"
    assert len(stopped.steps) == len(stopped.ids) == len(stopped.tokens)
    assert len(other.ids) > 0


def test_the_limit_is_a_finish_of_its_own(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    backend.model.generation_config.eos_token_id = None
    completion = one(backend, Request(SHORT, GREEDY))

    assert (completion.finish, completion.new_tokens) == ("length", 12)


def test_a_stop_string_is_seen_in_ids(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama", spells=True))
    backend.model.generation_config.eos_token_id = None
    free = one(backend, Request(SHORT, GREEDY))
    letter = next(token for token in free.tokens[2:] if token.isprintable() and token.strip())
    stopping = Generation(do_sample=False, max_new_tokens=12, stop_strings=(letter,))

    stopped, other = backend.generate([Request(SHORT, stopping), Request(LONG, stopping)])

    assert stopped.finish == "stop"
    assert stopped.ids == free.ids[: free.tokens.index(letter) + 1]
    assert letter in stopped.text
    assert (other.finish == "stop") == (letter in other.text)


def test_generation_really_ends_at_the_stop_string(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama", spells=True))
    backend.model.generation_config.eos_token_id = None
    letter = next(t for t in one(backend, Request(SHORT, GREEDY)).tokens[2:] if t.isprintable() and t.strip())
    forwards = []
    backend.model.register_forward_hook(lambda *_: forwards.append(1))

    stopped = one(backend, Request(SHORT, Generation(do_sample=False, max_new_tokens=12, stop_strings=(letter,))))

    assert len(forwards) == stopped.new_tokens < 12


def test_an_eos_in_the_prompt_does_not_end_the_row(tiny: Any, load: Any) -> None:
    completion = one(load(tiny("llama")), Request(Text(text="w1 <eos> w2"), GREEDY))

    assert completion.prompt_ids[1] == 1
    assert completion.new_tokens > 1


def test_unset_length_is_the_librarys_default(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    backend.model.generation_config.eos_token_id = None

    assert one(backend, Request(SHORT, Generation(do_sample=False))).new_tokens == 20


def test_the_effective_config_shows_what_the_suite_did_not_say(tiny: Any, load: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "sampling")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"do_sample": True, "temperature": 3.0}))
    backend = load(folder)

    completion = one(backend, Request(SHORT, Generation(max_new_tokens=6)))

    assert completion.generation_config["do_sample"] is True
    assert completion.generation_config["temperature"] == 3.0
    assert backend.facts.generation_config["do_sample"] is True


def test_the_same_seed_samples_the_same_tokens(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    seven, eight = (Generation(do_sample=True, temperature=5.0, max_new_tokens=12, seed=seed) for seed in (7, 8))

    assert one(backend, Request(SHORT, seven)).ids == one(backend, Request(SHORT, seven)).ids
    assert one(backend, Request(SHORT, seven)).ids != one(backend, Request(SHORT, eight)).ids


def test_recorded_logprobs_are_raw_under_a_penalty(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    penalised = Generation(do_sample=False, max_new_tokens=1, repetition_penalty=5.0)

    plain, with_penalty = one(backend, Request(SHORT, GREEDY)), one(backend, Request(SHORT, penalised))

    assert list(with_penalty.steps[0].top_logprobs) == pytest.approx(list(plain.steps[0].top_logprobs))


def test_beams_are_generated_without_recorded_steps(tiny: Any, load: Any) -> None:
    completion = one(load(tiny("llama")), Request(SHORT, Generation(do_sample=False, max_new_tokens=6, num_beams=3)))

    assert completion.new_tokens >= 1
    assert completion.steps == ()
    assert completion.generation_config["num_beams"] == 3


def test_without_a_cache_the_tokens_are_the_same(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    uncached = Generation(do_sample=False, max_new_tokens=12, use_cache=False)

    assert one(backend, Request(SHORT, uncached)).ids == one(backend, Request(SHORT, GREEDY)).ids


def test_messages_go_through_the_template_once(tiny: Any, load: Any) -> None:
    chat = Text(messages=(Message(role="user", content="w1 w2"),))
    completion = one(load(tiny("llama")), Request(chat, GREEDY))

    assert completion.prompt_text == "<s> w1 w2 <a>"
    assert completion.prompt_ids == (2, 6, 7, 3)


def test_bos_comes_once_from_the_template_or_from_the_tokenizer(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama", bos=True))
    chat = Text(messages=(Message(role="user", content="w1 w2"),))

    assert one(backend, Request(chat, GREEDY)).prompt_ids == (2, 6, 7, 3)
    assert one(backend, Request(SHORT, GREEDY)).prompt_ids == (2, 6, 7, 8)


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        (Request(Text(text=""), GREEDY), "invalid_request", "the prompt is empty"),
        (Request(Text(text="w1 " * 120), GREEDY), "invalid_request", "beyond the context of 128"),
        (
            Request(Text(messages=(Message(role="tool", content="w1"),)), GREEDY),
            "invalid_request",
            "chat template raised",
        ),
    ],
    ids=["empty", "too-long", "template-raises"],
)
def test_an_impossible_request_fails_alone(tiny: Any, load: Any, request_: Request, kind: str, says: str) -> None:
    bad, good = load(tiny("llama")).generate([request_, Request(SHORT, GREEDY)])

    assert isinstance(bad, Failure)
    assert bad.kind == kind
    assert says in bad.message
    assert isinstance(good, Completion)


def test_messages_without_a_template_are_refused(tiny: Any, load: Any) -> None:
    chat = Text(messages=(Message(role="user", content="w1"),))

    assert "has no chat template" in failure(load(tiny("llama", chat=False)), Request(chat, GREEDY)).message


def test_an_id_outside_the_vocabulary_is_refused(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama", vocab_size=50))

    assert "has 50 embeddings" in failure(backend, Request(Text(text="w1 w80"), GREEDY)).message


def test_a_neighbour_that_cannot_run_is_left_out(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    completion = one(backend, Request(SHORT, GREEDY, Batch((Text(text=""), SHORT, LONG))))

    assert completion.batch_size == 2
    assert completion.ids == one(backend, Request(SHORT, GREEDY)).ids


def test_nan_weights_are_a_numeric_failure(tiny: Any, load: Any) -> None:
    import torch

    backend = load(tiny("llama"))
    with torch.no_grad():
        backend.model.model.norm.weight[0] = float("nan")

    assert failure(backend, Request(SHORT, GREEDY)).kind == "numeric"


def test_running_out_of_memory_halves_the_batch(tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    backend = load(tiny("llama"))
    requests = [Request(Text(text=f"w{n} w{n + 1}"), GREEDY) for n in range(5)]
    expected = [one(backend, request).ids for request in requests]
    whole = backend._generate_batch

    def small_memory(batch: Any) -> Any:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return whole(batch)

    monkeypatch.setattr(backend, "_generate_batch", small_memory)
    answers = backend.generate(requests)

    assert [answer.ids for answer in answers] == expected
    assert all(answer.split_after_oom for answer in answers)


def test_a_single_row_that_does_not_fit_is_a_failure(tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def no_memory(batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    backend = load(tiny("llama"))
    monkeypatch.setattr(backend, "_generate_batch", no_memory)

    assert failure(backend, Request(SHORT, GREEDY)).kind == "out_of_memory"


def test_what_generate_raises_is_the_answer(tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(tiny("llama"))
    monkeypatch.setattr(backend.model, "generate", lambda **_: 1 / 0)

    assert "ZeroDivisionError" in failure(backend, Request(SHORT, GREEDY)).message


def test_no_pad_token_is_resolved_without_touching_the_tokenizer(tiny: Any, load: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "padless")
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        data = json.loads((folder / name).read_text())
        data.pop("pad_token", None)
        data.pop("pad_token_id", None)
        (folder / name).write_text(json.dumps(data))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    backend = load(folder)

    padded = one(backend, Request(SHORT, GREEDY, Batch((SHORT, LONG))))

    assert backend.facts.pad_token_id == 1
    assert "EOS" in backend.facts.pad_token_from
    assert backend.tokenizer.pad_token is None
    assert padded.ids == one(backend, Request(SHORT, GREEDY)).ids
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_missing_tensors_are_not_filled_with_random_numbers(tiny: Any, load: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny("llama"), tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelUnavailable, match=r"1 missing keys .*layers\.1\.mlp\.down_proj"):
        load(folder)


def test_facts_are_the_effective_ones(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"), attention="eager", dtype="bfloat16")
    one(backend, Request(SHORT, GREEDY))
    facts = backend.facts

    assert (facts.dtype, facts.attention, facts.device, facts.cache) == ("bfloat16", "eager", "cpu", "DynamicCache")
    assert (facts.context_window, facts.vocabulary, facts.eos_token_ids) == (128, 95, (1,))
    buffers = sum(b.numel() * b.element_size() for b in backend.model.buffers())
    assert facts.weight_bytes == 2 * sum(p.numel() for p in backend.model.parameters()) + buffers


def test_a_quantized_level_is_seen_in_the_weights(tiny: Any, load: Any) -> None:
    for level, module in (("nf4", "Linear4bit/nf4"), ("fp4", "Linear4bit/fp4"), ("int8", "Linear8bitLt/int8")):
        backend = load(tiny("llama"), level)

        assert backend.facts.modules[module] == 14
        assert one(backend, Request(SHORT, GREEDY)).precision == "bfloat16"


def test_a_level_that_is_not_there_is_an_error(tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.backends import quantizations

    monkeypatch.setattr(quantizations, "arguments", lambda name, dtype, device: {})

    with pytest.raises(LevelMismatch, match="asked for quantization 'nf4', but no weight is quantized so"):
        load(tiny("llama"), "nf4")


def test_warnings_are_counted_and_come_back_for_every_request(
    tiny: Any, load: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = load(tiny("llama"), "int8", dtype="bfloat16")
    first, second = one(backend, Request(SHORT, GREEDY)), one(backend, Request(LONG, GREEDY))

    (message,) = (text for text in first.warnings if "MatMul8bitLt" in text)
    assert first.warnings[message] >= 14
    assert any("MatMul8bitLt" in text for text in second.warnings)
    assert "MatMul8bitLt" not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_tokens(tiny: Any, load: Any) -> None:
    from harness.backends import process

    here = one(load(tiny("llama")), Request(SHORT, GREEDY))
    (there,) = process.generate(target(tiny("llama")), 20, [Request(SHORT, GREEDY, fresh_process=True)])

    assert isinstance(there, Completion)
    assert there.ids == here.ids
    assert [list(step.top_ids) for step in there.steps] == [list(step.top_ids) for step in here.steps]


@pytest.mark.slow
def test_a_fresh_process_that_cannot_load_says_why(tmp_path: Path) -> None:
    from harness.backends import process

    (there,) = process.generate(target(tmp_path / "nowhere"), 20, [Request(SHORT, GREEDY)])

    assert isinstance(there, Failure)
    assert "nowhere" in there.message


def test_autocast_around_us_does_not_reach_the_model(tiny: Any, load: Any) -> None:
    import torch

    backend = load(tiny("llama"))
    expected = one(backend, Request(SHORT, GREEDY))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = one(backend, Request(SHORT, GREEDY))

    assert [step.logprob for step in inside.steps] == [step.logprob for step in expected.steps]


@pytest.mark.gpu
def test_on_cuda_memory_is_the_devices_and_is_given_back(tiny: Any, load: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    backend = load(tiny("llama"), device="cuda")
    completion = one(backend, Request(SHORT, GREEDY))

    assert backend.facts.device == "cuda:0"
    assert backend.facts.weight_bytes < completion.memory_bytes < backend.facts.weight_bytes + 2**30
    backend.close()
    assert torch.cuda.memory_allocated() < 2**20


def prompt_of(backend: Any, prompt: Text = SHORT) -> Any:
    import torch

    return torch.tensor([backend.tokenizer(prompt.text)["input_ids"]])


@pytest.fixture
def fed(load: Any) -> Callable[[Any], list[list[list[int]]]]:
    """Everything that the model is fed from now on, call by call."""

    def listen(backend: Any) -> list[list[list[int]]]:
        calls: list[list[list[int]]] = []

        def keep(module: Any, args: Any, arguments: Any) -> None:
            calls.append(arguments["input_ids"].tolist())

        backend.model.register_forward_pre_hook(keep, with_kwargs=True)
        return calls

    return listen


def test_processed_scores_are_those_of_the_processors_by_hand(tiny: Any, load: Any) -> None:
    import torch

    backend = load(tiny("llama"))
    sampling = {"temperature": 0.5, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.5}
    generation = Generation(do_sample=True, max_new_tokens=4, **sampling)
    completion = one(backend, Request(SHORT, generation, "alone", kind="processed"))
    ids = prompt_of(backend)
    with torch.inference_mode():
        raw = backend.model(ids).logits[0, -1]

    scores, seen = raw.clone(), ids[0]
    scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 1.5, scores[seen] / 1.5)
    best = (scores / 0.5).topk(20)
    before = best.values.softmax(-1).cumsum(-1) - best.values.softmax(-1)  # of probability, likelier than each
    expected = torch.full_like(raw, -torch.inf)
    kept = best.indices[before < 0.8]
    expected[kept] = best.values[before < 0.8]

    assert 1 < len(kept) < 20
    assert list(completion.raw_logits) == pytest.approx(raw.tolist(), abs=1e-4)
    assert list(completion.processed_logits) == pytest.approx(expected.tolist(), abs=1e-4)
    assert completion.new_tokens == 0
    assert {name: completion.generation_config[name] for name in sampling} == sampling


def test_greedy_processes_nothing(tiny: Any, load: Any) -> None:
    import torch

    backend = load(tiny("llama"))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # it is not to reach the model
        completion = one(backend, Request(SHORT, GREEDY, "alone", kind="processed"))
    with torch.inference_mode():
        raw = backend.model(prompt_of(backend)).logits[0, -1]

    assert list(completion.processed_logits) == list(completion.raw_logits)
    assert list(completion.raw_logits) == pytest.approx(raw.tolist(), abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("arguments", [{}, {"min_new_tokens": 12, "repetition_penalty": 1.5}], ids=str)
def test_a_resumed_cache_gives_what_one_call_gives(
    tiny: Any, load: Any, fed: Any, architecture: str, arguments: dict[str, Any]
) -> None:
    backend = load(tiny(architecture))
    if not arguments:
        backend.model.generation_config.eos_token_id = None
    request = Request(SHORT, Generation(do_sample=False, max_new_tokens=12, **arguments), "alone")
    whole = one(backend, request)
    calls = fed(backend)
    resumed = one(backend, request.replace(resume_after=5))

    assert whole.new_tokens == 12
    assert (resumed.ids, resumed.finish) == (whole.ids, whole.finish)
    assert [step.logprob for step in resumed.steps] == pytest.approx([step.logprob for step in whole.steps], abs=1e-4)
    assert [len(rows[0]) for rows in calls] == [3, *[1] * 11]  # the prompt once, and no token twice


def test_an_end_before_the_second_call_is_the_end(tiny: Any, load: Any, fed: Any) -> None:
    backend = load(tiny("llama"))
    free = one(backend, Request(SHORT, GREEDY))
    backend.model.generation_config.eos_token_id = free.ids[2]
    whole = one(backend, Request(SHORT, GREEDY, "alone"))
    calls = fed(backend)

    for first in (whole.new_tokens, whole.new_tokens + 2):
        calls.clear()
        resumed = one(backend, Request(SHORT, GREEDY, "alone", resume_after=first))
        assert (resumed.ids, resumed.finish, len(resumed.steps)) == (whole.ids, "eos", whole.new_tokens)
        assert len(calls) == whole.new_tokens


def test_what_holds_eos_back_is_counted_over_both_calls(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    free = one(backend, Request(SHORT, GREEDY))
    held = Generation(do_sample=False, max_new_tokens=12, min_new_tokens=7)
    late = 0
    for token in free.ids[6:10]:
        backend.model.generation_config.eos_token_id = token
        whole = one(backend, Request(SHORT, held, "alone"))
        late += 7 < whole.new_tokens < 12
        resumed = one(backend, Request(SHORT, held, "alone", resume_after=6))
        assert (resumed.ids, resumed.finish, resumed.warnings) == (whole.ids, whole.finish, whole.warnings)
        assert whole.new_tokens >= 7

    assert late  # EOS came in the second call, once it was allowed


def test_without_a_cache_there_is_nothing_to_go_on_with(tiny: Any, load: Any) -> None:
    uncached = Generation(do_sample=False, max_new_tokens=12, use_cache=False)

    assert failure(load(tiny("llama")), Request(SHORT, uncached, "alone", resume_after=2)).kind == "not_supported"


def test_a_request_may_ask_for_another_attention(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    eager = one(backend, Request(SHORT, GREEDY, attention="eager"))
    loaded = one(load(tiny("llama"), attention="eager"), Request(SHORT, GREEDY))

    assert (eager.attention, one(backend, Request(SHORT, GREEDY)).attention) == ("eager", "sdpa")
    assert eager.ids == loaded.ids
    assert [step.logprob for step in eager.steps] == [step.logprob for step in loaded.steps]
    refused = failure(backend, Request(SHORT, GREEDY, attention="no_such_attention"))
    assert (refused.kind, refused.message.split(":")[0]) == (
        "not_supported",
        "attention no_such_attention cannot be used here",
    )


def test_a_request_may_ask_for_float32(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"), dtype="bfloat16")
    coarse, fine = (one(backend, Request(SHORT, GREEDY, "alone", float32=float32)) for float32 in (False, True))
    logprobs = [step.logprob for step in fine.steps]
    backend.model.float()
    ids, expected = greedy_by_hand(backend, fine.prompt_ids, 12)

    assert (coarse.precision, fine.precision) == ("bfloat16", "float32")
    assert list(fine.ids) == ids
    assert logprobs == pytest.approx([float(row[token]) for row, token in zip(expected, ids, strict=True)], abs=1e-4)
    assert logprobs[0] != coarse.steps[0].logprob


def test_float32_of_quantized_weights_is_not_to_be_had(tiny: Any, load: Any) -> None:
    refused = failure(load(tiny("llama"), "int8"), Request(SHORT, GREEDY, float32=True))

    assert (refused.kind, refused.message) == ("not_supported", "int8 weights cannot be cast to float32")


def test_all_sampled_sequences_come_back(tiny: Any, load: Any) -> None:
    import torch

    backend = load(tiny("llama"))
    generation = Generation(do_sample=True, temperature=5.0, max_new_tokens=6, num_return_sequences=3, seed=4)
    completion = one(backend, Request(SHORT, generation, "alone"))
    torch.manual_seed(4)
    by_hand = backend.model.generate(
        prompt_of(backend), do_sample=True, temperature=5.0, max_new_tokens=6, num_return_sequences=3, pad_token_id=0
    )[:, 3:]

    assert len({returned.ids for returned in completion.returned}) == 3
    for returned, row in zip(completion.returned, by_hand.tolist(), strict=True):
        assert list(returned.ids) == row[: len(returned.ids)]
        assert set(row[len(returned.ids) :]) <= {0}
        assert returned.text == backend.tokenizer.decode(returned.ids, skip_special_tokens=True)
        assert returned.score is None
    assert completion.ids == completion.returned[0].ids
    assert len(completion.steps) == completion.new_tokens


def test_all_returned_beams_come_back_with_their_scores(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    request = Request(SHORT, Generation(do_sample=False, **beams))
    first, second = (one(backend, request.replace(prompt=text)) for text in (SHORT, LONG))
    together = backend.generate([request, request.replace(prompt=LONG)])
    by_hand = backend.model.generate(
        prompt_of(backend),
        **beams,
        do_sample=False,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )

    assert [returned.score for returned in first.returned] == pytest.approx(by_hand.sequences_scores.tolist(), abs=1e-4)
    for returned, row in zip(first.returned, by_hand.sequences[:, 3:].tolist(), strict=True):
        assert list(returned.ids) == row[: len(returned.ids)]
    assert first.returned[0].ids != first.returned[1].ids
    for alone, batched in zip((first, second), together, strict=True):
        assert [returned.ids for returned in batched.returned] == [returned.ids for returned in alone.returned]
        assert batched.ids == alone.ids == alone.returned[0].ids


def test_one_sequence_is_no_list_of_sequences(tiny: Any, load: Any) -> None:
    assert one(load(tiny("llama")), Request(SHORT, GREEDY)).returned == ()


def test_what_stands_after_a_rows_own_end_is_kept_apart(tiny: Any, load: Any) -> None:
    backend = load(tiny("llama"))
    free = one(backend, Request(SHORT, GREEDY))
    backend.model.generation_config.eos_token_id = free.ids[2]
    layout = Batch((SHORT, LONG))
    stopped, longest = backend.generate([Request(text, GREEDY, layout) for text in (SHORT, LONG)])

    assert stopped.new_tokens < longest.new_tokens
    assert stopped.tail == (0,) * (longest.new_tokens - stopped.new_tokens)  # 0 pads
    assert longest.tail == ()


@pytest.mark.parametrize(
    ("arguments", "cache"),
    [({}, "DynamicCache"), ({"cache_implementation": "static"}, "StaticCache"), ({"use_cache": False}, "none")],
    ids=str,
)
def test_the_cache_that_was_really_used_is_recorded(
    tiny: Any, load: Any, arguments: dict[str, Any], cache: str
) -> None:
    backend = load(tiny("llama"))
    plain = one(backend, Request(SHORT, GREEDY))
    completion = one(backend, Request(SHORT, GREEDY.model_copy(update=arguments)))

    assert (completion.cache, completion.ids) == (cache, plain.ids)


@pytest.mark.parametrize("arguments", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}], ids=str)
def test_speculative_decoding_gives_the_tokens_without_recorded_steps(
    tiny: Any, load: Any, arguments: dict[str, Any]
) -> None:
    backend = load(tiny("llama"))
    plain = one(backend, Request(SHORT, GREEDY))
    drafted = one(backend, Request(SHORT, GREEDY.model_copy(update=arguments)))

    assert (drafted.ids, drafted.steps) == (plain.ids, ())
    assert {name: drafted.generation_config[name] for name in ("max_new_tokens", "do_sample")} == {
        "max_new_tokens": 12,
        "do_sample": False,
    }
    assert one(backend, Request(SHORT, GREEDY)).ids == plain.ids


ENCODER_DECODERS = ["t5", "bart"]


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_an_encoder_decoder_generates_what_a_loop_by_hand_generates(tiny: Any, load: Any, architecture: str) -> None:
    import torch

    backend = load(tiny(architecture))
    config = backend.model.generation_config
    config.forced_eos_token_id = config.eos_token_id = None  # bart ends at the limit, whatever it would say
    completion = one(backend, Request(SHORT, GREEDY))
    start = config.decoder_start_token_id
    row, logprobs = [config.bos_token_id if start is None else start], []
    with torch.inference_mode():
        for _ in range(12):
            inputs = {"input_ids": prompt_of(backend), "decoder_input_ids": torch.tensor([row])}
            logits = backend.model(**inputs, use_cache=False).logits[0, -1]
            if len(row) == 1 and config.forced_bos_token_id is not None:
                logits = torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor(config.forced_bos_token_id), 0)
            row.append(int(logits.argmax()))
            logprobs.append(float(logits.log_softmax(-1).max()))

    assert list(completion.ids) == row[1:]
    assert completion.prompt_ids == tuple(prompt_of(backend)[0].tolist())
    assert completion.cache == "EncoderDecoderCache"
    assert [step.logprob for step in completion.steps][1:] == pytest.approx(logprobs[1:], abs=1e-4)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_encoder_is_padded_on_the_right_where_pads_shift_nothing(
    tiny: Any, load: Any, architecture: str, side: Any
) -> None:
    backend = load(tiny(architecture))
    alone = one(backend, Request(SHORT, GREEDY, "alone"))
    padded = one(backend, Request(SHORT, GREEDY, Batch((SHORT, LONG), side)))

    assert (padded.pads, padded.padding) == (17, "right")
    assert padded.ids == alone.ids


@pytest.mark.parametrize(
    ("architecture", "traits"),
    [("llama", ()), ("t5", ("encoder_decoder",)), ("bart", ("encoder_decoder",)), ("dynamic_llama", ("dynamic_rope",))],
)
def test_traits_tell_what_does_not_apply(tiny: Any, load: Any, architecture: str, traits: tuple[str, ...]) -> None:
    assert load(tiny(architecture)).facts.traits == traits


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("t5 does not support prompt lookup"), "not_supported"),
        (NotImplementedError("unsupported cache"), "not_supported"),
        (ValueError("this is wrong"), "error"),
        (RuntimeError("this device does not support it"), "error"),
        (TypeError("unsupported operand type(s) for +: 'int' and 'NoneType'"), "error"),
        (TypeError("'tuple' object does not support item assignment"), "error"),
    ],
    ids=str,
)
def test_only_what_the_library_refuses_is_not_supported(
    tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    def refuse(**_: Any) -> Any:
        raise error

    backend = load(tiny("llama"))
    monkeypatch.setattr(backend.model, "generate", refuse)
    answer = failure(backend, Request(SHORT, GREEDY))

    assert (answer.kind, answer.message) == (kind, f"{type(error).__name__}: {error}")


def test_a_batch_may_be_padded_with_another_token(tiny: Any, load: Any, fed: Any) -> None:
    backend = load(tiny("llama"))
    alone = one(backend, Request(SHORT, GREEDY, "alone"))
    calls = fed(backend)
    padded = one(backend, Request(SHORT, GREEDY, Batch((SHORT, LONG), pad_token_id=77)))

    assert calls[0][0] == [77] * 17 + list(alone.prompt_ids)
    assert padded.ids == alone.ids
    assert padded.generation_config["pad_token_id"] == 77


def test_ids_are_gone_on_with_as_they_stand(tiny: Any, load: Any, fed: Any) -> None:
    backend = load(tiny("llama", bos=True))
    calls = fed(backend)
    whole = one(backend, Request(SHORT, GREEDY, "alone"))
    assert whole.prompt_ids[0] == 2
    rest = one(backend, Request(Text(ids=(*whole.prompt_ids, *whole.ids[:3])), GREEDY, "alone"))

    assert rest.prompt_ids == (*whole.prompt_ids, *whole.ids[:3])
    assert [list(rest.prompt_ids)] in calls  # no second BOS
    assert rest.ids[:9] == whole.ids[3:]
