"""One run against another: the same suite before and after something was changed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from harness.comparison.difference import Pair, RunDifference, Speed, TargetDifference, Unanswered, VerdictPair
from harness.comparison.provenance import environment_changes, facts_changes, prompt_notes, suite_notes
from harness.divergence import Difference, first_difference
from harness.errors import UsageError
from harness.record import Completion, Failure, Record, Request, TargetFacts
from harness.steps import kl_at_least
from harness.store import Results

SHOWN = 40  # characters of a prompt that has no name
SPEED_NOTE = "speed and memory are of two runs, not side by side: what else the machine did is in the difference"

Answer = Completion | Failure
Key = tuple[str, int]  # id of a request, and which of its answers: suites may ask the same in different batches
Names = Mapping[str, tuple[str, str]]  # request: names of its prompt and its generation config


def compare_runs(before: Results, after: Results) -> RunDifference:
    """What is not as it was; runs that have nothing in common are refused."""
    names, note = _matched_targets(before, after)
    verdicts = _verdict_pairs(before.records, after.records, names)
    prompts = _names_of_requests((*before.records, *after.records))
    targets = tuple(_target((before, after), pair, prompts) for pair in names.items())
    judged = any(one.before and one.after for one in verdicts)
    if not judged and not any(one.pairs or one.unanswered for one in targets):
        raise _nothing_in_common(before, after)
    return RunDifference(
        before=_called(before),
        after=_called(after),
        changes=environment_changes(before.environment, after.environment),
        targets=targets,
        only_before=tuple(name for name in _targets(before) if name not in names),
        only_after=tuple(name for name in _targets(after) if name not in names.values()),
        verdicts=verdicts,
        notes=(
            *note,
            *suite_notes(before, after),
            *prompt_notes(before, after),
            *_shortcomings(before, "before"),
            *_shortcomings(after, "after"),
            SPEED_NOTE,
        ),
        measured=(before.measured, after.measured) if before.measured and after.measured else None,
    )


def _targets(results: Results) -> list[str]:
    """Names, in the order of the suites."""
    asked = [target.name for target in results.targets]
    met = [record.target for record in results.records]
    answered = [name for name, _ in (*results.completions, *results.failures)]
    return list(dict.fromkeys((*asked, *(one.target for one in results.facts), *met, *answered)))


def _matched_targets(before: Results, after: Results) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name before -> name after; and what is to be said about it."""
    old, new = _targets(before), _targets(after)
    common = [name for name in old if name in new]
    if not common and len(old) == len(new) == 1:
        note = f"no target has the same name in both runs: '{old[0]}' before is compared with '{new[0]}' after"
        return {old[0]: new[0]}, (note,)
    return {name: name for name in common}, ()


def _called(results: Results) -> str:
    return str(results.path) if results.path else f"run of {results.started}"


def _nothing_in_common(before: Results, after: Results) -> UsageError:
    sides = []
    for word, results in (("before", before), ("after", after)):
        suites = ", ".join(dict.fromkeys(suite["name"] for suite in results.suites)) or "unknown"
        targets = ", ".join(_targets(results)) or "none"
        sides.append(f"\n  {word}  {_called(results)}: suite {suites}; targets {targets}")
    return UsageError(
        f"the two runs have no verdict and no generation in common:{''.join(sides)}",
        "Compare runs of the same suite: `harness run SUITE` once before a change and once after it.",
    )


def _shortcomings(results: Results, side: str) -> list[str]:
    notes = [f"the run {side}: {lack}" for lack in results.lacks]
    notes += [f"the run {side} could not load {error.splitlines()[0]}" for error in results.errors]
    if not results.complete and not results.lacks:
        notes.append(f"the run {side} was interrupted: not all of its checks were judged")
    return notes


def _verdict_pairs(
    before: Sequence[Record], after: Sequence[Record], names: Mapping[str, str]
) -> tuple[VerdictPair, ...]:
    """Matched by check and expectation; nothing where a run that was read holds no verdicts."""
    if not before or not after:
        return ()
    old, new = _by_check(before, names), _by_check(after, {})
    for_new = {key: _same_check(key, old) for key in new}
    for_old = {key: _same_check(key, new) for key in old}
    met_before, met_after = set(for_new.values()), set(for_old.values())
    pairs = [
        VerdictPair(record, new.get(for_old[key]))
        for key, record in old.items()
        if for_old[key] in new or key not in met_before
    ]
    pairs += [VerdictPair(old.get(for_new[key]), record) for key, record in new.items() if key not in met_after]
    return tuple(pairs)


CheckKey = tuple[str, str, str, str, int]


def _by_check(records: Iterable[Record], names: Mapping[str, str]) -> dict[CheckKey, Record]:
    """By what a node id says, but for the path of the file: it depends on where the run was started."""
    found: dict[CheckKey, Record] = {}
    seen: Counter[tuple[str, str, str, str]] = Counter()
    for record in records:
        label = record.check.partition(f"::{record.target}::")[2]
        key = (record.suite, names.get(record.target, record.target), label, record.expectation)
        found[*key, seen[key]] = record
        seen[key] += 1
    return found


