import math
import re
from html.parser import HTMLParser

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.comparison.measured import Answered, Candidate, Measured, Replay
from harness.inputs import GREEDY, Generation, Model
from harness.pins.pin import Pin
from harness.record import Completion, Record, Request, Step, Target, TargetFacts, Text, Verdict
from harness.reports import charts
from harness.reports.profiles import CHECKS, POSITIONS, binned, profiles, survival
from harness.store import Results

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "{{ 7 * 7 }}")


def replay(*kl):
    """One with these KLs, a token each."""
    same = {name: (0,) * len(kl) for name in Replay.__dataclass_fields__}
    return Replay(**(same | {"kl": kl}))


def request(prompt, **changes):
    return Request(Text(f"Say {prompt}"), GREEDY, **changes)


def completion(prompt, ids, steps=(), **changes):
    asked = changes.pop("request", request(prompt))
    return Completion(asked, "", (1,), tuple(ids), tuple(f"t{id}" for id in ids), "", "eos", steps, **changes)


def results(**changes):
    made = {
        "records": (), "completions": (), "failures": (), "facts": (), "counts": {}, "suites": (), "started": "",
        "seconds": 0.0, "environment": {}, "command": "",
    }  # fmt: skip
    return Results(**(made | changes))


def figures(made):
    found = profiles(made)
    return {figure.id: figure for figure in (*found.positions, *found.spreads)} if found else {}


def rows(figure):
    return {row[0]: row[1:] for row in figure.table.rows}


def drawn(made):
    """profiles.html.j2 as the page renders it."""
    folder = charts.__file__.rpartition("/")[0]
    kept = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = Environment(loader=FileSystemLoader(folder), **kept).get_template("profiles.html.j2")
    return template.render(profiles=profiles(made))


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


class TestKl:
    def test_it_is_the_mean_over_prompts_at_each_token(self, compared):
        figure = figures(compared())["profile-kl"]
        assert figure.title == "KL from fp32, by token"
        assert figure.table.heads == ("token", "prompts", "int8", "nf4")
        # int8: (0.01 + 0.03) / 2; nf4: (0.2 + 0.25 + 0.3 + 0.35 + 0.25 + 0.3 + 0.35 + 0.4) / 8
        assert rows(figure) == {str(token): ("8", "0.0200", "0.300") for token in range(4)}
        (plot,) = figure.plots
        assert [curve.label for curve in plot.curves] == ["int8", "nf4"]
        assert "nf4: 0.300 at the first token, largest 0.300 at token " in plot.text

    def test_what_is_not_finite_is_left_out_and_counted(self, compared, measures):
        answered = [
            Answered("fp32", "p0", request("p0").id, replay(*(0.0,) * 4)),
            Answered("int8", "p0", request("p0").id, replay(0.5, math.nan, math.inf, 0.5)),
            Answered("int8", "p1", request("p1").id, replay(*(0.1,) * 4)),
            Answered("nf4", "p0", request("p0").id, replay(*(math.nan,) * 4)),
        ]
        found = figures(compared(measured=measures(answered=tuple(answered))))
        figure = found["profile-kl"]
        assert "Left out: 6 values that are not finite." in figure.caption
        # at the first token (0.5 + 0.1) / 2, at the second only the 0.1
        assert rows(figure) == {"0": ("2", "0.300", "–"), "1": ("2", "0.100", "–")} | {
            "2": ("2", "0.100", "–"),
            "3": ("2", "0.300", "–"),
        }
        assert [curve.label for curve in figure.plots[0].curves] == ["int8"]
        assert [lane.label for lane in found["spread-kl"].plots[0].lanes] == ["int8"]
        assert found["spread-kl"].caption == "Left out: 6 values that are not finite."

    def test_of_a_long_answer_neighbours_are_taken_together(self):
        assert [one.name for one in binned(3)] == ["0", "1", "2"]
        bins = binned(POSITIONS + 1)
        assert (bins[0].name, bins[-1].name, bins[1].middle) == ("0–1", str(POSITIONS), 2.5)
        assert len(bins) <= POSITIONS

    def test_means_of_neighbours_by_hand(self, compared):
        length = 2 * POSITIONS
        candidates = (Candidate("a", "a", "greedy"), Candidate("b", "b", "greedy"))
        answered = (Answered("b", "p0", "r0", replay(*range(length))), Answered("b", "p1", "r1", replay(10)))
        found = figures(compared(measured=Measured("a", candidates, answered), completions=()))
        table = rows(found["profile-kl"])
        # tokens 0 and 1: 0, 1 of the one and 10 of the other; then of the one alone
        assert table["0–1"] == ("2", "3.67")
        assert table["2–3"] == ("1", "2.50")

    def test_without_replays_there_is_no_kl(self, compared, measures):
        answered = tuple(Answered(name, "p0", request("p0").id, why_not="no") for name in ("fp32", "int8"))
        found = figures(compared(measured=measures(answered=answered)))
        assert not {"profile-kl", "spread-kl"} & found.keys()


