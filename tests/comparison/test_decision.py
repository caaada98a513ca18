"""From measured data to statistics and a decision, with numbers that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from harness.comparison.decision import decide
from harness.comparison.measured import Answered, Candidate, Measured, Passage, Replay, Timing
from harness.comparison.statistics import Interval
from harness.comparison.summary import STATISTICS, summarize
from harness.inputs import Generation, Model
from harness.record import Completion, Record, Request, Target, Text, Verdict
from harness.store import Results

PROMPTS = 12
TOKENS = 10
GREEDY = Generation(do_sample=False, max_new_tokens=TOKENS)


def replay(kl: float = 0.0, flips: int = 0, lost: float = 0.0, distance: float = 0.0) -> Replay:
    """The same KL at every token; the first tokens flip; the baseline's text is less likely by so many nats a token."""
    return Replay(
        kl=(kl,) * TOKENS,
        baseline_top=tuple(range(TOKENS)),
        top=tuple(-1 if index < flips else index for index in range(TOKENS)),
        baseline_margin=(0.5,) * flips + (0.0,) * (TOKENS - flips),
        margin=(0.25,) * flips + (0.0,) * (TOKENS - flips),
        baseline_logprob=(-1.0,) * TOKENS,
        logprob=(-1.0 - lost,) * TOKENS,
        processed_distance=(distance,) * TOKENS,
        processed_top1=(True,) * TOKENS,
    )


def completion(prompt: int, ids: tuple[int, ...] = (5, 6, 7), text: str = "abc", finish: str = "eos") -> Completion:
    request = Request(Text(text=f"prompt {prompt}"), GREEDY)
    return Completion(
        request, "", (1,), ids, tuple(map(str, ids)), text, finish, generation_config={"do_sample": False}
    )


def timing(name: str, rate: float = 100.0, megabytes: float = 500.0, pace: float = 1.0) -> Timing:
    return Timing(
        name,
        load_seconds=2.0,
        weight_bytes=int(megabytes * 0.8e6),
        peak_bytes=int(megabytes * 1e6),
        first_token=(0.1, 0.2, 0.3),
        single=(rate / 10,) * 3,
        batch=(rate,) * 3,
        batch_size=4,
        yardstick=(pace, pace),
    )


def record(target: str, test: str, status: str = "passed", xfail: str = "") -> Record:
    return Record(
        f"s.yaml::{target}::{test}", "s", "s.yaml", 1, test, target, "m", "none", "p", "greedy", "contains",
        Verdict(status, "because"), xfail,  # type: ignore[arg-type]
    )  # fmt: skip


def results(
    replays: dict[str, list[Replay]],
    timings: dict[str, Timing] | None = None,
    budget: dict[str, Any] | None = None,
    completions: dict[str, list[Completion]] | None = None,
    **more: Any,
) -> Results:
    names = list(replays)
    done = {name: (completions or {}).get(name) or [completion(i) for i in range(PROMPTS)] for name in names}
    measured = Measured(
        baseline=names[0],
        candidates=tuple(Candidate(name, name, "greedy") for name in names),
        answered=tuple(
            Answered(name, f"p{i}", done[name][i].request.id, one)
            for name, own in replays.items()
            for i, one in enumerate(own)
        ),
        timings=tuple((timings or {}).values()),
        **{key: more.pop(key) for key in ("passages", "not_measured") if key in more},
    )
    return Results(
        records=more.pop("records", ()),
        completions=tuple((name, one) for name, own in done.items() for one in own),
        failures=(),
        facts=(),
        counts={},
        suites=(),
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        environment={},
        command="",
        targets=tuple(Target(name, "m", Model(path="m")) for name in names),
        measured=measured,
        budget=budget,
    )


BASE = [replay()] * PROMPTS


def values(found: Results, name: str) -> dict[str, Interval]:
    return next(dict(one.values) for one in summarize(found) if one.candidate.name == name)


