"""The diagnosis of planted causes, and the message as it is printed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.inputs import GREEDY
from harness.pins import diagnosis
from harness.pins.diagnosis import Diagnosis, Evidence, diagnose, digest_of, message, present, summary
from harness.pins.drift import Drift, measure
from harness.pins.ladder import Judgement, Ruler, judge
from harness.pins.pin import Floor, Header, Lane, Memory, Pin, Replayed
from harness.record import Completion, Request, Step, TargetFacts, Text

Numbers = NDArray[np.float64]
TOKENS, VOCABULARY, EOS = 24, 60, 9
FLOOR = Floor(8e-6, 4e-8, 1e-5, ("another batch",))
CONFIG = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": [EOS], "repetition_penalty": 1.0}
HEADER = Header(
    suite="chat-basics",
    target="smollm2",
    lane=Lane("cpu", "float32", "none", "sdpa", "any"),
    weights="1a2b3c4d5e6f",
    tokenizer="tok",
    template="tmpl",
    pad_token_id=2,
    eos_token_ids=(EOS,),
    padding_side="left",
    generations={"default": CONFIG},
    environment={"torch": "2.13", "transformers": "5.22"},
    floor=FLOOR,
)


@dataclass(frozen=True)
class Side:
    """What one prompt is given and what comes of it, then or now."""

    logits: Numbers  # along the pinned tokens
    ids: tuple[int, ...]
    prompt: str = "What colour is grass?"
    prompt_ids: tuple[int, ...] = (4, 5, 6)
    text: str = "green"
    finish: str = "eos"
    padding: str = ""
    pads: int = 0
    config: Mapping[str, Any] | None = None


def log_softmax(row: Numbers) -> Numbers:
    shifted = row - row.max()
    normalised: Numbers = shifted - math.log(np.exp(shifted).sum())
    return normalised


def steps_of(logits: Numbers, ids: Sequence[int]) -> tuple[Step, ...]:
    steps = []
    for logprobs, token in zip(map(log_softmax, logits), ids, strict=True):
        top = np.argsort(-logprobs, kind="stable")[:20]
        kept = logprobs.astype(np.float32)
        steps.append(Step(float(kept[token]), array("i", top.tolist()), array("f", kept[top].tolist()), 20.0))
    return tuple(steps)


def replayed(name: str, then: Side, now: Side) -> Replayed:
    pin = Pin(
        prompt=name,
        generation="default",
        prompt_digest=digest_of(then.prompt),
        prompt_ids=then.prompt_ids,
        ids=then.ids,
        finish=then.finish,
        text=then.text,
        steps=steps_of(then.logits, then.ids),
        padding=then.padding,
        pads=then.pads,
    )
    completion = Completion(
        request=Request(Text(text="a"), GREEDY),
        prompt_text=now.prompt,
        prompt_ids=now.prompt_ids,
        ids=now.ids,
        tokens=tuple(f"w{token}" for token in now.ids),
        text=now.text,
        finish=now.finish,  # type: ignore[arg-type]
        generation_config=CONFIG if now.config is None else now.config,
        padding=now.padding,
        pads=now.pads,
    )
    return Replayed(pin, completion, steps_of(now.logits, then.ids), TargetFacts("smollm2"))


def memory(**changes: Any) -> Memory:
    facts = TargetFacts(
        "smollm2",
        weights_digest=HEADER.weights,
        tokenizer_digest="tok",
        template_digest="tmpl",
        pad_token_id=2,
        eos_token_ids=(EOS,),
        padding_side="left",
    )
    environment = changes.pop("environment", HEADER.environment)
    return Memory("check", "suite.yaml", HEADER.lane, replace(facts, **changes), environment)


Told = tuple[Diagnosis, Judgement, tuple[str, ...], str]


def told(
    pairs: Sequence[Replayed], processed: Sequence[tuple[Sequence[Step], Sequence[Step]]] = (), **changes: Any
) -> Told:
    """All that is said of it."""
    drifts: list[Drift] = [measure(one, processed[number] if processed else None) for number, one in enumerate(pairs)]
    evidence = Evidence(
        check="suites/chat.yaml::smollm2::same[colors]",
        suite_file="suites/chat.yaml",
        pinned=HEADER,
        now=present(memory(**changes), HEADER, pairs),
        replayed=tuple(pairs),
        drifts=tuple(drifts),
        ruler=Ruler(FLOOR, exact=True),
    )
    judgement = judge(drifts, evidence.ruler)
    found = diagnose(evidence)
    return found, judgement, message(evidence, judgement, found), summary(evidence, judgement, found)


def world(prompts: int = 9, seed: int = 0) -> list[Side]:
    """Greedy answers of a model that is sure of itself; every third prompt is the longest of its batch."""
    random = np.random.default_rng(seed)
    sides = []
    for number in range(prompts):
        logits = random.normal(0, 5, (TOKENS, VOCABULARY))
        pads = 0 if number % 3 == 0 else 10 * number
        ids = tuple(logits.argmax(-1).tolist())
        sides.append(Side(logits, ids, padding="left" if pads else "", pads=pads))
    return sides


def greedy(side: Side, logits: Numbers, **changes: Any) -> Side:
    return replace(side, logits=logits, ids=tuple(logits.argmax(-1).tolist()), **changes)


def moved(side: Side, size: float | Numbers, seed: int = 7) -> Side:
    return greedy(side, side.logits + np.random.default_rng(seed).normal(0, 1, side.logits.shape) * size)


def everywhere(change: Callable[[Side], Side], prompts: int = 9) -> list[Replayed]:
    return [replayed(f"p{number}", side, change(side)) for number, side in enumerate(world(prompts))]


def line(lines: Sequence[str], label: str) -> str:
    return next(text[11:].strip() for text in lines if text[2:11].strip() == label)


def test_an_example_with_another_template() -> None:
    def without_template(side: Side) -> Side:
        logits = side.logits + np.random.default_rng(3).normal(0, 0.4, side.logits.shape)
        logits[0] = np.roll(side.logits[0], 7)  # what is said first is another thing
        return greedy(side, logits, prompt="grass?", prompt_ids=(5, 6))

    found, judgement, lines, short = told(
        everywhere(without_template), environment={"torch": "2.13", "transformers": "5.23"}, template_digest="other"
    )

    assert (found.stage, found.shape, found.rows) == ("rendered prompt", "head-loaded", "all prompts")
    assert judgement.level == "broken"
    assert lines[0] == (
        "BROKEN  suite=chat-basics  model=smollm2@1a2b3c  lane=cpu/float32/none/sdpa/any"
        "   (pinned with transformers 5.22, now 5.23)"
    )
    assert line(lines, "what").startswith("9 of 9 prompts affected; first-token KL ")
    assert "rendered prompt (in 9 prompts, another chat template) -> the chat template is" in line(lines, "pattern")
    assert line(lines, "first").startswith("prompt 'p")
    assert ", token 0: pinned " in line(lines, "first")
    assert "tokens differ in 9 of 9 prompts" in line(lines, "effect")
    assert line(lines, "also") == "prompt ids: in 9 prompts; environment: transformers 5.22 -> 5.23"
    assert line(lines, "ruled out") == "padding equal, generation config equal, weights equal"
    assert line(lines, "next") == (
        'repeat: pytest "suites/chat.yaml::smollm2::same[colors]", or harness run suites/chat.yaml --target smollm2'
        "   accept: pytest suites/chat.yaml --update-pins"
    )
    assert short.startswith("BROKEN 9/9 prompts, rendered prompt differs -> the chat template is missing")
    assert "\n" not in short


def penalized(side: Side) -> tuple[Side, Numbers]:
    """The free run under a penalty, on the pin's path; and its processed logits there."""
    processed = side.logits.copy()
    for index in range(TOKENS):
        said = list(side.ids[:index])
        row = processed[index]
        row[said] = np.where(row[said] > 0, row[said] / 1.3, row[said] * 1.3)
    parted = next((i for i, row in enumerate(processed) if int(row.argmax()) != side.ids[i]), None)
    ids = side.ids if parted is None else (*side.ids[:parted], int(processed[parted].argmax()))
    return replace(side, ids=ids, config=CONFIG | {"repetition_penalty": 1.3}, finish="length"), processed