class TestAgreement:
    def test_survival_by_hand(self):
        # of four, one parts at token 0 and one at token 2
        assert survival([2, None, 0, None], 4) == [3 / 4, 3 / 4, 2 / 4, 2 / 4]

    def test_targets_that_answered_the_same_are_compared_with_the_first(self):
        answers = {"a": {"p0": (1, 2, 3), "p1": (4, 5)}, "b": {"p0": (1, 9), "p1": (4, 5), "other": (7,)}}
        done = tuple((name, completion(prompt, ids)) for name, own in answers.items() for prompt, ids in own.items())
        figure = figures(results(completions=done))["profile-agreement"]
        assert figure.title == "Agreement with a, by token"
        assert rows(figure) == {"0": ("100 %",), "1": ("50 %",), "2": ("50 %",)}
        assert figure.plots[0].text == (
            "prompts that still agree over token. b: 1 of 2 prompts agree to the end, half have parted by token 1"
        )

    def test_the_first_is_that_of_the_suite(self):
        done = tuple((name, completion("p0", (1,))) for name in ("b", "a"))
        targets = tuple(Target(name, "m", Model(path="x")) for name in ("a", "b"))
        assert "with a," in figures(results(completions=done, targets=targets))["profile-agreement"].title

    def test_candidates_are_compared_with_the_baseline(self, compared):
        figure = figures(compared())["profile-agreement"]
        assert figure.table.heads == ("token", "int8", "nf4")
        assert set(rows(figure).values()) == {("100 %", "100 %")}

    @pytest.mark.parametrize(
        ("theirs", "facts"),
        [
            ({"generation_config": {"do_sample": True}}, ()),
            ({"request": Request(Text("Say p0"), Generation(do_sample=True))}, ()),
            ({"request": request("p0", kind="score")}, ()),
            ({}, (TargetFacts("a", tokenizer_digest="one"), TargetFacts("b", tokenizer_digest="two"))),
        ],
    )
    def test_what_may_differ_by_itself_is_not_compared(self, theirs, facts):
        done = (("a", completion("p0", (1,), **theirs)), ("b", completion("p0", (2,), **theirs)))
        assert "profile-agreement" not in figures(results(completions=done, facts=facts))

    def test_one_target_agrees_with_nobody(self):
        assert "profile-agreement" not in figures(results(completions=(("a", completion("p0", (1,))),)))

    def test_a_long_answer_is_no_long_line(self):
        long = tuple(range(5000))
        done = (("a", completion("p0", long)), ("b", completion("p0", (*long[:4000], 0))))
        (plot,) = figures(results(completions=done))["profile-agreement"].plots
        assert len(plot.curves[0].path) < 100


HALF, QUARTER = math.log(0.5), math.log(0.25)


def step(first, second):
    order = sorted(((first, 0), (second, 1)), reverse=True)
    return Step(first, [id for _, id in order], [value for value, _ in order], 9.0)


