"""Do the kernels of quantized layers compute what their weights say? Some were wrong on some devices."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from harness.errors import LevelMismatch, LevelUnavailable

# int8 rounds activations too and is off by a hundredth; a broken kernel is off by all of it.
TOLERANCE = 0.05


def check(name: str, model: Any) -> None:
    """Each kind of quantized layer, once for each shape, against a plain product with its dequantized weights."""
    seen = set()
    for path, module in model.named_modules():
        kind = (type(module).__name__, getattr(module, "in_features", 0), getattr(module, "out_features", 0))
        weight = _dequantized(module) if kind not in seen else None
        if weight is None:
            continue
        seen.add(kind)
        error = _error(name, path, module, weight)
        if not error < TOLERANCE:  # NaN is an error too
            raise LevelMismatch(
                f"quantization {name!r}: layer {path} is off by {error:.0%} from its own dequantized weights",
                "The kernel is wrong on this device: try another version of the library that it is from, or another "
                "level.",
            )


def _dequantized(module: Any) -> Any:
    """The weights as plain numbers; None where they are plain anyway."""
    weight = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state).float()
    if getattr(weight, "SCB", None) is not None and weight.CB is not None:
        return weight.CB.float() * (weight.SCB.float() / 127).unsqueeze(1)
    if hasattr(weight, "__tensor_flatten__"):
        with suppress(NotImplementedError):  # packed so that only its own kernel can read it
            return weight.dequantize().float()
    return None


def _error(name: str, path: str, module: Any, weight: Any) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, weight.shape[1], generator=generator).to(weight.device, _computes_in(module))
    with torch.no_grad():
        try:
            got = module(inputs).float()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, ImportError, AssertionError) as error:
            raise LevelUnavailable(
                f"quantization {name!r} was loaded, but layer {path} cannot run on {weight.device}: {error}",
                "Ask for another level, or for another device.",
            ) from error
        wanted = inputs.float() @ weight.T
        if module.bias is not None:
            wanted = wanted + module.bias.float()
        return float((got - wanted).norm() / wanted.norm())


def _computes_in(module: Any) -> torch.dtype:
    own: torch.dtype | None = getattr(module, "compute_dtype", None)
    if own is not None:
        return own
    seen: torch.dtype = module.weight.dtype  # of torchao and quanto; of bitsandbytes it is that of the packed numbers
    return seen if seen.is_floating_point else torch.float32
