"""What the weights of a loaded model really are: class names, dtypes and memory footprints have been seen to lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from harness.backends.quantizations import Effective

UNQUANTIZED = ("float64", "float32", "bfloat16", "float16")
PAGE = 4096  # the smallest that there is


def inspect(model: Any) -> Effective:
    """Look at the weights themselves."""
    modules: dict[str, int] = {}
    dtypes: dict[str, int] = {}
    left_out = []
    spared = _spared(model)
    for path, module in model.named_modules():
        name, weight = _main_weight(module)
        if weight is None:
            continue
        kind = _kind(weight)
        title = f"{type(module).__name__}/{kind}"
        modules[title] = modules.get(title, 0) + 1
        if kind not in UNQUANTIZED:
            continue
        dtypes[kind] = dtypes.get(kind, 0) + weight.numel()
        experts = name != "weight" and weight.ndim == 3
        if ("Linear" in type(module).__name__ or experts) and not any(key in path for key in spared):
            left_out.append(path)
    dtype = max(dtypes, key=lambda name: dtypes[name]) if dtypes else ""
    weight_bytes = sum(storage.nbytes() for storage in _storages(model))
    return Effective(modules, dtype, weight_bytes, tuple(left_out))


def _main_weight(module: Any) -> tuple[str, Any]:
    """Most have one of that name; experts that are all in one tensor call it otherwise."""
    own = {name: weight for name, weight in module._parameters.items() if weight is not None}
    if "weight" in own:
        return "weight", own["weight"]
    return next(((name, weight) for name, weight in own.items() if weight.ndim > 1), ("", None))


def _spared(model: Any) -> tuple[str, ...]:
    """Layers that the quantizer leaves out on purpose: the output embedding, and what its model needs in float32."""
    quantizer = getattr(model, "hf_quantizer", None)
    return tuple(getattr(quantizer, "modules_to_not_convert", None) or ())


def _kind(weight: Any) -> str:
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return f"{state.quant_type}{'-dq' if state.nested else ''}"
    if (own := getattr(weight, "qtype", None)) is not None:  # quanto: its classes depend on the device
        return str(own.name)
    if hasattr(weight, "__tensor_flatten__"):  # torchao: class of the module and dtype are those of plain weights
        target = getattr(weight, "target_dtype", None)
        bits = f":{str(target).removeprefix('torch.')}" if target else ""
        dynamic = getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None)
        return f"{type(weight).__name__}{bits}{'/dynamic' if dynamic else ''}"
    return str(weight.dtype).removeprefix("torch.")


def bring_in(model: Any, *, apart: bool) -> None:
    """Read what a CPU has only mapped from the file so far, so that loading is over and its bytes are held.

    apart: into memory of its own. One tensor that lies in the file keeps all of the file resident, and a quantized
    model would seem to be larger than what it was made from.
    """
    with torch.no_grad():
        if apart:
            for tensor in (*model.parameters(), *model.buffers()):
                if type(tensor) in (torch.nn.Parameter, torch.Tensor) and tensor.device.type == "cpu":
                    tensor.data = tensor.data.clone()
        for storage in _storages(model):
            if storage.device.type == "cpu":
                torch.empty(0, dtype=torch.uint8).set_(storage)[::PAGE].sum()


def _storages(model: Any) -> list[torch.UntypedStorage]:
    """Every one once, however many weights share it."""
    found = {}
    for group in (model.parameters(), model.buffers()):
        for tensor in (part for held in group for part in _stored(held)):
            storage = tensor.untyped_storage()
            found[(str(tensor.device), storage.data_ptr())] = storage
    return list(found.values())


def _stored(tensor: Any) -> Iterator[Any]:
    """The plain tensors that a weight consists of: its numbers, and the scales that go with them."""
    if hasattr(tensor, "__tensor_flatten__"):  # what looks like its own storage is empty
        for name in tensor.__tensor_flatten__()[0]:
            yield from _stored(getattr(tensor, name))
        return
    if not tensor.is_meta:
        yield tensor
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (part for part in (state.absmax, state.code, state.offset) if part is not None)
        state = state.state2
    yield from (part for name in ("CB", "SCB") if (part := getattr(tensor, name, None)) is not None)