def pinned(prompt, then, now=(), led=None, **changes):
    """A check that did not pass: its pin of two ids a token, what was said now, and what along the pin's tokens."""
    check = f"suites/s.yaml::{changes.get('target', 'm')}::{changes.get('test', 'same')}[{prompt}]"
    ids = (0,) * len(then)
    pin = Pin(prompt, "greedy", "", (1,), ids, "eos", "", tuple(then))
    done = [completion(prompt, (0,) * len(now), tuple(now))]
    if led is not None:
        asked = request(prompt, kind="replay", continuation=ids, whole=False)
        done.append(completion(prompt, ids, tuple(led), request=asked))
    record = Record(
        check, "s", "suites/s.yaml", 1, changes.get("test", "same"), changes.get("target", "m"), "m", "none", prompt,
        "greedy", changes.get("expectation", "pinned"), Verdict("failed", "no"),
        requests=tuple(one.request.id for one in done),
    )  # fmt: skip
    return record, pin, [(record.target, one) for one in done]


def held_to(*checks):
    return results(
        records=tuple(record for record, _, _ in checks),
        pins={record.check: pin for record, pin, _ in checks},
        completions=tuple(pair for _, _, done in checks for pair in done),
    )


class TestPins:
    SAME, MOVED = step(HALF, HALF), step(QUARTER, math.log(0.75))
    # KL of (1/2, 1/2) from (1/4, 3/4)
    KL = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)

    def test_the_change_at_each_token_of_the_pin(self):
        figure = figures(held_to(pinned("p0", [self.SAME] * 3, led=[self.SAME, self.MOVED, self.SAME])))["profile-pins"]
        cells = [float(cells[0]) for cells in rows(figure).values()]
        assert cells == pytest.approx([0, self.KL, 0], abs=2e-3)
        assert [curve.label for curve in figure.plots[0].curves] == ["m same p0"]

    def test_what_was_said_freely_counts_as_far_as_it_is_the_same(self):
        record, pin, done = pinned("p0", [self.SAME] * 3, now=[self.SAME, self.MOVED])
        figure = figures(held_to((record, pin, done)))["profile-pins"]
        assert len(figure.table.rows) == 2
        other = [(target, completion("p0", (0, 7), (self.SAME, self.MOVED))) for target, _ in done]
        assert len(figures(held_to((record, pin, other)))["profile-pins"].table.rows) == 1

    def test_only_what_differs_names_a_check(self):
        checks = [pinned(f"p{number}", [self.SAME], led=[self.MOVED]) for number in range(2)]
        figure = figures(held_to(*checks))["profile-pins"]
        assert figure.table.heads == ("token", "p0", "p1")
        assert figure.caption.startswith("All of target m, test same. ")

    def test_those_that_changed_most_are_drawn(self):
        worse = step(math.log(0.1), math.log(0.9))
        checks = [pinned(f"p{number}", [self.SAME], led=[self.MOVED]) for number in range(CHECKS + 1)]
        found = figures(held_to(*checks, pinned("worst", [self.SAME], led=[worse])))["profile-pins"]
        assert found.table.heads[1] == "worst"
        assert len(found.table.heads) == CHECKS + 1
        assert "Not drawn: 2 checks that changed less." in found.caption

    @pytest.mark.parametrize("changes", [{"expectation": "pinned_set"}, {"expectation": "finish"}])
    def test_only_a_pinned_prompt_has_one_pin(self, changes):
        assert "profile-pins" not in figures(held_to(pinned("p0", [self.SAME], led=[self.MOVED], **changes)))

    def test_without_steps_there_is_nothing_to_draw(self):
        assert "profile-pins" not in figures(held_to(pinned("p0", [], led=[])))
        assert "profile-pins" not in figures(held_to(pinned("p0", [self.SAME])))


