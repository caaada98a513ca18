"""Why the model no longer does what was pinned: the first stage that differs, where the damage sits, what is ruled out.

From the prompt's text to the answer's, each stage follows from those before it. The first that differs is the place to
look; where the damage sits, over positions and rows, names the likely cause. Pure.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.pins.drift import Drift, Flip, pooled
from harness.pins.ladder import (
    Judgement,
    Ruler,
    is_biased,
    is_processed_otherwise,
    judge_one,
    padded_only,
    raw_is_noise,
)
from harness.pins.pin import Header, Memory, Replayed, header_now

RENDERED, IDS, PADDING, CONFIG = "rendered prompt", "prompt ids", "padding", "generation config"
WEIGHTS, ENVIRONMENT = "weights", "environment"
RAW, PROCESSED, TOKENS, TEXT = "raw scores", "processed scores", "tokens", "text"
GIVEN = (RENDERED, IDS, PADDING, CONFIG, WEIGHTS, ENVIRONMENT)  # what goes in; the rest follows from it

FLAT, HEAD, GROWING, SCALE = "flat over positions", "head-loaded", "growing with length", "scale only"
NONE, ALL, SOME, FEW, PADDED = "no prompt", "all prompts", "some prompts", "a few prompts only", "padded rows only"
EARLY, LATE = 5, 16  # positions before the one and from the other on are compared
GROWTH = 1.5  # a repetition penalty was measured to grow by 1.9, quantization to shrink
FEW_SHARE = 0.25
SHOWN = 3  # of what changed, in one line
LABEL = 9

# By stage, then by where it sits: rows before positions; "" is what is left.
CAUSES: Mapping[str, Mapping[str, str]] = {
    RENDERED: {"": "the chat template is missing, another one, or renders otherwise (a date in it, an option)"},
    IDS: {"": "special tokens added twice or not at all, or another tokenizer"},
    PADDING: {"": "padding side or pad token"},
    CONFIG: {GROWING: "a penalty or ban on what was said before", "": "what the generation config says"},
    WEIGHTS: {
        SCALE: "a norm or the output layer has another scale",
        "": "another checkpoint, or weights that are quantized otherwise",
    },
    ENVIRONMENT: {
        PADDED: "padding side, position ids or the attention mask are handled otherwise",
        HEAD: "the library treats what stands before the text otherwise: prefill, position ids, the prompt's mask",
        GROWING: "position ids, rope or the key-value cache are computed otherwise",
        SCALE: "a norm or the logits are scaled otherwise",
        "": "a library, kernel or setting computes otherwise",
    },
    RAW: {
        PADDED: "padding side, position ids or the attention mask",
        FEW: "what these prompts share: their length (rope scaling, sliding window), or rare tokens",
        SCALE: "a norm, the output layer or the logits have another scale",
        HEAD: "what stands before the text: a prefix, position ids or mask of the prompt",
        GROWING: "what adds up with length: position ids, rope, the key-value cache",
        "": "weights that changed after they were loaded: quantization, an adapter, another type or kernel",
    },
    PROCESSED: {
        GROWING: "a penalty or ban on what was said before: repetition_penalty, no_repeat_ngram_size",
        "": "a logits processor: penalty, ban, temperature or a filter",
    },
    TOKENS: {"": "the choice among the same scores: the seed, stop strings, EOS or a limit of length"},
    TEXT: {"": "decoding: clean-up of spaces, special tokens kept or dropped"},
}
OF_RAW_SCORES = "only what is made of the same raw scores changed"


@dataclass(frozen=True)
class Evidence:
    """The pins of a test beside what is now."""

    check: str  # id, to repeat it
    suite_file: str
    pinned: Header
    now: Header  # what would be pinned now
    replayed: tuple[Replayed, ...]
    drifts: tuple[Drift, ...]  # of each, in the same order
    ruler: Ruler


@dataclass(frozen=True)
class Stage:
    name: str
    differs: bool | None  # None: not known
    detail: str = ""  # what from what


@dataclass(frozen=True)
class Diagnosis:
    """What is known of the cause."""

    stage: str  # the first that differs; "" where none does
    detail: str
    shape: str  # over positions; "" where nothing is known of it
    rows: str  # of all prompts, which
    cause: str
    affected: tuple[str, ...]  # prompts
    also: tuple[str, ...]  # what else went in that differs
    ruled_out: tuple[str, ...]


def digest_of(text: str) -> str:
    """Of a rendered prompt, as pins hold it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def present(memory: Memory, pinned: Header, replayed: Sequence[Replayed]) -> Header:
    """The header as it would be written now."""
    generations = {one.pin.generation: one.now.generation_config for one in replayed}
    return header_now(memory, pinned.suite, pinned.target, generations, pinned.floor)


