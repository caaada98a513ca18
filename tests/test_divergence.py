"""Arithmetic of differences, against torch's own idea of a number's neighbours."""

from __future__ import annotations

import pytest

from harness.divergence import coarser, ulp


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("magnitude", [0.75, 1.0, 1.5, 15.9, 16.0, 27.3, 31.99, 32.0])
def test_an_ulp_is_the_distance_to_the_next_number(precision: str, magnitude: float) -> None:
    import torch

    value = torch.tensor(magnitude, dtype=getattr(torch, precision))
    value = value if float(value) <= magnitude else torch.nextafter(value, torch.tensor(0.0, dtype=value.dtype))
    up = torch.nextafter(value, torch.tensor(float("inf"), dtype=value.dtype))

    assert ulp(precision, magnitude) == float(up) - float(value)


def test_negative_logits_have_the_same_spacing() -> None:
    assert ulp("bfloat16", -27.0) == ulp("bfloat16", 27.0) == 0.125


@pytest.mark.parametrize("magnitude", [0.0, float("nan"), float("inf")])
def test_no_number_no_spacing(magnitude: float) -> None:
    assert ulp("bfloat16", magnitude) == 0.0


def test_the_coarser_of_two_precisions_decides() -> None:
    assert coarser("float32", "bfloat16") == "bfloat16"
    assert coarser("float16", "float32") == "float16"