def repeating(prompts: int = 9) -> list[Side]:
    """Answers that come back to the same few words, as time goes on."""
    random = np.random.default_rng(1)
    sides = []
    for side in world(prompts):
        logits = side.logits.copy()
        for index in range(6, TOKENS):
            logits[index, random.integers(0, 12)] += 14
        sides.append(greedy(side, logits))
    return sides


def test_an_example_with_a_penalty_that_slipped_in() -> None:
    then = repeating()
    now = [penalized(side) for side in then]
    pairs = [replayed(f"p{number}", side, own) for number, (side, (own, _)) in enumerate(zip(then, now, strict=True))]
    processed = [
        (steps_of(side.logits, side.ids), steps_of(scores, side.ids))
        for side, (_, scores) in zip(then, now, strict=True)
    ]

    found, judgement, lines, short = told(pairs, processed)

    assert (found.stage, found.shape) == ("generation config", "growing with length")
    assert judgement.level == "changed"
    assert "processed otherwise" in line(lines, "rule")
    assert line(lines, "pattern").startswith("only what is made of the same raw scores changed; ")
    assert "generation config (repetition_penalty 1.0 -> 1.3) -> a penalty or ban" in line(lines, "pattern")
    assert line(lines, "first").endswith("the likeliest by raw scores is still the pin's")
    assert "perplexity of the pinned text ×1" in line(lines, "effect")
    assert line(lines, "ruled out") == (
        "rendered prompt equal, prompt ids equal, padding equal, weights equal, environment equal, "
        "raw scores within noise"
    )
    assert "generation config differs -> repetition_penalty 1.0 -> 1.3" in short


