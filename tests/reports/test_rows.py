import math

import pytest

from harness.inputs import GREEDY
from harness.record import Completion, Record, Request, Text, Verdict
from harness.reports import rows
from harness.reports.rows import embedded, row_key, table
from harness.store import Results

ASKED = Request(Text("Say hello"), GREEDY)


def record(prompt, outcome="passed", **changes):
    status = {"xfailed": "failed", "xpassed": "passed"}.get(outcome, outcome)
    made = {
        "check": f"s.yaml::tiny::stops[{prompt}]",
        "suite": "s",
        "file": "s.yaml",
        "line": 3,
        "test": "stops",
        "target": "tiny",
        "model": "m",
        "quantization": "none",
        "prompt": prompt,
        "generation": "greedy",
        "expectation": "finish",
        "verdict": Verdict(status, f"it {outcome}"),
        "xfail": "known" if outcome.startswith("x") else "",
    }
    return Record(**(made | changes))


def results(*records, completions=()):
    return Results(records, completions, (), (), {}, (), "", 0.0, {}, "")


def made(*records, completions=()):
    return whole(results(*records, completions=completions))


def whole(run):
    """What the page has when all of it is there."""
    soon, late = table(run, embedded(run))
    return soon | {"words": soon["words"] | late}


def said(columns, name):
    """What stands in a column, row by row."""
    values, codes = columns["words"][name].values()
    return [values[code] for code in codes or [0] * columns["count"]]


def test_what_went_wrong_comes_first_and_each_text_is_kept_once():
    found = made(record("a"), record("b", "failed"), record("c"), record("d", "skipped"))
    assert said(found, "prompt") == ["b", "a", "c", "d"]
    assert found["words"]["outcome"] == {"values": ["failed", "passed", "skipped"], "codes": [0, 1, 1, 2]}
    assert found["words"]["test"] == {"values": ["stops"], "codes": []}
    assert found["outcomes"] == ["failed", "passed", "skipped"]
    assert (found["total"], found["count"]) == (4, 4)


def test_the_first_rows_need_not_wait_for_what_is_long():
    run = results(record("a", text="long " * 100), record("b", "failed", text="longer " * 100))
    soon, late = table(run, embedded(run))
    assert "long" not in str(soon)
    assert set(late).isdisjoint(soon["words"])
    assert {"check", "text", "details"} <= set(late)


def test_more_than_a_page_can_hold_is_what_did_not_pass(monkeypatch):
    monkeypatch.setattr(rows, "ROWS", 3)
    run = results(record("a"), record("b", "failed"), record("c"), record("d", "xfailed"))
    assert [one.prompt for one in embedded(run)] == ["b", "d"]
    found = whole(run)
    assert (found["total"], found["count"], found["outcomes"]) == (4, 2, ["failed", "xfailed", "passed"])
    assert len(embedded(results(*[record(str(number), "failed") for number in range(5)]))) == 3
    assert len(embedded(results(record("a"), record("b"), record("c")))) == 3


def test_what_is_told_of_an_answer_is_that_of_its_own_target():
    ours = Completion(ASKED, "<user>Say hello", (1,), (2,), ("b",), "b", "eos")
    theirs = Completion(ASKED, "[INST]Say hello", (1,), (2,), ("b",), "b", "eos")
    one = record("a", requests=("never generated", ASKED.id))
    found = made(one, record("b"), completions=(("other", theirs), ("tiny", ours)))
    assert said(found, "said") == ["<user>Say hello", ""]
    assert said(found, "arguments") == ["max_new_tokens 64, do_sample False", ""]


def test_numbers_are_numbers_or_nothing():
    found = made(record("a", new_tokens=7, seconds=1 / 3), record("b"), record("c", seconds=math.nan, new_tokens=0))
    assert found["numbers"] == {
        "new_tokens": [7, None, 0],
        "seconds": [0.3333, None, None],
        "line": [3, 3, 3],
    }
    verdict = Verdict("passed", "fine", {"kl": 0.1234567891, "level": "noise", "tokens": 3})
    assert said(made(record("a", verdict=verdict)), "numbers") == ["kl 0.123457\nlevel noise\ntokens 3"]


def test_a_command_is_told_where_it_is_more_than_the_check():
    script = Verdict("failed", "no", {}, ("expected: a", "repro   python repros/b.py"))
    found = made(record("a", "failed"), record("b", "failed", verdict=script), record("c", check="s::t[a$b]"))
    plain, more, quoted = said(found, "commands")
    assert plain == ""
    assert more == 'pytest "s.yaml::tiny::stops[b]"\npython repros/b.py'
    assert quoted == "pytest 's::t[a$b]'"


def test_texts_are_made_visible_and_long_ones_cut():
    long = "x" * 4010
    verdict = Verdict("failed", "red\x1b[31m\u202e\ud800", {}, (long,))
    found = made(record("a", verdict=verdict, text="first line\nsecond"))
    assert said(found, "reason") == ["red\\x1b[31m\\u202e\\ud800"]
    assert said(found, "details") == [f"{'x' * 4000}… and 10 more characters; all of it in results.parquet"]
    assert said(found, "text") == ["first line\nsecond"]


def test_a_page_of_many_long_texts_keeps_the_beginning_of_each(monkeypatch):
    monkeypatch.setattr(rows, "ENOUGH", 1000)
    found = made(*[record(str(number), text=f"{number}{'x' * 900}") for number in range(9)])
    lengths = [len(text) for text in said(found, "text")]
    assert lengths[0] == 901  # whole
    assert max(lengths[2:]) < 250


def test_a_row_is_named_as_the_page_sees_it():
    assert row_key(record("a\x1b")) == "s.yaml::tiny::stops[a\\x1b]|finish"


@pytest.mark.parametrize("name", ["outcome", "check", "reason", "said", "finish", "xfail", "file", "model"])
def test_a_run_of_nothing_has_empty_columns(name):
    assert made()["words"][name] == {"values": [], "codes": []}
