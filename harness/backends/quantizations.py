"""Quantization levels by name: how to ask for each, and what it must look like once it is loaded.

To add one: a row in LEVELS. Nothing heavy is imported until a row is used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from harness.errors import LevelMismatch, LevelUnavailable


@dataclass(frozen=True)
class Effective:
    """What the weights of a loaded model really are."""

    modules: Mapping[str, int]  # "Linear4bit/nf4": 210, counted over modules that hold weights
    dtype: str  # the dtype that most unquantized weights have
    weight_bytes: int  # of the storages of all weights and buffers, and of what dequantizes them; shared ones once
    left_out: tuple[str, ...] = ()  # linear layers and experts that a quantizer left as they were, and did not say so


@dataclass(frozen=True)
class Level:
    """A row of the table."""

    summary: str
    arguments: Callable[[str], dict[str, Any]]  # dtype name -> arguments of from_pretrained
    module: str = ""  # what the quantized modules are called in Effective.modules; "": unquantized
    needs: tuple[str, ...] = ()  # distributions that must be installed
    install: str = ""  # how; "": by their own names
    device: str = ""  # "cuda" or "cpu", where it runs on one of them only
    capability: tuple[int, int] = (0, 0)  # the least of a CUDA device
    compiles: bool = False  # its kernels are compiled when they are first used
    dtype: str = ""  # of the unquantized weights, whatever the model's dtype says
    instead: str = ""  # what to ask for where it cannot be had


def _plain(dtype: str) -> dict[str, Any]:
    return {}


def _bitsandbytes(**given: Any) -> Callable[[str], dict[str, Any]]:
    def build(dtype: str) -> dict[str, Any]:
        import_module("bitsandbytes")  # now: it is no part of what a model takes
        from transformers import BitsAndBytesConfig

        # Unset, 4-bit weights compute in float32 whatever the model's type is: slow on a GPU, and unannounced.
        compute = {"bnb_4bit_compute_dtype": dtype} if given.get("load_in_4bit") and dtype != "auto" else {}
        arguments = given | compute
        return {"quantization_config": BitsAndBytesConfig(**arguments)}

    return build


def _torchao(make: Callable[[Any], Any]) -> Callable[[str], dict[str, Any]]:
    """make: torchao.quantization -> one of its configs."""

    def build(dtype: str) -> dict[str, Any]:
        from torchao import quantization
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(make(quantization))}

    return build


def _int4_on_cpu(_: Any) -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=64, set_inductor_config=False)


def _intx4(library: Any) -> Any:
    import torch

    return library.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=library.PerGroup(64))


def _8da4w(library: Any) -> Any:
    import torch

    return library.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=library.PerGroup(32)
    )


def _quanto(weights: str) -> Callable[[str], dict[str, Any]]:
    def build(dtype: str) -> dict[str, Any]:
        import_module("optimum.quanto")
        from transformers import QuantoConfig

        return {"quantization_config": QuantoConfig(weights=weights)}

    return build


def _library(name: str) -> Callable[[str], dict[str, Any]]:
    """A config of transformers that needs nothing said."""

    def build(dtype: str) -> dict[str, Any]:
        import transformers

        return {"quantization_config": getattr(transformers, name)()}

    return build


_BITSANDBYTES = ("bitsandbytes",)
_TORCHAO: dict[str, Any] = {"needs": ("torchao",), "install": 'pip install "harness[torchao]"'}
_QUANTO: dict[str, Any] = {"needs": ("optimum-quanto",), "install": 'pip install "harness[quanto]"'}

# torchao's own settings of its compiler are left alone (set_inductor_config): they hold for the whole process, so they
# would change targets that are loaded later.
LEVELS: Mapping[str, Level] = {
    "none": Level("weights as they are, in the model's dtype", _plain),
    "fp32": Level("unquantized float32, whatever the model's dtype", _plain, dtype="float32"),
    "bf16": Level("unquantized bfloat16, whatever the model's dtype", _plain, dtype="bfloat16"),
    "fp16": Level("unquantized float16, whatever the model's dtype", _plain, dtype="float16"),
    "int8": Level("bitsandbytes LLM.int8()", _bitsandbytes(load_in_8bit=True), "Linear8bitLt/int8", _BITSANDBYTES),
    "nf4": Level(
        "bitsandbytes 4-bit NormalFloat",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "Linear4bit/nf4",
        _BITSANDBYTES,
    ),
    "nf4-dq": Level(
        "bitsandbytes 4-bit NormalFloat, its scales quantized too",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "Linear4bit/nf4-dq",
        _BITSANDBYTES,
    ),
    "fp4": Level(
        "bitsandbytes 4-bit float",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        "Linear4bit/fp4",
        _BITSANDBYTES,
    ),
    "torchao-int8wo": Level(
        "torchao 8-bit weights; harness[torchao]",
        _torchao(lambda library: library.Int8WeightOnlyConfig(set_inductor_config=False)),
        "Linear/Int8Tensor",
        **_TORCHAO,
    ),
    "torchao-int8dyn": Level(
        "torchao 8-bit weights and activations; harness[torchao]",
        _torchao(lambda library: library.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)),
        "Linear/Int8Tensor/dynamic",
        **_TORCHAO,
    ),
    "torchao-int4wo": Level(
        "torchao 4-bit weights in groups of 64, bfloat16; CUDA 8.0 or later, harness[torchao]",
        _torchao(
            lambda library: library.Int4WeightOnlyConfig(
                group_size=64, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            )
        ),
        "Linear/Int4TilePackedTo4dTensor",
        device="cuda",
        capability=(8, 0),
        dtype="bfloat16",
        instead="torchao-int4wo-cpu or nf4",
        **_TORCHAO,
    ),
    "torchao-int4wo-cpu": Level(
        "torchao 4-bit weights in groups of 64, as a CPU takes them; harness[torchao]",
        _torchao(_int4_on_cpu),
        "Linear/Int4OpaqueTensor",
        device="cpu",
        instead="torchao-int4wo or nf4",
        **_TORCHAO,
    ),
    "torchao-intx4": Level(
        "torchao 4-bit weights in groups of 64, a byte each in memory; harness[torchao]",
        _torchao(_intx4),
        "Linear/IntxUnpackedToInt8Tensor:int4",
        **_TORCHAO,
    ),
    "torchao-8da4w": Level(
        "torchao 4-bit weights in groups of 32, a byte each in memory, 8-bit activations; harness[torchao]",
        _torchao(_8da4w),
        "Linear/IntxUnpackedToInt8Tensor:int4/dynamic",
        **_TORCHAO,
    ),
    "torchao-fp8wo": Level(
        "torchao float8 weights; harness[torchao]",
        _torchao(lambda library: library.Float8WeightOnlyConfig(set_inductor_config=False)),
        "Linear/Float8Tensor",
        **_TORCHAO,
    ),
    "torchao-fp8dyn": Level(
        "torchao float8 weights and activations; CUDA 8.9 or later, harness[torchao]",
        _torchao(lambda library: library.Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False)),
        "Linear/Float8Tensor/dynamic",
        device="cuda",
        capability=(8, 9),
        instead="torchao-fp8wo",
        **_TORCHAO,
    ),
    "quanto-int8": Level("quanto 8-bit weights; harness[quanto]", _quanto("int8"), "QLinear/qint8", **_QUANTO),
    "quanto-int4": Level(
        "quanto 4-bit weights, compiled when first used; a C++ compiler, harness[quanto]",
        _quanto("int4"),
        "QLinear/qint4",
        compiles=True,
        **_QUANTO,
    ),
    "quanto-float8": Level(
        "quanto float8 weights; harness[quanto]", _quanto("float8"), "QLinear/qfloat8_e4m3fn", **_QUANTO
    ),
    "fp8": Level(
        "transformers' float8 in blocks of 128 × 128; CUDA 8.9 or later, the package kernels",
        _library("FineGrainedFP8Config"),
        "FP8Linear/float8_e4m3fn",
        ("kernels",),
        device="cuda",
        capability=(8, 9),
        instead="torchao-fp8wo",
    ),
    "fbgemm-fp8": Level(
        "FBGEMM float8 weights and activations, bfloat16; CUDA 9.0 or later, the package fbgemm-gpu",
        _library("FbgemmFp8Config"),
        "FbgemmFp8Linear/float8_e4m3fn",
        ("fbgemm-gpu",),
        device="cuda",
        capability=(9, 0),
        dtype="bfloat16",
        instead="torchao-fp8wo",
    ),
    "gguf": Level(
        "a GGUF file's own blocks; refused, because they are unpacked when they are loaded",
        _plain,
        "GgufLinear/uint8",
        instead="none, which is what a GGUF file runs as here, or nf4 or torchao-int4wo-cpu, which stay at 4 bits",
    ),
}


def quantized(name: str) -> bool:
    """Whether this level quantizes weights at all."""
    return bool(LEVELS[name].module)


def arguments(name: str, dtype: str, device: str = "cpu") -> dict[str, Any]:
    """Loading arguments for this level, dtype among them, or why this machine cannot run it."""
    level = LEVELS[name]
    _refuse_machine(name, level, device)
    _refuse_installation(name, level)
    wanted = level.dtype or dtype
    try:
        return {"dtype": wanted, **level.arguments(wanted)}
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        # Another version than that which the row was written for: names and arguments come and go.
        raise LevelUnavailable(
            f"quantization {name!r} cannot be asked for here: {error}", f"Upgrade {_libraries(level)}."
        ) from error


def _refuse_machine(name: str, level: Level, device: str) -> None:
    kind = device.partition(":")[0]
    remedy = f"Run it on such a device, or ask for {level.instead}."
    capability = ".".join(map(str, level.capability))
    if level.device and kind != level.device:
        wanted = f"a CUDA GPU of compute capability {capability} or later" if level.device == "cuda" else "a CPU"
        raise LevelUnavailable(f"quantization {name!r} needs {wanted}, and this target is on {device}", remedy)
    if kind == "cuda" and level.capability > (0, 0):
        import torch

        if (has := torch.cuda.get_device_capability(device)) < level.capability:
            found = ".".join(map(str, has))
            raise LevelUnavailable(
                f"quantization {name!r} needs compute capability {capability} or later, and {device} has {found}",
                remedy,
            )


def _refuse_installation(name: str, level: Level) -> None:
    from importlib.metadata import PackageNotFoundError, version

    for package in level.needs:
        try:
            version(package)
        except PackageNotFoundError:
            raise LevelUnavailable(
                f"quantization {name!r} needs {package}, which is not installed",
                level.install or f"pip install {package}",
            ) from None
    compiler = os.environ.get("CXX", "c++")
    if level.compiles and not shutil.which(compiler):
        raise LevelUnavailable(
            f"quantization {name!r} compiles its kernels, and there is no C++ compiler ({compiler})",
            "Install one (g++ or clang++), or ask for another level.",
        )


def check(name: str, dtype: str, effective: Effective) -> None:
    """The effective level must be the one asked for."""
    level = LEVELS[name]
    seen = ", ".join(f"{count} {module}" for module, count in sorted(effective.modules.items()))
    if level.module and level.module not in effective.modules:
        instead = f"Ask for {level.instead}." if level.instead else "Or take the level out of the suite."
        upgrade = f"Upgrade {_libraries(level)}. " if level.needs else ""
        raise LevelMismatch(
            f"asked for quantization {name!r}, but no weight is quantized so: {seen}", f"{upgrade}{instead}"
        )
    if level.module and effective.left_out:
        raise LevelMismatch(
            f"asked for quantization {name!r}, but {len(effective.left_out)} layer(s) were silently left unquantized, "
            f"the first is {effective.left_out[0]}: {seen}",
            "Ask for another level, or an unquantized one: a shape may not fit this one, and of all of them only fp8 "
            "quantizes experts that are one tensor.",
        )
    found = [other for other, row in LEVELS.items() if row.module in effective.modules]
    if not level.module and found:
        raise LevelMismatch(
            f"asked for unquantized weights, but the checkpoint is quantized: {seen}",
            f"Ask for the level that it is ({', '.join(found)}), or point `path` at an unquantized checkpoint.",
        )
    wanted = level.dtype or ("auto" if level.module else dtype)
    if wanted not in ("auto", effective.dtype):
        raise LevelMismatch(f"asked for dtype {wanted}, but the weights are {effective.dtype}: {seen}")


def _libraries(level: Level) -> str:
    return " and ".join((*level.needs, "transformers"))