def diagnose(evidence: Evidence) -> Diagnosis:
    affected = _affected(evidence)
    all_stages = stages(evidence)
    harmless = _without_effect(evidence)
    differing = [stage for stage in all_stages if stage.differs]
    first = next((stage for stage in differing if stage.name not in harmless), None)
    shape, rows = _shape(evidence, affected), _rows(evidence, affected)
    cause = ""
    if first:
        causes = CAUSES[first.name]
        cause = next(causes[key] for key in (rows, shape, "") if key in causes)
    return Diagnosis(
        stage=first.name if first else "",
        detail=first.detail if first else "",
        shape=shape,
        rows=rows,
        cause=cause,
        affected=tuple(drift.name for drift in affected),
        also=tuple(_named(stage) for stage in differing if stage.name in GIVEN and stage != first),
        ruled_out=tuple(
            _equal(stage) for stage in all_stages if stage.differs is False and stage.name in (*GIVEN, RAW)
        ),
    )


def stages(evidence: Evidence) -> tuple[Stage, ...]:
    """Every stage in the order in which they follow from each other."""
    pairs = [(one.pin, one.now) for one in evidence.replayed]
    old, new = evidence.pinned, evidence.now
    rendered = [pin.name for pin, now in pairs if pin.prompt_digest != digest_of(now.prompt_text)]
    ids = [pin.name for pin, now in pairs if pin.prompt_ids != now.prompt_ids]
    raw = _raw_differs(evidence)
    processed = None if raw is not False else is_processed_otherwise(evidence.drifts, evidence.ruler)
    tokens = [pin.name for pin, now in pairs if (pin.ids, pin.finish) != (now.ids, now.finish)]
    texts = [pin.name for pin, now in pairs if pin.text != now.text]
    return (
        _of_prompts(RENDERED, rendered, "another chat template" if old.template != new.template else ""),
        _of_prompts(IDS, ids, "another tokenizer" if old.tokenizer != new.tokenizer else ""),
        _of_changes(PADDING, _padding(evidence)),
        _of_changes(CONFIG, _configs(old, new)),
        Stage(WEIGHTS, old.weights != new.weights if old.weights and new.weights else None, "another digest"),
        _of_changes(ENVIRONMENT, _changes(old.environment, new.environment)),
        Stage(RAW, raw),
        Stage(PROCESSED, processed),
        _of_prompts(TOKENS, tokens),
        _of_prompts(TEXT, texts),
    )


def message(evidence: Evidence, judgement: Judgement, diagnosis: Diagnosis) -> tuple[str, ...]:
    """The whole of it, in lines."""
    lines = {
        "what": _what(evidence, diagnosis),
        "rule": judgement.rule,
        "pattern": _pattern(evidence, diagnosis),
        "first": _first(evidence, diagnosis),
        "effect": _effect(evidence),
        "also": "; ".join(diagnosis.also),
        "ruled out": ", ".join(diagnosis.ruled_out) or "nothing",
        "next": f'repeat: pytest "{evidence.check}", or harness run {evidence.suite_file} '
        f"--target {evidence.pinned.target}   accept: pytest {evidence.suite_file} --update-pins",
    }
    return (_title(evidence, judgement), *(f"  {label:<{LABEL}}  {text}" for label, text in lines.items() if text))


def summary(evidence: Evidence, judgement: Judgement, diagnosis: Diagnosis) -> str:
    """One line: for pytest's short summary, where a line is cut off at its end."""
    sums = pooled(evidence.drifts)
    why = f"{diagnosis.stage} differ{'' if diagnosis.stage.endswith('s') else 's'}" if diagnosis.stage else "all equal"
    cause = f" -> {_cause(diagnosis)}" if diagnosis.stage else ""
    count = f"{len(diagnosis.affected)}/{len(evidence.drifts)} prompts"
    moved = f"; RMS {_times(sums.rms, evidence.ruler.rms)}" if sums.tokens else ""
    return f"{judgement.level.upper()} {count}, {why}{cause}{moved}"


def _without_effect(evidence: Evidence) -> tuple[str, ...]:
    """Stages that may differ and yet explain nothing: those that do not reach what changed."""
    raw = _raw_differs(evidence)
    if raw is False:
        return (WEIGHTS, ENVIRONMENT)
    of_cache = any("cache" in change for change in _configs(evidence.pinned, evidence.now))
    return (CONFIG,) if raw and not of_cache else ()  # the config acts on what is made of raw scores


