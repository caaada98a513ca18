"""The ladder, on distributions with the statistics that were measured, and on rules one by one."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.pins.drift import DEFAULT_FLOORS, Drift, Flip, compare, pooled
from harness.pins.ladder import (
    Judgement,
    Limits,
    Ruler,
    is_exact,
    is_processed_otherwise,
    judge,
    judge_one,
    padded_only,
    raw_is_noise,
)
from harness.pins.pin import Floor, Lane
from harness.record import Step

Numbers = NDArray[np.float64]
PROMPTS, TOKENS, VOCABULARY = 36, 37, 300
BF16 = Ruler(Floor(0.099, 1.3e-3, 0.114, ("another batch",)))
FP32 = Ruler(Floor(8e-6, 4e-8, 1e-5, ("another batch",)), exact=True)
MAX_LOGIT = 27.0  # two units in the last place of bfloat16 are 0.25 there


def recorded(logits: Numbers) -> list[Step]:
    """Steps of one prompt on the way of the likeliest token."""
    steps = []
    for row in logits:
        logprobs = row - row.max()
        logprobs -= math.log(np.exp(logprobs).sum())
        top = np.argsort(-logprobs, kind="stable")[:20]
        kept = logprobs[top].astype(np.float32)
        steps.append(Step(float(kept[0]), array("i", top.tolist()), array("f", kept.tolist()), MAX_LOGIT))
    return steps


def drifts_of(before: Numbers, after: Numbers, precision: str, pads: int = 4) -> list[Drift]:
    """Prompt by prompt; greedy, so that tokens differ where the likeliest does; every ninth row is the longest."""
    found = []
    for number, (own, its) in enumerate(zip(before, after, strict=True)):
        ids = own.argmax(-1).tolist()
        steps = [replace_logprob(step, row, token) for step, row, token in zip(recorded(its), its, ids, strict=True)]
        drift = compare(recorded(own), steps, ids)
        found.append(
            replace(
                drift,
                name=f"p{number}",
                precision=precision,
                pads=0 if number % 9 == 0 else pads,
                tokens_equal=not drift.flips,
                pinned_length=TOKENS,
                length=TOKENS,
            )
        )
    return found


def replace_logprob(step: Step, row: Numbers, token: int) -> Step:
    total = row.max() + math.log(np.exp(row - row.max()).sum())
    return replace(step, logprob=float(row[token] - total))


@pytest.fixture(scope="module")
def logits() -> Numbers:
    """Peaked as those of a small model are: about a fifth of all margins below half a nat."""
    return np.random.default_rng(0).normal(0, 7, (PROMPTS, TOKENS, VOCABULARY))


def noise(logits: Numbers, size: float, seed: int = 1) -> Numbers:
    return np.random.default_rng(seed).normal(0, size, logits.shape)


def in_bf16(logits: Numbers, seed: int = 1) -> Numbers:
    """Each run has its own rounding: of two, the gap differs by about 0.11."""
    return logits + noise(logits, 0.055, seed)


def right_padding(logits: Numbers) -> Numbers:
    """Padded rows: the first token is from somewhere else, the others are far off."""
    damaged = logits + noise(logits, 1.6)
    damaged[:, 0] = np.roll(damaged[:, 0], 7, -1)
    damaged[::9] = logits[::9]
    return damaged


def test_the_margins_are_those_of_a_real_model(logits: Numbers) -> None:
    top = np.sort(logits, -1)
    margins = top[..., -1] - top[..., -2]

    assert 0.15 < (margins < 0.5).mean() < 0.3


Change = Callable[[Numbers], Numbers]
# What was measured, as it has to come out: what is changed, the gap's RMS change that was measured, the level.
IN_FLOAT32: list[tuple[str, Change, float, str]] = [
    ("another batch", lambda x: x + noise(x, 7e-6), 1e-5, "noise"),
    ("rms eps 1e-6", lambda x: x + noise(x, 8e-4, 4), 1.4e-3, "drift"),
    ("layer x1.01", lambda x: x + noise(x, 0.03), 0.042, "drift"),
    ("norm x1.02", lambda x: x * 1.02, 0.069, "changed"),
    ("to bfloat16", lambda x: x + noise(x, 0.07), 0.099, "drift"),
    ("int8", lambda x: x + noise(x, 0.33), 0.467, "changed"),
    ("nf4", lambda x: x + noise(x, 1.1), 1.57, "changed"),
    ("right padding", right_padding, 2.34, "broken"),
]
IN_BFLOAT16: list[tuple[str, Change, float, str]] = [
    ("bs1 to bs8", lambda x: x, 0.114, "noise"),
    ("int8", lambda x: x + noise(x, 0.33), 0.475, "changed"),
    ("right padding", right_padding, 2.34, "broken"),
]


@pytest.mark.parametrize(("name", "change", "gap", "level"), IN_FLOAT32, ids=[row[0] for row in IN_FLOAT32])
def test_what_was_measured_in_float32(logits: Numbers, name: str, change: Change, gap: float, level: str) -> None:
    drifts = drifts_of(logits, change(logits), "float32")

    found = judge(drifts, FP32)

    assert pooled(drifts).gap == pytest.approx(gap, rel=0.6)  # or it is not that case
    assert found.level == level, found.rule
    if name == "rms eps 1e-6":
        assert all(drift.tokens_equal for drift in drifts)
    if name == "right padding":
        assert padded_only(drifts, FP32)


@pytest.mark.parametrize(("name", "change", "gap", "level"), IN_BFLOAT16, ids=[row[0] for row in IN_BFLOAT16])
def test_what_was_measured_in_bfloat16(logits: Numbers, name: str, change: Change, gap: float, level: str) -> None:
    drifts = drifts_of(in_bf16(logits), in_bf16(change(logits), 2), "bfloat16")

    found = judge(drifts, BF16)

    assert pooled(drifts).gap == pytest.approx(gap, rel=0.6)
    assert found.level == level, found.rule
    if level == "noise":
        assert sum(not drift.tokens_equal for drift in drifts) > PROMPTS / 5  # token-exact comparison cries wolf
        assert {judge_one(drift, BF16).level for drift in drifts} == {"noise"}


def test_the_default_floors_tell_the_same(logits: Numbers) -> None:
    bf16, fp32 = (Ruler(DEFAULT_FLOORS[dtype, dtype]) for dtype in ("bfloat16", "float32"))
    pinned = in_bf16(logits)

    assert judge(drifts_of(pinned, in_bf16(logits, 2), "bfloat16"), bf16).level == "noise"
    assert judge(drifts_of(pinned, in_bf16(logits + noise(logits, 0.33), 2), "bfloat16"), bf16).level == "changed"
    assert judge(drifts_of(logits, logits + noise(logits, 7e-6), "float32"), fp32).level == "noise"
    assert judge(drifts_of(logits, logits + noise(logits, 1e-3), "float32"), fp32).level == "drift"


def test_a_missing_template_is_broken_where_it_is_replayed_and_changed_where_not(logits: Numbers) -> None:
    after = logits + noise(logits, 0.5)
    after[:, 0] = np.roll(after[:, 0], 7, -1)
    replayed = [replace(drift, prompt_ids_equal=False, pads=0) for drift in drifts_of(logits, after, "float32")]
    not_replayed = [Drift(name=f"p{number}", prompt_ids_equal=False, tokens_equal=False) for number in range(3)]

    assert judge(replayed, FP32).level == "broken"
    assert "first-token KL" in judge(replayed, FP32).rule
    assert judge(not_replayed, FP32) == Judgement(
        "changed", "prompt ids differ in 3 prompts (p0, …)", judge(not_replayed, FP32).numbers
    )


def quiet(**changes: object) -> Drift:
    """48 tokens that moved by half of the floor of bfloat16."""
    drift = Drift(
        name="p",
        precision="bfloat16",
        squares=(0.05**2,) * 48,
        kl=(6e-4,) * 48,
        gap=(0.06,) * 48,
        logprob=(0.01, -0.01) * 24,
        distance=(0.01,) * 48,
        largest=0.2,
        max_logit=MAX_LOGIT,
        pinned_length=48,
        length=48,
    )
    return replace(drift, **changes)  # type: ignore[arg-type]


def flip(margin: float, index: int = 3) -> Flip:
    return Flip(index, 1, 2, -0.7, -0.6, margin, MAX_LOGIT)


def test_equal_to_the_rounding_of_storage_is_identical() -> None:
    stored = replace(FP32, storage_rounding=5e-5)

    assert judge_one(quiet(largest=5e-5), stored).level == "identical"
    assert judge_one(quiet(largest=5.1e-5), BF16).level == "noise"
    assert judge_one(quiet(largest=0.0, tokens_equal=False), stored).level != "identical"
    assert judge_one(quiet(largest=0.0, tokens_equal=False, shortfall=0.0), replace(BF16, tokens=False)).level == (
        "identical"
    )


def test_what_storage_rounds_off_is_no_drift() -> None:
    rounded = quiet(precision="float32", squares=(4e-5**2,) * 48, kl=(1e-9,) * 48, gap=(4e-5,) * 48, largest=9e-5)

    assert judge_one(rounded, replace(FP32, storage_rounding=5e-5)).level == "noise"
    assert judge_one(rounded, FP32).level == "drift"


def test_noise_of_one_prompt_is_wider_than_that_of_all() -> None:
    moved = quiet(squares=((1.8 * 0.099) ** 2,) * 48)

    assert judge_one(moved, BF16).level == "noise"
    assert judge([moved] * 4, BF16).level == "drift"
    assert "RMS 0.178 > 1.5 × floor 0.099" in judge([moved] * 4, BF16).rule


def test_one_prompt_beyond_its_own_limit_is_above_noise() -> None:
    found = judge([quiet()] * 30 + [quiet(name="odd", squares=((2.1 * 0.099) ** 2,) * 48)], BF16)

    assert found.level == "drift"
    assert "odd: RMS 0.208 > 2 × floor" in found.rule


def test_short_texts_have_wider_limits() -> None:
    def short(tokens: int) -> Drift:
        return quiet(
            squares=((2.5 * 0.099) ** 2,) * tokens,
            kl=(1e-3,) * tokens,
            gap=(0.06,) * tokens,
            logprob=(0.0,) * tokens,
        )

    assert judge_one(short(48), BF16).level == "drift"
    assert judge_one(short(3), BF16).level == "noise"


@pytest.mark.parametrize(("margin", "level"), [(0.45, "noise"), (0.46, "drift"), (0.51, "changed")])
def test_the_margin_of_the_first_flip(margin: float, level: str) -> None:
    assert judge_one(quiet(flips=(flip(margin),)), BF16).level == level  # 4 × 0.114 = 0.456


def test_the_largest_of_many_normal_numbers_is_larger() -> None:
    # 100 × 48 tokens: √(2 ln 4800) = 4.117, times 0.114 = 0.469.
    assert judge([quiet(flips=(flip(0.465),)), *[quiet()] * 99], BF16).level == "noise"
    assert judge([quiet(flips=(flip(0.475),)), *[quiet()] * 99], BF16).level == "drift"


def test_two_units_in_the_last_place_are_noise_however_low_the_floor() -> None:
    low = Ruler(Floor(0.099, 1.3e-3, 0.01))

    assert judge_one(quiet(flips=(flip(0.25),), gap=(0.005,) * 48), low).level == "noise"
    assert judge_one(quiet(flips=(flip(0.26),), gap=(0.005,) * 48), low).level == "drift"


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"kl": (0.0099,) * 48}, "drift"),
        ({"kl": (0.0101,) * 48}, "changed"),
        ({"kl": (0.0099,) * 48, "flips": (flip(0.1), flip(0.1, 5))}, "changed"),
        ({"kl": (0.0099,) * 48, "flips": (flip(0.1),)}, "drift"),
    ],
)
def test_where_drift_ends(changes: dict[str, object], level: str) -> None:
    assert judge_one(quiet(**changes), BF16).level == level


def test_drift_ends_where_stops_or_lengths_do() -> None:
    moved = quiet(kl=(0.009,) * 48)
    stops = [replace(moved, finish_equal=False, tokens_equal=False)] * 3
    shorter = [replace(moved, length=40 + number, tokens_equal=False) for number in (0, 1, 2, 1, 0, 1)]

    assert judge([moved] * 17 + stops, BF16).level == "drift"
    assert "only 14 of 17 prompts stop" in judge([moved] * 14 + stops, BF16).rule
    assert "mean length changed by -7.2 tokens of 48.0" in judge(shorter, BF16).rule
    # A single long answer among few says nothing of the mean.
    assert judge([moved] * 3 + [replace(moved, length=90, tokens_equal=False)], BF16).level == "drift"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"nonfinite": 7}, "NaN or infinite at token 7"),
        ({"empty": True}, "the answer is empty"),
        ({"kl": (1.1, *[0.2] * 47)}, "first-token KL 1.1 > 1 nat"),
        ({"flips": (flip(4.3),), "gap": (0.7,) * 48}, "a flip at margin 4.3 > 6 × 0.7"),
    ],
)
def test_what_is_broken(changes: dict[str, object], word: str) -> None:
    found = judge_one(quiet(**changes), BF16)

    assert found.level == "broken"
    assert word in found.rule
    assert judge([quiet(**changes)] * 3, BF16).level == "broken"


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": (1.1, *[0.3] * 47)},  # not five times the tail
        {"kl": (0.9, *[0.01] * 47)},
        {"flips": (flip(4.3),), "gap": (0.5,) * 48},  # not five times the floor
        {"flips": (flip(4.1),), "gap": (0.7,) * 48},
    ],
)
def test_what_is_not_yet_broken(changes: dict[str, object]) -> None:
    assert judge_one(quiet(**changes), BF16).level == "changed"


def test_an_empty_answer_after_a_close_call_is_noise() -> None:
    closed = quiet(empty=True, tokens_equal=False, flips=(flip(0.2, 0),))

    assert judge_one(closed, BF16).level == "noise"
    assert judge_one(quiet(empty=True), replace(BF16, tokens=False)).level == "noise"


def test_only_padded_rows() -> None:
    hit, unhit = quiet(pads=5, squares=(1.0,) * 48, kl=(0.3,) * 48), quiet()

    assert judge([hit] * 4 + [unhit], BF16).level == "broken"
    assert "only padded rows" in judge([hit] * 4 + [unhit], BF16).rule
    assert judge([hit] * 4, BF16).level == "changed"  # all are padded: nothing to tell it from
    assert judge([hit] * 4 + [replace(hit, pads=0)], BF16).level == "changed"
    assert judge([hit] + [replace(unhit, pads=5)] * 4 + [unhit], BF16).level == "changed"  # most padded rows are well


def test_a_bias_is_a_change_although_all_else_is_noise() -> None:
    random = np.random.default_rng(4)

    def prompts(bias: float, gap: float = 0.12) -> list[Drift]:
        means = bias + random.normal(0, 0.01, 20)
        return [quiet(logprob=(mean,) * 48, gap=(gap,) * 48) for mean in means]

    assert judge(prompts(0.0), BF16).level == "noise"
    found = judge(prompts(0.03), BF16)
    assert found.level == "changed"
    assert "all tokens moved alike" in found.rule
    assert judge(prompts(0.03, gap=0.1), BF16).level == "noise"  # the gap's change is not above its floor
    assert judge(prompts(0.0025), BF16).level == "noise"  # of the order of KL: rounding does that


def test_few_prompts_need_more_standard_errors() -> None:
    """Of three prompts 4 standard errors are nothing: one in seventeen, under Student's distribution."""
    random = np.random.default_rng(5)
    alarms = 0
    for _ in range(1_000):
        drifts = [quiet(logprob=(mean,) * 48, gap=(0.12,) * 48) for mean in random.normal(0, 0.02, 3)]
        alarms += judge(drifts, BF16).level == "changed"

    assert alarms <= 1


