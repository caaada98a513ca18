import math
from dataclasses import replace

import pytest

from harness.comparison.measured import Answered
from harness.reports.decision_page import FLIPS, LEAST, decision_page


def headline(page):
    return page["headline"]["symbol"], page["headline"]["look"], page["headline"]["sentence"]


class TestHeadline:
    def test_the_cheapest_that_keeps_the_budget_and_what_it_costs(self, compared):
        page = decision_page(compared())
        assert headline(page) == ("✓", "passed", "ship int8: it alone keeps the budget")
        # 300 of 600 MB; medians 22 and 31 tokens/s
        cost = "300 MB of memory (0.5 × the baseline's), 22 tokens/s (0.71 × the baseline's), KL, nats a token: 0.0200 "
        assert page["headline"]["cost"].startswith(cost)

    def test_the_baseline_is_not_compared_with_itself(self, compared):
        page = decision_page(compared(budget={"min_top1": 1.0}))
        assert page["headline"]["sentence"] == "ship fp32: it alone keeps the budget"
        assert page["headline"]["cost"] == "600 MB of memory, 31 tokens/s"

    def test_measured_in_turns_its_speed_is_that_beside_the_baseline(self, compared, measures):
        known = measures()
        # 22 tokens/s while the baseline beside it made 44, and not the 31 that it had made alone
        turns = {"int8": (44.0,) * 3}
        timings = tuple(replace(one, beside_batch=turns.get(one.candidate, ())) for one in known.timings)
        page = decision_page(compared(measured=measures(timings=timings)))
        assert "22 tokens/s (0.5 × the baseline's)" in page["headline"]["cost"]

    @pytest.mark.parametrize(
        ("budget", "told"),
        [
            ({"max_memory_mb": 10}, ("?", "known")),  # of fp8 nothing is known
            (None, ("–", "soft")),
        ],
    )
    def test_otherwise_it_says_why_not(self, compared, budget, told):
        page = decision_page(compared(budget=budget))
        assert headline(page)[:2] == told
        assert page["headline"]["cost"] == ""

    def test_nothing_to_ship_is_said_as_loud(self, compared, measures):
        known = measures()
        made = measures(candidates=known.candidates[:3], not_measured={})
        page = decision_page(compared(measured=made, budget={"max_memory_mb": 10}, errors=()))
        assert headline(page) == ("✗", "failed", "nothing keeps the budget: ship none of them")

    def test_a_run_without_a_comparison_has_no_decision(self, compared):
        assert decision_page(compared(measured=None)) is None


class TestFlips:
    def test_they_are_told_with_both_margins_and_texts(self, compared):
        flips = decision_page(compared(texts={"nf4": {200: " three\n"}, "fp32": {100: " one"}}))["flips"]
        # eight prompts of four tokens; the first token of each
        assert flips["counts"] == ["nf4 8 of 32 tokens"]
        assert len(flips["rows"]) == 8
        assert flips["rows"][0] == {
            "candidate": "nf4",
            "prompt": "p0",
            "index": 0,
            "baseline": "' one'",
            "baseline_margin": "0.500",
            "own": "' x'",  # what a completion says of an id goes before
            "margin": "0.250",
            "kl": "0.200",
        }

    def test_an_id_that_nothing_tells_of_is_a_number(self, compared):
        flips = decision_page(compared(completions=(), texts={"nf4": {200: "a\nb"}}))["flips"]
        assert (flips["rows"][0]["baseline"], flips["rows"][0]["own"]) == ("#100", "'a\\nb'")

    def test_first_those_of_which_the_baseline_was_surest(self, compared, measures):
        made = measures()
        margins = {"p3": 7.0, "p5": math.nan, "p6": 9.0}
        answered = tuple(with_margin(one, margins.get(one.prompt)) for one in made.answered)
        rows = decision_page(compared(measured=replace(made, answered=answered)))["flips"]["rows"]
        assert [row["prompt"] for row in rows][:4] == ["p5", "p6", "p3", "p0"]
        assert rows[0]["baseline_margin"] == "–"

    def test_each_candidate_has_its_share_of_the_rows(self, compared, measures):
        count = 12
        level = ((0.1,) * 8, 4, 100, 100, (10.0, 10.0), 100.0)
        levels = {"fp32": (*level[:1], 0, *level[2:])} | {f"level-{number}": level for number in range(count)}
        flips = decision_page(compared(measured=measures(levels), completions=()))["flips"]
        assert FLIPS // count < LEAST
        assert len(flips["rows"]) == LEAST * count
        assert flips["more"] == count * 8 * 4 - LEAST * count


