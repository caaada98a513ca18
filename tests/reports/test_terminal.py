import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from harness.divergence import draw, first_difference
from harness.inputs import GREEDY
from harness.pins.pin import Pin
from harness.record import Completion, Record, Request, TargetFacts, Text, Verdict
from harness.reports import cut, duration, headline, reproduce, visible
from harness.reports.terminal import summary
from harness.store import Results


def record(prompt="a", outcome="passed", **changes):
    status = {"xfailed": "failed", "xpassed": "passed"}.get(outcome, outcome)
    target = changes.get("target", "tiny")
    return Record(
        **{
            "check": f"suites/basics.yaml::{target}::{changes.get('test', 'stops')}[{prompt}]",
            "suite": "basics",
            "file": "suites/basics.yaml",
            "line": 3,
            "test": "stops",
            "target": target,
            "model": "m",
            "quantization": "none",
            "prompt": prompt,
            "generation": "greedy",
            "expectation": "finish",
            "verdict": Verdict(status, f"it {outcome}"),
            "xfail": "known since 4.57" if outcome.startswith("x") else "",
            **changes,
        }
    )


def results(*records, **changes):
    return Results(
        **{
            "records": records,
            "completions": (),
            "failures": (),
            "facts": (),
            "counts": {"asked": 40, "distinct": 22, "generated": 22},
            "suites": ({"name": "basics", "file": "suites/basics.yaml", "sha256": "ab"},),
            "started": "2025-01-01T00:00:00+00:00",
            "seconds": 31.2,
            "environment": {},
            "command": "",
            **changes,
        }
    )


