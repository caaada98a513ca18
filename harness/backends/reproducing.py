"""From a failed check to the script that shows it: what was called, made smaller by calling the loaded model again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.backends import Backend, quantizations, sources
from harness.backends.prompts import position
from harness.backends.transformers import Transformers
from harness.divergence import agree
from harness.inputs import Generation
from harness.pins.packing import storage_rounding
from harness.pins.pin import Memory, Pin
from harness.record import Batch, Completion, Request, Text
from harness.repro import Fails, Reproduction, Side, Weights, minimise
from harness.repro_script import write

# Times the floor of a lane: a token may be off by that much with nothing wrong, as one of many.
TOLERANCE = 5
SMALLEST = 1e-5  # of a floor, in nats: what float32 cannot tell


@dataclass(frozen=True)
class NotReproducible:
    """No script can show it, and why."""

    reason: str


def reproduce(
    backend: Backend,
    completions: Sequence[Completion],
    folder: Path,
    name: str,
    *,
    shows: str = "",
    memory: Memory | None = None,
) -> Path | NotReproducible:
    """Write the smallest script that shows why a check failed, while its target is still loaded."""
    found = from_failure(backend, completions, shows=shows, memory=memory)
    if isinstance(found, NotReproducible):
        return found
    fails = failing(backend, _seen(completions, found))
    if not fails(found):
        return NotReproducible("called by itself it does not show: it took the other rows of its batch, or chance")
    return write(minimise(found, fails), folder, name)


def from_failure(
    backend: Backend, completions: Sequence[Completion], *, shows: str = "", memory: Memory | None = None
) -> Reproduction | NotReproducible:
    """The calls whose tokens are not as they should be: of a pin, or of two ways to generate."""
    if not isinstance(backend, Transformers):
        return NotReproducible("no model of transformers was asked")
    if not completions:
        return NotReproducible("nothing was generated")
    weights = _weights(backend)
    if isinstance(weights, NotReproducible):
        return weights
    if memory and memory.pin is None:
        return NotReproducible("nothing is pinned that it could be compared with")
    expected = memory.pin.ids if memory and memory.pin else _forced(completions)
    if expected is None:
        sides: Sequence[Completion] | NotReproducible = _two(completions)
    else:
        sides = _one(completions[0], memory.pin if memory else None)
    if isinstance(sides, NotReproducible):
        return sides
    if reason := next((reason for done in sides if (reason := _beyond_a_call(done.request))), ""):
        return NotReproducible(reason)
    made = tuple(_side(backend, name, done) for name, done in zip(_names(sides), sides, strict=True))
    if len({side.attention for side in made}) > 1:  # the one must not stay set for the other
        made = tuple(replace(side, attention=side.attention or backend.facts.attention) for side in made)
    found = Reproduction(weights, made, expected, shows=shows)
    return found if expected is None else _likely(found, completions[0], memory)


def failing(backend: Backend, seen: Sequence[int] = ()) -> Fails:
    """Whether a reproduction still shows what it is to show, on the model that is loaded.

    seen: what a call that is compared with a pin gave; cut short, it must give the beginning of that.
    """

    def fails(reproduction: Reproduction) -> bool:
        try:
            requests = [_request(side) for side in reproduction.sides]
        except ValueError:  # arguments that mean something only together
            return False
        answers = [answer for request in requests for answer in backend.generate([request])]
        done = [answer for answer in answers if isinstance(answer, Completion)]
        if len(done) < len(requests):
            return False
        if reproduction.pinned is not None:
            return _left(done[0], reproduction) and done[0].ids == tuple(seen[: len(done[0].ids)])
        return _differ(*done)

    return fails


def _left(now: Completion, reproduction: Reproduction) -> bool:
    """Whether a call is away from its pin: in its tokens or, where that is what changed, in how likely they are."""
    if not reproduction.logprobs:
        return now.ids != reproduction.pinned
    return now.ids == reproduction.pinned and _apart(now, reproduction.logprobs) > reproduction.tolerance


def _differ(first: Completion, other: Completion) -> bool:
    """Repeats must be equal to the token; where shapes are different, rounding is no failure."""
    repeated = first.request.replace(repeat=0) == other.request.replace(repeat=0)
    return first.ids != other.ids if repeated else not agree(first, other)


def _seen(completions: Sequence[Completion], reproduction: Reproduction) -> Sequence[int]:
    return completions[0].ids if reproduction.pinned is not None else ()


# --- which calls -----------------------------------------------------------------------------------------------------


def _forced(completions: Sequence[Completion]) -> tuple[int, ...] | None:
    """The path of a replay is what the free run was to say."""
    led = next((done for done in completions[1:] if done.request.kind == "replay"), None)
    return led.request.continuation if led else None


def _one(free: Completion, pin: Pin | None) -> Sequence[Completion] | NotReproducible:
    if pin and pin.prompt_ids != free.prompt_ids:
        return NotReproducible("the prompt has other ids than the pinned one: that is the difference")
    return (free,)


def _likely(found: Reproduction, free: Completion, memory: Memory | None) -> Reproduction | NotReproducible:
    """Where the tokens are the pinned ones, with how likely they were."""
    if free.ids != found.pinned:
        return found
    if not (memory and memory.pin and memory.header and len(memory.pin.steps) == len(free.steps) > 0):
        return NotReproducible("the tokens are those that were pinned, and how likely they were is not known")
    tolerance = TOLERANCE * max(memory.header.floor.rms, storage_rounding(memory.lane), SMALLEST)
    logprobs = tuple(float(f"{step.logprob:.9g}") for step in memory.pin.steps)
    if _apart(free, logprobs) <= tolerance:
        return NotReproducible("no token is far from its pinned log-probability: only all of them together tell")
    return replace(found, logprobs=logprobs, tolerance=tolerance)


def _apart(now: Completion, logprobs: Sequence[float]) -> float:
    """The most by which a token is off, in nats."""
    return max(abs(step.logprob - before) for step, before in zip(now.steps, logprobs, strict=True))


def _two(completions: Sequence[Completion]) -> tuple[Completion, Completion] | NotReproducible:
    first, *others = completions
    if not others:
        return NotReproducible("it is about what one call says, not about two that should agree")
    same = [done for done in others if done.request.prompt == first.request.prompt and _seed(done) == _seed(first)]
    if not same:
        return NotReproducible("its calls have different prompts or seeds")
    other = next((done for done in same if _differ(first, done)), None)
    return (first, other) if other else NotReproducible("all of its calls gave the same tokens")


def _seed(done: Completion) -> int:
    return done.request.generation.seed


def _beyond_a_call(request: Request) -> str:
    """Why a request is more, or less, than one call of `generate()`."""
    reasons = {
        f"it takes more than a call of generate() (kind {request.kind})": request.kind != "generate",
        "it shows only in a fresh process": request.fresh_process,
        "it takes two calls, the second from the cache of the first": request.resume_after > 0,
        "the weights were cast to float32": request.float32,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _names(sides: Sequence[Completion]) -> Sequence[str]:
    first, *others = (_name(done) for done in sides)
    return (first, *(f"{other}, again" if other == first else other for other in others))


def _name(done: Completion) -> str:
    layout, given = done.request.layout, done.request.generation
    padded = f"padded on the {done.padding}" if done.pads else ""
    batch = "in a batch" if isinstance(layout, Batch) and len(layout.rows) > 1 else "alone"
    mask = "without a mask" if isinstance(layout, Batch) and not layout.attention_mask else ""
    cache = "without a cache" if given.use_cache is False else f"{given.cache_implementation or ''} cache"
    parts = (batch, padded, mask, cache if cache != " cache" else "", done.request.attention)
    return ", ".join(part for part in parts if part)


# --- in the words of transformers ------------------------------------------------------------------------------------


def _side(backend: Transformers, name: str, done: Completion) -> Side:
    request = done.request
    layout = request.layout if isinstance(request.layout, Batch) else Batch((request.prompt,))
    rows = backend.prompts.rows([request])
    pad = layout.pad_token_id if layout.pad_token_id is not None else backend.facts.pad_token_id
    return Side(
        name=name,
        rows=tuple(backend.prompts.encode(row)[1] for row in rows),
        pad_token_id=pad or 0,
        arguments=request.generation.arguments(),
        row=position(request, rows, 0),
        padding=backend.side(layout),
        attention_mask=layout.attention_mask,
        attention=request.attention,
        seed=request.generation.seed,
    )


def _request(side: Side) -> Request:
    rows = tuple(Text(ids=row) for row in side.rows)
    layout = Batch(rows, side.padding, side.attention_mask, side.pad_token_id)  # type: ignore[arg-type]
    generation = Generation(**side.arguments, seed=side.seed)
    return Request(rows[side.row], generation, layout, row=side.row, attention=side.attention)


def _weights(backend: Transformers) -> Weights | NotReproducible:
    wanted = backend.target.model
    source = sources.resolve(wanted)
    arguments = quantizations.arguments(backend.target.quantization, wanted.dtype, backend.facts.device)
    quantization = _bitsandbytes(arguments)
    if quantization is None:
        return NotReproducible(f"{backend.target.quantization} cannot be asked for with torch and transformers alone")
    return Weights(
        path=source.origin if source.revision else source.path,
        revision=source.revision,
        origin="" if source.revision or source.origin == source.path else source.origin,
        dtype=arguments["dtype"],
        attention=wanted.attention or "",
        device="auto" if wanted.device == "auto" else backend.facts.device,
        quantization=quantization,
        trust_remote_code=wanted.trust_remote_code,
        encoder_decoder="encoder_decoder" in backend.facts.traits,
    )


def _bitsandbytes(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of its config, {} where nothing is quantized, None where another library does it."""
    config = arguments.get("quantization_config")
    if config is None:
        return {}
    if type(config).__name__ != "BitsAndBytesConfig":
        return None
    return {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
