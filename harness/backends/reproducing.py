"""From a failed check to the script that shows it: what was called, made smaller by calling the loaded model again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from harness.backends import Backend
from harness.backends.calls import NotReproducible, beyond_a_call, names_of, request_of, side_of, weights_of
from harness.backends.transformers import Transformers
from harness.divergence import ULPS, agree, ulp
from harness.expectations import Expectation
from harness.expectations.pinned import OfPrompt
from harness.judgement import reach
from harness.pins.drift import measure, pooled
from harness.pins.ladder import Ruler, noise_times
from harness.pins.packing import storage_rounding
from harness.pins.pin import Memory, Pin
from harness.record import Completion, Verdict
from harness.repro import Fails, Ids, Output, Pinned, Reproduction, Scores, minimise
from harness.repro_script import write
from harness.steps import lowest, recorded

# Times the floor of a lane: a token may be off by that much with nothing wrong, as one of many.
TOLERANCE = 5
SMALLEST = 1e-5  # of a floor, in nats: what float32 cannot tell
TRIED = 3  # prompts, of those that fail together
GONE = "called by itself it does not show: it took the other rows of its batch, or chance"
# Where a forward pass over the whole text has other scores than generate() by design.
NO_FORWARD = ("encoder_decoder", "dynamic_rope")

Prompt = tuple[Expectation, Sequence[Completion]]


def reproduce(
    backend: Backend, prompts: Sequence[Prompt], folder: Path, name: str, shows: str = ""
) -> Path | NotReproducible:
    """Write the smallest script that shows why a check failed, while its target is still loaded.

    Of several prompts the one that shows it most is taken. shows: a sentence; that of the prompt where there is none.
    """
    reasons = []
    for expectation, completions in _worst_first(prompts)[:TRIED]:
        found = smallest(backend, expectation, completions, shows)
        if isinstance(found, Reproduction):
            return write(found, folder, name)
        reasons.append(found.reason)
    return NotReproducible(next(iter(reasons), "no prompt fails by itself: only all of them together do"))


def smallest(
    backend: Backend, expectation: Expectation, completions: Sequence[Completion], shows: str = ""
) -> Reproduction | NotReproducible:
    """One prompt's failure as calls that are as small as can be, and were seen to show it."""
    if not isinstance(backend, Transformers):
        return NotReproducible("no model of transformers was asked")
    if not completions:
        return NotReproducible("nothing was generated")
    shows = shows or reach(expectation.judge, completions).reason
    if isinstance(expectation, OfPrompt):
        return _of_pin(backend, expectation, completions, shows)
    if len(completions) == 1:
        return _of_output(backend, expectation, completions[0])
    if expectation.over_set:
        return NotReproducible(f"it takes all of its {len(completions)} generations together")
    return _of_pair(backend, completions, shows)


