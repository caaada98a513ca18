"""A suite becomes targets, checks and requests. Pure: nothing is loaded, nothing is generated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from harness.expectations import Expectation, fill
from harness.expectations.shorthand import fill_text
from harness.inputs import Model, Prompt
from harness.load import Loaded
from harness.record import Request, Target, Text
from harness.suite import KnownFailure, Suite, Test, Where

OVER_SET = "*"  # stands for the prompt in the id of a check over all of them


@dataclass(frozen=True)
class Case:
    """One prompt of a test, with what must hold for it."""

    name: str
    request: Request
    expectations: Mapping[str, Expectation]
    needs: Mapping[str, tuple[Request, ...]]  # by name of the expectation

    def only(self, wanted: Callable[[str], bool]) -> Case:
        """With some of its expectations, by name."""
        kept = {name: one for name, one in self.expectations.items() if wanted(name)}
        return Case(self.name, self.request, kept, {name: self.needs[name] for name in kept})

    def part(self, *, over_set: bool) -> Case:
        """With those expectations only that are judged over the whole set of prompts, or only with the others."""
        return self.only(lambda name: self.expectations[name].over_set is over_set)


@dataclass(frozen=True)
class Check:
    """One verdict to reach: a test on a target, for one prompt, or for all of them together."""

    id: str  # pytest's node id
    suite: Suite
    file: str
    line: int
    test: Test
    target: Target
    cases: tuple[Case, ...]
    prompt: str = ""  # "" when it is about all prompts of its test
    over_set: bool = False  # each expectation judges all prompts at once; else, over all of them, a pass rate
    skip: str = ""  # why it does not run on this target
    devices: tuple[str, ...] = ()  # it runs on these kinds of device only; () is any
    xfails: tuple[KnownFailure, ...] = ()  # known failures of this target and prompt
    suite_file: str = ""  # where the suite lies; pins are beside it
    reads: tuple[str, ...] = ()  # where the other files lie of which the suite is made

    @property
    def name(self) -> str:
        return self.id.rsplit("::", 1)[1]

    def needs(self) -> Iterable[Request]:
        for case in self.cases:
            for requests in case.needs.values():
                yield from requests

    def xfail(self, device: str) -> str:
        """The reason of the known failure on this kind of device; "" when it is to pass."""
        return next((known.reason for known in self.xfails if known.applies(device)), "")


@dataclass(frozen=True)
class Plan:
    """Everything that the suites ask for, in the order of the files; targets in the order of their first check."""

    checks: tuple[Check, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(dict.fromkeys(check.target for check in self.checks))


def plan(loaded: Sequence[Loaded]) -> Plan:
    return Plan(tuple(check for one in loaded for target in targets(one.suite) for check in checks(one, target)))


def targets(suite: Suite) -> tuple[Target, ...]:
    """models × quantization (× dtype × attention, where the suite has these axes)."""
    axes = product(suite.models.items(), suite.quantization, suite.dtype or (None,), suite.attention or (None,))
    return tuple(_target(name, model, level, dtype, attention) for (name, model), level, dtype, attention in axes)


def _target(name: str, model: Model, level: str, dtype: str | None, attention: str | None) -> Target:
    changes = {key: value for key, value in (("dtype", dtype), ("attention", attention)) if value is not None}
    words = [name, level, *changes.values()]
    return Target("-".join(words), name, model.model_copy(update=changes), level)


def checks(loaded: Loaded, target: Target) -> tuple[Check, ...]:
    """All checks of a suite on one target."""
    return tuple(check for test in loaded.suite.tests for check in _checks_of(loaded, test, target))


def _checks_of(loaded: Loaded, test: Test, target: Target) -> tuple[Check, ...]:
    skip = "" if fits(test.only, target) else "this test is not for this target (`only`)"
    made = []
    for label, prompt, cases in _groups(test, _cases(loaded, test)):
        made.append(
            Check(
                id=f"{loaded.file}::{target.name}::{test.name}{f'[{label}]' if label else ''}",
                suite=loaded.suite,
                file=loaded.files.get(test.name, loaded.file),
                line=loaded.lines[test.name],
                test=test,
                target=target,
                cases=cases,
                prompt=prompt,
                over_set=label == OVER_SET,
                suite_file=loaded.path or loaded.file,
                reads=loaded.reads,
                skip=skip,
                devices=(test.only.device or ()) if test.only else (),
                xfails=tuple(
                    known
                    for known in test.xfail
                    if fits(known, target) and (known.prompt is None or not prompt or _names(prompt, known.prompt))
                ),
            )
        )
    return tuple(made)


def _groups(test: Test, cases: Sequence[Case]) -> list[tuple[str, str, tuple[Case, ...]]]:
    """Which prompts are judged together: label in the id, name of the prompt if it is one, the cases."""
    single = [part for case in cases if (part := case.part(over_set=False)).expectations]
    whole = tuple(part for case in cases if (part := case.part(over_set=True)).expectations)
    groups: list[tuple[str, str, tuple[Case, ...]]] = [(case.name, case.name, (case,)) for case in single]
    if single and test.expect.pass_rate is not None:
        groups = [("", "", tuple(single))]
    return [*groups, (OVER_SET, "", whole)] if whole else groups


def _names(prompt: str, names: Sequence[str]) -> bool:
    """A known failure may name a prompt with rows (all of them) or one of its rows."""
    return any(prompt == name or prompt.startswith(f"{name}-") for name in names)


def fits(where: Where | None, target: Target) -> bool:
    """Whether a target is meant; the kind of device is known only once it is loaded, and not asked here."""
    if where is None:
        return True
    return all(
        wanted is None or target.axes[axis] in wanted
        for axis, wanted in ((axis, getattr(where, axis)) for axis in target.axes)
    )


def _cases(loaded: Loaded, test: Test) -> list[Case]:
    suite, folder = loaded.suite, os.path.dirname(loaded.files.get(test.name, loaded.file))
    generation = suite.generation_named(test.generation)
    texts = [item for name in test.prompts for item in prompts(name, suite.prompts[name])]
    requests = [Request(text, generation) for _, text, _ in texts]
    written = {name: one.located(folder) for name, one in test.expect.expectations().items()}
    made = []
    for (name, _, row), request in zip(texts, requests, strict=True):
        expectations = {key: fill(expectation, row) for key, expectation in written.items()}
        needs = {key: tuple(expectation.needs(request, requests)) for key, expectation in expectations.items()}
        made.append(Case(name, request, expectations, needs))
    return made


def prompts(name: str, prompt: Prompt) -> list[tuple[str, Text, Mapping[str, Any]]]:
    """A prompt, or one for each of its rows: name, what it says, its row."""
    if prompt.rows is None:
        return [(name, _text(prompt, {}), {})]
    return [
        (f"{name}-{row.get('id', number)}", _text(prompt, row), row) for number, row in enumerate(prompt.rows, start=1)
    ]


def _text(prompt: Prompt, row: Mapping[str, Any]) -> Text:
    if prompt.messages is None:
        return Text(text=fill_text(prompt.text or "", row))
    turns = (turn.model_copy(update={"content": fill_text(turn.content, row)}) for turn in prompt.messages)
    return Text(messages=tuple(turns), continued=prompt.continue_final_message)
