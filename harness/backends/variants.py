"""A loaded model run in another way for a while: other attention, or float32. It is as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from harness.backends.quantizations import quantized
from harness.errors import NotSupported, OutOfMemory
from harness.record import Request


@contextmanager
def as_asked(model: Any, request: Request, quantization: str) -> Iterator[None]:
    """The model as this request wants it."""
    with ExitStack() as stack:
        if request.attention:
            stack.enter_context(attention(model, request.attention))
        if request.float32:
            if quantized(quantization):
                raise NotSupported(f"{quantization} weights cannot be cast to float32")
            stack.enter_context(float32(model))
        yield


@contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    """With another attention implementation."""
    before = model.config._attn_implementation
    try:
        _set_attention(model, implementation)
        yield
    finally:
        model.set_attn_implementation(before)  # also where it was refused: parts of the model may have taken it


def _set_attention(model: Any, implementation: str) -> None:
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError, AttributeError, RuntimeError) as error:
        raise NotSupported(f"attention {implementation} cannot be used here: {str(error).splitlines()[0]}") from error
    if model.config._attn_implementation != implementation:
        raise NotSupported(f"this model has no attention implementation {implementation}")


@contextmanager
def all_layers(model: Any, early_exit: int | None) -> Iterator[None]:
    """Drafting with the first layers writes their number into the config, and leaves it there when it raises."""
    if early_exit is None:
        yield
        return
    before = getattr(model.config, "num_hidden_layers", None)
    if before is None:
        raise NotSupported("the config of this model does not say how many layers it has")
    try:
        yield
    except (IndexError, AttributeError) as error:
        raise NotSupported(f"this architecture cannot draft with its first {early_exit} layer(s): {error}") from error
    finally:
        model.config.num_hidden_layers = before


@contextmanager
def float32(model: Any) -> Iterator[None]:
    """With every weight cast to float32. Each gets its own type back: buffers are often finer than weights."""
    tensors = [tensor for group in (model.parameters(), model.buffers()) for tensor in group]
    before = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32)
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"no room for the weights in float32: {error}") from error
    finally:
        for tensor, dtype in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(dtype)