class TestSpreads:
    def test_lengths_by_hand(self):
        done = tuple(("a", completion(f"p{size}", range(size))) for size in (1, 2, 3, 4, 5))
        figure = figures(results(completions=done))["spread-tokens"]
        assert figure.table.heads == ("target", "generations", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
        assert rows(figure) == {"a": ("5", "1", "1.20", "2", "3", "4", "4.80", "5")}
        assert figure.plots[0].text == "new tokens. a: median 3, half between 2 and 4, of 5"

    def test_the_time_of_a_batch_is_shared_by_its_tokens(self):
        batch = [completion("p0", range(1), seconds=3.0, batch_size=2)]
        batch += [completion("p1", range(29), seconds=3.0, batch_size=2)]
        alone = completion("p2", range(10), seconds=2.0)
        untimed = completion("p3", range(10))
        done = tuple(("a", one) for one in (*batch, alone, untimed))
        # 3 s for 30 tokens, and 2 s for 10
        figure = figures(results(completions=done))["spread-latency"]
        assert rows(figure)["a"][0:2] == ("2", "100")
        assert rows(figure)["a"][-1] == "200"

    def test_kl_of_all_tokens(self, compared):
        figure = figures(compared())["spread-kl"]
        assert rows(figure)["int8"] == ("32", "0.0100", "0.0100", "0.0100", "0.0200", "0.0300", "0.0300", "0.0300")
        assert "fp32" not in rows(figure)

    def test_what_is_forced_or_only_timed_has_no_length(self, compared):
        plain = compared()
        forced = ("fp32", completion("p0", range(90), request=request("p0", kind="replay")))
        timed = ("fp32", completion("p0", range(90), request=request("p0", repeat=3)))
        more = compared(completions=(*plain.completions, forced, timed))
        assert rows(figures(more)["spread-tokens"])["fp32"] == ("8", *("4",) * 7)

    def test_more_targets_than_words_are_in_the_table(self):
        done = tuple((f"t{number}", completion("p0", range(3))) for number in range(20))
        figure = figures(results(completions=done))["spread-tokens"]
        assert figure.plots[0].text.endswith("; and 14 more in the table")
        assert len(figure.table.rows) == len(figure.plots[0].lanes) == 20


class TestPage:
    def test_a_run_of_nothing_has_no_profiles(self):
        assert profiles(results()) is None
        assert profiles(results(completions=(("a", completion("p0", ())),))).positions == ()

    def test_every_chart_has_words_and_a_table(self, compared):
        page = Elements(drawn(compared()))
        pictures = [found for tag, found in page.found if tag == "svg"]
        assert len(pictures) == 4
        assert all(found["role"] == "img" and "fp4" not in found["aria-label"] for found in pictures)
        assert all("int8" in found["aria-label"] for found in pictures)
        assert len([tag for tag, _ in page.found if tag == "details"]) == 4
        regions = [found for tag, found in page.found if tag == "div" and found.get("role") == "region"]
        assert all(found["tabindex"] == "0" for found in regions)
        assert len({found["aria-label"] for found in regions}) == len(regions) == 8
        assert all("scope" in found for tag, found in page.found if tag == "th")

    def test_nothing_of_it_has_a_style_or_loads(self, compared):
        names = {name for _, found in Elements(drawn(compared())).found for name in found}
        assert not {name for name in names if name in ("style", "href", "src") or name.startswith("on")}
        assert "NaN" not in drawn(compared())

    def test_what_is_drawn_is_finite_whatever_was_measured(self, compared, measures):
        kinds = (math.nan, math.inf, -math.inf, -1e-9, 0.0, 1e-300, 1e300)
        answered = tuple(
            Answered(name, f"p{number}", request(f"p{number}").id, replay(*(kl,) * 4))
            for name in ("fp32", "int8", "nf4")
            for number, kl in enumerate(kinds)
        )
        text = drawn(compared(measured=measures(answered=answered)))
        paths = " ".join(found.get("d", "") for _, found in Elements(text).found)
        assert not re.search("nan|inf|None", paths)

    @pytest.mark.parametrize("evil", EVIL)
    def test_a_name_stays_a_name(self, evil):
        def made(name):
            answers = (("a", "p0", (1, 2)), (name, "p0", (1, 3)))
            return drawn(results(completions=tuple((own, completion(prompt, ids)) for own, prompt, ids in answers)))

        found = Elements(made(evil)).found
        assert [tag for tag, _ in found] == [tag for tag, _ in Elements(made("calm")).found]
        assert evil in next(own["aria-label"] for tag, own in found if tag == "svg")