def test_the_same_penalty_where_no_config_tells_of_it() -> None:
    then = repeating()
    now = [penalized(side) for side in then]
    pairs = [
        replayed(f"p{number}", side, replace(own, config=CONFIG))
        for number, (side, (own, _)) in enumerate(zip(then, now, strict=True))
    ]

    found, judgement, lines, _ = told(pairs)

    assert (found.stage, judgement.level) == ("processed scores", "changed")
    assert "a logits processor" in line(lines, "pattern")
    assert "generation config equal" in found.ruled_out


def test_an_example_with_right_padding() -> None:
    def right_padding(side: Side) -> Side:
        if not side.pads:
            return side
        logits = side.logits + np.random.default_rng(3).normal(0, 2, side.logits.shape)
        logits[0] = np.roll(side.logits[0], 7)
        return greedy(side, logits, finish="length")

    found, judgement, lines, short = told(everywhere(right_padding))

    assert (found.stage, found.rows) == ("raw scores", "padded rows only")
    assert found.affected == ("p1@default", "p2@default", "p4@default", "p5@default", "p7@default", "p8@default")
    assert judgement.level == "broken"
    assert line(lines, "pattern") == (
        "every affected row is padded (10..80 pads); 3 unpadded show no more than noise; head-loaded; "
        "first stage that differs: raw scores -> padding side, position ids or the attention mask"
    )
    assert line(lines, "effect").startswith("tokens differ in 6 of 9 prompts, 3 stop at EOS, 9 before, ")
    assert "prompt ids equal" in found.ruled_out
    assert "weights equal" in found.ruled_out
    assert "raw scores differ -> padding side" in short


def test_a_padding_side_that_is_told_is_the_first_stage() -> None:
    def right_padding(side: Side) -> Side:
        return replace(moved(side, 2.0), padding="right" if side.pads else "", pads=side.pads) if side.pads else side

    found, _, lines, short = told(everywhere(right_padding), pad_token_id=0)

    assert found.stage == "padding"
    assert "(side left -> right, pad token 2 -> 0)" in line(lines, "pattern")
    assert "padding differs -> side left -> right" in short


def test_other_weights_are_flat() -> None:
    found, _, lines, _ = told(everywhere(lambda side: moved(side, 0.4)), weights_digest="ffff")

    assert (found.stage, found.shape, found.rows) == ("weights", "flat over positions", "all prompts")
    assert "another checkpoint" in line(lines, "pattern")


def test_weights_that_changed_after_loading_leave_only_the_scores() -> None:
    found, *_ = told(everywhere(lambda side: moved(side, 0.4)))

    assert found.stage == "raw scores"
    assert found.cause.startswith("weights that changed after they were loaded: quantization")


def test_a_scale_moves_all_tokens_alike() -> None:
    found, judgement, lines, _ = told(everywhere(lambda side: greedy(side, side.logits * 1.02)))

    assert (found.stage, found.shape) == ("raw scores", "scale only")
    assert judgement.level == "changed"
    assert line(lines, "first") == "none: the likeliest token is the pin's everywhere"


def test_what_adds_up_grows() -> None:
    grows = np.linspace(0, 0.1, TOKENS)[:, None]

    found, *_ = told(everywhere(lambda side: moved(side, grows)))

    assert found.shape == "growing with length"
    assert "position ids, rope" in found.cause


