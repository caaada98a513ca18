"""Whether the sampler itself draws as the distributions say, whatever the model and its configuration are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field, StrictInt

from harness.divergence import FLOAT32_MARGIN, ULPS, ulp
from harness.expectations.content import quote
from harness.expectations.shorthand import Written
from harness.inputs import Number
from harness.record import Batch, Completion, Distributions, Request, Verdict
from harness.wording import counted

if TYPE_CHECKING:
    from harness.sampler import Drawn, Findings

PROMPTS = 4  # of the test, the first ones: draws need no variety, and few prompts make one batch
ROWS = 8  # of that batch: each prompt stands in several, to see whether rows have numbers of their own
SEEDS = 2  # at least, to see whether the seed does anything
MOST_SEEDS = 64  # at most, where texts are short
DEFAULT_LENGTH = 20  # the library's own
CHANCE = 20_240_901  # seeds the randomised places: the same answers give the same verdict
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


class Sampler(Written):
    """Sampled tokens are drawn from the declared distribution, with numbers that are independent of each other."""

    catches: ClassVar[tuple[str, ...]] = ("X7",)
    tokens: StrictInt = Field(
        500, ge=100, le=20_000, description="So many are drawn and judged, over the first prompts of the test."
    )
    alpha: Number = Field(
        0.001,
        gt=0,
        le=0.05,
        description="How often a healthy sampler may fail, all tests together: 0.001 is 1 in 1000.",
    )

    @property
    def over_set(self) -> bool:
        return True

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        """The first prompt asks for all: they share their batches."""
        if request != peers[0]:
            return ()
        prompts = tuple(dict.fromkeys(peer.prompt for peer in peers))[:PROMPTS]
        rows = prompts * (ROWS // len(prompts))
        longest = len(rows) * (request.generation.max_new_tokens or DEFAULT_LENGTH)
        seeds = min(MOST_SEEDS, max(SEEDS, math.ceil(self.tokens / longest)))
        first = request.replace(layout=Batch(rows))
        return tuple(one for step in range(seeds) for one in _batch(first, request.generation.seed + step))

    def then(self, completions: Sequence[Completion]) -> Sequence[Request]:
        sampled = [one for one in completions if one.request.kind == "generate"]
        if not sampled or not _samples(sampled[0]):
            return ()
        drawn = sum(one.new_tokens for one in sampled)
        first = sampled[0].request
        seeds = {one.request.generation.seed for one in sampled}
        if drawn < self.tokens and len(seeds) < MOST_SEEDS:
            further = math.ceil((self.tokens - drawn) * len(seeds) / max(1, drawn))
            last = min(MOST_SEEDS, len(seeds) + max(1, further))
            return [one for step in range(len(seeds), last) for one in _batch(first, first.generation.seed + step)]
        length = self._length(sampled)
        return [one.request.replace(kind="replay", continuation=one.ids[:length]) for one in sampled]

    def _length(self, sampled: Sequence[Completion]) -> int:
        """So many tokens of each sequence are judged: whole distributions are large, and enough is enough."""
        longest = max(one.new_tokens for one in sampled)
        if sampled[0].generation_config.get("forced_eos_token_id") is not None:
            return longest  # the end is forced where the limit is, which a shorter path would move
        enough = (
            length for length in range(1, longest) if sum(min(length, one.new_tokens) for one in sampled) >= self.tokens
        )
        return max(next(enough, longest), sampled[0].request.generation.min_new_tokens or 1)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        sampled = [one for one in completions if one.request.kind == "generate"]
        led = {_place(one.request): one for one in completions if one.request.kind == "replay"}
        if not _samples(sampled[0]):
            return Verdict("skipped", "the effective generation config does not sample: nothing is drawn")
        read = _read([led[_place(one.request)] for one in sampled])
        numbers: dict[str, float | int | str] = {
            "tokens": sum(len(one.draws) for one in read.drawn) + len(read.cut_off),
            "seeds": len({one.seed for one in read.drawn}),
            "cut_off": len(read.cut_off),
        }
        if read.cut_off:
            return _emitted(read.cut_off, sampled[0], numbers)
        return self._drawn(read.drawn, sampled[0], numbers)

    def judge_set(self, prompts: Sequence[tuple[Sampler, Sequence[Completion]]]) -> Verdict:
        return self.judge(prompts[0][1])

    def _drawn(self, drawn: Sequence[Drawn], first: Completion, numbers: dict[str, float | int | str]) -> Verdict:
        from harness.sampler import TESTS, Draws, examine, temperature_in_sight

        found = examine(drawn)
        draws = Draws.together(one.draws for one in drawn)
        over = f"{counted(len(draws))} under {counted(int(numbers['seeds']), 'seed')}"
        numbers |= {"z": found.surprisal.z, "by_likelihood": found.by_likelihood, "by_id": found.by_id}
        numbers |= {f"p_{name}": p for name, p in found.p.items()}
        if found.smallest <= self.alpha:
            said, details = _told(found, self.alpha, first, greedy=bool(draws.likeliest.all()))
            rate = f"a healthy sampler fails in {self.alpha:.2%} of runs at most"
            return Verdict("failed", f"{said}, over {over}; {rate}", numbers, details)
        if not draws.variance.any():
            reason = (
                f"each of {counted(len(draws))} was the only one that could be drawn: sampling is greedy search here"
            )
            return Verdict("skipped", reason, numbers)
        if len(draws) < self.tokens:
            reason = f"only {over}, {self.tokens} wanted: the texts end too early to tell whether it draws as declared"
            return Verdict("error", reason, numbers, (_how_to_draw_more(first),))
        smaller = temperature_in_sight(draws, self.alpha / TESTS)
        numbers["temperature_in_sight"] = smaller
        return Verdict(
            "passed",
            f"{over} are drawn as declared: smallest of {TESTS} corrected p-values {found.smallest:.2g} (above "
            f"{self.alpha:g}), surprisal z {found.surprisal.z:+.1f}; {smaller:.2f} times the temperature would have "
            "shown",
            numbers,
        )


def _batch(first: Request, seed: int) -> list[Request]:
    """All rows of the batch under this seed."""
    assert isinstance(first.layout, Batch)
    generation = first.generation.model_copy(update={"seed": seed})
    return [
        first.replace(prompt=prompt, row=row, generation=generation) for row, prompt in enumerate(first.layout.rows)
    ]


def _samples(completion: Completion) -> bool:
    return bool(completion.generation_config.get("do_sample"))


def _place(request: Request) -> tuple[int, int | None]:
    return request.generation.seed, request.row


class CutOff(NamedTuple):
    """A token that was emitted although no processor had left it to choose."""

    led: Completion
    step: int
    rank: int  # among the raw logits, from 1
    kept: int  # so many could be drawn


class Read(NamedTuple):
    """What was drawn, step by step, with the distributions that it is to come from."""

    drawn: list[Drawn]
    cut_off: list[CutOff]


def _read(led: Sequence[Completion]) -> Read:
    """One step at a time: the distributions of all of them would not fit."""
    import numpy as np

    from harness.sampler import Drawn, Draws

    chance = np.random.default_rng(CHANCE)
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(one.request.prompt for one in led))}
    drawn, cut_off = [], []
    for one in led:
        steps, ids = [], []
        assert one.distributions is not None
        for step, token in enumerate(one.request.continuation):
            scores = one.distributions.processed(step)
            if math.isfinite(scores[token]):
                steps.append(Draws.of(scores[None], np.array([token]), chance.random((1, 2))))
                ids.append(token)
            elif not _at_the_edge(one, one.distributions, step, token):
                raw = one.distributions.raw(step)
                rank = int((raw > raw[token]).sum()) + 1
                cut_off.append(CutOff(one, step, rank, int(np.isfinite(scores).sum())))
        if steps:
            prompt, (seed, row) = prompts[one.request.prompt], _place(one.request)
            drawn.append(Drawn(prompt, seed, row or 0, tuple(ids), Draws.together(steps)))
    return Read(drawn, cut_off)


def _at_the_edge(led: Completion, distributions: Distributions, step: int, token: int) -> bool:
    """Whether rounding explains that it was kept the first time: it is as likely as what is kept now."""
    import numpy as np

    raw, scores = distributions.raw(step), distributions.processed(step)
    lowest = float(raw[np.isfinite(scores)].min())
    last_place = ULPS * ulp(led.precision, float(np.abs(raw[np.isfinite(raw)]).max()))
    return lowest - float(raw[token]) <= (FLOAT32_MARGIN if led.precision == "float32" else last_place)


def _emitted(cut_off: Sequence[CutOff], first: Completion, numbers: dict[str, float | int | str]) -> Verdict:
    worst = max(cut_off, key=lambda one: one.rank)
    token = worst.led.tokens[worst.step] if worst.step < len(worst.led.tokens) else ""
    id_ = worst.led.request.continuation[worst.step]
    filters = _filters(first.generation_config)
    reason = (
        f"{len(cut_off)} of {numbers['tokens']} tokens cannot be drawn under {filters}: the filters that are declared "
        "are not at work when it samples (certain, not a matter of chance)"
    )
    where = (
        f"token {worst.step} under seed {worst.led.request.generation.seed} at {quote(worst.led.request.prompt.last)}"
    )
    details = (
        f"emitted {quote(token)} (id {id_}), the {worst.rank}. of the raw logits, where {worst.kept} could be drawn",
        f"where   {where}",
        "look at  what is called to sample: a filter that is dropped there, or that acts after the draw",
    )
    return Verdict("failed", reason, numbers | {"rank": worst.rank}, details)


def _filters(config: Mapping[str, object]) -> str:
    said = [f"{name} {config[name]:g}" for name in FILTERS if isinstance(config.get(name), (int, float))]
    return ", ".join(said) or "its processors"


def _told(found: Findings, alpha: float, first: Completion, *, greedy: bool) -> tuple[str, tuple[str, ...]]:
    """The test that decided, as a sentence, and what to look at. What explains the others comes first."""
    p = found.p
    if greedy:
        name = min(p, key=lambda name: p[name])
        reason = f"every token is the likeliest one: it does not sample ({_p(p[name])})"
        return reason, ("look at  do_sample, which is on in the config and off where tokens are chosen",)
    if p["seeds"] <= alpha:
        twins = found.across_seeds
        reason = f"{twins.same} of {counted(twins.pairs, 'text')} are the same as under another seed ({_p(p['seeds'])})"
        return reason, ("look at  the generator: it is stuck, or seeded with the same number before every batch",)
    if p["rows"] <= alpha:
        twins = found.across_rows
        reason = (
            f"{twins.same} of {counted(twins.pairs, 'text')} are the same as that of another row of the batch "
            f"({_p(p['rows'])})"
        )
        return reason, ("look at  the generator: every row of a batch is given the same numbers",)
    name = min(("surprisal", "by_likelihood", "by_id"), key=lambda name: p[name])
    if name == "surprisal":
        return _too_likely(found, first)
    distance, order = (
        (found.by_likelihood, "by likelihood") if name == "by_likelihood" else (found.by_id, "in the order of ids")
    )
    reason = (
        f"the numbers that it draws with are not evenly spread {order} (Kolmogorov's D {distance:.3f}, {_p(p[name])})"
    )
    return reason, ("look at  the generator: its numbers are biased, or fewer than they should be",)


def _too_likely(found: Findings, first: Completion) -> tuple[str, tuple[str, ...]]:
    z, fits = found.surprisal.z, found.surprisal.temperature
    declared = first.generation_config.get("temperature") or 1.0
    what = "likelier" if z > 0 else "less likely"
    by = f"surprisal z {z:+.1f}, {_p(found.p['surprisal'])}"
    reason = f"{what} tokens are drawn than the declared distribution says ({by})"
    as_if = f"fits    temperature {fits * declared:.2g}, where {declared:g} is declared"
    cause = "a filter that is not declared" if z > 0 else "a filter that is dropped"
    return reason, (as_if, f"look at  the temperature when it samples: ignored, or applied twice; else {cause}")


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-12 else "p < 1e-12"


def _how_to_draw_more(first: Completion) -> str:
    limit = first.request.generation.max_new_tokens or DEFAULT_LENGTH
    return f"remedy  raise max_new_tokens ({limit}), or give prompts with longer answers"
