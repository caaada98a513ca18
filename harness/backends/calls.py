"""A request as a call of `generate()` that anyone can make, with torch and transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.backends import quantizations, sources
from harness.backends.prompts import position
from harness.backends.transformers import Transformers
from harness.inputs import Generation
from harness.record import Batch, Completion, Request, Text
from harness.repro import Side, Weights


@dataclass(frozen=True)
class NotReproducible:
    """No script can show it, and why."""

    reason: str


def beyond_a_call(request: Request) -> str:
    """Why a request is more, or less, than one call of `generate()`."""
    reasons = {
        f"it takes more than a call of generate() (kind {request.kind})": request.kind != "generate",
        "it shows only in a fresh process": request.fresh_process,
        "it takes two calls, the second from the cache of the first": request.resume_after > 0,
        "the weights were cast to float32": request.float32,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def names_of(sides: Sequence[Completion]) -> Sequence[str]:
    """What tells the calls apart."""
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


def side_of(backend: Transformers, name: str, done: Completion) -> Side:
    """The call that gave this; whoever left the batch to us gets the row alone."""
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


def request_of(side: Side) -> Request:
    """The same call, to be made by the backend; ValueError where its arguments mean something only together."""
    rows = tuple(Text(ids=row) for row in side.rows)
    layout = Batch(rows, side.padding, side.attention_mask, side.pad_token_id)  # type: ignore[arg-type]
    generation = Generation(**side.arguments, seed=side.seed)
    return Request(rows[side.row], generation, layout, row=side.row, attention=side.attention)


def weights_of(backend: Transformers) -> Weights | NotReproducible:
    """The model as `from_pretrained()` is told to load it."""
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