def test_a_few_prompts() -> None:
    pairs = everywhere(lambda side: side)
    side = world()[0]
    pairs[0] = replayed("p0", side, moved(side, 0.5))

    found, *_ = told(pairs)

    assert found.rows == "a few prompts only"
    assert found.affected == ("p0@default",)
    assert "rope scaling" in found.cause


def test_an_upgrade_that_changes_no_score_is_not_the_cause() -> None:
    upgraded = {"torch": "2.13", "transformers": "5.23"}

    same, judgement, lines, short = told(everywhere(lambda side: side), environment=upgraded, weights_digest="ffff")
    changed, *_ = told(everywhere(lambda side: moved(side, 0.4)), environment=upgraded)

    assert (same.stage, judgement.level) == ("", "identical")
    assert line(lines, "pattern") == "no prompt; no stage differs"
    assert short.startswith("IDENTICAL 0/9 prompts, all equal")
    assert changed.stage == "environment"
    assert changed.detail == "transformers 5.22 -> 5.23"


def test_a_config_does_not_explain_raw_scores_unless_it_is_of_the_cache() -> None:
    def with_config(change: dict[str, Any]) -> str:
        return told(everywhere(lambda side: replace(moved(side, 0.4), config=CONFIG | change)))[0].stage

    assert with_config({"top_k": 7}) == "raw scores"
    assert with_config({"cache_implementation": "quantized"}) == "generation config"


def test_settings_that_only_look_different_are_equal() -> None:
    config = CONFIG | {
        "eos_token_id": (EOS,),
        "transformers_version": "5.23",
        "_from_model_config": True,
        "top_h": None,
    }

    found, *_ = told(everywhere(lambda side: replace(side, config=config)))

    assert "generation config equal" in found.ruled_out


def test_the_first_stages_in_their_order() -> None:
    def with_ids(side: Side) -> Side:
        return replace(moved(side, 0.4), prompt_ids=(1, 4, 5, 6))

    found, *_ = told(everywhere(with_ids), tokenizer_digest="other", weights_digest="ffff")

    assert (found.stage, found.detail) == ("prompt ids", "in 9 prompts, another tokenizer")
    assert "special tokens added twice" in found.cause
    assert found.also == ("weights: another digest",)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda side: replace(side, ids=side.ids[:5], finish="length"), "tokens"),
        (lambda side: replace(side, text="green "), "text"),
    ],
)
def test_the_last_stages(change: Callable[[Side], Side], stage: str) -> None:
    found, *_ = told(everywhere(change))

    assert found.stage == stage
    assert found.cause


def test_nothing_recorded_rules_nothing_out() -> None:
    side = world()[0]
    pair = replayed("p0", side, replace(side, ids=(*side.ids[:-1], 3)))
    pair = replace(pair, pin=replace(pair.pin, steps=()), steps=())

    found, judgement, lines, _ = told([pair])

    assert (found.stage, judgement.level) == ("tokens", "changed")
    assert "raw scores within noise" not in found.ruled_out
    assert line(lines, "what") == "1 of 1 prompts affected"


def test_the_first_flip_is_of_a_prompt_that_is_affected() -> None:
    pairs = everywhere(lambda side: moved(side, 0.4) if side.pads == 80 else side)
    close = world()[0]
    top = np.argsort(-close.logits[0])
    tied = close.logits.copy()
    tied[0, top[1]] = tied[0, top[0]] - 1e-6
    swapped = tied.copy()
    swapped[0, top[1]] += 2e-6
    pairs[0] = replayed("p0", replace(close, logits=tied), replace(close, logits=swapped))

    found, _, lines, _ = told(pairs)

    assert found.affected == ("p8@default",)
    assert line(lines, "first").startswith("prompt 'p8'")


def test_a_floor_that_was_not_measured_says_so() -> None:
    pairs = everywhere(lambda side: moved(side, 0.4))
    drifts = tuple(measure(one) for one in pairs)
    ruler = Ruler(replace(FLOOR, measured=()))
    evidence = Evidence("id", "s.yaml", HEADER, present(memory(), HEADER, pairs), tuple(pairs), drifts, ruler)

    assert "(not measured: a default)" in line(message(evidence, judge(drifts, ruler), diagnose(evidence)), "what")


def test_every_stage_and_place_has_a_cause() -> None:
    names = [*diagnosis.GIVEN, diagnosis.RAW, diagnosis.PROCESSED, diagnosis.TOKENS, diagnosis.TEXT]

    assert list(diagnosis.CAUSES) == names
    assert all(causes[""] for causes in diagnosis.CAUSES.values())
