"""Which sides a token view has: what a check was judged on, its pin, other targets; a baseline and a candidate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.comparison.measured import Answered, Candidate, Measured
from harness.pins.pin import Pin, as_completion
from harness.record import Batch, Completion, Record, Step
from harness.store import Results
from harness.wording import counted

SIDES, JUDGED = 6, 4  # of a view; those that one check was judged on
OUTCOMES = ("failed", "error", "xfailed")  # what has a view, in this order
KINDS = ("generate", "replay", "score")  # requests that are answered with tokens


@dataclass(frozen=True)
class Side:
    """One row of a view."""

    name: str
    target: str
    done: Completion
    judged: bool = False
    kl: Sequence[float] = ()  # nats a token, where it was led along the first side
    skips: int = 0  # tokens of the first side that are a part of this one's prompt


@dataclass(frozen=True)
class Scene:
    """What a view is made of, the side first that all others are held against."""

    key: str
    title: str
    sides: tuple[Side, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenes:
    """All of a run."""

    results: Results

    def all(self) -> Iterator[Scene]:
        """What did not pass, then what was compared: where the tokens differ first."""
        by_check: dict[str, list[Record]] = {}
        for outcome in OUTCOMES:
            for record in self.results.records:
                if record.outcome == outcome:
                    by_check.setdefault(record.check, []).append(record)
        for records in by_check.values():
            yield from self._of_check(records)
        if self.results.measured:
            yield from self._of_comparison(self.results.measured)

    def _of_check(self, records: Sequence[Record]) -> Iterator[Scene]:
        record = records[0]
        asked = dict.fromkeys(request for one in records for request in one.requests)
        answers = [self._done[request].get(record.target) for request in asked if request in self._done]
        judged = [done for done in answers if done and done.request.kind in KINDS]
        notes: list[str] = []
        if not record.prompt:
            judged = self._of_one_prompt(judged, notes)
        if not judged:
            return
        sides = self._held_against(record, judged, notes)
        name = f"{record.test}[{record.prompt}]" if record.prompt else record.test
        expectations = ", ".join(dict.fromkeys(one.expectation for one in records))
        yield Scene(record.check, f"{name} on {record.target}: {expectations}", _named(sides), tuple(notes))

    def _of_one_prompt(self, judged: Sequence[Completion], notes: list[str]) -> list[Completion]:
        """Of a check over all prompts of its test: one on which something differs, if there is any."""
        groups: dict[object, list[Completion]] = {}
        for done in judged:
            groups.setdefault(done.request.prompt, []).append(done)
        found = next((group for group in groups.values() if self._differs(group)), None)
        if len(groups) > 1:
            which = "the first whose sides differ" if found else "the first"
            notes.append(f"one of {counted(len(groups), 'prompt')}, {which}; the others are in tokens.parquet")
        return found or next(iter(groups.values()), [])

    def _differs(self, group: Sequence[Completion]) -> bool:
        rest = group[1:] or tuple(self._done[group[0].request.id].values())
        return any(done.ids != group[0].ids for done in rest)

    def _held_against(self, record: Record, judged: Sequence[Completion], notes: list[str]) -> list[Side]:
        target, shown = record.target, _telling(judged, notes)
        own = [Side(_manner(done, shown[0]), target, done, judged=True) for done in shown]
        if pin := self.results.pins.get(record.check):
            own = [Side("pin", target, self._pinned(pin, target, judged[0]), judged=True), *own]
        answers = self._done[judged[0].request.id]
        others = [Side("", name, answers[name]) for name in self._targets if name != target and name in answers]
        # A check that was judged on one completion is held against the baseline, where that is another target.
        first = others[:1] if len(own) == 1 and self._targets[0] != target else []
        sides = [*first, *own, *others[len(first) :]]
        if len(sides) > SIDES:
            notes.append(f"{counted(len(sides) - SIDES, 'more target')} in tokens.parquet")
        return [replace(side, skips=_continued(sides[0].done, side.done)) for side in sides[:SIDES]]

    def _pinned(self, pin: Pin, target: str, now: Completion) -> Completion:
        return as_completion(pin, now, {**self.results.texts.get(target, {}), **self._written.get(target, {})})

    def _of_comparison(self, measured: Measured) -> Iterator[Scene]:
        candidates = {one.name: one for one in measured.candidates}
        base = candidates.get(measured.baseline)
        theirs = {one.prompt: one for one in measured.answered if one.candidate == measured.baseline}
        scenes: list[Scene] = []
        for ours in measured.answered:
            own = candidates.get(ours.candidate)
            if base and own and own != base and ours.prompt in theirs:
                scenes += self._against(base, theirs[ours.prompt], own, ours)
        yield from sorted(scenes, key=lambda scene: scene.sides[0].done.ids == scene.sides[1].done.ids)

    def _against(self, base: Candidate, theirs: Answered, own: Candidate, ours: Answered) -> Iterator[Scene]:
        """A candidate on one prompt: what it wrote, and what it makes of what the baseline wrote."""
        path = self._done.get(theirs.request, {}).get(base.target)
        free = self._done.get(ours.request, {}).get(own.target)
        if path is None or free is None:
            return
        sides = [Side(base.name, base.target, path), Side(own.name, own.target, free)]
        if ours.replay:
            led = self._led.get((own.target, path.request.prompt, path.ids))
            steps = led.steps if led else tuple(Step(one, (), (), 0.0) for one in ours.replay.logprob)
            done = replace(path, request=path.request.replace(kind="replay"), steps=steps, tail=())
            sides.append(Side(f"{own.name}, led along {base.name}", own.target, done, kl=ours.replay.kl))
        title = f"{ours.prompt}: {own.name} against {base.name}"
        notes = (ours.why_not,) if ours.why_not else ()
        yield Scene(f"compare::{own.name}::{ours.prompt}", title, tuple(sides), notes)

    @cached_property
    def _done(self) -> dict[str, dict[str, Completion]]:
        """By request and target."""
        found: dict[str, dict[str, Completion]] = {}
        for target, done in self.results.completions:
            found.setdefault(done.request.id, {})[target] = done
        return found

    @cached_property
    def _targets(self) -> tuple[str, ...]:
        """The baseline first."""
        measured = self.results.measured
        first = [one.target for one in measured.candidates if one.name == measured.baseline] if measured else []
        asked = [target.name for target in self.results.targets]
        return tuple(dict.fromkeys([*first, *asked, *(target for target, _ in self.results.completions)]))

    @cached_property
    def _led(self) -> dict[object, Completion]:
        """Replays by target, prompt and what they were led along."""
        led = ((target, done) for target, done in self.results.completions if done.request.kind == "replay")
        return {(target, done.request.prompt, done.ids): done for target, done in led if done.steps}

    @cached_property
    def _written(self) -> dict[str, dict[int, str]]:
        """What tokens say that were generated; runs of before know no other texts."""
        found: dict[str, dict[int, str]] = {}
        for target, done in self.results.completions:
            found.setdefault(target, {}).update(zip(done.ids, done.tokens, strict=False))
        return found


def _telling(judged: Sequence[Completion], notes: list[str]) -> list[Completion]:
    """Of many runs the first and those that differ from it."""
    if len(judged) <= JUDGED:
        return list(judged)
    first, *others = judged
    ordered = sorted(others, key=lambda done: done.ids == first.ids)
    left = ordered[JUDGED - 1 :]
    same = sum(done.ids == first.ids for done in left)
    notes.append(f"{counted(len(left), 'more run')} in tokens.parquet, {same} with the tokens of the first")
    return [first, *ordered[: JUDGED - 1]]


def _named(sides: Sequence[Side]) -> tuple[Side, ...]:
    """With the target's name where there are several, or nothing else to say."""
    several = len({side.target for side in sides}) > 1
    pinned = any(side.name == "pin" for side in sides)
    names = []
    for side in sides:
        words = side.name or ("now" if pinned and side.judged else "")
        names.append(", ".join(part for part in (side.target if several or not words else "", words) if part))
    return tuple(replace(side, name=name) for side, name in zip(sides, names, strict=True))


