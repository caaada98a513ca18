"""Repeating, padding and batching: what is asked for, and how differences are judged."""

from __future__ import annotations

from typing import Any

import pytest

from harness.expectations.invariance import FILLERS, BatchInvariant, Deterministic, PaddingInvariant
from harness.inputs import GREEDY, Generation
from harness.record import Batch, Request, Text

PEERS = [Request(Text(text=text), GREEDY) for text in ("one", "two", "three")]


def test_deterministic_asks_for_real_repeats() -> None:
    needs = Deterministic(runs=3).needs(PEERS[0], PEERS)

    assert [request.repeat for request in needs] == [0, 1, 2]
    assert len(set(needs)) == 3
    assert {request.layout for request in needs} == {"alone"}


def test_deterministic_runs_last_in_a_fresh_process_by_choice() -> None:
    needs = Deterministic(runs=3, fresh_process=True).needs(PEERS[0], PEERS)

    assert [request.fresh_process for request in needs] == [False, False, True]


def test_padding_is_judged_in_one_batch_for_all_prompts_of_the_test() -> None:
    batches = {PaddingInvariant().needs(peer, PEERS)[1].layout for peer in PEERS}

    assert batches == {Batch((*(peer.prompt for peer in PEERS), FILLERS[0]))}


def test_batches_are_chunks_of_the_test_filled_with_neighbours() -> None:
    layouts = [BatchInvariant(sizes=(1, 2)).needs(peer, PEERS)[1].layout for peer in PEERS]

    assert layouts[0] == layouts[1] == Batch((PEERS[0].prompt, PEERS[1].prompt))
    assert layouts[2] == Batch((PEERS[2].prompt, FILLERS[0]))


def test_a_batch_of_any_size_is_full() -> None:
    for size in (2, 5, 13, 64):
        assert len(BatchInvariant(sizes=(size,)).needs(PEERS[0], PEERS)[1].layout.rows) == size


def test_equal_tokens_pass(completion: Any) -> None:
    padded = completion(pads=7, padding="left", batch_size=4)
    verdict = PaddingInvariant().judge([completion(), padded])

    assert verdict.status == "passed"
    assert verdict.reason == "the same 3 tokens alone and left-padded by 7 tokens in a batch of 4"


def test_a_row_without_padding_proves_nothing(completion: Any) -> None:
    assert PaddingInvariant().judge([completion(), completion(batch_size=4)]).status == "error"


@pytest.mark.parametrize("expectation", [PaddingInvariant(), BatchInvariant()], ids=["padding", "batch"])
@pytest.mark.parametrize(
    ("precision", "margin", "status"),
    [
        ("float32", 0.0005, "failed"),  # even a near-tie: float32 has no noise of that size across shapes
        ("float32", 0.2, "failed"),
        ("bfloat16", 0.2, "passed"),  # 2 ulp at logit 27 are 0.25
        ("bfloat16", 0.25, "passed"),
        ("bfloat16", 0.3, "failed"),
        ("float16", 0.2, "failed"),  # 2 ulp at logit 27 are 0.03
        ("float16", 0.03, "passed"),
    ],
)
def test_a_flip_is_judged_by_its_margin_below_float32(
    completion: Any, expectation: Any, precision: str, margin: float, status: str
) -> None:
    alone = completion((5, 6, 7), margins=[5.0, margin, 5.0], precision=precision)
    other = completion((5, 8, 9), margins=[5.0, margin, 5.0], precision=precision, pads=3, padding="left", batch_size=4)

    verdict = expectation.judge([alone, other])

    assert verdict.status == status
    assert verdict.numbers["index"] == 1
    assert f"margin {margin:.3g} nats" in verdict.reason
    if precision != "float32":
        assert f"2 ulp of {precision}" in verdict.reason


def test_a_side_that_was_sure_makes_a_flip_a_change(completion: Any) -> None:
    alone = completion((5,), margins=0.1, precision="bfloat16")
    padded = completion((8,), margins=9.0, precision="bfloat16", pads=3, padding="right", batch_size=4)

    assert PaddingInvariant().judge([alone, padded]).status == "failed"


def test_a_token_outside_the_recorded_ones_is_a_change(completion: Any) -> None:
    alone = completion((5,), margins=0.0, precision="bfloat16")
    padded = completion((31,), margins=0.0, precision="bfloat16", pads=3, padding="left", batch_size=4)
    verdict = PaddingInvariant().judge([alone, padded])

    assert verdict.status == "failed"
    assert "outside the recorded top-k" in verdict.reason


def test_the_difference_is_drawn_with_tokens_aligned(completion: Any) -> None:
    alone = completion((5, 6, 1))
    padded = completion((5, 8, 1), pads=3, padding="right", batch_size=4)
    details = PaddingInvariant(side="shipped").judge([alone, padded]).details

    assert details == (
        "alone   't5' 't6' 't1' <eos>",
        "padded  't5' 't8' 't1' <eos>",
        "             ^ token 1, margin 5 nats",
    )


def test_repeats_of_one_shape_are_exact_in_every_precision(completion: Any) -> None:
    first = completion((5, 6), margins=0.0, precision="bfloat16")
    again = completion((5, 7), margins=0.0, precision="bfloat16")

    strict = Deterministic().judge([first, again])
    lenient = Deterministic(allow_rounding=True).judge([first, again])

    assert strict.status == "failed"
    assert "run 2 of 2 differs from the first at token 1 (margin 0 nats, within 2 ulp of bfloat16" in strict.reason
    assert lenient.status == "passed"
    assert "but for rounding" in lenient.reason


def test_sampling_that_the_model_switched_on_is_named(completion: Any) -> None:
    sampled = {
        "request": Request(Text(text="x"), Generation(max_new_tokens=5)),
        "generation_config": {"do_sample": True},
    }
    verdict = Deterministic().judge([completion((5,), **sampled), completion((6,), **sampled)])

    assert "the model's own generation config switches sampling on" in verdict.reason


def test_one_output_longer_than_the_other_is_a_difference(completion: Any) -> None:
    alone = completion((5, 6), finish="length")
    batched = completion((5, 6, 7), batch_size=4)
    verdict = BatchInvariant().judge([alone, batched])

    assert verdict.status == "failed"
    assert verdict.numbers["index"] == 2