def test_statistics_of_a_replay() -> None:
    own = [replay(kl=0.2, flips=2, lost=0.1, distance=0.3) for _ in range(PROMPTS)]
    found = values(results({"base": BASE, "own": own}), "own")
    assert found["kl"].value == pytest.approx(0.2)
    assert found["kl_median"].value == found["kl_p99"].value == found["kl_max"].value == pytest.approx(0.2)
    assert found["top1"].value == pytest.approx(0.8)
    assert found["continuation_ratio"].value == pytest.approx(math.exp(0.1))
    assert found["processed_distance"].value == pytest.approx(0.3)
    assert found["processed_top1"].value == 1


def test_flips_carry_the_margins_of_both_sides() -> None:
    found = results({"base": BASE, "own": [replay(kl=0.2, flips=1), *BASE[1:]]})
    (flip,) = next(one.flips for one in summarize(found) if one.candidate.name == "own")
    assert (flip.prompt, flip.index, flip.baseline, flip.own) == ("p0", 0, 0, -1)
    assert (flip.baseline_margin, flip.margin, flip.kl) == (0.5, 0.25, 0.2)


def test_statistics_of_what_was_freely_written() -> None:
    own = [completion(i) for i in range(PROMPTS)]
    own[0] = completion(0, ids=(5, 9, 7, 8), text="axcd", finish="length")
    found = values(results({"base": BASE, "own": BASE}, completions={"own": own}), "own")
    assert found["same_tokens"].value == found["same_text"].value == found["same_end"].value == 11 / 12
    assert found["first_divergence"].value == 1
    assert found["similarity"].value == pytest.approx((11 + 0.5) / 12)  # abc to axcd: one replaced, one added, of four
    assert found["tokens_change"].value == found["characters_change"].value == pytest.approx(1 / 12)


def test_the_baseline_against_itself_is_known_exactly() -> None:
    found = values(results({"base": BASE[:2], "own": BASE[:2]}), "base")
    assert found["kl"] == Interval(0, 0, 0, 2)
    assert found["top1"] == Interval(1, 1, 1, 2)


def test_intervals_stay_within_what_is_possible() -> None:
    own = [replay(kl=0.0)] * 3 + [replay(kl=0.9)]
    assert values(results({"base": BASE[:4], "own": own}), "own")["kl"].low == 0


def test_memory_speed_and_drift() -> None:
    timings = {"base": timing("base"), "own": timing("own", rate=150, megabytes=200, pace=1.1)}
    found = values(results({"base": BASE, "own": BASE}, timings), "own")
    assert found["peak_mb"].value == 200
    assert found["weights_mb"].value == 160
    assert found["first_token_ms"] == Interval(200, 100, 300, 3)
    assert found["batch_tokens_per_second"].value == 150
    assert found["speedup"].value == 1.5
    assert found["drift"].value == pytest.approx(1.1)


def test_texts_are_compared_by_token_with_the_same_tokens_and_else_by_byte() -> None:
    def passages(tokens: int) -> tuple[Passage, ...]:
        mine = tuple(Passage("own", f"t{i}", 22.0, tokens, 40) for i in range(8))
        return (*mine, *(Passage("base", f"t{i}", 20.0, 10, 40) for i in range(8)))

    found = values(results({"base": BASE, "own": BASE}, passages=passages(10)), "own")
    assert found["perplexity"].value == pytest.approx(math.exp(2.2))
    assert found["perplexity_ratio"].value == pytest.approx(math.exp(0.2))
    assert found["bits_per_byte"].value == pytest.approx(22 / 40 / math.log(2))
    other = values(results({"base": BASE, "own": BASE}, passages=passages(12)), "own")
    assert "perplexity_ratio" not in other
    assert "bits_per_byte" in other


# --- the gate --------------------------------------------------------------------------------------------------------


def gate(budget: dict[str, Any], **given: Any) -> Any:
    replays = given.pop("replays", {"base": BASE, "own": BASE})
    return decide(results(replays, budget=budget, **given)).gates[1]