def _affected(evidence: Evidence) -> list[Drift]:
    """Prompts that show more than noise; where only all together do, all."""
    one_by_one = [drift for drift in evidence.drifts if not judge_one(drift, evidence.ruler).is_quiet]
    together = raw_is_noise(evidence.drifts, evidence.ruler)
    return one_by_one if one_by_one or together else list(evidence.drifts)


def _raw_differs(evidence: Evidence) -> bool | None:
    if any(drift.nonfinite is not None for drift in evidence.drifts):
        return True
    compared = [drift for drift in evidence.drifts if drift.tokens]
    if not compared or raw_is_noise(compared, evidence.ruler):
        unknown = any(not drift.tokens and not drift.tokens_equal for drift in evidence.drifts)
        return None if unknown or not compared else False
    return True


def _rows(evidence: Evidence, affected: Sequence[Drift]) -> str:
    if padded_only(evidence.drifts, evidence.ruler):
        return PADDED
    if not affected or len(affected) == len(evidence.drifts):
        return ALL if affected else NONE
    return FEW if len(affected) <= FEW_SHARE * len(evidence.drifts) else SOME


def _shape(evidence: Evidence, affected: Sequence[Drift]) -> str:
    """Over positions; of the processed scores where the raw ones show noise, and "" where neither is known."""
    if is_biased(pooled(evidence.drifts), evidence.ruler) and not any(drift.flips for drift in evidence.drifts):
        return SCALE
    raw = _raw_differs(evidence)
    series = [drift.kl if raw else drift.processed for drift in affected]
    head = [one[0] for one in series if one]
    tail = [value for one in series for value in one[1:]]
    if not head:
        return ""
    if tail and fmean(head) >= evidence.ruler.limits.broken_first_times * fmean(tail):
        return HEAD
    early, late = ([value for one in series for value in one[part]] for part in (slice(EARLY), slice(LATE, None)))
    return GROWING if late and fmean(late) >= GROWTH * fmean(early) else FLAT


def _padding(evidence: Evidence) -> list[str]:
    padded = [(one.pin.padding, one.now.padding) for one in evidence.replayed if one.pin.padding and one.now.padding]
    sides = next((f"side {old} -> {new}" for old, new in padded if old != new), "")
    old, new = evidence.pinned.pad_token_id, evidence.now.pad_token_id
    return [change for change in (sides, f"pad token {old} -> {new}" if padded and old != new else "") if change]


def _configs(old: Header, new: Header) -> list[str]:
    found: list[str] = []
    for name in new.generations.keys() & old.generations.keys():
        found += _changes(_settings(old.generations[name]), _settings(new.generations[name]))
    if sorted(old.eos_token_ids) != sorted(new.eos_token_ids):
        found.append(f"EOS ids {sorted(old.eos_token_ids)} -> {sorted(new.eos_token_ids)}")
    return sorted(set(found))


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """What is set, as JSON: a list that was read from a file equals the tuple that was written."""
    kept = {name: value for name, value in config.items() if value is not None and not name.startswith("_")}
    return {name: json.dumps(value, default=str) for name, value in kept.items() if name != "transformers_version"}


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}" for name in names]


def _of_prompts(stage: str, names: Sequence[str], why: str = "") -> Stage:
    where = f"{names[0]}" if len(names) == 1 else f"{len(names)} prompts"
    return Stage(stage, bool(names), ", ".join(part for part in (f"in {where}", why) if part) if names else "")


def _of_changes(stage: str, changes: Sequence[str]) -> Stage:
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return Stage(stage, bool(changes), ", ".join(changes[:SHOWN]) + more)


def _named(stage: Stage) -> str:
    return f"{stage.name}: {stage.detail}"


def _equal(stage: Stage) -> str:
    return f"{stage.name} within noise" if stage.name == RAW else f"{stage.name} equal"


def _title(evidence: Evidence, judgement: Judgement) -> str:
    old, new = evidence.pinned, evidence.now
    changed = [
        f"{name} {old.environment[name]}, now {new.environment[name]}"
        for name in ("transformers", "torch")
        if name in old.environment and name in new.environment and old.environment[name] != new.environment[name]
    ]
    versions = f"   (pinned with {'; '.join(changed)})" if changed else ""
    model = f"{old.target}@{old.weights[:6]}" if old.weights else old.target
    return f"{judgement.level.upper()}  suite={old.suite}  model={model}  lane={old.lane.name}{versions}"