def test_a_scale_of_the_last_norm_is_seen_in_bfloat16_too(logits: Numbers) -> None:
    drifts = drifts_of(in_bf16(logits), in_bf16(logits * 1.02, 2), "bfloat16")

    assert judge(drifts, BF16).level == "changed"


def test_processed_scores_that_move_while_raw_ones_do_not() -> None:
    assert judge_one(quiet(processed=(0.029,) * 48), BF16).level == "noise"
    found = judge_one(quiet(processed=(0.031,) * 48), BF16)
    assert found.level == "changed"
    assert found.rule.startswith("raw scores show noise, processed ones do not")
    assert is_processed_otherwise([quiet(processed=(0.031,) * 48)], BF16)
    assert not is_processed_otherwise([quiet(processed=(0.029,) * 48)], BF16)


def test_a_token_that_is_not_the_likeliest_where_the_pin_always_took_that() -> None:
    taken = quiet(tokens_equal=False, shortfall=0.8)

    assert judge_one(taken, BF16).level == "changed"
    assert "0.8 nats below the likeliest" in judge_one(taken, BF16).rule
    assert judge_one(replace(taken, shortfall=0.3), BF16).level == "noise"
    assert judge_one(replace(taken, pinned_shortfall=2.0), BF16).level == "noise"  # so did the pin: it is sampled
    assert judge_one(taken, replace(BF16, tokens=False)).level == "noise"
    assert is_processed_otherwise([taken], BF16)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tokens_equal": False, "ends_elsewhere": True, "length": 20}, "yet 20 of them, not 48"),
        ({"finish_equal": False}, "stops for another reason"),
        ({"prompt_ids_equal": False}, "prompt ids differ in p"),
    ],
)
def test_what_no_rounding_does(changes: dict[str, object], word: str) -> None:
    found = judge_one(quiet(**changes), BF16)

    assert found.level == "changed"
    assert word in found.rule


