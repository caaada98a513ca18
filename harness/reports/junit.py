"""A run as JUnit XML, as GitLab and Jenkins read it. Test cases are checks, and are called as under pytest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from harness.record import Record, TargetFacts
from harness.reports import cut, one_line, reproduce, untold_errors, visible
from harness.reports.pull_request import repository_path
from harness.store import WORST_FIRST, Results

LONGEST, SHORTEST = 20_000, 100  # characters of one text: as many as there is room for
LARGEST = 30_000_000  # bytes: what GitLab reads is below
MESSAGE = 300
INCOMPLETE = "the run is incomplete"
# Readers show a file of the CI machine where a test's output names it so.
_ATTACHMENT = re.compile(r"\[(?=\[ATTACHMENT\|)")
_NOT_XML = re.compile("[\ufffe\uffff]")

Seconds = dict[tuple[str, str], float]  # by target and request


def junit_xml(results: Results) -> str:
    """The whole document: a suite for each target of each suite file, and for what kept the run from its end."""
    bad = sum(record.outcome != "passed" for record in results.records)
    limit = max(SHORTEST, min(LONGEST, LARGEST // (4 * bad + 1)))
    text = _text_of(_document(results, limit))
    while len(text.encode()) > LARGEST and limit > SHORTEST:  # escapes take room, too
        limit = max(SHORTEST, limit // 4)
        text = _text_of(_document(results, limit))
    return text


def _text_of(root: ET.Element) -> str:
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _document(results: Results, limit: int) -> ET.Element:
    checks: dict[str, list[Record]] = {}
    for record in results.records:
        checks.setdefault(record.check, []).append(record)
    suites: dict[tuple[str, str], list[list[Record]]] = {}
    for records in checks.values():
        suites.setdefault((_suite_file(records[0]), records[0].target), []).append(records)
    root = ET.Element("testsuites", name="harness", time=f"{results.seconds:.3f}")
    facts = {one.target: one for one in results.facts}
    seconds = _own_seconds(results)
    for (file, target), members in suites.items():
        suite = ET.SubElement(root, "testsuite", name=_attribute(f"{file}::{target}"))
        _properties(suite, _about(results, facts.get(target), members[0][0]))
        for records in members:
            suite.append(_case(records, _taken(records, seconds), limit))
    _obstacles(root, results, limit)
    for suite in root:
        _count(suite, results.started)
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    return root


def _suite_file(record: Record) -> str:
    """Of the node id: a test may stand in another file, which its suite extends."""
    return record.check.partition("::")[0]


def _case(records: Sequence[Record], seconds: float, limit: int) -> ET.Element:
    worst = min(records, key=lambda record: WORST_FIRST.index(record.outcome))
    *path, name = worst.check.split("::")
    case = ET.Element("testcase")
    case.set("classname", _attribute(".".join([path[0].replace("/", "."), *path[1:]]) if path else worst.suite))
    case.set("name", _attribute(name))
    case.set("time", f"{seconds:.3f}")
    case.set("file", _attribute(repository_path(worst.file)))
    case.set("line", str(worst.line))
    outcome = worst.outcome
    if outcome in ("failed", "error"):
        bad = [record for record in records if record.outcome in ("failed", "error")]
        element = ET.SubElement(case, "failure" if outcome == "failed" else "error", type=outcome)
        _say(element, worst.verdict.reason, "\n".join(_lines(bad)), limit)
        output = f"{reproduce(worst)}\n{worst.text}"
        ET.SubElement(case, "system-out").text = _text(output, limit)
    elif outcome == "xfailed":
        _say(ET.SubElement(case, "skipped", type="xfail"), f"known failure: {worst.xfail}", worst.verdict.reason, limit)
    elif outcome == "skipped":
        _say(ET.SubElement(case, "skipped", type="skipped"), worst.verdict.reason, "", limit)
    elif outcome == "xpassed":
        told = f"passed unexpectedly (xpass); known as: {worst.xfail}"
        ET.SubElement(case, "system-out").text = _text(told, limit)
    return case


def _lines(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        expectation = f"{record.expectation}: " if record.expectation else ""
        yield f"{expectation}{record.verdict.reason}"
        yield from record.verdict.details


def _say(element: ET.Element, message: str, text: str, limit: int) -> None:
    """GitLab shows the text, Jenkins the message first."""
    element.set("message", _attribute(message, min(MESSAGE, limit)))
    element.text = _text(text or message, limit)


def _obstacles(root: ET.Element, results: Results, limit: int) -> None:
    """What no check tells of, but must not look as if all had gone well."""
    told = [("loading", error) for error in untold_errors(results)]
    if not results.complete:
        told.append(("complete", "\n".join((INCOMPLETE, *results.lacks))))
    if not told:
        return
    suite = ET.SubElement(root, "testsuite", name="run")
    for number, (name, reason) in enumerate(told, 1):
        case = ET.SubElement(suite, "testcase", classname="run", name=f"{name} {number}", time="0.000")
        _say(ET.SubElement(case, "error", type="error"), reason.partition("\n")[0], reason, limit)


def _about(results: Results, facts: TargetFacts | None, record: Record) -> Iterator[tuple[str, Any]]:
    yield from (("suite", record.suite), ("model", record.model), ("quantization", record.quantization))
    if facts:
        names = ("device", "dtype", "attention", "cache", "weights", "weights_digest")
        yield from ((name, getattr(facts, name)) for name in names)
    yield from (("command", results.command), ("complete", str(results.complete).lower()))
    libraries = results.environment.get("libraries")
    if isinstance(libraries, Mapping):
        yield from libraries.items()


def _properties(suite: ET.Element, pairs: Iterable[tuple[str, Any]]) -> None:
    """Of the suite: test cases have none, because the schema of Jenkins' xUnit plugin knows none."""
    properties = ET.SubElement(suite, "properties")
    for name, value in pairs:
        if value not in ("", None):
            ET.SubElement(properties, "property", name=_attribute(str(name)), value=_attribute(str(value)))


def _count(suite: ET.Element, started: str) -> None:
    cases = suite.findall("testcase")
    kinds = Counter(child.tag for case in cases for child in case)
    suite.set("tests", str(len(cases)))
    for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(kinds[kind]))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")
    if started:
        suite.set("timestamp", _attribute(started))


def _own_seconds(results: Results) -> Seconds:
    seconds: Seconds = {}
    for target, done in results.completions:
        key = (target, done.request.id)
        seconds[key] = seconds.get(key, 0.0) + done.own_seconds
    return seconds


def _taken(records: Sequence[Record], seconds: Seconds) -> float:
    """What was generated for a check; what several checks share is counted at the first, as it happened."""
    return sum(seconds.pop((record.target, request), 0.0) for record in records for request in record.requests)


def _text(text: str, limit: int) -> str:
    return _xml(visible(cut(text, limit)))


def _attribute(text: str, limit: int = MESSAGE) -> str:
    """On one line: parsers make spaces of the others."""
    shown = one_line(text[: limit + 1])
    return _xml(shown if len(shown) <= limit else f"{shown[:limit]}…")


def _xml(text: str) -> str:
    """Without what XML 1.0 cannot hold; the rest of that, `visible` has escaped."""
    return _NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", _ATTACHMENT.sub("[ ", text))
