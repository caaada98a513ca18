"""The table of levels: what is asked for, what this machine can run, and refusing what is something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from harness.backends import load
from harness.backends.quantizations import LEVELS, Effective, arguments, check, quantized
from harness.errors import LevelMismatch, LevelUnavailable
from harness.inputs import Generation, Model
from harness.record import Completion, Request, Target, Text

PLAIN = Effective({"Linear/float32": 3}, "float32", 100)
NF4 = Effective({"Linear4bit/nf4": 3, "Linear/float32": 1}, "float32", 100)
NF4_DQ = Effective({"Linear4bit/nf4-dq": 3}, "float32", 100)
INT8_DYNAMIC = Effective({"Linear/Int8Tensor/dynamic": 3}, "float32", 100)

# What each level makes of the tiny model's 14 linear layers, the output embedding apart.
ON_CPU = {
    "none": "Linear/float32",
    "fp32": "Linear/float32",
    "bf16": "Linear/bfloat16",
    "fp16": "Linear/float16",
    "int8": "Linear8bitLt/int8",
    "nf4": "Linear4bit/nf4",
    "nf4-dq": "Linear4bit/nf4-dq",
    "fp4": "Linear4bit/fp4",
    "torchao-int8wo": "Linear/Int8Tensor",
    "torchao-int8dyn": "Linear/Int8Tensor/dynamic",
    "torchao-int4wo-cpu": "Linear/Int4OpaqueTensor",
    "torchao-intx4": "Linear/IntxUnpackedToInt8Tensor:int4",
    "torchao-8da4w": "Linear/IntxUnpackedToInt8Tensor:int4/dynamic",
    "torchao-fp8wo": "Linear/Float8Tensor",
    "quanto-int8": "QLinear/qint8",
    "quanto-float8": "QLinear/qfloat8_e4m3fn",
}
COMPILED = {"quanto-int4": "QLinear/qint4"}
ELSEWHERE = {"torchao-int4wo": (8, 0), "torchao-fp8dyn": (8, 9), "fp8": (8, 9), "fbgemm-fp8": (9, 0)}


@pytest.mark.parametrize(
    ("level", "dtype", "effective", "says"),
    [
        ("nf4", "float32", PLAIN, "asked for quantization 'nf4', but no weight is quantized so: 3 Linear/float32"),
        ("fp4", "float32", NF4, "asked for quantization 'fp4'"),
        ("int8", "float32", NF4, "asked for quantization 'int8'"),
        ("nf4", "float32", NF4_DQ, "asked for quantization 'nf4'"),
        ("nf4-dq", "float32", NF4, "asked for quantization 'nf4-dq'"),
        ("torchao-int8wo", "float32", INT8_DYNAMIC, "asked for quantization 'torchao-int8wo'"),
        ("torchao-int8wo", "float32", PLAIN, "Upgrade torchao and transformers. Or take the level out"),
        ("none", "float32", NF4, r"the checkpoint is quantized(.|\n)*Ask for the level that it is \(nf4\)"),
        ("fp32", "float32", NF4, "the checkpoint is quantized"),
        ("none", "bfloat16", PLAIN, "asked for dtype bfloat16, but the weights are float32"),
        ("bf16", "float32", PLAIN, "asked for dtype bfloat16, but the weights are float32"),
        (
            "gguf",
            "auto",
            PLAIN,
            r"'gguf', but no weight is quantized so: 3 Linear/float32\n  Ask for none, which is what",
        ),
        ("nf4", "auto", replace(NF4, left_out=("a", "b")), r"2 layer\(s\) were silently left .*, the first is a: "),
    ],
)
def test_what_was_not_asked_for_is_an_error(level: str, dtype: str, effective: Effective, says: str) -> None:
    with pytest.raises(LevelMismatch, match=says):
        check(level, dtype, effective)


@pytest.mark.parametrize(
    ("level", "dtype", "effective"),
    [
        ("none", "float32", PLAIN),
        ("none", "auto", PLAIN),
        ("none", "auto", replace(PLAIN, left_out=("a",))),
        ("fp32", "bfloat16", PLAIN),
        ("nf4", "auto", NF4),
        ("nf4", "bfloat16", NF4),
        ("nf4-dq", "auto", NF4_DQ),
    ],
)
def test_what_was_asked_for_is_accepted(level: str, dtype: str, effective: Effective) -> None:
    check(level, dtype, effective)


@pytest.mark.parametrize(
    ("level", "remedy"),
    [
        ("nf4", "pip install bitsandbytes"),
        ("torchao-int8wo", 'pip install "harness[torchao]"'),
        ("quanto-int8", 'pip install "harness[quanto]"'),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(level: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)

    with pytest.raises(LevelUnavailable, match=f"quantization '{level}' needs {LEVELS[level].needs[0]}, ") as error:
        arguments(level, "float32")
    assert error.value.remedy == remedy


@pytest.mark.parametrize(("level", "capability"), ELSEWHERE.items())
def test_levels_for_gpus_say_what_they_need(
    level: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    wanted = f"{capability[0]}.{capability[1]}"
    with pytest.raises(LevelUnavailable, match=f"needs a CUDA GPU of .* {wanted} or later, .* is on cpu") as error:
        arguments(level, "auto")
    named = error.value.remedy.removesuffix(".").split(" ask for ")[1].split(" or ")
    assert set(named) <= LEVELS.keys()
    assert not {LEVELS[name].device for name in named} & {"cuda"}  # what the remedy names is to be had here

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(LevelUnavailable, match=f"{wanted} or later, and cuda:1 has 7.5"):
        arguments(level, "auto", "cuda:1")


def test_a_level_for_cpus_is_refused_on_a_gpu() -> None:
    with pytest.raises(LevelUnavailable, match="'torchao-int4wo-cpu' needs a CPU, and this target is on cuda:0"):
        arguments("torchao-int4wo-cpu", "auto", "cuda:0")


def test_what_compiles_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optimum.quanto")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LevelUnavailable, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        arguments("quanto-int4", "float32")


def test_a_config_that_the_library_does_not_know_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    monkeypatch.delattr(quantization, "Int8WeightOnlyConfig")
    with pytest.raises(LevelUnavailable, match=r"Int8WeightOnlyConfig(.|\n)*Upgrade torchao and transformers"):
        arguments("torchao-int8wo", "float32")


def test_four_bit_computes_in_the_models_type() -> None:
    config = arguments("nf4", "bfloat16")["quantization_config"]

    assert str(config.bnb_4bit_compute_dtype) == "torch.bfloat16"
    assert config.bnb_4bit_quant_type == "nf4"
    assert not config.bnb_4bit_use_double_quant
    assert arguments("nf4-dq", "bfloat16")["quantization_config"].bnb_4bit_use_double_quant


def test_some_levels_choose_the_dtype_and_the_others_leave_it() -> None:
    chosen = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    assert {level: arguments(level, "auto") for level in ("none", *chosen)} == {
        "none": {"dtype": "auto"},
        **{level: {"dtype": dtype} for level, dtype in chosen.items()},
    }
    assert arguments("int8", "float32")["dtype"] == "float32"


def test_every_level_has_a_summary_that_says_what_it_needs() -> None:
    assert {*ON_CPU, *COMPILED, *ELSEWHERE, "gguf"} == set(LEVELS)
    assert [name for name in LEVELS if not quantized(name)] == ["none", "fp32", "bf16", "fp16"]
    for level in LEVELS.values():
        assert level.summary
        assert not level.install or level.install.removeprefix("pip install ").strip('"') in level.summary
        assert level.device != "cuda" or f"CUDA {'.'.join(map(str, level.capability))} or later" in level.summary
        assert not level.device or level.instead


def target(folder: Path, level: str) -> Target:
    return Target("tiny", "tiny", Model(path=str(folder), dtype="float32", device="cpu"), level)


def installed(level: str) -> None:
    for package in LEVELS[level].needs:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"needs {package}")


def loads_and_answers(folder: Path, level: str, module: str) -> None:
    installed(level)
    backend = load(target(folder, level))
    alone = Request(Text(text="w1 w2 w3"), Generation(do_sample=False, max_new_tokens=3))
    (answer,) = backend.generate([alone])

    assert backend.facts.modules[module] == (14 if quantized(level) else 15)
    assert isinstance(answer, Completion), answer
    assert 1 <= len(answer.ids) <= 3


@pytest.mark.parametrize(("level", "module"), ON_CPU.items())
def test_every_level_of_a_cpu_is_what_it_says(level: str, module: str, tiny: Callable[..., Path]) -> None:
    loads_and_answers(tiny(hidden_size=64, intermediate_size=128), level, module)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a C++ compiler at work
@pytest.mark.parametrize(("level", "module"), COMPILED.items())
def test_levels_that_compile_are_what_they_say(level: str, module: str, tiny: Callable[..., Path]) -> None:
    loads_and_answers(tiny(hidden_size=64, intermediate_size=128), level, module)


def test_layers_that_a_level_does_not_fit_are_not_passed_over(tiny: Callable[..., Path]) -> None:
    installed("torchao-int4wo-cpu")
    # Groups of 64 fit the 64 inputs of some layers and not the 96 of others, which torchao then leaves as they are.
    folder = tiny(hidden_size=64, intermediate_size=96)
    with pytest.raises(LevelMismatch, match=r"2 layer\(s\) were silently left .*first is model.layers.0.mlp.down_proj"):
        load(target(folder, "torchao-int4wo-cpu"))
    with pytest.raises(LevelUnavailable, match=r"'torchao-intx4' does not take the weights of .*96"):
        load(target(folder, "torchao-intx4"))


def test_experts_are_not_passed_over(tiny: Callable[..., Path]) -> None:
    import transformers

    folder = tiny("mixtral", hidden_size=64, intermediate_size=128)
    if transformers.__version__.startswith("4."):  # each expert has layers of its own there
        assert load(target(folder, "nf4")).facts.modules["Linear4bit/nf4"] == 34
    else:
        with pytest.raises(LevelMismatch, match=r"2 layer\(s\) were silently left .*model.layers.0.mlp.experts"):
            load(target(folder, "nf4"))
