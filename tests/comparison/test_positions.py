"""Distributions at the same token, against torch's own arithmetic and by hand."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.comparison.positions import replayed
from harness.record import Distributions

Logits = NDArray[np.float32]
INF = math.inf


def written(path: Path, *pairs: tuple[Logits, Logits]) -> Distributions:
    """The file of one replay: raw and processed logits of each step."""
    np.array(pairs, np.float32).tofile(path)
    return Distributions(path, len(pairs), len(pairs[0][0]))


def plain(path: Path, *rows: list[float] | Logits) -> Distributions:
    """No processor changes anything."""
    return written(path, *((np.array(row, np.float32), np.array(row, np.float32)) for row in rows))


def random_rows(steps: int, vocabulary: int, seed: int = 0) -> tuple[Logits, Logits]:
    random = np.random.default_rng(seed)
    rows = random.normal(0, 4, (steps, vocabulary))
    return rows.astype(np.float32), (rows + random.normal(0, 1, rows.shape)).astype(np.float32)


def test_it_agrees_with_torch(tmp_path: Path) -> None:
    import torch

    rows, others = random_rows(6, 2_000)
    ids = [3, 1_999, 0, 7, 7, 12]

    replay = replayed(plain(tmp_path / "a", *rows), plain(tmp_path / "b", *others), ids)

    expected, found = (torch.tensor(side).double().log_softmax(-1) for side in (rows, others))
    kl = torch.nn.functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1)
    distance = (expected.exp() - found.exp()).abs().sum(-1) / 2
    places = torch.arange(6)
    tops, own_tops = expected.argmax(-1), found.argmax(-1)
    assert replay.kl == pytest.approx(kl.tolist(), abs=1e-9)
    assert replay.baseline_top == tuple(tops.tolist())
    assert replay.top == tuple(own_tops.tolist())
    assert replay.baseline_top != replay.top  # or nothing was seen of the margins
    assert replay.baseline_margin == pytest.approx((expected.amax(-1) - expected[places, own_tops]).tolist(), abs=1e-9)
    assert replay.margin == pytest.approx((found.amax(-1) - found[places, tops]).tolist(), abs=1e-9)
    assert replay.baseline_logprob == pytest.approx(expected[places, ids].tolist(), abs=1e-9)
    assert replay.logprob == pytest.approx(found[places, ids].tolist(), abs=1e-9)
    assert replay.processed_distance == pytest.approx(distance.tolist(), abs=1e-9)
    assert replay.processed_top1 == tuple((tops == own_tops).tolist())


def test_numbers_by_hand(tmp_path: Path) -> None:
    baseline = plain(tmp_path / "a", [math.log(0.5), math.log(0.3), math.log(0.2)])
    own = plain(tmp_path / "b", [math.log(0.2), math.log(0.6), math.log(0.2)])

    replay = replayed(baseline, own, [2])

    assert replay.kl[0] == pytest.approx(0.5 * math.log(2.5) + 0.3 * math.log(0.5), abs=1e-6)
    assert (replay.baseline_top, replay.top) == ((0,), (1,))
    assert replay.baseline_margin[0] == pytest.approx(math.log(5 / 3), abs=1e-6)
    assert replay.margin[0] == pytest.approx(math.log(3), abs=1e-6)
    assert (replay.baseline_logprob + replay.logprob) == pytest.approx([math.log(0.2)] * 2, abs=1e-6)
    assert replay.processed_distance[0] == pytest.approx(0.3, abs=1e-6)
    assert replay.processed_top1 == (False,)


def test_equal_sides_have_no_divergence_at_all(tmp_path: Path) -> None:
    rows, _ = random_rows(5, 5_000)
    side = plain(tmp_path / "a", *rows)

    replay = replayed(side, side, [1] * 5)

    assert replay.kl == replay.processed_distance == replay.margin == replay.baseline_margin == (0.0,) * 5
    assert all(replay.processed_top1)


def test_a_divergence_is_never_negative_and_knows_a_shift_from_a_change(tmp_path: Path) -> None:
    rows, _ = random_rows(20, 5_000)
    nearly = np.nextafter(rows, np.float32(INF))
    baseline = plain(tmp_path / "a", *rows)

    assert all(0 <= kl < 1e-12 for kl in replayed(baseline, plain(tmp_path / "b", *nearly), [0] * 20).kl)
    assert all(0 <= kl < 1e-9 for kl in replayed(baseline, plain(tmp_path / "c", *(rows + 8)), [0] * 20).kl)


def test_a_tie_is_the_same_token_on_both_sides(tmp_path: Path) -> None:
    replay = replayed(plain(tmp_path / "a", [1, 4, 4]), plain(tmp_path / "b", [2, 5, 5]), [2])

    assert (replay.baseline_top, replay.top) == ((1,), (1,))
    assert replay.margin == replay.baseline_margin == (0.0,)


def test_a_tie_that_the_other_side_breaks_has_no_margin_there(tmp_path: Path) -> None:
    replay = replayed(plain(tmp_path / "a", [1, 4, 4]), plain(tmp_path / "b", [2, 4.5, 5]), [2])

    assert (replay.baseline_top, replay.top) == ((1,), (2,))
    assert (replay.baseline_margin, replay.margin) == ((0.0,), (0.5,))


def test_processors_change_the_processed_alone(tmp_path: Path) -> None:
    raw = np.array([2, 1, 0, 0], np.float32)
    cut = np.array([-INF, 1, 1, -INF], np.float32)
    other_cut = np.array([-INF, -INF, 1, 1], np.float32)

    replay = replayed(written(tmp_path / "a", (raw, cut)), written(tmp_path / "b", (raw, other_cut)), [1])

    assert replay.kl == (0.0,)
    assert replay.processed_distance == (0.5,)  # a half each: one of two ids in common
    assert replay.processed_top1 == (False,)


def test_padding_rows_of_one_side_are_left_out(tmp_path: Path) -> None:
    narrow, wide = [2.0, 1.0, 0.0], [2.0, 1.0, 0.0, 9.0, -3.0]
    small, large = plain(tmp_path / "a", narrow, narrow), plain(tmp_path / "b", wide, wide)

    for replay in (replayed(small, large, [0, 1]), replayed(large, small, [0, 1])):
        assert replay.kl == replay.processed_distance == (0.0, 0.0)
        assert replay.baseline_top == replay.top == (0, 0)
        assert replay.logprob == replay.baseline_logprob


def test_only_the_steps_of_both_sides_are_compared(tmp_path: Path) -> None:
    rows, others = random_rows(5, 50)
    long, short = plain(tmp_path / "a", *rows), plain(tmp_path / "b", *others[:3])

    replay = replayed(long, short, [1, 2, 3, 4, 5])

    assert len(replay.kl) == len(replay.processed_top1) == 3
    assert replay == replayed(plain(tmp_path / "c", *rows[:3]), short, [1, 2, 3])
    assert len(replayed(long, long, [1, 2]).kl) == 2
    assert replayed(long, short, []).kl == ()


def test_what_the_candidate_excludes_diverges_without_end(tmp_path: Path) -> None:
    replay = replayed(plain(tmp_path / "a", [1, 2, -INF]), plain(tmp_path / "b", [1, -INF, 2]), [0])

    assert replay.kl == replay.margin == replay.baseline_margin == (INF,)
    assert replay.processed_distance[0] == pytest.approx(math.exp(2) / (math.exp(1) + math.exp(2)))


@pytest.mark.parametrize("broken", [[math.nan, 1, 2], [-INF, -INF, -INF]])
def test_a_broken_side_shows(tmp_path: Path, broken: list[float]) -> None:
    replay = replayed(plain(tmp_path / "a", [3, 1, 2]), plain(tmp_path / "b", broken), [0])

    assert math.isnan(replay.kl[0])


def test_a_token_takes_milliseconds(tmp_path: Path) -> None:
    rows, others = random_rows(30, 49_152)
    sides = plain(tmp_path / "a", *rows), plain(tmp_path / "b", *others)

    began = time.process_time()
    replayed(*sides, [1] * 30)

    assert (time.process_time() - began) / 30 < 0.03  # 3 ms where it was measured