def test_within_the_budget_it_ships() -> None:
    found = gate({"max_kl": 0.1, "min_top1": 0.5})
    assert (found.word, found.reasons) == ("ship", ())


def test_beyond_the_budget_it_does_not_and_the_limit_is_named() -> None:
    own = [replay(kl=0.2 + 0.01 * i) for i in range(PROMPTS)]
    found = gate({"max_kl": 0.1}, replays={"base": BASE, "own": own})
    assert found.word == "do not ship"
    assert found.reasons[0].startswith("kl 0.255 [")
    assert "at most 0.1 wanted" in found.reasons[0]


def test_where_the_sample_is_too_small_it_cannot_be_told_and_how_many_would_tell() -> None:
    own = [replay(kl=value) for value in (0.0, 0.25) * 3]
    found = gate({"max_kl": 0.12}, replays={"base": BASE[:6], "own": own})
    assert found.word == "cannot tell"
    assert "prompts would tell (now 6)" in found.reasons[0]


def test_one_broken_limit_blocks_whatever_else_is_open() -> None:
    own = [replay(kl=value, flips=9) for value in (0.0, 0.25) * 3]
    found = gate({"max_kl": 0.12, "min_top1": 0.9}, replays={"base": BASE[:6], "own": own})
    assert found.word == "do not ship"
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("top1 0.1")


@pytest.mark.parametrize(("megabytes", "word"), [(300.0, "ship"), (301.0, "do not ship")])
def test_memory_is_one_number_and_needs_no_interval(megabytes: float, word: str) -> None:
    timings = {"base": timing("base"), "own": timing("own", megabytes=megabytes)}
    assert gate({"max_memory_mb": 300}, timings=timings).word == word


@pytest.mark.parametrize(
    ("pace", "rate", "word"),
    [
        (1.0, 120, "ship"),
        (1.0, 90, "do not ship"),
        (1.14, 120, "ship"),
        (1.3, 120, "cannot tell"),
        (0.7, 90, "cannot tell"),
    ],
)
def test_speed_is_not_judged_where_the_machine_itself_changed_its_pace(pace: float, rate: float, word: str) -> None:
    timings = {"base": timing("base"), "own": timing("own", rate=rate, pace=pace)}
    found = gate({"min_speedup": 1.1}, timings=timings)
    assert found.word == word
    if word == "cannot tell":
        assert "measure again" in found.reasons[0]


def test_taken_in_turns_speed_is_judged_whatever_the_pace() -> None:
    own = dataclasses.replace(timing("own", rate=120, pace=3.0), beside_batch=(100.0,) * 3, beside_single=(10.0,) * 3)
    assert gate({"min_speedup": 1.1}, timings={"base": timing("base"), "own": own}).word == "ship"


def test_taken_in_turns_who_is_faster_is_told_by_the_turns() -> None:
    replays = {name: [replay(kl=0.0)] * PROMPTS for name in ("base", "fast", "slow")}
    timings = {
        "base": timing("base", rate=100),
        # While the faster one was measured the machine ran at a third of its pace: so did the baseline beside it.
        "fast": dataclasses.replace(timing("fast", rate=50), beside_batch=(33.0,) * 3),
        "slow": dataclasses.replace(timing("slow", rate=80), beside_batch=(100.0,) * 3),
    }
    found = decide(results(replays, timings, {"max_kl": 0.1}))
    assert found.pareto == ("fast",)
    assert found.cheapest == "fast"


