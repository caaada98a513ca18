"""What holds on any healthy model, without a baseline: two ways to the same tokens.

In float32 the tokens must be equal; in 16-bit and quantized lanes up to a flip that rounding explains. To add one:
write a class and add it to INVARIANTS; `invariants: all` and `harness doctor` know it from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, GetJsonSchemaHandler, StrictStr, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harness.divergence import agree
from harness.expectations.invariance import FILLERS, PaddingInvariant, same
from harness.expectations.shorthand import Suspect, Written
from harness.expectations.suspects import neutral, suspects
from harness.inputs import Frozen, Generation, either
from harness.record import Batch, Completion, Request, Text, Verdict

DYNAMIC_ROPE = (
    "the rope base of this model grows with the length of the sequence (dynamic NTK) and stays grown for later "
    "calls, so that what was cached, padded or generated at another length differs by design"
)
NO_PREFIX = "the output of an encoder-decoder does not go on from its prompt"
EVERY_LENGTH = {"dynamic_rope": DYNAMIC_ROPE}
DECODER_ONLY = {"encoder_decoder": NO_PREFIX}
PENALTY = 1.8  # strong enough to show where it counts what it should not: 1.3 missed a third


def greedy(request: Request, **changes: Any) -> Request:
    """The prompt alone, by greedy search with the processors of its test."""
    own = request.generation
    kept = {"repetition_penalty": own.repetition_penalty, "no_repeat_ngram_size": own.no_repeat_ngram_size}
    lengths = {"max_new_tokens": own.max_new_tokens or 20, "min_new_tokens": own.min_new_tokens}
    generation = Generation(do_sample=False, num_beams=1, **(kept | lengths | changes))
    return request.replace(layout="alone", generation=generation)


class Invariant(Written):
    """Two or more ways to the same tokens: the first completion is the reference for all others."""

    not_for: ClassVar[Mapping[str, str]] = EVERY_LENGTH
    others: ClassVar[tuple[str, ...]] = ()  # how each of the others was made, as a sentence says it

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        reference, *others = completions
        verdicts = [
            same(reference, other, how, {"batch_size": other.batch_size})
            for other, how in zip(others, self.others, strict=True)
        ]
        failed = [verdict for verdict in verdicts if verdict.status == "failed"]
        return (failed or [verdict for verdict in verdicts if "margin" in verdict.numbers] or verdicts)[0]

    def suspects(self, completions: Sequence[Completion]) -> Sequence[Suspect]:
        reference, *others = completions
        return suspects(reference, next(other for other in others if not agree(reference, other)))


class LeftPadding(PaddingInvariant):
    """In a left-padded batch the prompt gives the same tokens as alone."""

    catches: ClassVar[tuple[str, ...]] = ("P2", "P8", "P9", "P13")
    not_for: ClassVar[Mapping[str, str]] = EVERY_LENGTH

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        same_generation = greedy(request).generation
        return super().needs(request.replace(generation=same_generation), peers)


class _AnyPadToken(Invariant):
    """Padded with the token that it emits first: whatever counts the pads cannot hide."""

    others: ClassVar[tuple[str, ...]] = ("left-padded with the very token that it emits first",)

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        if len(completions) > 1:
            return ()
        (alone,) = completions
        layout = Batch((alone.request.prompt, FILLERS[0]), pad_token_id=alone.ids[0])
        return (alone.request.replace(layout=layout),)


class AnyPadToken(_AnyPadToken):
    """Which token is used for padding changes nothing."""

    catches: ClassVar[tuple[str, ...]] = ("P2", "P8", "P13")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (greedy(request),)


class Processors(_AnyPadToken):
    """Penalties treat a padded row as they treat the prompt alone: pads are not counted."""

    others: ClassVar[tuple[str, ...]] = (
        "under the same penalties left-padded with the very token that it emits first",
    )
    catches: ClassVar[tuple[str, ...]] = ("X3",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        own = request.generation.repetition_penalty
        return (greedy(request, repetition_penalty=own or PENALTY),)


class DuplicateRows(Invariant):
    """The same prompt twice in a batch gives the same tokens twice."""

    catches: ClassVar[tuple[str, ...]] = ("D2",)
    others: ClassVar[tuple[str, ...]] = ("in another row of the same batch",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        batch = Batch((request.prompt, FILLERS[0], request.prompt))
        return tuple(greedy(request).replace(layout=batch, row=row) for row in (0, 2))


class OneForward(Invariant):
    """Cached generation gives the argmax of one forward pass, without cache, over what it produced."""

    catches: ClassVar[tuple[str, ...]] = ("K2", "K8")
    not_for: ClassVar[Mapping[str, str]] = EVERY_LENGTH | DECODER_ONLY
    others: ClassVar[tuple[str, ...]] = ("as the argmax of one forward pass without cache",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request.replace(layout="alone", generation=neutral(request.generation)),)

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        if len(completions) > 1:
            return ()
        (alone,) = completions
        return (alone.request.replace(kind="score", continuation=alone.ids),)


class NoCache(Invariant):
    """Without a key-value cache the tokens are the same."""

    catches: ClassVar[tuple[str, ...]] = ("K8",)
    others: ClassVar[tuple[str, ...]] = ("with use_cache: false",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (greedy(request), greedy(request, use_cache=False))


class StaticCache(Invariant):
    """With a static cache the tokens are the same, alone and in a left-padded batch."""

    catches: ClassVar[tuple[str, ...]] = ("K1", "K9")
    others: ClassVar[tuple[str, ...]] = ("with a static cache", "with a static cache in a left-padded batch")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        static = greedy(request, cache_implementation="static")
        return (greedy(request), static, static.replace(layout=Batch((request.prompt, FILLERS[0]))))

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        other = completions[1].cache
        if other == "none":
            return Verdict("skipped", "this model has no key-value cache that could be static")
        if other and "Static" not in other and "EncoderDecoder" not in other:
            return Verdict("error", f"a static cache was asked for, and {other} was used", {"cache": other})
        return super().judge(completions)


class ResumedCache(Invariant):
    """Going on from the cache that an earlier call returned gives the tokens of one call."""

    catches: ClassVar[tuple[str, ...]] = ("K6",)
    not_for: ClassVar[Mapping[str, str]] = EVERY_LENGTH | DECODER_ONLY
    others: ClassVar[tuple[str, ...]] = ("in two calls, the second one from the cache of the first",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        alone = greedy(request)
        half = (alone.generation.max_new_tokens or 20) // 2
        return (alone, alone.replace(resume_after=max(1, half)))


class Prefix(Invariant):
    """Going on from the prompt and the first half of the output gives the second half."""

    catches: ClassVar[tuple[str, ...]] = ("K2", "L4")
    not_for: ClassVar[Mapping[str, str]] = EVERY_LENGTH | DECODER_ONLY
    others: ClassVar[tuple[str, ...]] = ("with the first half of the output as part of the prompt",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (greedy(request),)

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        alone = completions[0]
        half = alone.new_tokens // 2
        if len(completions) > 1 or not half:
            return ()
        own = alone.request.generation
        rest: dict[str, Any] = {"max_new_tokens": (own.max_new_tokens or 20) - half}
        if own.min_new_tokens is not None:
            rest["min_new_tokens"] = max(0, own.min_new_tokens - half)
        prompt = Text(ids=(*alone.prompt_ids, *alone.ids[:half]))
        return (alone.request.replace(prompt=prompt, generation=own.model_copy(update=rest)),)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        if len(completions) == 1:
            return Verdict("skipped", f"an output of {completions[0].new_tokens} token(s) has no half to go on from")
        return super().judge((_second_half(completions[0]), completions[1]))

    def suspects(self, completions: Sequence[Completion]) -> Sequence[Suspect]:
        return ()  # the two sides have different prompts: no variant of one is a variant of the other


def _second_half(alone: Completion) -> Completion:
    half = alone.new_tokens // 2
    return dataclasses.replace(alone, ids=alone.ids[half:], tokens=alone.tokens[half:], steps=alone.steps[half:])


class PromptLookup(Invariant):
    """Speculative decoding with candidates from the prompt gives the tokens of greedy search, and no more of them."""

    catches: ClassVar[tuple[str, ...]] = ("X1",)
    others: ClassVar[tuple[str, ...]] = ("by prompt lookup",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (greedy(request), greedy(request, prompt_lookup_num_tokens=3))


class EarlyExit(Invariant):
    """Speculative decoding with the model's own first layer as draft gives the tokens of greedy search."""

    catches: ClassVar[tuple[str, ...]] = ("X1",)
    others: ClassVar[tuple[str, ...]] = ("by assisted decoding",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (greedy(request), greedy(request, assistant_early_exit=1))


class Attention(Invariant):
    """Eager attention and sdpa give the same tokens, alone and left-padded."""

    catches: ClassVar[tuple[str, ...]] = ("K2", "K3", "K4", "P9")
    others: ClassVar[tuple[str, ...]] = (
        "with sdpa instead of eager attention",
        "with sdpa instead of eager attention in a left-padded batch",
    )

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        eager, sdpa = (greedy(request).replace(attention=attention) for attention in ("eager", "sdpa"))
        return (eager, sdpa, sdpa.replace(layout=Batch((request.prompt, FILLERS[0]))))


class FlashAttention(Invariant):
    """Flash attention gives the tokens of the implementation that was loaded, alone and left-padded."""

    catches: ClassVar[tuple[str, ...]] = ("P10",)
    others: ClassVar[tuple[str, ...]] = ("with flash attention", "with flash attention in a left-padded batch")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        alone = greedy(request)
        flash = alone.replace(attention="flash_attention_2")
        return (alone, flash, flash.replace(layout=Batch((request.prompt, FILLERS[0]))))


class TopKOne(Invariant):
    """Sampling from the one likeliest token is greedy search."""

    catches: ClassVar[tuple[str, ...]] = ("D5",)
    others: ClassVar[tuple[str, ...]] = ("by sampling with top_k: 1",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        sampling = {"do_sample": True, "top_k": 1, "top_p": 1.0, "temperature": 1.0}
        alone = greedy(request)
        return (alone, alone.replace(generation=alone.generation.model_copy(update=sampling)))


class InferredMask(Invariant):
    """Without an attention mask a single prompt gives the same tokens: no token of it is taken for padding."""

    catches: ClassVar[tuple[str, ...]] = ("P6",)
    others: ClassVar[tuple[str, ...]] = ("without an attention mask",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        alone = greedy(request)
        return (alone, alone.replace(layout=Batch((request.prompt,), attention_mask=False)))


class ForwardPositions(Invariant):
    """forward() on a left-padded batch is right without position ids, which scoring code often leaves out."""

    catches: ClassVar[tuple[str, ...]] = ("P3",)
    not_for: ClassVar[Mapping[str, str]] = EVERY_LENGTH | DECODER_ONLY
    others: ClassVar[tuple[str, ...]] = ("by forward() on a left-padded batch without position ids",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        short = Generation(do_sample=False, num_beams=1, max_new_tokens=1, repetition_penalty=1.0)
        alone = request.replace(layout="alone", generation=short)
        padded = alone.replace(kind="score", layout=Batch((request.prompt, FILLERS[0])))
        return (alone, padded)


INVARIANTS: Mapping[str, type[Written]] = {
    "left_padding": LeftPadding,
    "any_pad_token": AnyPadToken,
    "processors": Processors,
    "duplicate_rows": DuplicateRows,
    "one_forward": OneForward,
    "no_cache": NoCache,
    "static_cache": StaticCache,
    "resumed_cache": ResumedCache,
    "prefix": Prefix,
    "prompt_lookup": PromptLookup,
    "early_exit": EarlyExit,
    "attention": Attention,
    "flash_attention": FlashAttention,
    "top_k_one": TopKOne,
    "inferred_mask": InferredMask,
    "forward_positions": ForwardPositions,
}
# Not part of `all`: true of few models, and generate() does not depend on it. It is there for those who write scoring.
BY_NAME_ONLY = ("forward_positions",)


class Invariants(Frozen):
    """Ways to generate that must all give the same tokens: all of them, or some by name; each has its own verdict."""

    only: tuple[StrictStr, ...] = Field(
        tuple(name for name in INVARIANTS if name not in BY_NAME_ONLY), min_length=1, description="These by name."
    )
    skip: dict[StrictStr, StrictStr] = Field(
        default_factory=dict, description="Known exceptions: name of the invariant and the reason why it does not hold."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core_schema))
        names: dict[str, Any] = {"enum": ["all", *INVARIANTS]}
        full["properties"]["only"]["items"] = {"enum": list(INVARIANTS)}
        full["properties"]["skip"]["propertyNames"] = {"enum": list(INVARIANTS)}
        return either({"anyOf": [names, full["properties"]["only"]]}, full)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if value in (True, "all"):
            return {}
        if isinstance(value, str):
            return {"only": [value]}
        return {"only": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _known(self) -> Invariants:
        unknown = [name for name in (*self.only, *self.skip) if name not in INVARIANTS]
        if unknown:
            raise ValueError(f"no invariant is called '{unknown[0]}'; there are: all, {', '.join(INVARIANTS)}")
        return self

    def __hash__(self) -> int:
        return hash((self.only, tuple(self.skip.items())))

    def members(self) -> Mapping[str, Written]:
        """Each invariant by its name."""
        return {
            name: Excepted(reason=self.skip[name]) if name in self.skip else INVARIANTS[name]() for name in self.only
        }


class Excepted(Written):
    """An invariant that is known not to hold here: skipped with the reason that the suite gives."""

    reason: StrictStr

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return ()

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        return Verdict("skipped", self.reason)
