"""JUnit XML: what GitLab and Jenkins read of it, and that any text of a model is valid in it."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from harness.record import TargetFacts, Verdict
from harness.reports import junit
from harness.reports.junit import junit_xml

# The schema by which Jenkins' xUnit plugin checks: tag -> required and other attributes, and children. `file` and
# `line` of a test case are not in it, but GitLab and others show the one, and Jenkins' own JUnit plugin takes both.
SCHEMA = {
    "testsuites": ((), ("name", "time", "tests", "failures", "errors"), ("testsuite",)),
    "testsuite": (
        ("name", "tests", "failures", "errors"),
        ("group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url", "version"),
        ("testsuite", "properties", "testcase", "system-out", "system-err"),
    ),
    "properties": ((), (), ("property",)),
    "property": (("name", "value"), (), ()),
    "testcase": (
        ("name",),
        ("time", "classname", "group", "file", "line"),
        ("skipped", "error", "failure", "system-out", "system-err"),
    ),
    **dict.fromkeys(("failure", "error", "skipped"), ((), ("type", "message"), ())),
    **dict.fromkeys(("system-out", "system-err"), ((), (), ())),
}
TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")
EVERYTHING = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA1), 0x2028, 0x202E, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF)))
EVIL = f"]]> <!-- & ' \" </failure> {EVERYTHING} \U0001f600"


def read(results):
    """As a strict parser reads it, checked against the schema."""
    root = ET.fromstring(junit_xml(results).encode())
    wrong = []
    for node in root.iter():
        required, others, children = SCHEMA[node.tag]
        wrong += [f"{node.tag} lacks {name}" for name in required if name not in node.attrib]
        wrong += [f"{node.tag} has {name}" for name in node.attrib if name not in (*required, *others)]
        wrong += [f"{node.tag} holds {child.tag}" for child in node if child.tag not in children]
        if not TIME.fullmatch(node.get("time", "")):
            wrong.append(f"time {node.get('time')}")
    assert not wrong
    for suite in root:
        cases = suite.findall("testcase")
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(name)) == sum(case.find(tag) is not None for case in cases)
        assert int(suite.get("tests")) == len(cases)
    return root


def change(results, place=0, **changes):
    records = list(results.records)
    records[place] = replace(records[place], **changes)
    return replace(results, records=tuple(records))


@pytest.fixture
def plain(compared):
    return lambda **changes: compared(**({"measured": None, "errors": ()} | changes))


def test_a_suite_for_each_target_and_a_case_for_each_check(plain):
    root = read(plain())
    assert [suite.get("name") for suite in root] == [
        "suites/levels.yaml::fp32",
        "suites/levels.yaml::int8",
        "suites/levels.yaml::nf4",
    ]
    case = root[2].find("testcase")
    # As pytest calls it, so that both have one history.
    assert (case.get("classname"), case.get("name")) == ("suites.levels.yaml.nf4", "counts[p0]")
    assert (case.get("file"), case.get("line")) == ("suites/levels.yaml", "3")
    assert {name: root.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
    }
    assert root[0].get("timestamp") == "2025-01-01T00:00:00+00:00"


def test_a_failure_tells_its_reason_as_message_and_all_of_it_as_text(plain):
    bad = change(plain(), 2, verdict=Verdict("failed", "it is wrong", {}, ("expected: a", "got:      b")), text="b!")
    failure = read(bad)[2].find("testcase/failure")
    assert failure.get("message") == "it is wrong"
    assert failure.text == "contains: it is wrong\nexpected: a\ngot:      b"
    output = read(bad)[2].find("testcase/system-out").text
    assert output == 'pytest "suites/levels.yaml::nf4::counts[p0]"\nb!'


def test_expectations_of_one_check_are_one_case_and_the_worst_decides(plain):
    one = plain().records[2]
    passed = replace(one, expectation="regex", verdict=Verdict("passed", "fine"))
    broken = replace(one, expectation="metric", verdict=Verdict("error", "no such metric"))
    (case,) = read(plain(records=(passed, one, broken)))[0].findall("testcase")
    assert case.find("failure") is None
    assert case.find("error").text == "contains: it failed\nmetric: no such metric"


def test_known_failures_are_skipped_with_their_reason_and_unexpected_passes_are_told(plain):
    known = change(plain(), 2, xfail="never knew")
    skipped = read(known)[2].find("testcase/skipped")
    assert (skipped.get("type"), skipped.get("message")) == ("xfail", "known failure: never knew")
    assert skipped.text == "it failed"
    (case,) = read(change(plain(), 0, xfail="never knew"))[0].findall("testcase")
    assert [child.tag for child in case] == ["system-out"]
    assert case[0].text == "passed unexpectedly (xpass); known as: never knew"


def test_what_was_skipped_says_why(plain):
    skipped = read(change(plain(), 0, verdict=Verdict("skipped", "needs CUDA")))[0].find("testcase/skipped")
    assert (skipped.get("type"), skipped.get("message"), skipped.text) == ("skipped", "needs CUDA", "needs CUDA")


def test_properties_stand_on_the_suite_because_no_case_may_have_any(plain):
    facts = (TargetFacts("fp32", device="cpu", dtype="float32", weights_digest="ab12"),)
    root = read(plain(facts=facts, environment={"libraries": {"torch": "2.13"}}))
    told = {one.get("name"): one.get("value") for one in root[0].iter("property")}
    assert told == {
        "suite": "levels",
        "model": "m",
        "quantization": "none",
        "device": "cpu",
        "dtype": "float32",
        "weights_digest": "ab12",
        "command": "harness compare suites/levels.yaml",
        "complete": "true",
        "torch": "2.13",
    }
    assert not list(root.iter("testcase/properties"))


def test_any_text_of_a_model_is_valid_xml_and_can_be_seen(plain):
    bad = change(
        plain(command=EVIL, errors=(EVIL,), environment={"libraries": {EVIL: EVIL}}),
        2,
        verdict=Verdict("failed", EVIL, {}, (EVIL,)),
        text=EVIL,
        check=f"s.yaml::nf4::{EVIL}",
        expectation=EVIL,
        target=EVIL,
    )
    case = read(bad).findall("testsuite")[2].find("testcase")
    for text in (case.find("failure").text, case.find("failure").get("message"), case.get("name")):
        for part in ("]]> <!-- & ' \" </failure>", "\\x00", "\\x1b", "\\x7f", "\\u202e", "\\ud800"):
            assert part in text
    assert "\\udfff\\ufffe\\uffff" in case.find("failure").text
    for xfail in ("", EVIL):
        for status in ("passed", "failed", "error", "skipped"):
            read(change(bad, 0, verdict=Verdict(status, EVIL), xfail=xfail))


def test_a_text_of_a_megabyte_is_cut(plain):
    text = junit_xml(change(plain(), 2, verdict=Verdict("failed", "x" * 1_000_000), text="y\x00" * 1_000_000))
    assert len(text) < 200_000
    assert "more characters; all of it in" in text


def test_many_long_failures_stay_below_what_gitlab_reads(plain, monkeypatch):
    assert junit.LARGEST == 30_000_000
    monkeypatch.setattr(junit, "LARGEST", 3_000_000)
    one = replace(plain().records[2], verdict=Verdict("failed", "<" * 20_000), text="<" * 20_000)
    many = tuple(replace(one, check=f"s.yaml::nf4::t[p{number}]") for number in range(100))
    text = junit_xml(plain(records=many))
    assert 1_000_000 < len(text.encode()) < 3_000_000
    assert len(set(re.findall(r'name="(t\[p\d+\])"', text))) == 100


def test_no_text_names_a_file_to_attach(plain):
    bad = change(
        plain(), 2, verdict=Verdict("failed", "[[ATTACHMENT|/etc/passwd]]"), text="[[[ATTACHMENT|/etc/shadow]]"
    )
    text = junit_xml(bad)
    assert "[[ATTACHMENT|" not in text
    assert "[ [ATTACHMENT|/etc/shadow]]" in text


def test_what_several_checks_share_takes_its_time_once(plain):
    made = plain()
    slow = tuple(
        (target, replace(done, seconds=4.0, batch_size=2)) for target, done in made.completions if target == "fp32"
    )
    one = made.records[0]
    again = replace(one, check="suites/levels.yaml::fp32::other[p0]", test="other")
    (suite,) = read(plain(records=(one, again), completions=slow))
    assert [case.get("time") for case in suite.iter("testcase")] == ["2.000", "0.000"]
    assert suite.get("time") == "2.000"


def test_a_run_that_is_not_whole_does_not_look_as_if_all_were_well(plain):
    well = plain(records=plain().records[:2])
    assert read(well).get("errors") == "0"
    root = read(replace(well, complete=False, lacks=("tokens.parquet is missing",)))
    assert root.get("errors") == "1"
    error = root[-1].find("testcase/error")
    assert (error.get("message"), error.text) == (
        "the run is incomplete",
        "the run is incomplete\ntokens.parquet is missing",
    )


def test_a_target_that_no_check_tells_of_is_an_error(plain):
    root = read(plain(errors=("fp8: no CUDA",)))
    assert root[-1].find("testcase/error").text == "fp8: no CUDA"
    assert read(plain(records=(), errors=())).get("tests") == "0"