def printed(outcome, width=100, verbose=False, report=None, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    summary(outcome, console, verbose, report)
    return console.file.getvalue()


def test_the_matrix_has_a_symbol_and_numbers_for_each_test_and_target():
    lines = printed(
        results(
            record("a"),
            record("b", "failed"),
            record("a", target="tiny-nf4"),
            record("a", "skipped", test="other"),
            record("a", "error", test="other", target="tiny-nf4"),
            record("b", "xfailed", test="other", target="tiny-nf4"),
        )
    ).splitlines()
    assert lines[0].split() == ["test", "tiny", "tiny-nf4"]
    assert lines[1].split() == ["stops", "✗", "1/2", "✓", "1/1"]
    assert lines[2].split() == ["other", "–", "skipped", "!x", "0/2"]
    assert lines[4] == "✗ failed  ! error  x xfailed  ✓ passed  – skipped"


def test_a_pass_beside_a_skip_is_still_seen_as_a_pass():
    assert printed(results(record("a"), record("b", "skipped"))).splitlines()[1].split() == ["stops", "✓–", "1/1"]


def test_a_failure_is_told_with_its_reason_its_details_and_the_command_that_repeats_it():
    long = "expected: " + "word " * 60
    verdict = Verdict("failed", "the text differs at token 3", {}, (long, "got:      something"))
    text = printed(results(record("b", "failed", verdict=verdict)), width=60)
    block = text[text.index("✗ failed  suites") :].splitlines()
    assert block[:5] == [
        "✗ failed  suites/basics.yaml::tiny::stops[b]  (finish)",
        "    the text differs at token 3",
        f"    {long}",
        "    got:      something",
        '    pytest "suites/basics.yaml::tiny::stops[b]"',
    ]


def test_an_error_that_many_checks_share_is_told_once():
    verdict = Verdict("error", "no such model\n  Download it first.")
    records = [record(str(number), "error", verdict=verdict) for number in range(12)]
    text = printed(results(*records, errors=("tiny: no such model\n  Download it first.",)))
    assert text.count("no such model") == 1
    assert "    and 11 more of tiny for the same reason" in text
    assert "\n      Download it first.\n" in text


def test_a_target_error_that_no_check_tells_is_told():
    text = printed(results(errors=("other: out of memory",)))
    assert "! not loaded  other: out of memory" in text
    assert text.splitlines()[-1] == "ERROR  no checks were judged, 1 target not loaded  in 31 s"


def test_hundreds_of_failures_do_not_bury_the_verdict_unless_asked_for():
    outcome = results(*[record(str(number), "failed") for number in range(200)])
    assert printed(outcome).count("it failed") == 40
    assert "… and 160 more, not shown here: --verbose" in printed(outcome)
    assert printed(outcome, verbose=True).count("it failed") == 200


def test_skips_and_known_failures_are_told_by_reason_or_one_by_one():
    skip = Verdict("skipped", "needs CUDA")
    outcome = results(
        record("a", "skipped", verdict=skip), record("b", "skipped", verdict=skip), record("c", "xfailed")
    )
    assert "– skipped  2 × needs CUDA\nx xfailed  1 × known since 4.57\n" in printed(outcome)
    assert "x xfailed  suites/basics.yaml::tiny::stops[c]  (finish)  it xfailed" in printed(outcome, verbose=True)


def test_warnings_are_counted_and_shown_once_each():
    done = Completion(
        Request(Text("a"), GREEDY), "a", (1,), (2,), ("b",), "b", "eos", batch_size=2, warnings={"cast\nfloat16": 6300}
    )
    facts = TargetFacts("tiny", warnings={"w" * 300: 1})
    text = printed(results(record(), completions=(("tiny", done),) * 4, facts=(facts,)))
    assert "warning  12,600 × cast\\nfloat16\n" in text
    assert f"warning  1 × {'w' * 160}…\n" in text


def test_requests_report_and_one_verdict_end_the_summary():
    lines = printed(results(record()), report=Path("reports/x/report.html")).splitlines()
    assert lines[-3:] == [
        "requests: asked 40, distinct 22, generated 22",
        "report: reports/x/report.html",
        "PASSED  1 of 1 check passed  in 31 s",
    ]


@pytest.mark.parametrize(
    ("outcomes", "changes", "told"),
    [
        (
            ["failed", "failed", "error", "xfailed", "passed"],
            {},
            ("FAILED", "2 of 5 checks failed, 1 error, 1 known failure (xfail)  in 31 s"),
        ),
        (["passed", "error", "error"], {}, ("ERROR", "1 of 3 checks passed, 2 errors  in 31 s")),
        (["passed", "xpassed"], {}, ("PASSED", "1 of 2 checks passed, 1 unexpectedly passed (xpass)  in 31 s")),
        (["skipped"], {}, ("SKIPPED", "0 of 1 check passed, 1 skipped  in 31 s")),
        (["passed"], {"complete": False}, ("INCOMPLETE", "1 of 1 check passed, stopped before the end  in 31 s")),
        (["passed", "skipped"], {"errors": ("x: no",)},
         ("PASSED", "1 of 2 checks passed, 1 skipped, 1 target not loaded  in 31 s")),
        ([], {}, ("EMPTY", "no checks were judged  in 31 s")),
    ],
)  # fmt: skip
def test_the_headline_is_one_word_and_one_sentence(outcomes, changes, told):
    records = [record(str(number), outcome) for number, outcome in enumerate(outcomes)]
    assert headline(results(*records, **changes)) == told


def test_a_check_with_several_expectations_is_counted_once():
    word, sentence = headline(results(record("a"), record("a", "failed", expectation="contains")))
    assert (word, sentence) == ("FAILED", "1 of 1 check failed  in 31 s")


ODD = "[bold red]\x1b[2J\x1b]0;title\x07 a\x00b\rc \u202eevil\u2066 \ud800 \u200b \x9b31m :smile:"


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_a_model_wrote_acts_on_the_terminal(terminal):
    verdict = Verdict("failed", ODD, {}, (f"got: {ODD}",))
    outcome = results(
        record("b", "failed", verdict=verdict), errors=(ODD,), facts=(TargetFacts("m", warnings={ODD: 1}),)
    )
    text = printed(outcome, width=400, force_terminal=terminal, no_color=True, color_system=None)
    assert not set(text) & set("\x1b\x07\x00\r\u202e\u2066\ud800\u200b\x9b")
    shown = "[bold red]\\x1b[2J\\x1b]0;title\\x07 a\\x00b\\rc \\u202eevil\\u2066 \\ud800 \\u200b \\x9b31m :smile:"
    assert f"    {shown}\n    got: {shown}\n" in text
    assert f"warning  1 × {shown}" in text


def test_visible_leaves_ordinary_writing_alone():
    text = "Zürich 東京 👩‍🔬 مرحبا\n\ttab"
    assert visible(text) == text
    assert visible("\U000e0041") == "\\U000e0041"


def test_colours_only_where_there_is_a_terminal():
    outcome = results(record("b", "failed"))
    assert "\x1b[" not in printed(outcome)
    assert "\x1b[1;31mFAILED" in printed(outcome, force_terminal=True, color_system="standard", no_color=False)


def test_a_console_that_knows_only_ascii_gets_ascii():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=100)
    verdict = Verdict("failed", "Zürich")
    summary(results(record("a"), record("b", "failed", verdict=verdict)), console)
    text = raw.getvalue().decode("ascii")
    assert "FAIL 1/2" in text
    assert "Z\\xfcrich" in text


def test_a_matrix_too_wide_for_the_terminal_is_told_in_parts():
    records = [record("a", target=f"a-long-target-name-{number}") for number in range(6)]
    text = printed(results(*records), width=60)
    table = text[: text.index("✓ passed")]
    assert max(map(len, table.splitlines())) <= 60
    assert all(f"a-long-target-name-{number}" in table for number in range(6))
    assert table.count("✓ 1/1") == 6


def completion(*words, **changes):
    request = Request(Text("a"), GREEDY)
    ids = tuple(100 + sum(map(ord, word)) for word in words)
    return Completion(**{"request": request, "prompt_text": "a", "prompt_ids": (1,), "ids": ids, "tokens": words,
                         "text": "".join(words), "finish": "eos"} | changes)  # fmt: skip


