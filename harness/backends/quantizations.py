"""Quantization levels by name: how to ask for each, and how to see that it is really there.

To add one: a row in LEVELS. Nothing heavy is imported until a row is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import LevelMismatch, LevelUnavailable


@dataclass(frozen=True)
class Effective:
    """What the weights of a loaded model really are."""

    modules: Mapping[str, int]  # "Linear4bit/nf4": 210, counted over modules that hold weights
    dtype: str  # the dtype that most unquantized weights have
    weight_bytes: int  # of real storages, shared ones once

    def count(self, module: str) -> int:
        return sum(number for name, number in self.modules.items() if name.startswith(module))


@dataclass(frozen=True)
class Level:
    """A row of the table."""

    summary: str
    arguments: Callable[[str], dict[str, Any]]  # dtype name -> arguments of from_pretrained
    module: str = ""  # what the quantized modules must be called, as in Effective.modules
    needs: tuple[str, ...] = field(default=())  # distributions that must be installed


def _bitsandbytes(**given: Any) -> Callable[[str], dict[str, Any]]:
    def build(dtype: str) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        # Unset, 4-bit weights compute in float32 whatever the model's type is: slow on a GPU, and unannounced.
        compute = {"bnb_4bit_compute_dtype": dtype} if given.get("load_in_4bit") and dtype != "auto" else {}
        arguments = given | compute
        return {"quantization_config": BitsAndBytesConfig(**arguments)}

    return build


LEVELS: Mapping[str, Level] = {
    "none": Level("weights as they are, in the model's dtype", lambda dtype: {}),
    "int8": Level(
        "bitsandbytes LLM.int8()", _bitsandbytes(load_in_8bit=True), "Linear8bitLt/int8", needs=("bitsandbytes",)
    ),
    "nf4": Level(
        "bitsandbytes 4-bit NormalFloat",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "Linear4bit/nf4",
        needs=("bitsandbytes",),
    ),
    "fp4": Level(
        "bitsandbytes 4-bit float",
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        "Linear4bit/fp4",
        needs=("bitsandbytes",),
    ),
}


def arguments(name: str, dtype: str) -> dict[str, Any]:
    """Loading arguments for this level, or why this machine cannot run it."""
    from importlib.metadata import PackageNotFoundError, version

    level = LEVELS[name]
    for package in level.needs:
        try:
            version(package)
        except PackageNotFoundError:
            raise LevelUnavailable(
                f"quantization {name!r} needs {package}, which is not installed", f"pip install {package}"
            ) from None
    return level.arguments(dtype)


def inspect(model: Any) -> Effective:
    """Look at the weights themselves: class names and memory footprints have been seen to lie."""
    modules: dict[str, int] = {}
    dtypes: dict[str, int] = {}
    storages: dict[int, int] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        storages[weight.untyped_storage().data_ptr()] = weight.untyped_storage().nbytes()
        kind = _weight_kind(weight)
        name = f"{type(module).__name__}/{kind}"
        modules[name] = modules.get(name, 0) + 1
        if weight.is_floating_point():
            dtypes[kind] = dtypes.get(kind, 0) + weight.numel()
    dtype = max(dtypes, key=lambda name: dtypes[name]) if dtypes else ""
    return Effective(modules=modules, dtype=dtype, weight_bytes=sum(storages.values()))


def _weight_kind(weight: Any) -> str:
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return str(state.quant_type)
    return str(weight.dtype).removeprefix("torch.")


def check(name: str, dtype: str, effective: Effective) -> None:
    """The effective level must be the one asked for."""
    level = LEVELS[name]
    seen = ", ".join(f"{count} {module}" for module, count in sorted(effective.modules.items()))
    if level.module and not effective.count(level.module):
        raise LevelMismatch(
            f"asked for quantization {name!r}, but no weight is quantized so: {seen}",
            "Upgrade bitsandbytes and transformers, or take the level out of the suite.",
        )
    quantized = [row.module for row in LEVELS.values() if row.module and effective.count(row.module)]
    if not level.module and quantized:
        raise LevelMismatch(
            f"asked for unquantized weights, but the checkpoint is quantized: {seen}",
            f"Ask for the level that it is ({', '.join(quantized)}), or point `path` at an unquantized checkpoint.",
        )
    if not level.module and dtype not in ("auto", effective.dtype):
        raise LevelMismatch(f"asked for dtype {dtype}, but the weights are {effective.dtype}: {seen}")