def with_margin(one: Answered, margin):
    if margin is None or not one.replay:
        return one
    return replace(one, replay=replace(one.replay, baseline_margin=(margin,) * 4))


class TestPlots:
    def test_speed_and_quality_stand_over_the_same_memory(self, compared):
        speed, quality = decision_page(compared())["plots"]
        assert speed.text == (
            "speed in batch, × the baseline's over peak memory, MB. fp32 (Pareto): 600 MB, 1 ×; "
            "int8 (Pareto, ship): 300 MB, 0.710 ×; nf4 (Pareto): 250 MB, 1.16 ×"
        )
        assert quality.text == (
            "KL, nats a token over peak memory, MB. fp32 (Pareto): 600 MB, 0 nats; "
            "int8 (Pareto, ship): 300 MB, 0.0200 nats; nf4 (Pareto): 250 MB, 0.300 nats"
        )
        nf4, fp32, int8 = sorted(speed.marks, key=lambda mark: mark.y)
        assert [one.point.label for one in (nf4, fp32, int8)] == [
            "nf4 · Pareto",
            "fp32 · Pareto",
            "int8 · Pareto · ship",
        ]
        assert nf4.x < int8.x < fp32.x
        assert [mark.point.label[:4] for mark in sorted(quality.marks, key=lambda mark: mark.y)] == [
            "fp32",
            "int8",
            "nf4 ",
        ]
        assert {mark.point.label[:4]: mark.x for mark in quality.marks} == {
            mark.point.label[:4]: mark.x for mark in speed.marks
        }
        assert [mark.point.label[:4] for mark in speed.marks if mark.point.chosen] == ["int8"]

    def test_those_that_others_beat_are_hollow(self, compared, measures):
        good = ((0.1,) * 8, 0, 100, 100, (20.0, 20.0), 100.0)
        worse = ((0.2,) * 8, 0, 150, 150, (10.0, 10.0), 120.0)
        (speed, _) = decision_page(compared(measured=measures({"fp32": good, "bad": worse}), budget=None))["plots"]
        assert {mark.point.label: mark.point.filled for mark in speed.marks} == {"fp32 · Pareto": True, "bad": False}

    def test_limits_that_are_near_are_drawn(self, compared):
        speed, quality = decision_page(compared(budget={"max_memory_mb": 400, "max_kl": 0.1}))["plots"]
        assert [border.limit.label for border in speed.borders] == ["max_memory_mb 400"]
        assert [border.limit.label for border in quality.borders] == ["max_memory_mb 400", "max_kl 0.1"]
        far, _ = decision_page(compared(budget={"max_memory_mb": 40_000}))["plots"]
        assert far.borders == ()

    def test_all_that_they_show_is_a_table(self, compared):
        table = decision_page(compared())["points"]
        assert table.heads == (
            "candidate",
            "in the Pareto set",
            "peak memory, MB",
            "speed in batch, × the baseline's",
            "KL, nats a token",
        )
        assert table.rows[0] == ("fp32", "yes", "600", "1", "0")
        assert [row[0] for row in table.rows] == ["fp32", "int8", "nf4"]

    def test_without_speed_and_memory_there_is_nothing_to_draw(self, compared, measures):
        page = decision_page(compared(measured=measures(timings=()), budget=None))
        assert page["plots"] == []

    def test_without_kl_it_is_bits_per_byte(self, compared, measures):
        made = measures()
        answered = tuple(replace(one, replay=None, why_not="another tokenizer") for one in made.answered)
        _, quality = decision_page(compared(measured=replace(made, answered=answered), budget={"max_kl": 0.1}))["plots"]
        assert quality.text.startswith("bits per byte of the texts over peak memory, MB. fp32")
        assert quality.borders == ()

    def test_what_is_not_finite_is_not_drawn(self, compared, measures):
        levels = {
            "fp32": ((0.0,) * 8, 0, 538, 600, (30.0, 31.0), 100.0),
            "broken": ((math.nan,) * 8, 4, 162, 300, (20.0, 22.0), math.inf),
        }
        speed, quality = decision_page(compared(measured=measures(levels)))["plots"]
        assert len(speed.marks) == 2
        assert [mark.point.label[:4] for mark in quality.marks] == ["fp32"]