def _what(evidence: Evidence, diagnosis: Diagnosis) -> str:
    sums = pooled([drift for drift in evidence.drifts if drift.name in diagnosis.affected] or evidence.drifts)
    count = f"{len(diagnosis.affected)} of {len(evidence.drifts)} prompts affected"
    if not sums.tokens:
        return count
    ruler = evidence.ruler
    floor = f"floor {ruler.kl:.2g}{'' if ruler.floor.measured else ' (not measured: a default)'}"
    return (
        f"{count}; first-token KL {sums.first_kl:.3g} nats, tail {sums.tail_kl:.3g}, {floor}; "
        f"RMS {sums.rms:.3g} nats = {_times(sums.rms, ruler.rms)}"
    )


def _pattern(evidence: Evidence, diagnosis: Diagnosis) -> str:
    rows: str = diagnosis.rows
    if diagnosis.rows == PADDED:
        hit = [drift for drift in evidence.drifts if drift.pads]
        pads = sorted(drift.pads for drift in hit)
        quiet = len(evidence.drifts) - len(hit)
        rows = f"every affected row is padded ({pads[0]}..{pads[-1]} pads); {quiet} unpadded show no more than noise"
    raw_equal = _raw_differs(evidence) is False and diagnosis.stage
    parts = [OF_RAW_SCORES if raw_equal else "", rows, diagnosis.shape]
    told = "; ".join(part for part in parts if part)
    if not diagnosis.stage:
        return f"{told}; no stage differs"
    detail = f" ({diagnosis.detail})" if diagnosis.detail else ""
    return f"{told}; first stage that differs: {diagnosis.stage}{detail} -> {diagnosis.cause}"


def _cause(diagnosis: Diagnosis) -> str:
    """What changed, where that is known, says more than what may have."""
    return diagnosis.detail if diagnosis.stage in (CONFIG, PADDING) else diagnosis.cause


def _first(evidence: Evidence, diagnosis: Diagnosis) -> str:
    """The earliest flip of an affected prompt, of the largest margin; or else where a free run left the pin."""
    hit = [drift for drift in evidence.drifts if drift.flips and drift.name in diagnosis.affected]
    names = {token: text for one in evidence.replayed for token, text in zip(one.now.ids, one.now.tokens, strict=False)}
    if hit:
        first = min(hit, key=lambda drift: (drift.flips[0].index, -drift.flips[0].margin))
        return _told(first.name, first.flips[0], names, evidence.ruler)
    for one in evidence.replayed:
        pairs = enumerate(zip(one.pin.ids, one.now.ids, strict=False))
        parted = next((index for index, (old, new) in pairs if old != new), None)
        if parted is not None:
            old, new = one.pin.ids[parted], one.now.ids[parted]
            told = f"prompt '{one.pin.prompt}', token {parted}: pinned {_token(old, names)}, now {_token(new, names)}"
            return f"{told}; the likeliest by raw scores is still the pin's" if one.steps else told
    return "none: the likeliest token is the pin's everywhere"


def _told(name: str, flip: Flip, names: Mapping[int, str], ruler: Ruler) -> str:
    return (
        f"prompt '{name.rpartition('@')[0] or name}', token {flip.index}: "
        f"pinned {_token(flip.pinned, names)} {_probability(flip.pinned_logprob)}, "
        f"now {_token(flip.now, names)} {_probability(flip.now_logprob)}; "
        f"margin {flip.margin:.3g} nats = {_times(flip.margin, ruler.gap)}"
    )


def _effect(evidence: Evidence) -> str:
    drifts, pairs = evidence.drifts, [(one.pin, one.now) for one in evidence.replayed]
    before, after = (sum(side.finish == "eos" for side in sides) for sides in zip(*pairs, strict=True))
    length = fmean(drift.length - drift.pinned_length for drift in drifts)
    ratio = pooled(drifts).perplexity_ratio
    told = [
        f"tokens differ in {sum(not drift.tokens_equal for drift in drifts)} of {len(drifts)} prompts",
        f"{after} stop at EOS, {before} before",
        f"mean length {length:+.1f} tokens",
    ]
    return ", ".join([*told, f"perplexity of the pinned text ×{ratio:.3g}"] if not math.isnan(ratio) else told)


def _token(token: int, names: Mapping[int, str]) -> str:
    return repr(names[token]) if token in names else f"token {token}"


def _probability(logprob: float) -> str:
    return f"p={math.exp(logprob):.2f}".replace("p=0.", "p=.")


def _times(value: float, floor: float) -> str:
    if not floor or not math.isfinite(value):
        return f"{value:g} where the floor is {floor:g}"
    ratio = value / floor
    return f"{ratio:.3g} × floor" if ratio < 1000 else f"{float(f'{ratio:.2g}'):,.0f} × floor"
