"""What generate() is really told, by the suite and by the model's own configuration; and what bare calls would do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictStr, WithJsonSchema, field_validator, model_validator

from harness.expectations.arguments import (
    ARGUMENTS,
    NEUTRAL,
    OF_BEAMS,
    SAMPLING,
    UNSET,
    active,
    idle,
    known,
    pair,
    same,
    shown,
    told,
)
from harness.expectations.content import quote
from harness.expectations.hazards import Problem
from harness.expectations.shorthand import Written
from harness.expectations.stopping import end_ids
from harness.inputs import Generation
from harness.record import Completion, Kind, Rendering, Request, Verdict
from harness.wording import counted

Argument = Annotated[StrictStr, AfterValidator(known), WithJsonSchema({"enum": sorted(ARGUMENTS)})]


def _keys(names: Iterable[str]) -> dict[str, Any]:
    """JSON Schema of a mapping that has no other keys."""
    return {"propertyNames": {"enum": sorted(names)}}


class EffectiveConfig(Written):
    """generate() does what the suite says and nothing that only the model's own generation config says."""

    catches: ClassVar[tuple[str, ...]] = ("C1", "C3", "C9", "D4", "E1", "E2")
    do_sample: StrictBool | None = Field(
        None, description="Whether it is to sample; unset: only if the generation of the test says do_sample: true."
    )
    allow: tuple[Argument, ...] = Field(
        (), description="Arguments that the model's own generation config may set, whatever their values."
    )
    values: dict[StrictStr, Any] = Field(
        {},
        description="Arguments and the exact values that they are to have, or `unset`.",
        json_schema_extra=_keys(ARGUMENTS),
    )
    eos_closes_turn: StrictBool = Field(
        True, description="There are EOS ids, and the one that the chat template closes a turn with is among them."
    )
    pad: Literal["set", "any"] = Field(
        "set", description="set: generate() knows a pad token without being given one; any: not looked at."
    )

    @field_validator("values")
    @classmethod
    def _known_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in values:
            known(name)
        return values

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if "do_sample" in self.values or "do_sample" in self.allow:
            raise ValueError("write do_sample beside allow and values, not within")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        alone = request.replace(layout="alone")
        return (request, alone.replace(kind="render"), alone.replace(kind="bare_generate"))

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        done, rendered, bare = completions
        if rendered.rendering is None:
            return Verdict("skipped", "this backend has no generation config of its own that could be looked at")
        found = list(self._problems(done, rendered.rendering, bare))
        numbers: dict[str, float | int | str] = {"do_sample": _samples(done)}
        if found:
            numbers["problems"] = ", ".join(dict.fromkeys(problem.name for problem in found))
            more = f" (and {counted(len(found) - 1, 'more problem')})" if len(found) > 1 else ""
            return Verdict("failed", f"{found[0].sentence}{more}", numbers, tuple(map(str, found)))
        config = done.generation_config
        allowed = (f"allowed  {pair(name, config[name])}" for name in self.allow if name in config)
        ends = ", ".join(map(str, end_ids(done))) or "none"
        pad = bare.generation_config.get("pad_token_id", "none")
        parts = (told(config), f"EOS {ends}", f"pad {pad}")
        return Verdict("passed", f"{', '.join(parts)}: as the suite says", numbers, tuple(allowed))

    def _problems(self, done: Completion, rendering: Rendering, bare: Completion) -> Iterator[Problem]:
        yield from self._sampling(done, bare)
        yield from self._unasked(done, bare)
        yield from _not_in_effect(done)
        if self.eos_closes_turn:
            yield from _ends(done, rendering)
        # A bare call that raised before anything was resolved says nothing about pads.
        if self.pad == "set" and "do_sample" in bare.generation_config:
            yield from _pad(bare, rendering)
        for name, wanted in self.values.items():
            got = done.generation_config.get(name)
            if not same(got, wanted):
                yield Problem("values", f"{name} is {shown(got)}, not {shown(wanted)}", _set(name, wanted))

    def _sampling(self, done: Completion, bare: Completion) -> Iterator[Problem]:
        written, samples = done.request.generation.do_sample, _samples(done)
        if samples == self._is_to_sample(done):
            return
        who = f"the generation of this test says do_sample: {shown(written)}"
        if samples and written is not True:
            who = f"{_source('do_sample', done, bare)} says do_sample: true, {who}"
        does = told(done.generation_config) if samples else "does not sample"
        yield Problem("do_sample", f"it {does}: {who}", _set("do_sample", not samples))

    def _is_to_sample(self, done: Completion) -> bool:
        return bool(done.request.generation.do_sample) if self.do_sample is None else self.do_sample

    def _unasked(self, done: Completion, bare: Completion) -> Iterator[Problem]:
        """What the suite does not write and is not neutral: with an effect that nobody asked for, or without any."""
        config = done.generation_config
        declared = {*done.request.generation.arguments(), *self.allow, *self.values}
        if config.get("min_new_tokens"):
            declared.add("min_length")  # generate() counts it up from min_new_tokens
        if _samples(done) != self._is_to_sample(done):
            declared |= set(SAMPLING)  # they go with it
        if (config.get("num_beams") or 1) > 1 and "num_beams" not in declared:
            declared |= set(OF_BEAMS)
        without_effect = idle(config)
        for name, value in active(config, NEUTRAL):
            if name in declared:
                continue
            said = f"{_source(name, done, bare)} says {pair(name, value)}"
            if name in without_effect:
                remedy = f"Take it out of generation_config.json, or write `allow: [{name}]` here"
                yield Problem("no_effect", f"{said}, which has no effect without {without_effect[name]}", remedy)
                continue
            neutral = next(iter(NEUTRAL[name]), None)
            remedy = f"{_set(name, neutral)}, or `allow: [{name}]` here"
            yield Problem("unasked", f"{said}, and the suite does not", remedy)