@pytest.mark.parametrize(
    ("records", "word", "reason"),
    [
        ([record("own", "says[a]"), record("own", "says[b]")], "ship", ""),
        (
            [record("own", "says[a]"), record("own", "says[b]", "failed")],
            "do not ship",
            "must_pass says[b]: failed",
        ),
        ([record("own", "says[a]", "failed", xfail="known")], "do not ship", "must_pass says[a]: xfailed"),
        ([record("own", "says[a]", "skipped")], "cannot tell", "must_pass says: it was not judged on this candidate"),
        ([record("own", "says-more", "failed")], "cannot tell", "must_pass says: it was not judged on this candidate"),
    ],
)
def test_tests_that_must_pass(records: list[Record], word: str, reason: str) -> None:
    found = gate({"must_pass": ("says",)}, records=tuple(records))
    assert found.word == word
    assert found.reasons == ((reason,) if reason else ())


def test_what_was_not_measured_cannot_be_told_and_says_why() -> None:
    found = gate({"max_kl": 0.1}, replays={"base": BASE, "own": []}, not_measured={"own": "no CUDA here\n  buy one"})
    assert (found.word, found.reasons) == ("cannot tell", ("max_kl 0.1: not measured: no CUDA here",))


def test_the_cheapest_that_passes_is_shipped() -> None:
    replays = {"base": BASE, "small": BASE, "tiny": [replay(kl=0.5 + 0.01 * i) for i in range(PROMPTS)]}
    timings = {
        "base": timing("base", megabytes=500),
        "small": timing("small", megabytes=200),
        "tiny": timing("tiny", megabytes=100),
    }
    found = decide(results(replays, timings, {"max_kl": 0.1}))
    assert [one.word for one in found.gates] == ["ship", "ship", "do not ship"]
    assert found.cheapest == "small"
    assert found.sentence == "ship small: the cheapest of 2 that keep the budget"
    strict = decide(results(replays, timings, {"max_memory_mb": 50}))
    assert strict.sentence == "nothing keeps the budget: ship none of them"
    assert strict.cheapest == ""
    assert decide(results(replays, timings)).sentence.startswith("no budget")


def test_the_pareto_set_holds_what_nothing_else_beats() -> None:
    replays = {name: [replay(kl=kl)] * PROMPTS for name, kl in (("base", 0), ("a", 0.1), ("b", 0.1), ("c", 0.3))}
    timings = {
        "base": timing("base", rate=100, megabytes=500),
        "a": timing("a", rate=120, megabytes=200),
        "b": timing("b", rate=110, megabytes=200),  # as good and as small as a, but slower
        "c": timing("c", rate=50, megabytes=100),
    }
    assert decide(results(replays, timings)).pareto == ("base", "a", "c")


def test_two_candidates_are_compared_on_the_same_prompts() -> None:
    noise = [0.1 * i for i in range(PROMPTS)]  # prompts differ far more than the candidates do
    replays = {
        "base": BASE,
        "a": [replay(kl=value + 0.02 + 0.001 * (i % 3)) for i, value in enumerate(noise)],
        "b": [replay(kl=value) for value in noise],
        "c": [replay(kl=value + 0.01 * (-1) ** i) for i, value in enumerate(noise)],
    }
    found = {(one.one, one.other): one for one in decide(results(replays)).differences}
    assert found["a", "b"].better == "b"
    assert found["a", "b"].value.value == pytest.approx(0.02 + 0.001)
    assert found["b", "c"].better == ""
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_equal_candidates_have_no_better_one() -> None:
    (found,) = decide(results({"base": BASE, "a": BASE, "b": BASE})).differences
    assert (found.value, found.better, found.prompts) == (Interval(0, 0, 0, PROMPTS), "", None)


def test_checks_are_compared_pairwise_too() -> None:
    records = [record("a", f"t{i}") for i in range(30)] + [record("b", f"t{i}", "failed") for i in range(30)]
    found = decide(results({"base": BASE, "a": BASE, "b": BASE}, records=tuple(records))).differences
    checks = next(one for one in found if one.statistic == "checks")
    assert (checks.value.value, checks.better) == (1, "a")


def test_every_statistic_has_a_side_that_is_better_or_says_that_there_is_none() -> None:
    assert {row.better for row in STATISTICS.values()} <= {"low", "high", ""}
