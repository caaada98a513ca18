"""A comparison in a terminal; the figures are those of the results made by hand in conftest.py."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from harness.comparison.difference import Pair, RunDifference, Speed, TargetDifference, Unanswered, VerdictPair
from harness.comparison.measured import Answered, Candidate, Passage
from harness.comparison.provenance import Change
from harness.divergence import first_difference
from harness.inputs import GREEDY
from harness.record import Completion, Failure, Record, Request, Text, Verdict
from harness.reports.comparison import show, show_runs

ODD = "[bold red]\x1b[2J\x07 a\x00b\rc \u202eevil\u2066 \ud800 :smile:"
ODD_SHOWN = "[bold red]\\x1b[2J\\x07 a\\x00b\\rc \\u202eevil\\u2066 \\ud800 :smile:"


def printed(what, verbose=False, width=100, **options):
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    (show_runs if isinstance(what, RunDifference) else show)(what, console, verbose=verbose)
    return console.file.getvalue()


def row(text, title):
    """The cells of the row with this title, over all parts of the table."""
    lines = [line for line in text.splitlines() if line.startswith(f"{title}  ")]
    return [cell for line in lines for cell in re.split(r"\s{2,}", line.strip())[1:]]


class TestComparison:
    def test_it_begins_with_what_was_measured_and_ends_with_the_decision(self, compared):
        lines = printed(compared()).splitlines()
        assert lines[:2] == [
            "baseline  fp32",
            "measured  8 prompts, 32 tokens of its own continuations, 8 paragraphs of text, speed 3 times in batches "
            "of 4",
        ]
        assert lines[-1].startswith("DECISION  ship int8")

    def test_candidates_are_columns_and_statistics_are_rows(self, compared):
        text = printed(compared())
        assert next(line for line in text.splitlines() if "int8" in line).split() == ["fp32", "int8", "nf4"]
        baseline, int8, nf4 = row(text, "KL, mean")
        assert baseline == "0"
        assert re.fullmatch(r"0\.0200 \[0\.0\d+, 0\.0\d+\]", int8)
        assert re.fullmatch(r"0\.300 \[0\.2\d, 0\.3\d\]", nf4)
        assert row(text, "weights, MB") == ["538", "162", "110"]
        assert row(text, "tokens/s, batch") == ["31 [30, 32]", "22 [20, 23]", "36 [33, 40]"]
        assert row(text, "first token, ms") == ["12 [10, 20]"] * 3
        assert row(text, "checks passed") == ["1/1", "1/1", "0/1"]
        # all paragraphs are 30 nats of 40 tokens less likely: exp(30 / 40) = 2.117
        assert row(text, "perplexity of the texts, ×") == ["1", "1.03", "2.12"]
        # one of four tokens flips in each prompt
        assert row(text, "top-1 agreement")[2].startswith("0.750 [")
        assert "length, characters" not in text
        assert "bits per byte" not in text

    def test_everything_when_verbose(self, compared):
        text = printed(compared(), verbose=True)
        assert row(text, "length, characters") == ["0", "0", "+2"]  # "one three" is two longer than "one two"
        assert row(text, "peak, loading, MB") == ["–", "–", "–"]
        assert "8 flips of nf4: where it holds another token for the likeliest; margins in nats" in text
        # baseline's token 100 is " one", its own 200 " x"
        assert row(text, "p7") == ["0", "100 ' one'", "0.500", "200 ' x'", "0.250", "0.400"]
        assert "flips of int8" not in text
        assert re.search(r"int8 better than nf4 in KL by 0\.280 \[0\.2\d, 0\.3\d\]", text)
        assert "flips" not in printed(compared())

    def test_the_worst_flips_are_told_first(self, compared, measures):
        made = measures({"fp32": ((0.0,) * 8, 0, 1, 1, (1.0,), 1.0), "nf4": ((0.3,) * 8, 4, 1, 1, (1.0,), 1.0)})
        lines = printed(compared(measured=made, records=()), verbose=True).splitlines()
        start = next(index for index, line in enumerate(lines) if line.startswith("32 flips of nf4"))
        told = [line.split()[:2] for line in lines[start + 2 : start + 22]]
        # the baseline's margin grows with the index: 0.5, 1.5, 2.5, 3.5
        assert told == [[f"p{i}", "3"] for i in range(8)] + [[f"p{i}", "2"] for i in range(8)] + [
            [f"p{i}", "1"] for i in range(4)
        ]
        assert "… and 12 more, at smaller margins of the baseline" in lines

    def test_what_was_not_measured_is_told_once_on_one_line(self, compared):
        text = printed(compared())
        assert "–  fp8  not measured: fp8 needs a GPU. Leave it out, or use a machine with CUDA.\n" in text
        assert text.count("needs a GPU") == 1
        assert "? cannot tell  fp8\n    it was not measured\n" in text
        assert "note  nf4: a note\n" in text

    def test_prompts_that_could_not_be_compared_are_counted_by_reason(self, compared, measures):
        lost = (Answered("int8", "p8", "x", None, "out of memory"), Answered("int8", "p9", "y", None, "out of memory"))
        made = measures(answered=(*measures().answered, *lost))
        text = printed(compared(measured=made))
        assert "–  int8  2 of 10 prompts not compared: out of memory\n" in text
        told = measures(answered=made.answered, notes=("int8: out of memory; there is more",))
        assert "not compared" not in printed(compared(measured=told))

    def test_each_gate_has_a_symbol_a_word_and_its_reasons(self, compared):
        text = printed(compared())
        assert "budget  max_kl 0.1, min_top1 0.6, max_memory_mb 400, must_pass counts\n" in text
        assert "✗ do not ship  fp32  (baseline)\n    peak_mb 600 MB, at most 400 wanted\n" in text
        assert "✓ ship         int8\n✗ do not ship  nf4\n    kl 0.3" in text
        assert "    must_pass counts[p0]: failed\n" in text
        assert "Pareto set  fp32, int8, nf4: no other candidate is as good in KL, peak memory and speed\n" in text

    def test_without_a_budget_it_says_what_to_write(self, compared):
        text = printed(compared(budget=None))
        assert "write into the suite what a target may cost:\n    budget:\n      max_kl: 0.1" in text
        assert text.splitlines()[-1].startswith("DECISION  no budget")

    def test_checks_that_failed_are_counted_and_the_way_to_see_them_told(self, compared):
        text = printed(compared())
        assert "✗  nf4  1 failed of 1 check\n" in text
        assert "why: report.html, or `harness run suites/levels.yaml --target nf4`" in text
        assert "why:" not in printed(compared(records=()))

    def test_with_other_tokenizers_only_bytes_are_compared(self, compared, measures):
        made = measures()
        other = tuple(Passage("other", one.text, 90.0, 30, 180) for one in made.passages if one.target == "fp32")
        made = measures(
            candidates=(*made.candidates, Candidate("other", "other", "greedy")), passages=made.passages + other
        )
        text = printed(compared(measured=made))
        assert "perplexity" not in text
        # 90 nats in 180 bytes are 0.5 / ln 2 bits a byte
        assert row(text, "bits per byte of the texts")[3].startswith("0.721")
        assert row(text, "KL, mean")[3] == "–"

    def test_without_speed_there_are_no_rows_of_it(self, compared, measures):
        text = printed(compared(measured=measures(timings=())))
        assert "tokens/s" not in text
        assert "Pareto set  not known: quality, memory and speed have to be measured for it\n" in text

    def test_a_machine_that_was_busy_is_told(self, compared, measures):
        paces = {"fp32": (1.0, 1.0), "int8": (1.5, 1.5), "nf4": (1.1, 1.1)}
        timings = tuple(replace(one, yardstick=paces[one.candidate]) for one in measures().timings)
        text = printed(compared(measured=measures(timings=timings)))
        assert "note  int8: the machine itself took 1.50 times as long" in text
        assert "nf4: the machine" not in text

    def test_a_table_too_wide_is_told_in_parts(self, compared):
        text = printed(compared(), width=60)
        table = text[text.index("KL, mean") : text.index("–  fp8")]
        assert max(map(len, table.splitlines())) <= 60
        assert len(row(text, "weights, MB")) == 3

    def test_a_run_that_compared_nothing_says_how_to(self, compared):
        assert "harness compare SUITE" in printed(compared(measured=None))

    def test_a_baseline_that_could_not_be_run(self, compared, measures):
        why = "the baseline could not be run"
        made = measures(
            answered=tuple(
                replace(one, replay=None, why_not=why) for one in measures().answered if one.candidate != "fp32"
            ),
            passages=(),
            timings=(),
            not_measured={"fp32": "no such file"},
        )
        text = printed(compared(measured=made, records=()), verbose=True)
        assert "–  fp32  not measured: no such file\n" in text
        assert f"–  int8, nf4  8 of 8 prompts not compared: {why}\n" in text

    def test_equal_reasons_are_told_once(self, compared, measures):
        made = measures(not_measured={"fp8": "needs a GPU", "nf4": "needs a GPU"})
        assert "–  nf4, fp8  not measured: needs a GPU\n" in printed(compared(measured=made))

    @pytest.mark.parametrize("terminal", [True, False])
    def test_nothing_foreign_acts_on_the_terminal(self, compared, measures, terminal):
        made = measures(
            {ODD if name == "int8" else name: value for name, value in LEVELS.items()},
            not_measured={"fp8": ODD},
            notes=(ODD,),
        )
        done = completions_with(compared(), ODD)
        outcome = compared(measured=made, completions=done, errors=(ODD,))
        text = printed(outcome, True, 400, force_terminal=terminal, no_color=True, color_system=None)
        assert not set(text) & set("\x1b\x07\x00\r\u202e\u2066\ud800")
        assert f"note  {ODD_SHOWN}\n" in text
        assert f"not measured: {ODD_SHOWN}\n" in text

    def test_a_console_that_knows_only_ascii_gets_ascii(self, compared):
        raw = io.BytesIO()
        console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=100)
        show(compared(), console, verbose=True)
        text = raw.getvalue().decode("ascii")
        assert "ok ship" in text
        assert ">= 0.400" in text
        assert "\\u" not in text

    def test_colours_only_where_there_is_a_terminal(self, compared):
        assert "\x1b[" not in printed(compared())
        terminal = printed(compared(), force_terminal=True, color_system="standard", no_color=False)
        assert "\x1b[1;32mDECISION" in terminal
        assert "\x1b[1;31m✗ do not ship" in terminal


LEVELS = {
    "fp32": ((0.0,) * 8, 0, 538, 600, (30.0, 31.0, 32.0), 100.0),
    "int8": ((0.02,) * 8, 1, 162, 300, (20.0, 22.0, 23.0), 101.0),
}


def completions_with(results, token):
    return tuple((name, replace(done, tokens=(token,) * len(done.ids))) for name, done in results.completions)


# --- one run against another ------------------------------------------------------------------------------------------


def done(*ids, prompt="capital", **changes):
    tokens = tuple(f"t{token}" for token in ids)
    return Completion(Request(Text(prompt), GREEDY), prompt, (1,), ids, tokens, " ".join(tokens), "eos", **changes)


def pair(before, after, prompt="capital", **changes):
    return Pair(prompt, "greedy", before, after, difference=first_difference(before, after), **changes)


def verdict(before, after, prompt="a"):
    def made(outcome):
        return outcome and Record(
            f"s.yaml::m::stops[{prompt}]", "s", "s.yaml", 3, "stops", "m", "m", "none", prompt, "greedy", "finish",
            Verdict(outcome, f"it {outcome} then"),
        )  # fmt: skip

    return VerdictPair(made(before), made(after))


def target(*pairs, **changes):
    return TargetDifference(
        **{
            "before": "m",
            "after": "m",
            "changes": (),
            "pairs": pairs,
            "unanswered": (),
            "only_before": 0,
            "only_after": 0,
            "speed_before": Speed(10.0, None, None, None),
            "speed_after": Speed(12.5, None, None, None),
            **changes,
        }
    )


def difference(*targets, **changes):
    return RunDifference(
        **{
            "before": "reports/one",
            "after": "reports/two",
            "changes": (),
            "targets": targets,
            "only_before": (),
            "only_after": (),
            "verdicts": (),
            "notes": (),
            **changes,
        }
    )


SAME = pair(done(1, 2), done(1, 2), kl_at_least=(0.5, 0.1))
CHANGED = pair(done(1, 2, 3), done(1, 9), "rome")
SAMPLED = pair(
    done(1, generation_config={"do_sample": True}), done(7, generation_config={"do_sample": True}), "sampled"
)


class TestRuns:
    def test_what_else_changed_comes_first(self):
        changes = (Change("libraries", "torch", "2.6", "2.13"), Change("git", "commit", "", "ab"))
        of_target = (Change("m", "modules", "x" * 80, "b"),)
        text = printed(difference(target(SAME, changes=of_target), changes=changes))
        assert text.splitlines()[:6] == [
            "before  reports/one",
            "after   reports/two",
            "",
            "libraries: torch  2.6 → 2.13",
            "git: commit  (nothing) → ab",
            f"m: modules  {'x' * 60}… → b",
        ]
        many = tuple(Change("variables", str(number), "a", "b") for number in range(25))
        assert "… and 5 more that changed: --verbose\n" in printed(difference(changes=many))
        assert "variables: 24  a → b\n" in printed(difference(changes=many), verbose=True)

    def test_each_target_is_a_row(self):
        text = printed(difference(target(SAME, CHANGED, SAMPLED)), width=120)
        header = next(line for line in text.splitlines() if line.startswith("target"))
        assert re.split(r"\s{2,}", header.strip()) == [
            "target", "compared", "equal", "rounding", "change", "sampled", "other end", "length", "KL at least",
            "tokens/s",
        ]  # fmt: skip
        # one of three is a token shorter; the KL is (0.5 + 0.1) / 2
        assert row(text, "m") == ["3", "1", "0", "1", "1", "0", "-0.333 tokens", "0.300", "10 → 12.5"]
        unlike = Pair("p", "greedy", done(1), done(2, 3), "the vocabularies differ")
        other = target(unlike, same_vocabulary=False, speed_before=Speed(None, None, None, None))
        assert row(printed(difference(other), width=120), "m") == [
            "0 of 1", "0", "0", "0", "0", "0", "+3 characters", "–", "– → 12.5",
        ]  # fmt: skip

    def test_verdicts_that_got_worse_are_told_with_both_reasons(self):
        verdicts = (
            verdict("passed", "failed"),
            verdict("failed", "passed", "b"),
            verdict("passed", "passed", "c"),
            verdict("passed", "skipped", "d"),
            verdict(None, "passed", "e"),
        )
        text = printed(difference(target(SAME), verdicts=verdicts))
        assert (
            "✗ regressed  s.yaml::m::stops[a]  (finish)\n"
            "    before  passed: it passed then\n"
            "    after   failed: it failed then\n"
            "✓ fixed  s.yaml::m::stops[b]  (finish)\n"
            "1 verdict went passed → skipped\n"
            "1 verdict as before\n"
            "1 verdict only in the run after\n"
        ) in text
        assert text.splitlines()[-1] == "WORSE  1 check regressed, 1 check fixed, 1 verdict otherwise"

    def test_a_generation_that_changed_is_drawn(self):
        text = printed(difference(target(SAME, CHANGED)))
        sentence = CHANGED.difference.sentence
        assert f"rome (greedy), m: {sentence}\n" in text
        before, after, caret = text[text.index(sentence) :].splitlines()[1:4]
        assert before == "    before  't1' 't2' 't3' <eos>"
        assert after == "    after   't1' 't9' <eos>"
        assert caret.index("^") == after.index("'t9'")
        assert text.splitlines()[-1] == "CHANGED  1 of 2 generations changed"

    def test_only_five_are_drawn_unless_verbose(self):
        several = difference(target(*(pair(done(1), done(2), f"p{number}") for number in range(7))))
        assert printed(several).count("^ token 0") == 5
        assert "… and 2 generations more that changed: --verbose\n" in printed(several)
        assert printed(several, verbose=True).count("^ token 0") == 7

    @pytest.mark.parametrize(
        ("made", "told"),
        [
            (difference(target(SAME), verdicts=(verdict("passed", "passed"),)),
             "SAME  1 verdict and 1 generation as before"),
            (difference(target(SAME, SAMPLED)), "CHANGED  1 sampled otherwise"),
            (difference(target(), verdicts=(verdict("failed", "passed"),)), "CHANGED  1 check fixed"),
            (difference(target(Pair("p", "", done(1), done(1), "other ids"))), "CHANGED  1 not comparable"),
        ],
    )  # fmt: skip
    def test_the_last_line_is_one_verdict(self, made, told):
        assert printed(made).splitlines()[-1] == told

    def test_rounding_is_no_change_and_is_told(self):
        near = replace(SAME, difference=replace(CHANGED.difference, margin=0.0625, tolerance=0.125))
        assert near.judgement == "rounding"
        text = printed(difference(target(SAME, near)))
        assert row(text, "m")[:4] == ["2", "1", "1", "0"]
        assert text.splitlines()[-1] == "SAME  2 generations as before, 1 differ by rounding"

    def test_what_only_one_run_has_is_told(self):
        lost = Unanswered("rome", "after", Failure(done(1).request, "oom", "out of memory"))
        made = target(SAME, unanswered=(lost,), only_before=3, notes=("a note",))
        text = printed(difference(made, only_before=("old",), only_after=("new",), notes=("not side by side",)))
        for told in (
            "note  target old is only in the run before\n",
            "note  target new is only in the run after\n",
            "note  m: 'rome' has no answer in the run after: out of memory\n",
            "note  m: a note\n",
            "note  m: 3 generations only in the run before\n",
            "note  not side by side\n",
        ):
            assert told in text
        assert text.splitlines()[-1] == "CHANGED  1 answered in one run only"

    def test_nothing_foreign_acts_on_the_terminal(self):
        changed = replace(pair(done(1), replace(done(2), tokens=(ODD,))), prompt=ODD, generation=ODD)
        made = difference(
            target(changed, before=ODD, after=ODD, notes=(ODD,)),
            before=ODD,
            changes=(Change(ODD, ODD, ODD, ODD),),
            notes=(ODD,),
            verdicts=(
                replace(verdict("passed", "failed"), after=replace(verdict("failed", "failed").after, check=ODD)),
            ),
        )
        text = printed(made, True, 400)
        assert not set(text) & set("\x1b\x07\x00\r\u202e\u2066\ud800")
        assert f"note  {ODD_SHOWN}\n" in text
