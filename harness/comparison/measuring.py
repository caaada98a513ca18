"""Measures candidates: what each makes of the baseline's continuations and of its own, its memory and its speed.

The only loop of a comparison. One target is resident at a time, the baseline first: the others are led along its path.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from harness.answers import Answers, Setting
from harness.comparison.measured import Answered, Candidate, Measured, Passage, Replay, Timing
from harness.comparison.timing import Timer
from harness.errors import CannotRun, UsageError
from harness.inputs import Generation
from harness.judgement import Answer
from harness.plan import fits, prompts, targets
from harness.record import Completion, Distributions, Failure, Request, Target, TargetFacts, Text
from harness.suite import Suite

# Side by side: the baseline stays loaded, and is timed in turns with each target.
Timed = bool | Literal["side by side"]
OTHER_TOKENIZER = "another tokenizer: its ids mean something else, so distributions are not compared"
NO_BASELINE = "the baseline could not be run"
# What chooses among paths, or drafts them, does not take part when the path is given.
CHOOSERS = (
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_return_sequences",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
)


def in_order(suite: Suite, wanted: Sequence[str] = (), baseline: str = "") -> tuple[Target, ...]:
    """The targets to compare, the baseline first."""
    every = targets(suite)
    named = {target.name: target for target in every}
    for name in (*wanted, *([baseline] if baseline else [])):
        if name not in named:
            raise UsageError(f"no target is called '{name}'", f"There are: {', '.join(named)}.")
    declared = (target for target in every if suite.baseline is not None and fits(suite.baseline, target))
    first = named[baseline] if baseline else next(declared, every[0])
    return (first, *(target for target in every if target != first and (not wanted or target.name in wanted)))


@dataclass
class _Path:
    """What the baseline wrote for one prompt, and what it thought of every token."""

    completion: Completion
    distributions: Distributions | None = None


@dataclass
class Measurer:
    """Measures one target after another; `measured` is the whole of it."""

    suite: Suite
    answers: Answers
    baseline: Target
    limit: int | None = None  # of prompts
    speed: Timed = True
    _candidates: list[Candidate] = field(default_factory=list)
    _answered: list[Answered] = field(default_factory=list)
    _passages: list[Passage] = field(default_factory=list)
    _timings: list[Timing] = field(default_factory=list)
    _not_measured: dict[str, str] = field(default_factory=dict)
    _notes: dict[str, None] = field(default_factory=dict)
    _paths: dict[str, _Path] = field(default_factory=dict)
    _baseline_facts: TargetFacts | None = None

    def __post_init__(self) -> None:
        self._paragraphs = dict(_paragraphs(self.suite))  # now: a file that cannot be read is not to cost hours
        beside = Setting.of(self.suite, self.baseline) if self.speed == "side by side" else None
        self._timer = Timer(self.suite, self.answers, [text for _, text in self._prompts], beside)
        if beside:
            self.answers.stays(beside)

    def target(self, target: Target) -> None:
        """Everything about one target, which is loaded for it, and closed afterwards."""
        candidates = [self._candidate(target, name) for name in self.suite.compare.generation]
        self._candidates += candidates
        setting = Setting.of(self.suite, target)
        try:
            self.answers.backend(setting)
            for candidate in candidates:
                self._measure(candidate, setting)
            self._passages += self._read(setting)
        except CannotRun as error:
            self._not_measured |= {candidate.name: str(error) for candidate in candidates}
            if target == self.baseline:
                self._notes[f"{target.name}, the baseline, could not be run: nothing is compared with it"] = None
            return
        if self.speed:
            self._timings += self._timer.time(candidates, setting)
            self._notes |= self._timer.notes

    @property
    def measured(self) -> Measured:
        return Measured(
            baseline=self._first.name,
            candidates=tuple(self._candidates),
            answered=tuple(self._answered),
            passages=tuple(self._passages),
            timings=tuple(self._timings),
            not_measured=dict(self._not_measured),
            notes=tuple(self._notes),
        )

    def close(self) -> None:
        """Delete the distributions."""
        for path in self._paths.values():
            _delete(path.distributions)

    def _candidate(self, target: Target, generation: str) -> Candidate:
        first = generation == self.suite.compare.generation[0]
        return Candidate(target.name if first else f"{target.name}/{generation}", target.name, generation)

    @property
    def _first(self) -> Candidate:
        """The baseline with its own config: what everything is compared with."""
        return self._candidate(self.baseline, self.suite.compare.generation[0])

    @cached_property
    def _prompts(self) -> list[tuple[str, Text]]:
        names = self.suite.compare.prompts or tuple(self.suite.prompts)
        made = [(name, text) for one in names for name, text, _ in prompts(one, self.suite.prompts[one])]
        return made[: self.limit]

    # --- on the baseline's continuations, and on its own -----------------------------------------------------------

    def _measure(self, candidate: Candidate, setting: Setting) -> None:
        generation = self.suite.generation_named(candidate.generation)
        free = [Request(text, generation) for _, text in self._prompts]
        answers = self.answers.of(setting, free)
        if not self._paths and setting.target == self.baseline:
            self._begin(answers, setting)
        facts = self.answers.backend(setting).facts
        led = {name: self._led(path, generation) for name, path in self._paths.items()}
        comparable = (
            self._baseline_facts is not None and facts.tokenizer_digest == self._baseline_facts.tokenizer_digest
        )
        if self._paths and not comparable:
            self._notes[f"{candidate.target}: {OTHER_TOKENIZER}; texts, checks and bits per byte are"] = None
        replays = self.answers.of(setting, list(led.values())) if comparable else []
        found = dict(zip(led, replays, strict=False))
        for (name, _), request, answer in zip(self._prompts, free, answers, strict=True):
            if candidate == self._first and name in self._paths:
                self._paths[name].distributions = _distributions(found.get(name))
            replay, why_not = self._compared(name, found.get(name), comparable)
            if not isinstance(answer, Completion):
                why_not = answer.message
            self._answered.append(Answered(candidate.name, name, request.id, replay, why_not))
        self._tell_differences(candidate, answers)

    def _begin(self, answers: Sequence[Answer], setting: Setting) -> None:
        """The baseline's first config: its continuations are the path for all."""
        self._baseline_facts = self.answers.backend(setting).facts
        self._paths = {
            name: _Path(answer)
            for (name, _), answer in zip(self._prompts, answers, strict=True)
            if isinstance(answer, Completion)
        }
        tokens = sum(len(path.completion.ids) for path in self._paths.values())
        _refuse_without_room(tokens * self._baseline_facts.vocabulary * 4 * 2)  # float32, two sides

    def _led(self, path: _Path, generation: Generation) -> Request:
        changes: dict[str, object] = dict.fromkeys(CHOOSERS)
        if (generation.min_new_tokens or 0) > len(path.completion.ids):
            changes["min_new_tokens"] = None
        request = path.completion.request
        return Request(
            request.prompt, generation.model_copy(update=changes), kind="replay", continuation=path.completion.ids
        )

    def _compared(self, name: str, answer: Answer | None, comparable: bool) -> tuple[Replay | None, str]:
        """The candidate's replay beside the baseline's. What the candidate kept on disk is deleted."""
        from harness.comparison.positions import replayed

        path, own = self._paths.get(name), _distributions(answer)
        if path is not None and not comparable:
            return None, OTHER_TOKENIZER
        if isinstance(answer, Failure):
            return None, answer.message
        if path is None or path.distributions is None or own is None:
            return None, NO_BASELINE
        try:
            return replayed(path.distributions, own, path.completion.ids), ""
        finally:
            if own != path.distributions:
                _delete(own)

    def _tell_differences(self, candidate: Candidate, answers: Sequence[Answer]) -> None:
        differ = [
            name
            for (name, _), answer in zip(self._prompts, answers, strict=True)
            if isinstance(answer, Completion)
            and name in self._paths
            and answer.prompt_ids != self._paths[name].completion.prompt_ids
        ]
        if differ and candidate.generation == self.suite.compare.generation[0]:
            many = f"{len(differ)} of {len(answers)} prompts, {differ[0]} first"
            self._notes[f"{candidate.target}: the prompt becomes other ids than the baseline's ({many})"] = None

    # --- texts ------------------------------------------------------------------------------------------------------

    def _read(self, setting: Setting) -> Iterator[Passage]:
        requests = [
            Request(Text(text=text), Generation(max_new_tokens=1), "alone", kind="likelihood")
            for text in self._paragraphs.values()
        ]
        for (name, text), answer in zip(self._paragraphs.items(), self.answers.of(setting, requests), strict=True):
            if isinstance(answer, Completion):
                nats = -sum(step.logprob for step in answer.steps)
                yield Passage(setting.target.name, name, nats, len(answer.ids), len(text.encode()))
            else:
                self._notes[f"{setting.target.name}: text {name} could not be read: {answer.message}"] = None


def _distributions(answer: Answer | None) -> Distributions | None:
    return answer.distributions if isinstance(answer, Completion) else None


def _delete(distributions: Distributions | None) -> None:
    if distributions is not None:
        distributions.path.unlink(missing_ok=True)


def _refuse_without_room(wanted: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if wanted > 0.9 * free:
        raise UsageError(
            f"whole distributions take {wanted / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free",
            "Compare fewer prompts with --limit, lower max_new_tokens, or point TMPDIR to a disk with room.",
        )


def _paragraphs(suite: Suite) -> Iterator[tuple[str, str]]:
    for name, reading in suite.compare.texts.items():
        text = reading.text if reading.text is not None else _file(Path(reading.file or ""))
        parts = [part.strip("\n") for part in text.split("\n\n") if part.strip()]
        if not parts:
            raise UsageError(f"{reading.file or f'compare.texts.{name}'} holds no text", "Write some, or leave it out.")
        yield from ((f"{name}-{number}", part) for number, part in enumerate(parts, start=1))


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}", "Write the text as UTF-8.") from error
