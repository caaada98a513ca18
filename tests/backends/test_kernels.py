"""Quantized layers against their own dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.backends import kernels, loading
from harness.errors import LevelMismatch
from harness.inputs import Model
from harness.record import Target


@pytest.fixture(params=["int8", "nf4", "fp4"])
def opened(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> tuple[str, Any]:
    folder = tiny(hidden_size=64, intermediate_size=128)
    target = Target("tiny", "tiny", Model(path=str(folder), device="cpu"), request.param)
    return request.param, loading.open_target(target, lambda _: None).model


def test_healthy_kernels_pass(opened: tuple[str, Any]) -> None:
    kernels.check(*opened)


def test_a_kernel_that_multiplies_wrongly_is_refused(opened: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = opened
    layer = next(module for module in model.modules() if type(module).__name__.startswith("Linear"))
    forward = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", lambda self, x: forward(self, x) * 1.2)
    with pytest.raises(LevelMismatch, match=f"quantization '{name}': layer .* is off by 20%"):
        kernels.check(name, model)


def test_plain_weights_are_left_alone(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("tiny", "tiny", Model(path=str(tiny()), device="cpu"), "none")
    monkeypatch.setattr(kernels, "_error", lambda *_: pytest.fail("a plain layer was looked at"))
    kernels.check("none", loading.open_target(target, lambda _: None).model)
