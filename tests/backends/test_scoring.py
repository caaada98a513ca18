"""One forward pass over prompt and continuation, against the model called by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness import backends
from harness.inputs import Generation, Model
from harness.record import Batch, Completion, Failure, Request, Target, Text

GREEDY = Generation(do_sample=False, max_new_tokens=6)
SHORT, LONG = Text(text="w1 w2 w3"), Text(text=" ".join(f"w{n}" for n in range(5, 17)))
SCORED = Request(SHORT, GREEDY, "alone", kind="score", continuation=(20, 30, 40))
PADS = 9
# Positions that are learned or added tell where the pads are; those of a rotary embedding are only differences.
ABSOLUTE, RELATIVE = "gpt2", "llama"


@pytest.fixture(scope="module")
def load(tiny: Any) -> Callable[..., Any]:
    loaded: dict[Any, Any] = {}

    def build(architecture: str = RELATIVE, **model: Any) -> Any:
        key = (architecture, *model.items())
        if key not in loaded:
            settings = {"dtype": "float32", "device": "cpu"} | model
            loaded[key] = backends.load(Target("tiny", "tiny", Model(path=str(tiny(architecture)), **settings)))
        return loaded[key]

    return build


def scored(backend: Any, request: Request) -> Completion:
    (answer,) = backend.generate([request])
    assert isinstance(answer, Completion), answer
    return answer


def forward(backend: Any, rows: list[list[int]], **inputs: Any) -> torch.Tensor:
    with torch.inference_mode():
        return backend.model(input_ids=torch.tensor(rows), use_cache=False, **inputs).logits.log_softmax(-1)


def prompt(backend: Any, text: Text = SHORT) -> list[int]:
    return list(backend.tokenizer(text.text)["input_ids"])


def assert_is(completion: Completion, expected: torch.Tensor) -> None:
    """The completion is what these log-probabilities say, place by place."""
    assert completion.ids == tuple(expected.argmax(-1).tolist())
    for step, place in zip(completion.steps, expected, strict=True):
        values, ids = place.topk(20)
        assert list(step.top_ids) == ids.tolist()
        assert list(step.top_logprobs) == pytest.approx(values.tolist(), abs=1e-5)
        assert step.logprob == pytest.approx(float(place.max()), abs=1e-5)


@pytest.mark.parametrize("architecture", [RELATIVE, ABSOLUTE, "opt"])
def test_it_is_the_argmax_at_each_place_of_the_continuation(load: Any, architecture: str) -> None:
    backend = load(architecture)
    ids = prompt(backend)
    logprobs = forward(backend, [[*ids, 20, 30]])[0]
    completion = scored(backend, SCORED)

    assert_is(completion, logprobs[len(ids) - 1 :])  # what follows the prompt, the 20 and the 30
    assert completion.new_tokens == 3
    assert completion.prompt_ids == tuple(ids)
    assert (completion.pads, completion.padding, completion.batch_size) == (0, "", 1)


def test_the_height_of_the_largest_logit_is_kept(load: Any) -> None:
    backend = load()
    with torch.inference_mode():
        logits = backend.model(input_ids=torch.tensor([[*prompt(backend), 20, 30]])).logits[0, 2:]

    heights = [step.max_logit for step in scored(backend, SCORED).steps]
    assert heights == pytest.approx(logits.amax(-1).tolist(), abs=1e-4)


def test_without_a_continuation_it_is_the_first_new_token(load: Any) -> None:
    backend = load()
    completion = scored(backend, SCORED.replace(continuation=()))

    assert_is(completion, forward(backend, [prompt(backend)])[0, -1:])


def test_what_was_generated_scores_as_itself(load: Any) -> None:
    backend = load()
    (generated,) = backend.generate([Request(SHORT, GREEDY, "alone")])

    assert scored(backend, SCORED.replace(continuation=generated.ids)).ids == generated.ids


def test_it_ends_as_the_last_token_says(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load()
    completion = scored(backend, SCORED)
    assert completion.finish == "length"

    for ends, finish in (((1, completion.ids[-1]), "eos"), ((completion.ids[0],), "length")):
        monkeypatch.setattr(backend.prompts, "facts", dataclasses.replace(backend.facts, eos_token_ids=ends))
        assert scored(backend, SCORED).finish == finish


@pytest.mark.parametrize("architecture", [RELATIVE, ABSOLUTE])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", [False, True])
def test_in_a_padded_batch_it_is_what_one_would_pass_by_hand(
    load: Any, architecture: str, side: Any, positions: bool
) -> None:
    backend = load(architecture)
    own, long = [*prompt(backend), 20, 30], prompt(backend, LONG)
    pads, zeros, ones = [0] * (len(long) - len(own)), [0] * (len(long) - len(own)), [1] * len(own)
    left = side == "left"
    mask = torch.tensor([zeros + ones if left else ones + zeros, [1] * len(long)])
    counted = {"position_ids": torch.tensor([[*zeros, 0, 1, 2, 3, 4], list(range(12))])} if left and positions else {}
    rows = forward(backend, [pads + own if left else own + pads, long], attention_mask=mask, **counted)

    completion = scored(backend, SCORED.replace(layout=Batch((SHORT, LONG), side), position_ids=positions))

    assert_is(completion, rows[0, -3:] if left else rows[0, 2:5])
    assert (completion.pads, completion.padding, completion.batch_size) == (len(pads), side, 2)


def test_position_ids_make_a_left_padded_row_what_it_is_alone(load: Any) -> None:
    backend = load(ABSOLUTE)
    prompts = [Text(text=f"w{n} w{n + 1} w{n + 2}") for n in range(8)]
    alone = [scored(backend, SCORED.replace(prompt=text)).ids for text in prompts]

    def padded(**fields: Any) -> list[tuple[int, ...]]:
        return [scored(backend, SCORED.replace(prompt=p, layout=Batch((p, LONG)), **fields)).ids for p in prompts]

    assert padded(position_ids=True) == alone
    assert padded() != alone


@pytest.mark.parametrize(("deployed", "side"), [("left", "left"), ("right", "right"), (None, "right")])
def test_padded_as_shipped_it_is_padded_on_that_side(load: Any, deployed: str | None, side: Any) -> None:
    backend = load(ABSOLUTE, padding_side=deployed)
    shipped, said = (SCORED.replace(layout=Batch((SHORT, LONG), name), position_ids=True) for name in ("shipped", side))

    assert scored(backend, shipped).padding == side
    assert scored(backend, shipped).ids == scored(backend, said).ids == scored(backend, SCORED).ids


def test_a_mask_that_is_left_out_is_left_out(load: Any) -> None:
    backend = load()
    own, long = [*prompt(backend), 20, 30], prompt(backend, LONG)
    rows = forward(backend, [[7] * (len(long) - len(own)) + own, long])
    layout = Batch((SHORT, LONG), attention_mask=False, pad_token_id=7)

    assert_is(scored(backend, SCORED.replace(layout=layout, position_ids=True)), rows[0, -3:])


def test_a_masked_pad_is_seen_by_nobody(load: Any) -> None:
    backend = load()
    answers = [scored(backend, SCORED.replace(layout=Batch((SHORT, LONG), pad_token_id=n))) for n in (0, 7, 94)]

    assert [list(a.steps[0].top_logprobs) for a in answers] == [list(answers[0].steps[0].top_logprobs)] * 3


def test_several_requests_are_answered_each_by_itself(load: Any) -> None:
    backend = load()
    requests = [SCORED.replace(continuation=ids) for ids in ((5,), (5, 6, 7), ())]

    assert [answer.new_tokens for answer in backend.generate(requests)] == [1, 3, 1]


def test_ids_are_scored_as_they_stand(load: Any) -> None:
    backend = load()
    completion = scored(backend, SCORED.replace(prompt=Text(ids=(20, 2, 40))))

    assert_is(completion, forward(backend, [[20, 2, 40, 20, 30]])[0, 2:])
    assert completion.prompt_ids == (20, 2, 40)


def test_another_attention_and_float32_hold_for_scoring_too(load: Any) -> None:
    backend = load(dtype="bfloat16")
    plain, other = scored(backend, SCORED), scored(backend, SCORED.replace(attention="eager", float32=True))

    assert (plain.attention, plain.precision) == ("sdpa", "bfloat16")
    assert (other.attention, other.precision) == ("eager", "float32")
    assert list(other.steps[0].top_logprobs) != list(plain.steps[0].top_logprobs)


def test_an_encoder_decoder_has_no_continuation_of_its_prompt(load: Any) -> None:
    (answer,) = load("t5").generate([SCORED])

    assert isinstance(answer, Failure)
    assert answer.kind == "not_supported"
