"""What comparing measures: plain data, from which every statistic and the decision are worked out. Frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Candidate:
    """One thing that may be shipped: a target with a generation config. A column of the comparison."""

    name: str  # the target's, and "/warm" where it is not the first config that is compared
    target: str
    generation: str


@dataclass(frozen=True)
class Replay:
    """A candidate on the baseline's own continuation of one prompt, token by token; each field has a value a token.

    "Its own" is the token that a side holds for the likeliest.
    """

    kl: tuple[float, ...]  # nats, of the whole raw distributions: baseline || candidate
    baseline_top: tuple[int, ...]  # the baseline's own token …
    top: tuple[int, ...]  # … and the candidate's
    baseline_margin: tuple[float, ...]  # nats by which the baseline prefers its own token to the candidate's, …
    margin: tuple[float, ...]  # … and the candidate its own to the baseline's; 0 where they agree
    baseline_logprob: tuple[float, ...]  # of the token that was forced
    logprob: tuple[float, ...]
    processed_distance: tuple[float, ...]  # total variation between the distributions after all processors
    processed_top1: tuple[bool, ...]  # the same token is likeliest after all processors


@dataclass(frozen=True)
class Answered:
    """One prompt of the comparison, by one candidate."""

    candidate: str
    prompt: str
    request: str  # id of the free run's request: its completion is in the results
    replay: Replay | None = None
    why_not: str = ""  # why there is no replay


@dataclass(frozen=True)
class Passage:
    """How likely one given text is to a target. Only bytes mean the same to every tokenizer."""

    target: str
    text: str  # its name
    nats: float  # -log of its probability
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Timing:
    """How fast and how large one candidate was. Seconds and rates: a value a repetition, the warm-up left out."""

    candidate: str
    load_seconds: float = 0.0
    load_peak_bytes: int = 0  # while loading, above what the process held before
    weight_bytes: int = 0  # of real storages on the device
    peak_bytes: int = 0  # while generating at the suite's batch, above what the process held before loading
    kept_bytes: int = 0  # still held after it was closed, above what was held before loading
    first_token: tuple[float, ...] = ()  # seconds to the first token, alone
    single: tuple[float, ...] = ()  # new tokens a second, alone
    batch: tuple[float, ...] = ()  # new tokens a second of a whole batch
    beside_single: tuple[float, ...] = ()  # of the baseline, in turns with these
    beside_batch: tuple[float, ...] = ()
    batch_size: int = 0
    yardstick: tuple[float, ...] = ()  # seconds of a fixed piece of work on this device, before and after


@dataclass(frozen=True)
class Measured:
    """The whole comparison, as measured."""

    baseline: str  # name of the candidate that the others are compared with
    candidates: tuple[Candidate, ...]
    answered: tuple[Answered, ...] = ()
    passages: tuple[Passage, ...] = ()
    timings: tuple[Timing, ...] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)  # candidate: why not
    notes: tuple[str, ...] = ()  # what cannot be compared, and why
