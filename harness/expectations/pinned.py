"""What was recorded before still holds: pins. The statistics and the verdict are in harness/pins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, runtime_checkable

from pydantic import Field

from harness.expectations.shorthand import Simple, Written
from harness.pins.ladder import Limits
from harness.record import Completion, Request, Status, Verdict

if TYPE_CHECKING:
    from harness.expectations import Expectation
    from harness.pins.ladder import Judgement
    from harness.pins.pin import Memory, Replayed

# Levels of the ladder, and what becomes of a check.
PASSES = ("identical", "noise")


@runtime_checkable
class Remembers(Protocol):
    """An expectation about what was recorded before: the runner gives it what it has, once the target is loaded."""

    memory: Memory | None

    def remembering(self, memory: Memory) -> Expectation:
        """The expectation that judges against this."""


class Pinned(Written):
    """It does what was recorded: the same, up to the noise of its lane. Recorded by `pytest --update-pins`."""

    value_field: ClassVar[str] = "level"
    level: Literal["tokens", "distribution"] = Field(
        description="tokens: of the free run, too; distribution: only how likely each token is on the pinned path."
    )
    drift: Literal["warn", "fail"] = Field(
        "warn", description="What becomes of a change above noise that is small: a note in the verdict, or a failure."
    )

    limits: Limits = Field(Limits(), description="Where noise, drift and change begin.")

    def members(self) -> Mapping[str, Expectation]:
        return {"pinned": OfPrompt(self), "pinned_set": OverSet(self)}


@dataclass(frozen=True)
class OfPrompt(Simple):
    """One prompt against its pin."""

    spec: Pinned
    memory: Memory | None = None

    catches: ClassVar[tuple[str, ...]] = ("D1", "K4", "C10", "T6", "N2")

    def remembering(self, memory: Memory) -> Self:
        return replace(self, memory=memory)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        """Led along the pin's tokens, where the model said other ones: there it goes on comparing.

        What processors make of the scores is seen in a replay only: pinned distributions are always led.
        """
        free = completions[0]
        if self.memory is None or not free.steps:
            return ()
        path: Sequence[int] = ()
        if self.memory.recording:
            path = free.ids if self.spec.level == "distribution" else ()
        elif self.memory.pin and self.memory.pin.steps:
            pin = self.memory.pin
            path = pin.ids if pin.processed or free.ids != pin.ids else ()
        return (free.request.replace(kind="replay", continuation=tuple(path), whole=False),) if path else ()

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        assert self.memory is not None, "the runner gives the memory before it judges"
        if self.memory.recording:
            return Verdict("passed", "recorded")
        if self.memory.pin is None:
            return Verdict("failed", self.memory.missing, {"level": "missing"}, self.memory.details)
        if completions[0].split_after_oom:
            return Verdict("error", "the batch was split when memory ran out: its shape is not the pin's")
        from harness.pins.judging import judge_prompt

        spec = self.spec
        return _verdict(judge_prompt(self.replayed(completions), self.memory, spec.level, spec.limits), spec)

    def replayed(self, completions: Sequence[Completion]) -> Replayed:
        from harness.pins.pin import Replayed

        assert self.memory is not None
        assert self.memory.pin is not None
        free, led = completions[0], completions[-1]
        steps = led.steps if led.request.kind == "replay" or led.ids == self.memory.pin.ids else ()
        return Replayed(self.memory.pin, free, steps, self.memory.facts, led.processed_steps)


@dataclass(frozen=True)
class OverSet(OfPrompt):
    """All prompts of a test against their pins: what is too small to see on one of them, and the pattern."""

    @property
    def over_set(self) -> bool:
        return True

    def judge_set(self, prompts: Sequence[tuple[OverSet, Sequence[Completion]]]) -> Verdict:
        memories = [one.memory for one, _ in prompts if one.memory]
        if any(memory.recording for memory in memories):
            return Verdict("passed", f"{len(prompts)} recorded")
        pinned = [(one, done) for one, done in prompts if one.memory and one.memory.pin]
        if not pinned:
            return Verdict("skipped", "none of its prompts is pinned")
        from harness.pins.judging import judge_set

        replays = [one.replayed(done) for one, done in pinned if not done[0].split_after_oom]
        return _verdict(judge_set(replays, memories[0], self.spec.level, self.spec.limits), self.spec)


def _verdict(found: tuple[Judgement, Sequence[str]], spec: Pinned) -> Verdict:
    """The level as a status: noise passes, drift by choice, a change fails."""
    judgement, message = found
    status: Status = "passed" if judgement.level in PASSES else "failed"
    if judgement.level == "drift" and spec.drift == "warn":
        status = "passed"
    return Verdict(status, message[0], {"level": judgement.level, **judgement.numbers}, tuple(message[1:]))