def _samples(completion: Completion) -> bool:
    return bool(completion.generation_config.get("do_sample"))


def _source(name: str, done: Completion, bare: Completion) -> str:
    """Who says what is in effect, if the suite does not: a bare call shows what the model says."""
    own = same(bare.generation_config.get(name), done.generation_config.get(name))
    return "the model's own generation config" if own else "something between the suite and generate()"


def _not_in_effect(done: Completion) -> Iterator[Problem]:
    """What the suite writes and did not get through."""
    looked_at = {*NEUTRAL, "max_new_tokens"}
    for name, wanted in done.request.generation.arguments().items():
        got = done.generation_config.get(name)
        if name in looked_at and not same(got, wanted):
            sentence = f"the generation of this test says {pair(name, wanted)}, in effect it is {shown(got)}"
            yield Problem("not_in_effect", sentence, "Look for what changes the arguments on their way to generate()")


def _ends(done: Completion, rendering: Rendering) -> Iterator[Problem]:
    ends, closing = end_ids(done), rendering.closing_ids[:1]
    if set(closing) <= set(ends) and ends:
        return
    ids = [*ends, *closing]
    remedy = f'Write "eos_token_id": {ids or "ID"} into the model\'s generation_config.json'
    if not ends:
        yield Problem("eos", "no eos_token_id is in effect: only the limit ends generation", remedy)
        return
    spelled = next((text for text, token in rendering.special_tokens.items() if token == closing[0]), "")
    yield Problem(
        "eos",
        f"the chat template closes a turn with {spelled!r} ({closing[0]}), but only {', '.join(map(str, ends))} ends "
        "generation: answers run on into the next turn",
        f"{remedy}, or pass eos_token_id={ids} to generate()",
    )


def _pad(bare: Completion, rendering: Rendering) -> Iterator[Problem]:
    if "pad_token_id" in bare.generation_config:
        return
    ends, own = end_ids(bare), rendering.pad_token_id
    instead = f"it pads with EOS ({ends[0]})" if ends else "it cannot pad"
    knows = f"the tokenizer pads with {own}, but generate() does not know" if own is not None else "no pad token is set"
    token = own if own is not None else next(iter(ends), "ID")
    remedy = f'Write "pad_token_id": {token} into the model\'s generation_config.json, or `pad: any` here'
    yield Problem("pad", f"{knows}: {instead}", remedy)


def _set(name: str, value: Any) -> str:
    if name in Generation.model_fields and value not in (None, UNSET):
        return f"Write `{pair(name, value)}` in the generation of this test"
    file = "the model's generation_config.json"
    return f"Take {name} out of {file}" if value in (None, UNSET) else f'Write "{name}": {shown(value)} into {file}'


CALLS: Mapping[str, tuple[Kind, str]] = {
    "generate": ("bare_generate", "generate() with no arguments"),
    "generation_config": ("bare_config", "generate() with a GenerationConfig of one's own"),
    "pipeline": ("bare_pipeline", "pipeline() with no arguments"),
}
# What can be written about a call beside its arguments.
OF_CALLS = ("new_token_limit", "padding_side", "dtype", "device", "raised", "message", "warnings")
OF_ANY_CALL = frozenset({*ARGUMENTS, *OF_CALLS})
_Call = Annotated[dict[StrictStr, Any] | None, Field(json_schema_extra=_keys(OF_ANY_CALL))]