def test_without_scores_the_tokens_decide() -> None:
    assert judge_one(Drift(name="p"), BF16).level == "identical"
    assert judge_one(Drift(name="p", tokens_equal=False), BF16).level == "changed"


def test_float32_on_the_same_torch_has_to_be_exact() -> None:
    other = quiet(precision="float32", tokens_equal=False, flips=(flip(1e-5),), shortfall=0.0)
    loose = Ruler(BF16.floor)

    assert judge_one(other, loose).level == "noise"
    found = judge_one(other, replace(loose, exact=True))
    assert found.level == "drift"
    assert "in float32 on the same torch" in found.rule
    assert raw_is_noise([other], replace(loose, exact=True))


@pytest.mark.parametrize(
    ("dtype", "level", "torch", "exact"),
    [
        ("float32", "none", "2.13", True),
        ("float32", "none", "2.14", False),
        ("float32", "int8", "2.13", False),
        ("bfloat16", "none", "2.13", False),
    ],
)
def test_where_exactness_is_demanded(dtype: str, level: str, torch: str, exact: bool) -> None:
    lane = Lane("cpu", dtype, level, "sdpa", "any")

    assert is_exact(lane, {"torch": "2.13"}, {"torch": torch, "transformers": "5.24"}) is exact


def test_limits_are_the_users() -> None:
    strict = replace(BF16, limits=Limits(noise_rms=0.1, prompt_noise_rms=0.1, drift_kl=1e-6))

    assert judge_one(quiet(), strict).level == "changed"
    assert all(one.description for one in Limits.model_fields.values())


