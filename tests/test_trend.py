"""Trend and flake rate, worked out by hand."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from harness.run_index import Part, Past, PastRun
from harness.run_outcomes import LETTERS, CheckName
from harness.store import WORST_FIRST
from harness.trend import Flake, history

CONDITIONS = {"suite": "s1", "weights": "w1", "device": "cpu", "python": "3.11.7", "torch": "2.12.0"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def run(number, commit="c1", clean=True, seconds=10.0):
    return PastRun(Path(f"run-{number}"), START + timedelta(days=number), seconds, True, {}, commit, clean)


def past(*runs, checks=("t[a]", "t[b]"), pinned=False, target="m"):
    """past("pp", {"torch": "2.13.0"}, "pf"): a run for each word; a letter for each check ("." was not judged); the
    conditions change from where a dict stands."""
    conditions, parts, made = dict(CONDITIONS), [], []
    git = {}
    for one in runs:
        if isinstance(one, dict):
            git |= {key: one[key] for key in ("commit", "clean") if key in one}
            conditions = {**conditions, **{key: value for key, value in one.items() if key not in git}}
            conditions = {key: value for key, value in conditions.items() if value is not None}
            continue
        names = [CheckName(label.partition("[")[0], label, pinned) for label, letter in zip(checks, one, strict=True)
                 if letter != "."]  # fmt: skip
        speed = (40, 2.0, {"t": 1.5})
        outcomes = one.replace(".", "").encode()
        parts.append(Part(len(made), "s", target, tuple(names), outcomes, dict(conditions), *speed))
        made.append(run(len(made), **git))
    return Past(tuple(made), tuple(part for part in parts if part.checks), ())


def only_test(*runs, last=None, **changes):
    (test,) = history(past(*runs, **changes), last).tests
    return test


def test_there_is_a_letter_for_each_outcome_in_their_order():
    assert [LETTERS[place : place + 1] for place, _ in enumerate(WORST_FIRST)] == [b"e", b"f", b"X", b"x", b"p", b"s"]
    assert WORST_FIRST == ("error", "failed", "xpassed", "xfailed", "passed", "skipped")


def test_a_flake_is_another_outcome_under_the_same_conditions():
    test = only_test("pp", "pf", "pp", "pp")
    assert test.flake == Flake(changed=2, pairs=3)
    assert not history(past("pp", "pf", "pp", "pp")).changes


def test_a_test_flakes_once_in_a_run_however_many_of_its_checks_do():
    assert only_test("pp", "ff", "ff").flake == Flake(1, 2)


def test_the_flake_rate_of_a_check_counts_its_own_pairs():
    found = history(past("pp", "pf", ".p", "pp"))
    (check,) = found.flaky
    # b: p f p p: three pairs, two of which differ. a was judged in three runs and never differed.
    assert (check.name.label, check.flake, check.flaked, check.runs) == ("t[b]", Flake(2, 3), run(2), 4)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("torch", "2.13.0", "torch 2.12.0 → 2.13.0"),
        ("suite", "s2", "suite edited"),
        ("weights", "w2", "other weights"),
        ("device", "cuda:0", "device cpu → cuda:0"),
        ("python", "3.12.1", "python 3.11.7 → 3.12.1"),
        ("transformers", "5.23.0", "transformers none → 5.23.0"),
    ],
)
def test_another_outcome_under_other_conditions_is_a_change_that_names_them(name, value, said):
    found = history(past("pp", {name: value}, "pf"))
    assert found.tests[0].flake == Flake(0, 0)
    (change,) = found.changes
    assert change.differs == (said,)
    assert change.checks == (("t[b]", "passed", "failed", False),)
    assert (change.before.name, change.after.name) == ("run-0", "run-1")


def test_the_same_outcome_under_other_conditions_is_nothing():
    found = history(past("pp", {"torch": "2.13.0"}, "pp"))
    assert not found.changes
    assert found.tests[0].flake == Flake(0, 0)


def test_runs_of_two_machines_in_turns_are_compared_each_with_its_own():
    cpu, cuda = {"device": "cpu"}, {"device": "cuda:0"}
    found = history(past("pp", cuda, "pf", cpu, "pp", cuda, "pf", cpu, "pp", cuda, "pp"))
    # cpu: pp pp pp; cuda: pf pf pp. The first run on cuda has none before it on cuda: that is the one change.
    assert found.tests[0].flake == Flake(1, 4)
    assert [(change.before.name, change.after.name) for change in found.changes] == [("run-0", "run-1")]


def test_a_change_of_a_check_that_flakes_says_so():
    (change,) = history(past("pp", "pf", "pf", {"torch": "2.13.0"}, "fp")).changes
    assert change.checks == (("t[a]", "passed", "failed", False), ("t[b]", "failed", "passed", True))


@pytest.mark.parametrize("name", ["suite", "weights", "device", "python"])
def test_what_is_not_known_is_never_the_same(name):
    found = history(past({name: None}, "pp", "pf"))
    assert found.tests[0].flake == Flake(0, 0)
    assert found.changes[0].differs == (f"{name} not known",)


def test_pinned_tests_depend_on_the_commit():
    same, other, dirty = {"commit": "c1"}, {"commit": "c2"}, {"commit": "c1", "clean": False}
    assert only_test(same, "pp", "pf", pinned=True).flake == Flake(1, 1)
    assert only_test(same, "pp", other, "pf", pinned=True).flake == Flake(0, 0)
    assert only_test(same, "pp", dirty, "pf", pinned=True).flake == Flake(0, 0)
    assert only_test(same, "pp", other, "pf").flake == Flake(1, 1)
    assert history(past("pp", other, "pf", pinned=True)).changes[0].differs == ("commit c1 → c2",)
    (change,) = history(past("pp", dirty, "pf", pinned=True)).changes
    assert change.differs == ("not a clean commit: pins may have been edited",)


def test_a_test_that_is_pinned_in_one_run_is_pinned_in_all():
    # In the second the model could not be loaded: its records name no expectation.
    plain, pinned = past("ee").parts[0].checks, past("pp", pinned=True).parts[0].checks
    given = past("pp", "ee", {"commit": "c2"}, "pp")
    parts = tuple(part._replace(checks=names) for part, names in zip(given.parts, (pinned, plain, pinned), strict=True))
    assert history(Past(given.runs, parts, ())).tests[0].flake == Flake(1, 1)


def test_the_interval_is_wilsons_on_half_as_many_pairs():
    # Published for 95 %: 0 of 10 up to 0.2775; 5 of 10 from 0.2366 to 0.7634; and by symmetry 10 of 10.
    assert Flake(0, 20).interval == (0.0, pytest.approx(0.2775, abs=5e-5))
    assert Flake(10, 20).interval == pytest.approx((0.2366, 0.7634), abs=5e-5)
    assert Flake(20, 20).interval == (pytest.approx(1 - 0.2775, abs=5e-5), 1.0)
    assert Flake(0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize("odd", [0.03, 0.1, 0.3])
def test_the_interval_holds_the_true_rate_as_often_as_it_says(odd):
    # Each run is odd by itself, with this probability: then so many of all pairs differ.
    rate = 2 * odd * (1 - odd)
    runs = np.random.default_rng(1).random((1000, 101)) < odd
    counts = (runs[:, 1:] != runs[:, :-1]).sum(axis=1).tolist()
    held = [low <= rate <= high for low, high in (Flake(count, 100).interval for count in counts)]
    assert sum(held) / len(held) > 0.94


def test_the_pass_rate_leaves_out_what_was_skipped():
    test = only_test("pf", "ps", "Xx", "ss")
    assert (test.passed, test.judged) == ((1, 1, 1, 0), (2, 1, 2, 0))
    assert test.pass_rate == 3 / 5
    assert test.outcomes == ("failed", "passed", "xpassed", "skipped")


def test_a_test_that_fails_says_since_when():
    test = only_test("pp", "pf", "pp", {"torch": "2.13.0"}, "pf", "..", "ep")
    assert test.fails
    # Of the run in which nothing was judged there is no part.
    assert [test.runs[place].name for place in test.failing] == ["run-3", "run-5"]
    assert test.runs[test.before_failing].name == "run-2"
    assert test.what_differed == ("torch 2.12.0 → 2.13.0",)


def test_what_differed_is_looked_for_over_the_runs_in_between():
    checks = ("t[a]", "u[a]")
    given = past("pp", {"torch": "2.13.0"}, ".p", {"weights": "w2"}, "fp", checks=checks)
    test = next(test for test in history(given).tests if test.test == "t")
    assert test.outcomes == ("passed", "", "failed")
    assert test.what_differed == ("torch 2.12.0 → 2.13.0", "other weights")


def test_a_test_that_never_passed_fails_from_the_first_run_on():
    test = only_test("fp", "fp")
    assert (test.failing, test.before_failing, test.what_differed) == ((0, 1), None, ())
    assert only_test("fp", "pp").failing == ()


def test_a_test_that_was_taken_out_of_the_suite_does_not_fail_now():
    checks = ("t[a]", "u[a]")
    assert len(history(past("fp", ".p", checks=checks)).failing) == 1  # left out by -k, perhaps
    assert history(past("fp", {"suite": "s2"}, ".p", checks=checks)).failing == []


def test_only_the_last_runs_of_each_suite_are_looked_at():
    found = history(past("pf", "pp", "pp", "pp"), last=2)
    assert [one.name for one in found.runs] == ["run-2", "run-3"]
    assert found.tests[0].outcomes == ("passed", "passed")
    assert found.tests[0].flake == Flake(0, 1)


def test_checks_of_a_test_stand_together_wherever_they_came_from():
    checks = ("t[a]", "u[a]", "t[b]")
    found = history(past("ppf", "ppp", checks=checks))
    assert [(test.test, test.judged, test.flake) for test in found.tests] == [
        ("t", (2, 2), Flake(1, 1)),
        ("u", (1, 1), Flake(0, 1)),
    ]


def test_a_target_is_seen_over_all_its_suites():
    one, two = past("pp", "pf"), past("pp", "fp")
    parts = [
        part for pair in zip(one.parts, (part._replace(suite="s2") for part in two.parts), strict=True) for part in pair
    ]
    (target,) = history(Past(one.runs, tuple(parts), ())).targets
    assert (target.passed, target.judged) == ((4, 2), (4, 4))
    assert target.tokens_per_second == (20.0, 20.0)  # 2 × 40 tokens in 2 × 2 seconds
    assert target.flake == Flake(1, 1)


def test_seconds_of_a_test_that_are_not_known_are_none():
    assert only_test("pp").seconds == (1.5,)
    assert only_test("pp", checks=("u[a]", "u[b]")).seconds == (None,)


def test_nothing_comes_of_nothing():
    found = history(Past((), (), ()))
    assert (found.tests, found.targets, found.flaky, found.changes) == ((), (), (), ())
