"""What logits processors make of a distribution: checked in closed form on the model's own raw logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from harness.expectations.shorthand import Written
from harness.inputs import Generation
from harness.record import Completion, Request, Verdict

# Strong enough for a wrong order to show: a penalty or a temperature moves the cut of top-k and top-p.
SAMPLING = Generation(do_sample=True, temperature=0.6, top_k=50, top_p=0.9, repetition_penalty=1.3, max_new_tokens=1)
TOLERANCE = 1e-4  # of a logit, relative; the library computes in float32
MASS = 1e-4  # of probability that rounding may move over the edge of a cut
# Processors that the closed form does not know: with one of them at work it says nothing.
UNKNOWN: Mapping[str, Any] = {
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "min_length": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0,
    "top_h": 1.0,
}

Scores = dict[int, float]


class ProcessorOrder(Written):
    """Penalties, temperature, top-k, top-p and min-p act in this order, as computed by hand from the raw logits."""

    catches: ClassVar[tuple[str, ...]] = ("X4",)
    not_for: ClassVar[Mapping[str, str]] = {
        "encoder_decoder": "the penalties of an encoder-decoder look at its own output, not at the prompt"
    }

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        own = request.generation
        generation = own if own.do_sample and (own.num_beams or 1) == 1 else SAMPLING
        return (request.replace(layout="alone", kind="processed", generation=generation),)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        config = completion.generation_config
        other = [name for name, idle in UNKNOWN.items() if config.get(name) not in (None, idle)]
        if other:
            return Verdict("skipped", f"{', '.join(other)} is at work, which the closed form does not know")
        raw, seen = completion.raw_logits, frozenset(completion.prompt_ids)
        wanted = closed_form(raw, seen, config)
        got = {token: score for token, score in enumerate(completion.processed_logits) if score > -math.inf}
        steps = ", ".join(f"{name} {config[name]:g}" for name in ORDER if config.get(name) is not None)
        problem = _difference(wanted, got)
        numbers = {"kept": len(got), "expected": len(wanted)}
        if not problem:
            return Verdict("passed", f"{steps}: the distribution is the one computed by hand", numbers)
        hint = _other_order(raw, seen, config, got)
        return Verdict("failed", f"{steps}: {problem}", numbers, (hint,) if hint else ())


def _penalised(scores: Scores, penalty: float, seen: frozenset[int]) -> Scores:
    def moved(token: int, score: float) -> float:
        if token not in seen:
            return score
        return score * penalty if score < 0 else score / penalty

    return {token: moved(token, score) for token, score in scores.items()}


def _likeliest(scores: Scores, count: float, seen: frozenset[int]) -> Scores:
    if not count or count >= len(scores):
        return scores
    edge = sorted(scores.values(), reverse=True)[int(count) - 1]
    return {token: score for token, score in scores.items() if score >= edge}


def _nucleus(scores: Scores, mass: float, seen: frozenset[int]) -> Scores:
    kept: Scores = {}
    total = 0.0
    for token, share in sorted(_probabilities(scores).items(), key=lambda item: -item[1]):
        if kept and total >= mass:
            break
        kept[token] = scores[token]
        total += share
    return kept


def _relative(scores: Scores, least: float, seen: frozenset[int]) -> Scores:
    shares = _probabilities(scores)
    edge = least * max(shares.values())
    return {token: score for token, score in scores.items() if shares[token] >= edge}


def _probabilities(scores: Scores) -> Scores:
    top = max(scores.values())
    weights = {token: math.exp(score - top) for token, score in scores.items()}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


# In the order in which they are to act.
ORDER: Mapping[str, Callable[[Scores, float, frozenset[int]], Scores]] = {
    "repetition_penalty": _penalised,
    "temperature": lambda scores, value, seen: {token: score / value for token, score in scores.items()},
    "top_k": _likeliest,
    "top_p": _nucleus,
    "min_p": _relative,
}


def closed_form(
    raw: Sequence[float], seen: frozenset[int], config: Mapping[str, Any], order: Sequence[str] = tuple(ORDER)
) -> Scores:
    """The tokens that are left, with their scores."""
    scores = dict(enumerate(raw))
    for name in order:
        value = config.get(name)
        if value is not None:
            scores = ORDER[name](scores, float(value), seen)
    return scores


def _difference(wanted: Scores, got: Scores) -> str:
    """What differs, beyond what rounding at the edge of a cut explains."""
    shares = _probabilities(wanted | got)
    moved = math.fsum(shares[token] for token in wanted.keys() ^ got.keys())
    if moved > MASS:
        return f"{len(got)} tokens can be drawn, {len(wanted)} are expected ({moved:.2%} of the probability differs)"
    both = wanted.keys() & got.keys()
    off = [token for token in both if not math.isclose(wanted[token], got[token], rel_tol=TOLERANCE, abs_tol=TOLERANCE)]
    if off:
        token = off[0]
        return f"the score of token {token} is {got[token]:.4g}, {wanted[token]:.4g} is expected"
    return ""


def _other_order(raw: Sequence[float], seen: frozenset[int], config: Mapping[str, Any], got: Scores) -> str:
    """The order that explains what was seen, if moving one processor to another place does."""
    names = tuple(ORDER)
    for name in names:
        rest = [other for other in names if other != name]
        for place in range(len(names)):
            order = (*rest[:place], name, *rest[place:])
            if order != names and not _difference(closed_form(raw, seen, config, order), got):
                return f"cause   {name} acts {f'after {order[place - 1]}' if place else 'first of all'}"
    return ""
