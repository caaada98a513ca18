"""Answers requests: loads targets, one resident at a time, plans their batches, generates each request once.

One target may be told to stay, to be measured side by side with each of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from harness import backends
from harness.backends import Backend, process
from harness.backends.quantizations import quantized
from harness.errors import CannotRun, LevelUnavailable
from harness.judgement import Answer
from harness.plan import Check
from harness.record import Completion, Failure, Request, Target, TargetFacts
from harness.schedule import batches, unite
from harness.suite import Suite

LIKELY = 5  # of the ids that are recorded at each token, whose texts reports show


class Setting(NamedTuple):
    """Suites share what is generated for a target when they also agree on how."""

    target: Target
    top_k_logprobs: int
    batch_size: int | None

    @staticmethod
    def of(suite: Suite, target: Target) -> Setting:
        return Setting(target, suite.top_k_logprobs, suite.batch_size)

    @staticmethod
    def of_check(check: Check) -> Setting:
        return Setting.of(check.suite, check.target)


class Observer(Protocol):
    """Told what is going on; draws progress, or keeps quiet."""

    def says(self, message: str) -> None:
        """Something that takes a while has begun."""

    def announced(self, target: Target, requests: int) -> None:
        """So many requests will be asked of it, beside what was announced before."""

    def batch(self, target: Target, done: int, total: int) -> None:
        """So many of the target's requests are answered; none, when it is about to be loaded."""


class Quiet:
    """The observer that says nothing."""

    def says(self, message: str) -> None: ...

    def announced(self, target: Target, requests: int) -> None: ...

    def batch(self, target: Target, done: int, total: int) -> None: ...


