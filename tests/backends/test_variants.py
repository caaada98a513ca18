"""Another attention or float32 for a while: what is computed meanwhile, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.backends.variants import all_layers, as_asked, attention, float32
from harness.errors import NotSupported, OutOfMemory
from harness.inputs import GREEDY
from harness.record import Request, Text

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
REQUEST = Request(Text(text="w1"), GREEDY)


@pytest.fixture
def model(tiny: Any) -> Any:
    """In bfloat16, with a buffer of each type that models have: finer, as fine, and of integers."""
    made = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.bfloat16).eval()
    torch.manual_seed(3)
    made.register_buffer("fine", torch.rand(64))
    made.register_buffer("coarse", torch.rand(64).to(torch.bfloat16))
    made.register_buffer("whole", torch.arange(64))
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def assert_unchanged(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = tensors(model)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(bits(after[name]), bits(tensor)), name


def test_in_float32_everything_is_float32_and_afterwards_it_is_what_it_was_bit_for_bit(model: Any) -> None:
    before = tensors(model)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16, torch.float32, torch.int64}

    with float32(model):
        inside = {tensor.dtype for tensor in tensors(model).values()}

    assert inside == {torch.float32, torch.int64}
    assert_unchanged(model, before)


def test_float32_computes_what_a_copy_cast_to_float32_computes(model: Any, tiny: Any) -> None:
    copy = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.bfloat16).float().eval()
    expected, coarse = logits(copy), logits(model)

    with float32(model):
        assert torch.equal(logits(model), expected)
    assert not torch.equal(coarse.float(), expected)
    assert torch.equal(logits(model), coarse)


def test_tied_weights_stay_tied_in_float32(tiny: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("gpt2"), dtype=torch.bfloat16)
    with float32(model):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert model.lm_head.weight.dtype == torch.float32
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("raised", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_the_types_are_restored_whatever_is_raised(model: Any, raised: type[BaseException]) -> None:
    before = tensors(model)
    with pytest.raises((KeyboardInterrupt, OutOfMemory)), float32(model):
        raise raised

    assert_unchanged(model, before)


def test_no_room_for_float32_is_said_and_leaves_the_weights_as_they_were(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, casts, cast = tensors(model), [], torch.Tensor.to

    def small_memory(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        casts.append(tensor)
        if len(casts) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cast(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", small_memory)
    with pytest.raises(OutOfMemory, match="no room for the weights in float32"), float32(model):
        pytest.fail("ran without room")

    assert len(casts) > 5
    assert_unchanged(model, before)


def test_another_attention_computes_what_it_computes_when_loaded_with_it(model: Any, tiny: Any) -> None:
    eager = AutoModelForCausalLM.from_pretrained(
        tiny("llama"), dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    before = model.config._attn_implementation
    assert before == "sdpa"

    with attention(model, "eager"):
        assert model.config._attn_implementation == "eager"
        inside = logits(model)

    assert model.config._attn_implementation == before
    assert torch.equal(inside, logits(eager))
    assert not torch.equal(inside, logits(model))


def test_the_attention_is_restored_whatever_is_raised(model: Any) -> None:
    with pytest.raises(KeyboardInterrupt), attention(model, "eager"):
        raise KeyboardInterrupt

    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("implementation", ["flash_attention_2", "no_such_attention"])
def test_an_attention_that_cannot_be_had_is_not_supported(
    model: Any, monkeypatch: pytest.MonkeyPatch, implementation: str
) -> None:
    def refuse(wanted: str) -> None:
        raise ImportError(f"{wanted} is not installed\nand more")

    if implementation == "flash_attention_2":  # it may be there on this machine
        monkeypatch.setattr(model, "_check_and_adjust_attn_implementation", lambda wanted, *_, **__: refuse(wanted))
    says = f"^attention {implementation} cannot be used here: .*[^\n]$"
    with pytest.raises(NotSupported, match=says), attention(model, implementation):
        pytest.fail("ran with it")

    assert model.config._attn_implementation == "sdpa"


def test_an_attention_that_is_taken_by_parts_of_the_model_alone_is_taken_back(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model, "set_attn_implementation", asked.append)  # it warns, and the model's own stays

    says = "this model has no attention implementation eager"
    with pytest.raises(NotSupported, match=says), attention(model, "eager"):
        pytest.fail("ran without it")

    assert asked == ["eager", "sdpa"]


@pytest.mark.parametrize("asked", [{"attention": "eager"}, {"float32": True}, {"attention": "eager", "float32": True}])
def test_a_request_gets_all_that_it_asks_for(model: Any, asked: dict[str, Any]) -> None:
    before = tensors(model)
    with as_asked(model, REQUEST.replace(**asked), "none"):
        assert model.config._attn_implementation == asked.get("attention", "sdpa")
        assert model.dtype == (torch.float32 if "float32" in asked else torch.bfloat16)

    assert model.config._attn_implementation == "sdpa"
    assert_unchanged(model, before)


def test_a_plain_request_changes_nothing(model: Any) -> None:
    before = {name: tensor.data_ptr() for name, tensor in model.named_parameters()}
    with as_asked(model, REQUEST, "nf4"):
        assert {name: tensor.data_ptr() for name, tensor in model.named_parameters()} == before


def test_quantized_weights_are_not_cast(model: Any) -> None:
    before, both = tensors(model), REQUEST.replace(attention="eager", float32=True)
    with pytest.raises(NotSupported, match="nf4 weights cannot be cast to float32"), as_asked(model, both, "nf4"):
        pytest.fail("ran")

    assert model.config._attn_implementation == "sdpa"
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (IndexError("list index out of range"), NotSupported),
        (AttributeError("x"), NotSupported),
        (KeyError(), KeyError),
    ],
    ids=["index", "attribute", "another"],
)
def test_a_draft_that_breaks_leaves_the_model_all_its_layers(
    model: Any, raised: Exception, told: type[Exception]
) -> None:
    def draft(early_exit: int | None) -> None:
        with all_layers(model, early_exit):
            model.config.num_hidden_layers = 1  # as the library does before it drafts
            raise raised

    with pytest.raises(told):
        draft(1)
    assert model.config.num_hidden_layers == 2
    with pytest.raises(type(raised)):
        draft(None)
