"""The table of levels, and seeing what weights really are."""

from __future__ import annotations

from importlib import metadata

import pytest

from harness.backends.quantizations import LEVELS, Effective, arguments, check, inspect
from harness.errors import LevelMismatch, LevelUnavailable

PLAIN = Effective({"Linear/float32": 3}, "float32", 100)
NF4 = Effective({"Linear4bit/nf4": 3, "Linear/float32": 1}, "float32", 100)


@pytest.mark.parametrize(
    ("level", "dtype", "effective", "says"),
    [
        ("nf4", "float32", PLAIN, "asked for quantization 'nf4', but no weight is quantized so: 3 Linear/float32"),
        ("fp4", "float32", NF4, "asked for quantization 'fp4'"),
        ("int8", "float32", NF4, "asked for quantization 'int8'"),
        ("none", "float32", NF4, "the checkpoint is quantized"),
        ("none", "bfloat16", PLAIN, "asked for dtype bfloat16, but the weights are float32"),
    ],
)
def test_what_was_not_asked_for_is_an_error(level: str, dtype: str, effective: Effective, says: str) -> None:
    with pytest.raises(LevelMismatch, match=says):
        check(level, dtype, effective)


@pytest.mark.parametrize(
    ("level", "dtype", "effective"),
    [("none", "float32", PLAIN), ("none", "auto", PLAIN), ("nf4", "auto", NF4), ("nf4", "bfloat16", NF4)],
)
def test_what_was_asked_for_is_accepted(level: str, dtype: str, effective: Effective) -> None:
    check(level, dtype, effective)


def test_shared_weights_are_counted_once() -> None:
    import torch

    embedding = torch.nn.Embedding(10, 4)
    head = torch.nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    effective = inspect(torch.nn.Sequential(embedding, head, torch.nn.Linear(4, 4, dtype=torch.bfloat16)))

    assert effective.weight_bytes == 10 * 4 * 4 + 4 * 4 * 2
    assert effective.modules == {"Embedding/float32": 1, "Linear/float32": 1, "Linear/bfloat16": 1}
    assert effective.dtype == "float32"


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)

    with pytest.raises(LevelUnavailable) as error:
        arguments("nf4", "float32")
    assert error.value.remedy == "pip install bitsandbytes"


def test_four_bit_computes_in_the_models_type() -> None:
    config = arguments("nf4", "bfloat16")["quantization_config"]

    assert str(config.bnb_4bit_compute_dtype) == "torch.bfloat16"
    assert config.bnb_4bit_quant_type == "nf4"


def test_every_level_has_a_summary() -> None:
    assert all(level.summary for level in LEVELS.values())
