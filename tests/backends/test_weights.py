"""What weights really are, and the bytes that they really take, against sizes worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.backends import loading, weights
from harness.inputs import Model
from harness.record import Target

NUMBERS = 64 * 64


def bitsandbytes(kind: str, **arguments: Any) -> Any:
    from bitsandbytes import nn

    layer = getattr(nn, kind)(64, 64, bias=False, **arguments)
    torch.manual_seed(0)
    layer.weight.data = torch.randn(64, 64)
    return layer.to("cpu")  # this is where it quantizes


def torchao(name: str, **arguments: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Linear(64, 64, bias=False)
    if "group" in arguments:
        where = "granularity" if name.startswith("Intx") else "weight_granularity"
        arguments = {"weight_dtype": torch.int4, where: quantization.PerGroup(arguments["group"])}
    quantization.quantize_(layer, getattr(quantization, name)(**arguments))
    return layer


def quanto(name: str) -> Any:
    library = pytest.importorskip("optimum.quanto")
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    library.quantize(layer, weights=getattr(library, name))
    library.freeze(layer)
    return layer


SCALES = 64 * 4  # one float32 for each row, or for each block of 64 numbers
LAYERS: dict[str, tuple[Callable[[], Any], str, int]] = {
    "int8": (lambda: bitsandbytes("Linear8bitLt", has_fp16_weights=False), "Linear8bitLt/int8", NUMBERS + SCALES),
    # and the 16 float32 that four bits stand for
    "nf4": (
        lambda: bitsandbytes("Linear4bit", quant_type="nf4", compress_statistics=False),
        "Linear4bit/nf4",
        NUMBERS // 2 + SCALES + 16 * 4,
    ),
    "fp4": (
        lambda: bitsandbytes("Linear4bit", quant_type="fp4", compress_statistics=False),
        "Linear4bit/fp4",
        NUMBERS // 2 + SCALES + 16 * 4,
    ),
    # its scales are bytes; one float32 for 256 of them, the 256 float32 that they stand for, and an offset
    "nf4-dq": (
        lambda: bitsandbytes("Linear4bit", quant_type="nf4"),
        "Linear4bit/nf4-dq",
        NUMBERS // 2 + 64 + 16 * 4 + (4 + 256 * 4 + 4),
    ),
    # torchao keeps a zero point besides, a byte
    "torchao-int8wo": (lambda: torchao("Int8WeightOnlyConfig"), "Linear/Int8Tensor", NUMBERS + SCALES + 64),
    "torchao-int8dyn": (
        lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
        "Linear/Int8Tensor/dynamic",
        NUMBERS + SCALES + 64,
    ),
    # 4 bits, in a byte each: two groups of 32 in a row
    "torchao-intx4": (
        lambda: torchao("IntxWeightOnlyConfig", group=32),
        "Linear/IntxUnpackedToInt8Tensor:int4",
        NUMBERS + 2 * 64 * (4 + 1),
    ),
    "torchao-8da4w": (
        lambda: torchao("Int8DynamicActivationIntxWeightConfig", group=32),
        "Linear/IntxUnpackedToInt8Tensor:int4/dynamic",
        NUMBERS + 2 * 64 * (4 + 1),
    ),
    "torchao-fp8wo": (lambda: torchao("Float8WeightOnlyConfig"), "Linear/Float8Tensor", NUMBERS + SCALES),
    # quanto's layers hold two scales of activations, unused
    "quanto-int8": (lambda: quanto("qint8"), "QLinear/qint8", NUMBERS + SCALES + 2 * 4),
    "quanto-float8": (lambda: quanto("qfloat8"), "QLinear/qfloat8_e4m3fn", NUMBERS + SCALES + 2 * 4),
    # a scale and a shift for each group, which is a row here
    "quanto-int4": (lambda: quanto("qint4"), "QLinear/qint4", NUMBERS // 2 + 2 * SCALES + 2 * 4),
}


@pytest.mark.parametrize(("make", "module", "wanted"), LAYERS.values(), ids=LAYERS)
def test_all_that_a_quantized_layer_holds_is_counted(make: Callable[[], Any], module: str, wanted: int) -> None:
    effective = weights.inspect(torch.nn.Sequential(make()))

    assert effective.modules == {module: 1}
    assert effective.weight_bytes == wanted
    assert effective.dtype == ""  # no weight is unquantized


def test_shared_weights_are_counted_once_and_buffers_too() -> None:
    embedding = torch.nn.Embedding(10, 4)
    head = torch.nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    norm = torch.nn.BatchNorm1d(3)  # 4 × 3 float32 and an int64
    model = torch.nn.Sequential(embedding, head, torch.nn.Linear(4, 4, dtype=torch.bfloat16), norm)
    effective = weights.inspect(model)

    assert effective.weight_bytes == 10 * 4 * 4 + (4 * 4 + 4) * 2 + 4 * 3 * 4 + 8
    assert effective.modules == {
        "Embedding/float32": 1,
        "Linear/float32": 1,
        "Linear/bfloat16": 1,
        "BatchNorm1d/float32": 1,
    }
    assert effective.dtype == "float32"


def test_experts_in_one_tensor_are_seen(tiny: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny("mixtral"))
    effective = weights.inspect(model)

    assert effective.weight_bytes >= 4 * sum(weight.numel() for weight in model.parameters())
    experts = [weight for weight in model.parameters() if weight.ndim == 3]
    assert bool(experts) == ("MixtralExperts/float32" in effective.modules)


def test_what_a_quantizer_spares_is_no_fault() -> None:
    model = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(4, 4), "forgotten": torch.nn.Linear(4, 4)})
    assert weights.inspect(model).left_out == ("lm_head", "forgotten")
    model.hf_quantizer = SimpleNamespace(modules_to_not_convert=["lm_head"])
    assert weights.inspect(model).left_out == ("forgotten",)


def resident_file_pages() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


def test_weights_are_read_and_the_file_is_let_go_of(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    size = 2**24
    save_file({"large": torch.ones(size // 4), "small": torch.ones(4)}, str(tmp_path / "w.safetensors"))
    before = resident_file_pages()
    mapped = load_file(tmp_path / "w.safetensors")
    model = torch.nn.ParameterDict(mapped)
    weights.bring_in(model, apart=False)
    assert resident_file_pages() - before > 0.9 * size  # read, where it lies

    del mapped
    small = torch.nn.ParameterDict({"small": model["small"]})
    del model
    weights.bring_in(small, apart=True)
    assert resident_file_pages() - before < 0.1 * size  # the small one would have kept all of it
    assert small["small"].tolist() == [1, 1, 1, 1]


def test_tied_weights_stay_tied(tiny: Callable[..., Path]) -> None:
    target = Target("t", "t", Model(path=str(tiny(tie_word_embeddings=True)), device="cpu"), "int8")
    model = loading.open_target(target, lambda _: None).model
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