def _same_check(key: CheckKey, records: Mapping[CheckKey, Record]) -> CheckKey:
    """Where a target could not be loaded, one record without expectation stands for all of the check's."""
    return key if key in records else (*key[:3], "", 0)


def _names_of_requests(records: Iterable[Record]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for record in records:
        for request in record.requests if record.prompt else ():
            found.setdefault(request, (record.prompt, record.generation))
    return found


def _target(runs: tuple[Results, Results], names: tuple[str, str], prompts: Names) -> TargetDifference:
    facts = [_facts(results, name) for results, name in zip(runs, names, strict=True)]
    same_vocabulary = len({one.tokenizer_digest for one in facts if one and one.tokenizer_digest}) < 2
    old, new = (_answers(results, name) for results, name in zip(runs, names, strict=True))
    common = [(answer, new[key]) for key, answer in old.items() if key in new]
    answered = [(a, b) for a, b in common if isinstance(a, Completion) and isinstance(b, Completion)]
    whole = [(a, b) for a, b in answered if not (a.split_after_oom or b.split_after_oom)]
    pairs = tuple(_pair(a, b, prompts, same_vocabulary) for a, b in whole)
    both_hold_answers = all(results.completions or results.failures for results in runs)
    speeds = [_speed(results, name, one) for results, name, one in zip(runs, names, facts, strict=True)]
    return TargetDifference(
        before=names[0],
        after=names[1],
        changes=facts_changes(names[1], *facts),
        pairs=pairs,
        unanswered=_unanswered(common, prompts),
        only_before=sum(key not in new for key in old) if both_hold_answers else 0,
        only_after=sum(key not in old for key in new) if both_hold_answers else 0,
        speed_before=speeds[0],
        speed_after=speeds[1],
        same_vocabulary=same_vocabulary,
        notes=_target_notes(pairs, same_vocabulary, len(answered) - len(whole)),
    )


def _facts(results: Results, name: str) -> TargetFacts | None:
    return next((facts for facts in results.facts if facts.target == name), None)


def _answers(results: Results, target: str) -> dict[Key, Answer]:
    """What was freely generated."""
    found: dict[Key, Answer] = {}
    seen: Counter[str] = Counter()
    answers: tuple[tuple[str, Answer], ...] = (*results.completions, *results.failures)
    for name, answer in answers:
        if name == target and results.is_free(answer.request):
            found[answer.request.id, seen[answer.request.id]] = answer
            seen[answer.request.id] += 1
    return found


def _name(request: Request, prompts: Names) -> tuple[str, str]:
    return prompts.get(request.id) or (" ".join(request.prompt.last.split())[:SHOWN], "")


def _pair(before: Completion, after: Completion, prompts: Names, same_vocabulary: bool) -> Pair:
    prompt, generation = _name(after.request, prompts)
    if not same_vocabulary:
        return Pair(prompt, generation, before, after, "the vocabularies differ")
    if before.prompt_ids != after.prompt_ids:
        return Pair(prompt, generation, before, after, "the prompt was given as other ids")
    difference = first_difference(before, after)
    nats = _kl_at_least(before, after, difference)
    return Pair(prompt, generation, before, after, difference=difference, kl_at_least=nats)


def _kl_at_least(before: Completion, after: Completion, difference: Difference | None) -> tuple[float, ...]:
    """At each token that both wrote after the same text, the first that differs included."""
    end = len(before.ids) if difference is None else difference.index + 1
    return tuple(kl_at_least(*steps) for steps in zip(before.steps[:end], after.steps[:end], strict=False))


def _unanswered(common: Iterable[tuple[Answer, Answer]], prompts: Names) -> tuple[Unanswered, ...]:
    found = []
    for a, b in common:
        if isinstance(a, Failure) and isinstance(b, Completion):
            found.append(Unanswered(_name(a.request, prompts)[0], "before", a))
        if isinstance(b, Failure) and isinstance(a, Completion):
            found.append(Unanswered(_name(b.request, prompts)[0], "after", b))
    return tuple(found)


def _speed(results: Results, target: str, facts: TargetFacts | None) -> Speed:
    completions = [done for name, done in results.completions if name == target and results.is_free(done.request)]
    seconds = sum(done.own_seconds for done in completions)
    return Speed(
        tokens_per_second=sum(done.new_tokens for done in completions) / seconds if seconds else None,
        memory_bytes=max((done.memory_bytes for done in completions), default=0) or None,
        weight_bytes=facts.weight_bytes or None if facts else None,
        load_seconds=facts.load_seconds or None if facts else None,
    )


def _target_notes(pairs: Sequence[Pair], same_vocabulary: bool, split: int) -> tuple[str, ...]:
    notes = []
    if not same_vocabulary:
        notes.append("the vocabularies differ: tokens are not compared, only texts, their lengths and verdicts")
    elif other := sum(bool(pair.why_not) for pair in pairs):
        why = "tokenizer or chat template changed"
        notes.append(f"{other} of {len(pairs)} prompts were given as other ids ({why}): tokens are not compared there")
    if split:
        notes.append(f"{split} generations were split when memory ran out, and are not compared")
    return tuple(notes)