def _worst_first(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Of pins, what moved most; of others, what fails by itself."""
    if len(prompts) == 1:
        return prompts

    def may_show(prompt: Prompt) -> bool:
        expectation, completions = prompt
        return isinstance(expectation, OfPrompt) or reach(expectation.judge, completions).status == "failed"

    return sorted(filter(may_show, prompts), key=_moved, reverse=True)


def _moved(prompt: Prompt) -> tuple[bool, float]:
    """How far from its pin: in tokens first, then in scores."""
    expectation, completions = prompt
    if not (isinstance(expectation, OfPrompt) and expectation.memory and expectation.memory.pin and completions):
        return (False, 0.0)
    drift = measure(expectation.replayed(completions))
    rms = pooled([drift]).rms
    return (expectation.spec.level == "tokens" and not drift.tokens_equal, 0.0 if math.isnan(rms) else rms)


def calls(backend: Transformers, completions: Sequence[Completion], shows: str = "") -> Reproduction | NotReproducible:
    """The calls that gave these, to be made again."""
    weights = weights_of(backend)
    if isinstance(weights, NotReproducible):
        return weights
    if reason := next((reason for done in completions if (reason := beyond_a_call(done.request))), ""):
        return NotReproducible(reason)
    made = tuple(side_of(backend, name, done) for name, done in zip(names_of(completions), completions, strict=True))
    if len({side.attention for side in made}) > 1:  # the one must not stay set for the other
        made = tuple(replace(side, attention=side.attention or backend.facts.attention) for side in made)
    return Reproduction(weights, made, shows=shows)


def _run(backend: Transformers, reproduction: Reproduction) -> list[Completion]:
    """What the calls give now; nothing where one of them cannot be made."""
    try:
        requests = [request_of(side) for side in reproduction.sides]
    except ValueError:  # arguments that mean something only together
        return []
    answers = [answer for request in requests for answer in backend.generate([request])]
    done = [answer for answer in answers if isinstance(answer, Completion)]
    return done if len(done) == len(requests) else []


# --- two calls that should agree -------------------------------------------------------------------------------------


def _of_pair(backend: Transformers, completions: Sequence[Completion], shows: str) -> Reproduction | NotReproducible:
    found, fails = pair(backend, completions, shows), differing(backend)
    if isinstance(found, NotReproducible):
        return found
    return minimise(found, fails) if fails(found) else NotReproducible(GONE)


def pair(backend: Transformers, completions: Sequence[Completion], shows: str = "") -> Reproduction | NotReproducible:
    """The first call, and one that should have given the same."""
    sides = _two(completions)
    return sides if isinstance(sides, NotReproducible) else calls(backend, sides, shows)


def differing(backend: Transformers) -> Fails:
    """Whether two calls still differ, on the model that is loaded."""

    def fails(candidate: Reproduction) -> bool:
        done = _run(backend, candidate)
        return bool(done) and _differ(*done)

    return fails


def _two(completions: Sequence[Completion]) -> tuple[Completion, Completion] | NotReproducible:
    first, *others = completions
    same = [done for done in others if done.request.prompt == first.request.prompt and _seed(done) == _seed(first)]
    if not same:
        return NotReproducible("its calls have different prompts or seeds")
    other = next((done for done in same if _differ(first, done)), None)
    return (first, other) if other else NotReproducible("all of its calls gave the same tokens")


def _seed(done: Completion) -> int:
    return done.request.generation.seed


def _differ(first: Completion, other: Completion) -> bool:
    """Repeats must be equal to the token; where shapes are different, rounding is no failure."""
    repeated = first.request.replace(repeat=0) == other.request.replace(repeat=0)
    return first.ids != other.ids if repeated else not agree(first, other)


# --- what one call says ----------------------------------------------------------------------------------------------


def _of_output(backend: Transformers, expectation: Expectation, done: Completion) -> Reproduction | NotReproducible:
    call = calls(backend, [done])
    if isinstance(call, NotReproducible):
        return call
    judged = _judging(backend, expectation)
    first = judged(call)
    if first is None:
        return NotReproducible(GONE)
    lacks = _lacks(expectation, first[0])

    def fails(candidate: Reproduction) -> bool:
        now = judged(candidate)
        return now is not None and (not lacks or _same(first, now))

    small = minimise(replace(call, evidence=Output(lacks=lacks)), fails)
    said, verdict = judged(small) or first
    sequences = tuple(one.ids for one in said.returned) or ((*said.ids, *said.tail),)
    # In 16 bits another machine may go another way at any token: half of them is what is told by.
    compared = None if said.precision == "float32" else (len(sequences[0]) + 1) // 2
    return replace(small, evidence=Output(sequences, compared, lacks), shows=verdict.reason)


def _judging(
    backend: Transformers, expectation: Expectation
) -> Callable[[Reproduction], tuple[Completion, Verdict] | None]:
    """What a call gives and why that is a failure; None where it is none."""

    def judged(candidate: Reproduction) -> tuple[Completion, Verdict] | None:
        done = _run(backend, candidate)
        verdict = reach(expectation.judge, done)
        return (done[0], verdict) if done and verdict.status == "failed" else None

    return judged


def _lacks(expectation: Expectation, done: Completion) -> bool:
    """Whether no output at all fails as well: then a shorter one fails for being shorter."""
    empty = replace(done, ids=(), tokens=(), text="", tail=(), steps=(), returned=())
    return reach(expectation.judge, [empty]).status == "failed"


def _same(one: tuple[Completion, Verdict], other: tuple[Completion, Verdict]) -> bool:
    return one[0].ids == other[0].ids and one[1].reason == other[1].reason


# --- what was pinned -------------------------------------------------------------------------------------------------


def _of_pin(
    backend: Transformers, expectation: OfPrompt, completions: Sequence[Completion], shows: str
) -> Reproduction | NotReproducible:
    memory, free = expectation.memory, completions[0]
    if memory is None or memory.pin is None or memory.header is None:
        return NotReproducible("nothing is pinned that it could be compared with")
    if memory.pin.prompt_ids != free.prompt_ids:
        return NotReproducible("the prompt has other ids than the pinned one: that is the difference")
    call = calls(backend, [free], shows)
    if isinstance(call, NotReproducible):
        return call
    tried = False
    for evidence in _evidence(backend, expectation, free):
        candidate, tried = replace(call, evidence=evidence), True
        fails = scored(backend) if isinstance(evidence, Scores) else leaving(backend, free.ids)
        if fails(candidate):
            return minimise(candidate, fails)
    if not tried:
        return NotReproducible("the tokens are those that were pinned, and how likely they were is not known")
    if free.ids != memory.pin.ids and expectation.spec.level == "tokens":
        return NotReproducible(GONE)
    return NotReproducible("a forward pass shows no more than noise: it takes all prompts, the cache or the processors")


def _evidence(backend: Transformers, expectation: OfPrompt, free: Completion) -> Iterator[Pinned | Scores]:
    """What the call may be held against, the plainest first."""
    memory = expectation.memory
    assert memory
    assert memory.pin
    pin = memory.pin
    differ = free.ids != pin.ids and expectation.spec.level == "tokens"
    rounding = _may_be_rounding(pin, free)
    if differ and not rounding:
        yield Pinned(pin.ids)
    if free.ids == pin.ids and len(pin.steps) == len(free.steps) > 0:
        yield _likely(memory, pin)
    if pin.steps and not {*NO_FORWARD} & {*backend.facts.traits}:
        yield _scores(expectation, memory, pin)
    if differ and rounding:
        yield Pinned(pin.ids)


def _may_be_rounding(pin: Pin, free: Completion) -> bool:
    """Whether the tokens part where two were about as likely: in 16 bits that happens with nothing wrong."""
    pairs = zip(pin.ids, free.ids, pin.steps, strict=False)
    parted = next(((its, step) for mine, its, step in pairs if mine != its), None)
    if free.precision == "float32" or parted is None:
        return False
    its, step = parted
    return step.top_logprobs[0] - recorded(step).get(its, lowest(step)) <= ULPS * ulp(free.precision, step.max_logit)


def _likely(memory: Memory, pin: Pin) -> Pinned:
    assert memory.header
    tolerance = TOLERANCE * max(memory.header.floor.rms, storage_rounding(memory.lane), SMALLEST)
    return Pinned(pin.ids, tuple(_rounded(step.logprob) for step in pin.steps), tolerance)


def _scores(expectation: OfPrompt, memory: Memory, pin: Pin) -> Scores:
    assert memory.header
    known = [recorded(step, token) for token, step in zip(pin.ids, pin.steps, strict=False)]
    likely = tuple(
        tuple((int(one), _rounded(value)) for one, value in step.items() if math.isfinite(value)) for step in known
    )
    limits = expectation.spec.limits
    times, _ = noise_times(len(likely), limits, alone=not expectation.over_set)
    ruler = Ruler(memory.header.floor, limits, storage_rounding(memory.lane))
    return Scores(pin.ids, likely, times * ruler.rms)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def leaving(backend: Transformers, seen: Ids) -> Fails:
    """Whether a call still leaves its pin, in its tokens or in how likely they are.

    seen: what it gave; cut short, it must give the beginning of that.
    """

    def fails(candidate: Reproduction) -> bool:
        pin, done = candidate.evidence, _run(backend, candidate)
        assert isinstance(pin, Pinned)
        if not done or done[0].ids != seen[: len(done[0].ids)]:
            return False
        if not pin.logprobs:
            return done[0].ids != pin.ids
        return done[0].ids == pin.ids and _apart(done[0], pin.logprobs) > pin.tolerance

    return fails


def _apart(now: Completion, logprobs: Sequence[float]) -> float:
    """The most by which a token is off, in nats."""
    return max(abs(step.logprob - before) for step, before in zip(now.steps, logprobs, strict=True))


def scored(backend: Transformers) -> Fails:
    """Whether one forward pass still gives other scores than were recorded."""

    def fails(candidate: Reproduction) -> bool:
        scores, prompt = candidate.evidence, candidate.sides[0].prompt
        assert isinstance(scores, Scores)
        device = backend.model.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            ids = torch.tensor([[*prompt, *scores.ids]], device=device)
            logits = backend.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        now = logits.float().log_softmax(-1)
        changes = [now[place, one] - was for place, likely in enumerate(scores.recorded) for one, was in likely]
        rms = torch.stack(changes).square().mean().sqrt().item()
        return not rms <= scores.limit  # NaN, too

    return fails
