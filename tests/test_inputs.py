"""Generation arguments that have no effect, or none together, are refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.inputs import Generation


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_return_sequences": 1},
        {"num_return_sequences": 1, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True},
        {"num_return_sequences": 3, "do_sample": False, "num_beams": 3},
        {"num_return_sequences": 2, "num_beams": 3},
    ],
    ids=str,
)
def test_several_sequences_come_from_sampling_or_from_as_many_beams(arguments: dict[str, Any]) -> None:
    assert Generation(**arguments).arguments() == arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_return_sequences": 2},
        {"num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 4, "do_sample": False, "num_beams": 3},
    ],
    ids=str,
)
def test_several_sequences_of_greedy_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="num_return_sequences needs do_sample: true, or num_beams at least as"):
        Generation(**arguments)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_what_only_sampling_uses_needs_sampling(name: str) -> None:
    assert Generation(**{"do_sample": True, name: 1}).arguments() == {"do_sample": True, name: 1}
    for arguments in ({}, {"do_sample": False}):
        with pytest.raises(ValidationError, match=f"{name} has no effect without do_sample: true"):
            Generation(**(arguments | {name: 1}))


@pytest.mark.parametrize(("name", "value"), [("length_penalty", 2.0), ("early_stopping", True)])
def test_what_only_beams_use_needs_beams(name: str, value: Any) -> None:
    assert Generation(**{"num_beams": 2, name: value}).arguments() == {"num_beams": 2, name: value}
    with pytest.raises(ValidationError, match=f"{name} has no effect without num_beams above 1"):
        Generation(**{"num_beams": 1, name: value})


def test_the_seed_is_not_passed_to_generate() -> None:
    assert Generation(seed=7, stop_strings=("x",)).arguments() == {"stop_strings": ["x"]}