def _manner(done: Completion, first: Completion) -> str:
    """How it was generated, as far as that tells it from others."""
    request, layout = done.request, done.request.layout
    batch = layout if isinstance(layout, Batch) else None
    words = {
        "now, led along the pin": request.kind == "replay",
        "in one forward pass": request.kind == "score",
        "alone": layout == "alone" and request.kind == "generate",
        f"in a batch of {done.batch_size}": batch,
        f"row {request.row}": request.row is not None,
        "without an attention mask": batch and not batch.attention_mask,
        f"padded with token {batch and batch.pad_token_id}": batch and batch.pad_token_id is not None,
        f"run {request.repeat + 1}": request.repeat,
        "in a fresh process": request.fresh_process,
        f"{request.attention} attention": request.attention,
        "in float32": request.float32,
        "with position ids": request.position_ids,
        f"going on from the cache after {request.resume_after}": request.resume_after,
    }
    own, usual = (one.request.generation.model_dump(exclude_defaults=True) for one in (done, first))
    changed = [f"{name}: {own.get(name, 'unset')}" for name in {**usual, **own} if own.get(name) != usual.get(name)]
    return ", ".join([*(word for word, holds in words.items() if holds), *changed])


def _continued(first: Completion, other: Completion) -> int:
    """How many of the first one's tokens are the end of the other's prompt."""
    many = len(other.prompt_ids) - len(first.prompt_ids)
    return many if many > 0 and other.prompt_ids == (*first.prompt_ids, *first.ids[:many]) else 0