class Kept:
    """A backend that outlives those who use it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def facts(self) -> TargetFacts:
        return self._backend.facts

    def length(self, request: Request) -> int:
        return self._backend.length(request)

    def generate(self, requests: Sequence[Request]) -> Sequence[Completion | Failure]:
        return self._backend.generate(requests)

    def texts(self, ids: Sequence[int]) -> Sequence[str]:
        return self._backend.texts(ids)

    def close(self) -> None:
        """Whoever loaded it closes it."""


@dataclass
class _Work:
    """What is asked of one target, and what has been answered."""

    answered_by: dict[Request, Request]
    answers: dict[Request, Answer] = field(default_factory=dict)
    batch_of: dict[Request, tuple[Request, ...]] = field(default_factory=dict)  # filled once the target is loaded
    error: CannotRun | None = None
    facts: TargetFacts | None = None
    texts: dict[int, str] = field(default_factory=dict)  # what the likeliest tokens say

    @property
    def distinct(self) -> int:
        """Requests that are really different."""
        return len(set(self.answered_by.values()))


class Answers:
    """Everything that was asked of models in one run, and what came back."""

    def __init__(self, observer: Observer | None = None, load: Callable[..., Backend] | None = None) -> None:
        self.observer = observer or Quiet()
        self._load = load or backends.load
        self._loaded: dict[Setting, Backend] = {}
        self._stays: Setting | None = None
        self._work: dict[Setting, _Work] = {}
        self._asked = 0

    def announce(self, setting: Setting, requests: Sequence[Request]) -> None:
        """What will be asked: known before the target is loaded, it is batched together."""
        self._asked += len(requests)
        work = self._work[setting] = _Work(dict(unite(tuple(dict.fromkeys(requests)))))
        self.observer.announced(setting.target, work.distinct)

    def of(self, setting: Setting, requests: Sequence[Request]) -> list[Answer]:
        """The answers to these requests, in order; what is still lacking is generated."""
        backend, work = self.backend(setting), self._work[setting]
        new = [request for request in requests if request not in work.answered_by]
        if new:  # asked for on the way, not announced
            self._asked += len(new)
            work.answered_by.update((request, request) for request in new)
            self._plan_batches(setting, backend, tuple(dict.fromkeys(new)))
        return [self._answer(setting, request) for request in requests]

    def backend(self, setting: Setting) -> Backend:
        """The target, loaded; the one before it makes room first."""
        work = self._work.setdefault(setting, _Work({}))
        if work.error:
            raise work.error
        if setting in self._loaded:
            return self._loaded[setting]
        for other in [one for one in self._loaded if one != self._stays]:
            self._loaded.pop(other).close()
        self.observer.batch(setting.target, 0, work.distinct)
        try:
            backend = self._load(setting.target, top_k=setting.top_k_logprobs, progress=self.observer.says)
        except CannotRun as error:
            work.error = error
            raise
        self._loaded[setting] = backend
        work.facts = backend.facts
        if not work.batch_of:
            self._plan_batches(setting, backend, tuple(dict.fromkeys(work.answered_by.values())))
        return backend

    def stays(self, setting: Setting) -> None:
        """Keep this target loaded beside whatever else is, until everything is closed."""
        self._stays = setting

    def release(self, setting: Setting) -> bool:
        """Give a target's memory back; False where it stays."""
        if setting != self._stays and setting in self._loaded:
            self._loaded.pop(setting).close()
        return setting not in self._loaded

    def close(self) -> None:
        """Give all memory back."""
        while self._loaded:
            self._loaded.popitem()[1].close()

    @property
    def counts(self) -> dict[str, int]:
        """How much was asked, how much of it was different, how much was really generated."""
        return {
            "asked": self._asked,
            "distinct": sum(len(work.answered_by) for work in self._work.values()),
            "generated": sum(len(work.answers) for work in self._work.values()),
        }

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(dict.fromkeys(setting.target for setting in self._work))

    @property
    def facts(self) -> tuple[TargetFacts, ...]:
        return tuple(work.facts for work in self._work.values() if work.facts)

    @property
    def given(self) -> Iterable[tuple[str, Answer]]:
        """Every answer, with the name of the target that gave it."""
        for setting, work in self._work.items():
            for answer in work.answers.values():
                yield setting.target.name, answer

    @property
    def texts(self) -> dict[str, dict[int, str]]:
        """By target: what the tokens say that it held for likely."""
        return {setting.target.name: work.texts for setting, work in self._work.items() if work.texts}

    @property
    def errors(self) -> tuple[str, ...]:
        """Why targets could not be loaded; a level that this machine does not have is no error."""
        return tuple(
            f"{setting.target.name}: {work.error}"
            for setting, work in self._work.items()
            if work.error and not isinstance(work.error, LevelUnavailable)
        )

    def _answer(self, setting: Setting, request: Request) -> Answer:
        work = self._work[setting]
        request = work.answered_by[request]
        if request not in work.answers:
            self._generate(setting, work.batch_of[request])
        return work.answers[request]

    def _generate(self, setting: Setting, batch: Sequence[Request]) -> None:
        work = self._work[setting]
        if batch[0].fresh_process:
            answers: Sequence[Answer] = process.generate(setting.target, setting.top_k_logprobs, batch)
        else:
            backend = self.backend(setting)
            answers = backend.generate(batch)
            work.facts = backend.facts
        work.answers.update(zip(batch, answers, strict=True))
        if setting in self._loaded:
            _learn(work.texts, self._loaded[setting], answers)
        self.observer.batch(setting.target, len(work.answers), len(work.batch_of))

    def _plan_batches(self, setting: Setting, backend: Backend, requests: Sequence[Request]) -> None:
        exact = backend.facts.dtype == "float32" and not quantized(setting.target.quantization)
        for batch in batches(requests, backend.length, exact=exact, rows=setting.batch_size):
            self._work[setting].batch_of.update(dict.fromkeys(batch, batch))


def _learn(texts: dict[int, str], backend: Backend, answers: Sequence[Answer]) -> None:
    done = (answer for answer in answers if isinstance(answer, Completion))
    likely = {token for one in done for step in one.steps for token in step.top_ids[:LIKELY]}
    new = sorted(likely - texts.keys())
    texts.update(zip(new, backend.texts(new), strict=True))
