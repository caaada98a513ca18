"""How fast and how large candidates are, measured on a loaded target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count, cycle, islice

from harness.answers import Answers, Setting
from harness.comparison.measured import Candidate, Timing
from harness.inputs import Generation
from harness.record import Batch, Completion, Request, TargetFacts, Text
from harness.suite import Suite


class Timer:
    """Times the candidates of one target after the other; side by side, in turns with the baseline."""

    def __init__(self, suite: Suite, answers: Answers, texts: Sequence[Text], beside: Setting | None = None) -> None:
        self._suite = suite
        self._answers = answers
        self._texts = texts
        self._beside = beside
        self._numbers = count(1)  # every call is to be a new one
        self.notes: dict[str, None] = {}

    def time(self, candidates: Sequence[Candidate], setting: Setting) -> list[Timing]:
        """The target's candidates; it is closed afterwards, unless it stays."""
        from harness.backends import memory

        facts = self._answers.backend(setting).facts
        timings = []
        for candidate in candidates:
            self._answers.observer.says(f"measuring the speed of {candidate.name}")
            before = memory.yardstick(facts.device)
            timing = self._timing(candidate, setting, facts)
            timings.append(replace(timing, yardstick=(before, memory.yardstick(facts.device))))
        closed = self._answers.release(setting)
        kept = memory.held(facts.device) - facts.held_before_bytes if closed else 0
        return [replace(timing, kept_bytes=kept) for timing in timings]

    def _timing(self, candidate: Candidate, setting: Setting, facts: TargetFacts) -> Timing:
        speed = self._suite.compare.speed
        generation = self._suite.generation_named(candidate.generation)
        backend = self._answers.backend(setting)
        by_length = sorted(self._texts, key=lambda text: backend.length(Request(text, generation)))
        middle = by_length[len(by_length) // 2]
        rows = speed.batch_size or self._suite.batch_size or 8
        whole = Batch(tuple(islice(cycle(self._texts), rows)))
        first, _ = self._repeated(setting, Request(middle, _of_length(generation, 1), "alone"))
        single, beside = self._repeated(setting, Request(middle, _of_length(generation, speed.new_tokens), "alone"))
        batch, beside_batch = self._repeated(
            setting, Request(self._texts[0], _of_length(generation, speed.new_tokens), whole)
        )
        peak = max((done.memory_bytes for done in (*single, *batch)), default=0)
        return Timing(
            candidate=candidate.name,
            load_seconds=facts.load_seconds,
            load_peak_bytes=facts.load_peak_bytes,
            weight_bytes=facts.weight_bytes,
            peak_bytes=max(0, peak - facts.held_before_bytes),
            first_token=tuple(done.seconds for done in first),
            single=_rates(single),
            batch=_rates(batch),
            beside_single=_rates(beside),
            beside_batch=_rates(beside_batch),
            batch_size=rows,
        )

    def _repeated(self, setting: Setting, request: Request) -> tuple[list[Completion], list[Completion]]:
        """The same again and again, and the baseline in turns with it; the first turn warms up and does not count."""
        generation = self._suite.generation_named(self._suite.compare.generation[0])
        tokens = request.generation.max_new_tokens or 1
        theirs = request.replace(generation=_of_length(generation, tokens))
        turns = self._beside if (self._beside, theirs) != (setting, request) else None  # not with itself
        own, beside = [], []
        for _ in range(self._suite.compare.speed.repeats + 1):
            if turns:
                beside.append(self._once(turns, theirs))
            own.append(self._once(setting, request))
        done, besides = ([one for one in side[1:] if isinstance(one, Completion)] for side in (own, beside))
        if None in (*own, *beside):
            self.notes[f"{setting.target.name}: not every call whose speed was measured came to an end"] = None
        return done, besides if len(besides) == len(done) else []

    def _once(self, setting: Setting, request: Request) -> Completion | None:
        (answer,) = self._answers.of(setting, [request.replace(repeat=next(self._numbers))])
        return answer if isinstance(answer, Completion) else None


def _rates(done: Sequence[Completion]) -> tuple[float, ...]:
    return tuple(one.batch_size * one.new_tokens / one.seconds for one in done)


def _of_length(generation: Generation, tokens: int) -> Generation:
    """Each row goes on to this length, whatever it says: or one that stops early would look slow."""
    changes = {"max_new_tokens": tokens, "min_new_tokens": tokens, "stop_strings": None, "num_return_sequences": None}
    return generation.model_copy(update=changes)
