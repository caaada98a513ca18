"""Quantized layers against their own dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backends import kernels, loading
from harness.errors import LevelMismatch, LevelUnavailable
from harness.inputs import Model
from harness.record import Target

LIBRARIES = {"torchao": "torchao.quantization", "quanto": "optimum.quanto"}


@pytest.fixture(params=["int8", "nf4", "nf4-dq", "fp4", "torchao-int8wo", "torchao-8da4w", "quanto-int8"])
def opened(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> tuple[str, Any]:
    library = request.param.partition("-")[0]
    if library in LIBRARIES:
        pytest.importorskip(LIBRARIES[library])
    folder = tiny(hidden_size=64, intermediate_size=128)
    target = Target("tiny", "tiny", Model(path=str(folder), dtype="bfloat16", device="cpu"), request.param)
    return request.param, loading.open_target(target, lambda _: None).model


def quantized_layer(model: Any) -> Any:
    return model.model.layers[0].mlp.down_proj


def test_healthy_kernels_pass(opened: tuple[str, Any]) -> None:
    kernels.check(*opened)


def test_a_kernel_that_multiplies_wrongly_is_refused(opened: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = opened
    kind = type(quantized_layer(model))
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: forward(self, x) * 1.2)
    with pytest.raises(LevelMismatch, match=rf"quantization '{name}': layer .* is off by (19|20|21)%"):
        kernels.check(name, model)


def test_a_kernel_that_does_not_run_here_makes_the_level_unavailable(
    opened: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = opened

    def fails(self: Any, x: Any) -> Any:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(type(quantized_layer(model)), "forward", fails)
    with pytest.raises(LevelUnavailable, match=rf"'{name}' was loaded, but layer .* on cpu: no kernel for this device"):
        kernels.check(name, model)


def test_no_memory_is_no_fault_of_the_level(opened: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = opened

    def fails(self: Any, x: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(quantized_layer(model)), "forward", fails)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.check(name, model)


def test_plain_weights_are_left_alone(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("tiny", "tiny", Model(path=str(tiny()), device="cpu"), "none")
    monkeypatch.setattr(kernels, "_error", lambda *_: pytest.fail("a plain layer was looked at"))
    kernels.check("none", loading.open_target(target, lambda _: None).model)
