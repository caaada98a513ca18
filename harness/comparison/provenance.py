"""In what two runs differ before a model says anything: machine, libraries, weights, suites, prompts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.record import TargetFacts, Text, to_data
from harness.store import Results, suite_digest
from harness.tables import as_json

MACHINE = "machine"
# Not what a target is, but how it went and what it is called.
NOT_COMPARED = ("target", "load_seconds", "held_before_bytes", "load_peak_bytes")


@dataclass(frozen=True)
class Change:
    """Something that is not in the run after as it was in the run before; "" where a run does not have it."""

    of: str  # libraries, variables, git, torch, machine, or the name of a target
    name: str
    before: str
    after: str


def environment_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """What differs in machine and libraries; nothing where a run does not say on what it was made."""
    if not before or not after:
        return ()
    old, new = dict(_grouped(before)), dict(_grouped(after))
    groups = dict.fromkeys((*old, *new))
    return tuple(change for group in groups for change in _changes(group, old.get(group, {}), new.get(group, {})))


def _grouped(environment: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    yield MACHINE, {name: item for name, item in environment.items() if not isinstance(item, Mapping)}
    yield from ((name, item) for name, item in environment.items() if isinstance(item, Mapping))


def facts_changes(name: str, before: TargetFacts | None, after: TargetFacts | None) -> tuple[Change, ...]:
    """What a target is that it was not; nothing where a run could not load it."""
    if before is None or after is None:
        return ()
    old, new = ({key: item for key, item in to_data(one).items() if key not in NOT_COMPARED} for one in (before, after))
    return tuple(_changes(name, old, new))


def _changes(of: str, before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterable[Change]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            sides = [side if isinstance(side, Mapping) else {} for side in (old, new)]
            yield from _changes(of, sides[0], sides[1], f"{prefix}{key}.")
        elif _shown(old) != _shown(new):
            yield Change(of, f"{prefix}{key}", _shown(old), _shown(new))


def _shown(value: Any) -> str:
    """As it stands in run.json: a run that was read has to be equal to a fresh one."""
    plain = json.loads(as_json(value))
    return "" if plain is None else plain if isinstance(plain, str) else as_json(plain)


def suite_notes(before: Results, after: Results) -> tuple[str, ...]:
    """Suites that only one run has, and those that were edited in between."""
    old, new = _digests(before), _digests(after)
    if not old or not new:
        return ()
    notes = [f"suite '{name}' is only in the run before" for name in old if name not in new]
    notes += [f"suite '{name}' is only in the run after" for name in new if name not in old]
    edited = [name for name in old if old[name] and new.get(name) and old[name] != new[name]]
    return (*notes, *(f"suite '{name}', or a file that it names, was changed between the runs" for name in edited))


def _digests(results: Results) -> dict[str, set[str]]:
    """Of the files of each suite; none where a file was gone when the run ended."""
    found: dict[str, set[str]] = {}
    for suite in results.suites:
        found.setdefault(suite["name"], set()).update(filter(None, [suite_digest(suite)]))
    return found


def prompt_notes(before: Results, after: Results) -> tuple[str, ...]:
    """Prompts of which only the name is the same."""
    old, new = _requests_by_prompt(before), _requests_by_prompt(after)
    said_before, said_after = _texts(before), _texts(after)
    notes = []
    for key in (key for key in old if key in new and not old[key] & new[key]):
        was = {said_before[request] for request in old[key] if request in said_before}
        now = {said_after[request] for request in new[key] if request in said_after}
        if was & now:
            why = "no request is: its generation config or the expectations were changed"
            notes.append(f"prompt '{key[1]}' is the same in both runs, but {why}")
        else:
            notes.append(f"prompt '{key[1]}' is not the same in both runs")
    return tuple(notes)


def _requests_by_prompt(results: Results) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for record in results.records:
        if record.prompt and record.requests:
            found.setdefault((record.suite, record.prompt), set()).update(record.requests)
    return found


def _texts(results: Results) -> dict[str, Text]:
    requests = [answer.request for _, answer in results.completions]
    requests += [answer.request for _, answer in results.failures]
    return {request.id: request.prompt for request in requests}