def test_numbers_are_finite_for_any_format() -> None:
    found = judge_one(quiet(squares=(math.inf,) * 48), BF16)

    assert found.level == "drift"  # only one id of many: KL does not say more
    assert "rms" not in found.numbers
    assert found.numbers["kl_floor"] == 1.3e-3
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_noise_hardly_ever_raises_an_alarm() -> None:
    """Tokens as they were measured (log-normal: median .00083, mean .0013, p99 .0077), texts of 1 to 48 tokens.

    The floor is measured on nine prompts of 37 tokens each, the margins are those of a real model, noise is normal.
    """
    random = np.random.default_rng(6)
    suites, alarms = 250, 0
    for _ in range(suites):
        lengths = random.integers(1, 49, random.integers(1, 37))
        sums = pooled([simulated(random, 37) for _ in range(9)])
        ruler = Ruler(Floor(sums.rms, sums.kl, sums.gap))
        drifts = [simulated(random, int(length)) for length in lengths]
        alone = all(judge_one(drift, ruler).is_quiet for drift in drifts)
        alarms += not (alone and judge(drifts, ruler).is_quiet)

    assert alarms <= suites * 0.01


def simulated(random: np.random.Generator, tokens: int) -> Drift:
    sizes = random.lognormal(math.log(8.3e-4), 0.955, tokens)
    gap = random.normal(0, 0.11, tokens)
    margins = random.exponential(2.0, tokens)
    return quiet(
        squares=tuple(0.099**2 * sizes / 1.3e-3),
        kl=tuple(sizes),
        gap=tuple(gap),
        logprob=tuple(random.normal(0, 0.06, tokens)),
        flips=tuple(flip(float(margins[index]), index) for index in range(tokens) if gap[index] < -margins[index]),
    )