class BareCall(Written):
    """What generate() and pipeline() do when nothing is said: recorded, and held to the values that are written here.

    Beside arguments of generate(): new_token_limit, how many tokens at most; raised, the class of the exception
    (or `unset`) and its message; padding_side, dtype, device; warnings, a list with a part of each text.
    """

    catches: ClassVar[tuple[str, ...]] = ("C2", "C5", "D4", "L1", "L2", "L3", "L4", "L6", "P5", "P11")
    generate: _Call = Field(None, description="generate(ids, attention_mask=…), and nothing else.")
    pipeline: _Call = Field(None, description="pipeline(…)(text), and nothing else.")
    generation_config: _Call = Field(
        None, description="generate(…, generation_config=GenerationConfig(max_new_tokens=8)): over the model's own."
    )

    @field_validator(*CALLS)
    @classmethod
    def _known_names(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in values or {}:
            known(name, OF_ANY_CALL)
        warnings = (values or {}).get("warnings", [])
        if not isinstance(warnings, list) or not all(isinstance(text, str) for text in warnings):
            raise ValueError("warnings is a list of texts, each a part of one warning; [] is no warning at all")
        return values

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def _asked(self) -> dict[str, dict[str, Any]]:
        """The calls to make, each with its values; all of them where none is named."""
        written = {name: values for name in CALLS if (values := getattr(self, name)) is not None}
        return written or {name: {} for name in CALLS}

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return tuple(request.replace(kind=CALLS[name][0], layout="alone") for name in self._asked)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        asked = self._asked
        if not all({"new_token_limit", "raised"} & set(one.generation_config) for one in completions):
            return Verdict("skipped", "this backend has no generate() and no pipeline() that could be called")
        numbers: dict[str, float | int | str] = {}
        sentences, wrong, details = [], [], []
        for (name, values), completion in zip(asked.items(), completions, strict=True):
            label, config = CALLS[name][1], completion.generation_config
            numbers |= _numbers(name, config)
            sentence = f"{label}: {_does(config)}"
            sentences.append(sentence)
            different = {key: config.get(key) for key in values if _differs(completion, key, values[key])}
            if different:
                wrong.append(f"{label}: {', '.join(_contrast(key, completion, values[key]) for key in different)}")
                details += [sentence, _what_to_do(name, different, values)]
            details += [f"warns  {label}: {quote(text)}" for text in completion.warnings]
        if wrong:
            return Verdict("failed", "; ".join(wrong), numbers, tuple(details))
        return Verdict("passed", "; ".join(sentences), numbers, tuple(details))


def _does(config: Mapping[str, Any]) -> str:
    if "raised" in config:
        return f"raises {config['raised']}: {quote(str(config.get('message', '')))}"
    return f"{told(config)}, at most {counted(config['new_token_limit'], 'new token')}"


def _numbers(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth pinning, by the name under which the suite would have it."""
    shaping = [key for key, _ in active(config, NEUTRAL) if key not in idle(config)]
    keys = ["do_sample", "new_token_limit", "raised", *shaping, *(["padding_side"] if name == "pipeline" else [])]
    return {f"{name}.{key}": config[key] for key in keys if isinstance(config.get(key), (bool, int, float, str))}


def _differs(completion: Completion, key: str, wanted: Any) -> bool:
    if key != "warnings":
        return not same(completion.generation_config.get(key), wanted)
    missing = any(not any(text in warning for warning in completion.warnings) for text in wanted)
    return missing or any(not any(text in warning for text in wanted) for warning in completion.warnings)


def _contrast(key: str, completion: Completion, wanted: Any) -> str:
    if key == "warnings":
        said = f"it warns {counted(len(completion.warnings), 'time')}" if completion.warnings else "it warns of nothing"
        return f"{said}, the suite says {f'of {shown(wanted)}' if wanted else 'of nothing'}"
    return f"{key} is {shown(completion.generation_config.get(key))}, the suite says {shown(wanted)}"


def _what_to_do(name: str, different: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    passed = {"max_new_tokens" if key == "new_token_limit" else key: values[key] for key in different}
    arguments = ", ".join(f"{key}={value!r}" for key, value in passed.items() if key in ARGUMENTS)
    now = ", ".join(
        'warnings: ["a part of each of those below"]' if key == "warnings" else pair(key, value)
        for key, value in different.items()
    )
    in_code = f"pass {arguments} wherever it is called, or " if arguments else ""
    return f"remedy  {in_code}write what holds now: `{name}: {{{now}}}`"
