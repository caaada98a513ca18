"""A suite for a model, made from what was found about it: what holds is asked for, what does not is a known failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness import backends
from harness.answers import Observer
from harness.doctor import judge, suite
from harness.errors import CannotRun, UsageError
from harness.inputs import Model
from harness.record import Record, Target
from harness.store import outcome_by_check

SHOWN = 100  # characters of a reason


def write(file: Path, model: Model, name: str, observer: Observer) -> Counter[str]:
    """Look at the model, write its suite, and run that once: how many checks had each outcome."""
    target = Target(name, name, model)
    backend = backends.load(target, progress=observer.says)
    try:
        data = suite(model, name, backend.facts)
        text = starter(data, judge(data, backend, observer))
        observer.says("running the suite that was made")
        outcomes = outcome_by_check(judge(yaml.safe_load(text), backend, observer))
    finally:
        backend.close()
    counts = Counter(outcomes.values())
    if counts["failed"] or counts["error"]:
        bad = next(check for check, outcome in outcomes.items() if outcome in ("failed", "error"))
        raise CannotRun(
            f"the model does not do the same twice: {bad} passed at first and does so no more",
            "`harness doctor` tells what it does; a suite of it would be flaky.",
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
    return counts


def starter(data: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The text of a suite that passes on the model that has these records."""
    tests = [made for test in data["tests"] if (made := _kept(test, records))]
    head = {key: value for key, value in data.items() if key not in ("suite", "tests")}
    lines = [
        "# Written from what the model did. Read it, and change what is not what you want: a known failure (xfail)",
        "# is a fault that was there, and under bare_call stands what this version of transformers does.",
        "",
        _yaml({"suite": data["suite"], "description": f"What {data['suite']} does now, to be held to."}),
        _yaml(head),
        "tests:",
    ]
    for test in tests:
        lines += [*_comments(test["name"], records), *_indented(_yaml([test]))]
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Lists of names on one line, as people write them."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        names = all(isinstance(item, (str, int)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=names or flow_style)


def _yaml(value: Any) -> str:
    dumped: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return dumped.rstrip("\n") + ("\n" if isinstance(value, dict) else "")


def _indented(text: str) -> Iterator[str]:
    yield from (f"  {line}" if line else "" for line in text.split("\n"))
    yield ""


def _kept(test: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any] | None:
    """The test with the expectations that could be judged, and its failures as known ones."""
    own = [record for record in records if record.test == test["name"]]
    judged = {record.expectation for record in own if record.verdict.status in ("passed", "failed")}
    wrong = {record.prompt for record in own if record.verdict.status == "error"}
    prompts = [prompt for prompt in test["prompts"] if prompt not in wrong]
    expect = {
        word: _recorded(word, value, own)
        for word, value in test["expect"].items()
        if word in judged or word == "invariants"
    }
    if not prompts or not expect:
        return None
    failed: dict[str, list[str]] = {}
    for record in own:
        if record.verdict.status == "failed" and record.prompt in prompts:
            failed.setdefault(_short(record), []).append(record.prompt)
    known = [{"prompt": sorted(set(names)), "reason": reason} for reason, names in failed.items()]
    return {**test, "prompts": prompts, "expect": expect, **({"xfail": known} if known else {})}


def _recorded(word: str, value: Any, records: Sequence[Record]) -> Any:
    """What bare calls do is written down as values; everything else is asked as it was."""
    if word != "bare_call":
        return value
    numbers = next(record.verdict.numbers for record in records if record.expectation == word)
    calls: dict[str, dict[str, Any]] = {}
    for key, found in numbers.items():
        call, _, name = key.partition(".")
        if name:
            calls.setdefault(call, {})[name] = found
    return calls or value


def _comments(test: str, records: Sequence[Record]) -> Iterator[str]:
    """What was left out, and why."""
    left = {
        record.expectation: record.verdict.reason
        for record in records
        if record.test == test and record.verdict.status in ("skipped", "error")
    }
    for expectation, reason in left.items():
        first = reason.split("\n", 1)[0]
        yield f"  # {expectation} does not apply: {first[:SHOWN]}"


def _short(record: Record) -> str:
    reason = f"{record.expectation}: {record.verdict.reason}".split("\n", 1)[0]
    return reason if len(reason) <= 2 * SHOWN else f"{reason[: 2 * SHOWN]}…"
