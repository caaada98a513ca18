"""Why two completions that should agree do not: cheap variants of both, each of which leaves one cause out.

The first variant under which they agree names the cause. Every one of them is as short as the difference allows.
To add a suspect: write a function of its kind and add it to LADDER, the likelier cause first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness.divergence import first_difference
from harness.expectations.shorthand import Suspect
from harness.inputs import Generation
from harness.record import Batch, Completion, Request

# The values at which a processor does nothing, whatever the model's own generation config says.
NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
ONLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "num_return_sequences")
IDS = range(3, 4096)  # where to look for an id that nobody uses


def suspects(reference: Completion, other: Completion) -> list[Suspect]:
    """The ladder for this pair."""
    difference = first_difference(reference, other)
    if difference is None:
        return []
    longest = max(reference.new_tokens, other.new_tokens)
    length = longest if _depends_on_the_limit(reference, other) else difference.index + 1
    pair = Suspect("", _short(reference.request, length), _short(other.request, length))
    found = (rung(pair, reference, other) for rung in LADDER)
    return [suspect for suspect in found if suspect is not None]


def _depends_on_the_limit(reference: Completion, other: Completion) -> bool:
    """Whether the difference may not show in a shorter output: whatever is tried then would seem to remove it."""
    # A token that is forced at the limit would stand at the difference on both sides; a draft ends at the limit.
    own = other.request.generation
    forced = reference.generation_config.get("forced_eos_token_id") is not None
    return forced or own.prompt_lookup_num_tokens is not None or own.assistant_early_exit is not None


def _short(request: Request, length: int) -> Request:
    limits: dict[str, Any] = {"max_new_tokens": length}
    if request.generation.min_new_tokens is not None:
        limits["min_new_tokens"] = min(request.generation.min_new_tokens, length)
    resume = min(request.resume_after, length - 1)
    return request.replace(
        generation=request.generation.model_copy(update=limits),
        resume_after=resume,
        continuation=request.continuation[:length],
    )


def _both(pair: Suspect, cause: str, **changes: Any) -> Suspect:
    return Suspect(cause, pair.reference.replace(**changes), pair.other.replace(**changes))


def _generating(pair: Suspect, cause: str, **changes: Any) -> Suspect:
    """Both with other generation arguments."""
    sides = [
        side.replace(generation=side.generation.model_copy(update=changes)) for side in (pair.reference, pair.other)
    ]
    return Suspect(cause, *sides)


def _batched(pair: Suspect, cause: str, **changes: Any) -> Suspect | None:
    """The other side's batch, laid out in another way."""
    layout = pair.other.layout
    if not isinstance(layout, Batch):
        return None
    fields = {name: getattr(layout, name) for name in ("rows", "padding", "attention_mask", "pad_token_id")}
    return Suspect(cause, pair.reference, pair.other.replace(layout=Batch(**(fields | changes))))


def _sampling(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    both = pair.other.generation.do_sample == pair.reference.generation.do_sample
    if not both or not other.generation_config.get("do_sample"):
        return None
    cause = "sampling: with do_sample: false the tokens are the same. Write that in the generation of this test"
    return _generating(pair, cause, do_sample=False, **dict.fromkeys(ONLY_SAMPLING))


def _right_padding(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if other.padding != "right":
        return None
    cause = "right padding: padded on the left, the tokens are those of the prompt alone. Set padding_side to left"
    return _batched(pair, cause, padding="left", attention_mask=True)


def _missing_mask(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if not isinstance(pair.other.layout, Batch) or pair.other.layout.attention_mask:
        return None
    cause = "the attention mask is missing: with it the tokens are the same. Pass attention_mask to generate()"
    return _batched(pair, cause, attention_mask=True)


def _pad_token(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if not other.pads:
        return None
    taken = {*reference.prompt_ids, *reference.ids, *other.ids, *_eos(reference)}
    unused = next(token for token in IDS if token not in taken)
    cause = f"the pad token: padded with another id ({unused}) the tokens are the same; something counts the pads"
    return _batched(pair, cause, pad_token_id=unused)


def _processor(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    config = other.generation_config
    active = [name for name, value in NEUTRAL.items() if config.get(name) not in (None, value)]
    if not active:
        return None
    return _generating(pair, f"a logits processor: without {' and '.join(active)} the tokens are the same", **NEUTRAL)


def _cache(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if pair.other.resume_after or pair.other.generation.use_cache is False:
        return None
    cause = "the key-value cache: with use_cache: false on both sides the tokens are the same"
    return _generating(pair, cause, use_cache=False, cache_implementation=None)


def _attention(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if "eager" in (reference.attention, other.attention) or not other.attention:
        return None
    cause = f"the attention implementation: with eager instead of {other.attention} the tokens are the same"
    return _both(pair, cause, attention="eager")


def _position_ids(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if not other.pads or other.padding != "left":
        return None
    cause = (
        "position ids: a forward pass that gets them counted from the mask agrees with the prompt alone; "
        "the model's own code counts the pads as well"
    )
    return _forward(pair, cause, reference)


def _left_padding(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if not other.pads or other.padding != "left":
        return None
    cause = (
        "the model's own code: its forward pass agrees with the prompt alone only when pads stand on the right; "
        "it takes pads on the left for text, or counts them as positions"
    )
    return _forward(pair, cause, reference, padding="right")


def _forward(pair: Suspect, cause: str, reference: Completion, **changes: Any) -> Suspect | None:
    """The other side's batch by one forward pass over what the reference holds."""
    batched = _batched(pair, cause, **changes)
    if batched is None:
        return None
    length = batched.other.generation.max_new_tokens
    return Suspect(
        cause,
        batched.reference,
        batched.other.replace(kind="score", continuation=reference.ids[:length], position_ids=True, resume_after=0),
    )


def _rounding(pair: Suspect, reference: Completion, other: Completion) -> Suspect | None:
    if other.precision == "float32":
        return None
    return _both(pair, f"rounding of {other.precision}: in float32 the tokens are the same", float32=True)


def _eos(completion: Completion) -> tuple[int, ...]:
    eos = completion.generation_config.get("eos_token_id")
    return tuple(eos) if isinstance(eos, (list, tuple)) else (eos,) if isinstance(eos, int) else ()


LADDER: Sequence[Callable[[Suspect, Completion, Completion], Suspect | None]] = (
    _sampling,
    _right_padding,
    _missing_mask,
    _pad_token,
    _processor,
    _rounding,  # before those that round in another way themselves
    _cache,
    _attention,
    _position_ids,
    _left_padding,
)


def neutral(generation: Generation) -> Generation:
    """Plain greedy of the same length, with no processor at work."""
    return Generation(do_sample=False, num_beams=1, max_new_tokens=generation.max_new_tokens or 20, **NEUTRAL)