def test_the_first_divergence_of_a_failure_is_drawn_as_wide_as_the_terminal():
    one, two = (
        completion("The", " same", " words", " 東京", " one"),
        completion("The", " same", " words", " 東京", " two"),
    )
    details = draw(first_difference(one, two), alone=one, batched=two)
    failure = record("b", "failed", verdict=Verdict("failed", "they differ", {}, details))
    for width in (120, 60, 40):
        text = printed(results(failure), width=width)
        first, second, caret = text[text.index("    alone") :].splitlines()[:3]
        assert max(map(cell_len, (first, second, caret))) <= width
        assert (
            cell_len(first[: first.index("' one'")]) == cell_len(second[: second.index("' two'")]) == caret.index("^")
        )
        assert ("'The'" in first) is (width > 40)


def pinned(now, pin_ids, **changes):
    pin = Pin("b", "greedy", "digest", (1,), pin_ids, "eos", "", ())
    told = record("b", "failed", expectation="pinned", requests=("unknown", now.request.id))
    return results(
        told, completions=(("other", replace(now, ids=pin_ids)), ("tiny", now)), pins={told.check: pin}, **changes
    )


def test_where_a_pinned_check_parts_from_its_pin_is_drawn():
    now = completion("The", " one", "!")
    text = printed(pinned(now, (now.ids[0], 7, 8), texts={"tiny": {7: " two"}, "other": {8: "no"}}))
    assert (
        "    it failed\n    pin  'The' ' two' '#8' <eos>\n    now  'The' ' one' '!' <eos>\n               ^ token 1\n"
    ) in text
    assert "pin  " not in printed(pinned(now, now.ids))


def test_prose_is_folded_below_itself_on_a_terminal_and_stays_whole_in_a_file():
    details = ("remedy  raise temperature, top_k or top_p, or let it write more", "expected: one two three four five")
    outcome = results(record("b", "failed", verdict=Verdict("failed", "a sentence of some words", {}, details)))
    folded = printed(outcome, width=30, force_terminal=True, color_system=None)
    assert (
        "    a sentence of some words\n"
        "    remedy  raise temperature,\n"
        "            top_k or top_p, or\n"
        "            let it write more\n"
        "    expected: one two three\n"
        "              four five\n"
        '    pytest "suites/basics.yaml::tiny::stops[b]"\n'
    ) in folded
    assert "".join(f"    {line}\n" for line in details) in printed(outcome, width=30)


def test_verbose_tells_the_numbers_of_every_verdict_and_all_of_its_details():
    numbers = {"index": 3, "margin": 0.123456789, "level": "drift"}
    long = "x" * 5000
    outcome = results(
        record(
            "b", "failed", verdict=Verdict("failed", "no", numbers, (long,)), text="a\nb", new_tokens=2, finish="eos"
        ),
        record("c", verdict=Verdict("passed", "yes", {"runs": 2}, ("hazard  a sentence",)), seconds=0.25),
    )
    text = printed(outcome, verbose=True)
    assert f"    {long}\n    numbers  index 3, margin 0.123457, level drift\n    answer   2 tokens, eos\n" in text
    assert "    text     a\\nb\n    pytest" in text
    assert "stops[c]  (finish)  yes\n    hazard  a sentence\n    numbers  runs 2\n    answer   0.25 s\n" in text
    plain = printed(outcome)
    assert f"    {'x' * 4000}… and 1,000 more characters; all of it in results.parquet\n    pytest" in plain
    assert "numbers" not in plain


def test_what_a_run_folder_lacked_is_told_before_the_verdict():
    lacks = ("tokens.parquet is missing: its\x1b generations are not known",)
    lines = printed(results(record("a"), complete=False, lacks=lacks)).splitlines()
    assert lines[-3] == "INCOMPLETE  tokens.parquet is missing: its\\x1b generations are not known"
    assert lines[-1].startswith("INCOMPLETE  1 of 1 check passed")


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = printed(results(record("b", "failed"), lacks=("something",)), force_terminal=True, color_system="standard")
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", text) for code in found.split(";")}
    assert codes <= {"0", "1", "2"}, "bold and dim at the most"


def test_the_matrix_is_measured_in_cells_and_as_the_console_says_it():
    records = [record("a", target=f"東京-{number}") for number in range(8)]
    table = printed(results(*records), width=60).partition("✓ passed")[0]
    assert max(map(cell_len, table.splitlines())) <= 60
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=60)
    summary(results(*records), console)
    table = raw.getvalue().decode("ascii").partition("ok passed")[0]
    assert max(map(len, table.splitlines())) <= 60
    assert table.count(r"\u6771\u4eac-") == 8


def test_a_command_is_quoted_for_the_shell():
    assert reproduce(record("a")) == 'pytest "suites/basics.yaml::tiny::stops[a]"'
    assert reproduce(record("$(rm)")) == "pytest 'suites/basics.yaml::tiny::stops[$(rm)]'"


def test_long_texts_are_cut_with_a_word_on_the_rest():
    assert cut("abc", 3) == "abc"
    assert cut("x" * 1002, 2) == "xx… and 1,000 more characters; all of it in tokens.parquet"


@pytest.mark.parametrize(("seconds", "told"), [(0.04, "0.0 s"), (9.9, "9.9 s"), (31.2, "31 s"), (125, "2 min 5 s")])
def test_durations_are_told_as_people_say_them(seconds, told):
    assert duration(seconds) == told
