"""What a pin is: the behaviour of one request in one lane, every stage of it. Frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from harness.record import Completion, Finish, Step, TargetFacts

ANY_ROWS = "any"  # in float32, where a batch's shape does not change tokens


@dataclass(frozen=True)
class Lane:
    """What must be the same for a pin to be compared at all."""

    device: str  # cpu, cuda, mps
    dtype: str
    quantization: str
    attention: str
    rows: str  # of a batch: "any", or a number

    @property
    def name(self) -> str:
        """`cpu/float32/none/sdpa/any`."""
        return "/".join((self.device, self.dtype, self.quantization, self.attention, self.rows))


@dataclass(frozen=True)
class Floor:
    """How much a lane moves by itself: the most that was seen under changes that are none."""

    rms: float  # of the change of the top log-probabilities, nats
    kl: float  # mean, nats a token
    gap: float  # RMS of the change of the gap between the two likeliest, nats
    measured: tuple[str, ...] = ()  # under which changes; () where defaults stand in


@dataclass(frozen=True)
class Header:
    """What all pins of a file have in common: a suite's target in one lane."""

    suite: str
    target: str
    lane: Lane
    weights: str  # digest
    tokenizer: str  # digest of the vocabulary
    template: str  # digest of the chat template
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]
    padding_side: str
    generations: Mapping[str, Mapping[str, Any]]  # by name: the effective config
    environment: Mapping[str, str]  # library: version, and what else numbers depend on
    floor: Floor


@dataclass(frozen=True)
class Pin:
    """One prompt under one generation config."""

    prompt: str
    generation: str
    prompt_digest: str  # of the rendered text
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish: str
    text: str
    steps: tuple[Step, ...]  # raw log-probabilities of each token; () where they are not recorded (beams, drafts)
    padding: str = ""
    pads: int = 0
    batch_size: int = 1
    fragility: float = 0.0  # flips to expect from the lane's own noise
    processed: tuple[Step, ...] = ()  # after all processors: where the distribution is pinned, and there are any

    @property
    def name(self) -> str:
        return f"{self.prompt}@{self.generation}"


@dataclass(frozen=True)
class PinFile:
    """The pins of one target in one lane, as they lie beside the suite."""

    path: str
    header: Header
    pins: Mapping[str, Pin] = field(default_factory=dict)  # by name


@dataclass(frozen=True)
class Replayed:
    """One pin beside what the model does now: the same tokens, so that every step can be compared.

    steps: of the free run where it said the same tokens as the pin, or else of a replay along the pin's tokens.
    """

    pin: Pin
    now: Completion  # the free run
    steps: Sequence[Step]
    facts: TargetFacts
    processed: Sequence[Step] = ()  # of the replay, where the pin has them, too


@dataclass(frozen=True)
class Memory:
    """What is remembered of one prompt on one target, and what target and machine are now."""

    check: str  # id, to repeat it
    suite_file: str
    lane: Lane
    facts: TargetFacts
    environment: Mapping[str, str]
    pin: Pin | None = None
    header: Header | None = None
    recording: bool = False  # it is being recorded, not compared
    missing: str = ""  # why there is no pin, and what to type
    details: tuple[str, ...] = ()


def as_completion(pin: Pin, now: Completion, texts: Mapping[int, str]) -> Completion:
    """The pin as what `now` would have been; `texts` tells what tokens say that are not in `now`."""
    said = {**texts, **dict(zip(now.ids, now.tokens, strict=False))}
    return replace(
        now,
        prompt_ids=pin.prompt_ids,
        ids=pin.ids,
        tokens=tuple(said.get(token, f"#{token}") for token in pin.ids),
        text=pin.text,
        finish=cast(Finish, pin.finish),
        steps=pin.steps,
        padding=pin.padding,
        pads=pin.pads,
        batch_size=pin.batch_size,
        tail=(),
    )


def header_now(
    memory: Memory, suite: str, target: str, generations: Mapping[str, Mapping[str, Any]], floor: Floor
) -> Header:
    """The header as it would be written now."""
    facts = memory.facts
    return Header(
        suite=suite,
        target=target,
        lane=memory.lane,
        weights=facts.weights_digest,
        tokenizer=facts.tokenizer_digest,
        template=facts.template_digest,
        pad_token_id=facts.pad_token_id,
        eos_token_ids=facts.eos_token_ids,
        padding_side=facts.padding_side,
        generations={name: steady(config) for name, config in generations.items()},
        environment=memory.environment,
        floor=floor,
    )


def steady(config: Mapping[str, Any]) -> dict[str, Any]:
    """An effective generation config without what is worked out from the prompt's length, and says nothing."""
    return {name: value for name, value in config.items() if name != "max_length"}
