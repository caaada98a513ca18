"""Outputs that are none: empty ones, ones that are stuck, and what stands behind a row's end."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, NamedTuple

from pydantic import Field, StrictInt

from harness.expectations.content import quote
from harness.expectations.invariance import PaddingInvariant
from harness.expectations.shorthand import Written
from harness.expectations.stopping import end_ids
from harness.record import Completion, Request, Verdict
from harness.wording import counted

# What NaN weights answer for ever. So few are enough where the output holds nothing else.
ZERO_RUN = 4
PROMPT_END = 40  # characters of the prompt's end in a sentence


class NotEmpty(Written):
    """The output holds something else than white space and special tokens."""

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        visible = sum(_visible(character) for character in completion.text)
        numbers = {"characters": visible, "new_tokens": completion.new_tokens, "finish": completion.finish}
        if visible:
            return Verdict("passed", f"{counted(visible, 'visible character')}", numbers)
        return Verdict("failed", _what_instead(completion), numbers, (_why_empty(completion),))


def _visible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf")


def _what_instead(completion: Completion) -> str:
    own = own_tokens(completion)
    if not own:
        return f"stopped at once: the first new token is EOS ({''.join(completion.tokens)!r})"
    special = Counter(token for token in own if any(map(_visible, token)))
    if special:
        listed = ", ".join(f"{token!r} × {count}" for token, count in special.most_common(3))
        return f"{counted(len(own), 'new token')} and no text: only special tokens ({listed})"
    return f"{counted(len(own), 'new token')} of white space only: {quote(completion.text)}"


def own_tokens(completion: Completion) -> tuple[str, ...]:
    """The tokens without the EOS that ended them."""
    return completion.tokens[:-1] if completion.finish == "eos" else completion.tokens


def _why_empty(completion: Completion) -> str:
    if completion.prompt_ids and completion.prompt_ids[-1] in end_ids(completion):
        return "remedy  the prompt itself ends with EOS: have the tokenizer add none (add_eos_token: false)"
    if completion.request.prompt.messages is None:
        return "remedy  the prompt is plain text, without a chat template: ask a chat model by `messages:`"
    end = completion.prompt_text[-PROMPT_END:]
    return f"remedy  see that the prompt ends where the assistant is to speak; it ends with {end!r}"


class Loop(NamedTuple):
    """A part of an output that is one cycle of tokens again and again."""

    start: int  # token from which on
    period: int
    times: int


class NoRepetition(Written):
    """The output is not stuck: no token again and again, no loop of tokens at its end."""

    catches: ClassVar[tuple[str, ...]] = ("P9",)
    run: StrictInt = Field(16, ge=2, description="One token so many times in a row is stuck; white space, at the end.")
    loops: StrictInt = Field(3, ge=2, description="The end of the output is a loop when it is the same so many times …")
    loop_tokens: StrictInt = Field(24, ge=2, description="… over at least so many tokens, which refrains seldom reach.")
    period: StrictInt = Field(64, ge=1, description="Loops of up to so many tokens are looked for.")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        tokens = own_tokens(completion)
        ids = completion.ids[: len(tokens)]
        if len(ids) >= ZERO_RUN and not any(ids):
            reason = f"nothing but token 0 ({tokens[0]!r}), {len(ids)} times: what NaN weights answer for ever"
            remedy = "remedy  load it in bfloat16 or float32 if it is float16, and see that no weights are missing"
            return Verdict("failed", reason, {"start": 0, "period": 1, "times": len(ids)}, (remedy,))
        found = self._stuck(ids, tokens)
        if found is None:
            return Verdict("passed", f"no run and no loop in {counted(len(ids))}", {"new_tokens": len(ids)})
        cycle = quote("".join(tokens[found.start : found.start + found.period]))
        what = cycle if found.period == 1 else f"the same {found.period} tokens ({cycle})"
        reason = f"stuck from token {found.start} on: {what} {found.times} times in a row"
        return Verdict(
            "failed", reason, found._asdict(), (f"output  {quote(completion.text)}", _how_to_get_out(completion))
        )

    def _stuck(self, ids: Sequence[int], tokens: Sequence[str]) -> Loop | None:
        runs = (run for run in _runs(ids) if run.times >= self.run and tokens[run.start].strip())
        return next(runs, None) or self._loop(ids)

    def _loop(self, ids: Sequence[int]) -> Loop | None:
        """The shortest cycle that the end of these ids is made of."""
        for period in range(1, min(self.period, len(ids) // self.loops) + 1):
            start = len(ids) - period
            while start > 0 and ids[start - 1] == ids[start - 1 + period]:
                start -= 1
            covered = len(ids) - start
            if covered >= max(self.loop_tokens, self.loops * period):
                return Loop(start, period, covered // period)
        return None


def _runs(ids: Sequence[int]) -> list[Loop]:
    runs, start = [], 0
    for _, group in groupby(ids):
        times = sum(1 for _ in group)
        runs.append(Loop(start, 1, times))
        start += times
    return runs


def _how_to_get_out(completion: Completion) -> str:
    ways = "repetition_penalty: 1.1, or sampling, or a larger model"
    if completion.request.prompt.messages is None:
        return f"remedy  ask a chat model by `messages:`; else {ways}"
    return f"remedy  {ways}"


class NothingAfterEos(Written):
    """In a batch, only padding stands after the row's own end."""

    catches: ClassVar[tuple[str, ...]] = ("P12",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        _, padded = PaddingInvariant().needs(request, peers)  # the same batch, so that it is generated once
        return (padded,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        numbers: dict[str, float | int | str] = {"tail": len(completion.tail), "batch_size": completion.batch_size}
        if completion.finish == "length":
            return Verdict(
                "skipped", "the row did not end before the limit, so that nothing can stand after it", numbers
            )
        if not completion.tail:
            return Verdict("skipped", f"no other row of the batch of {completion.batch_size} went on after it", numbers)
        pad = completion.generation_config.get("pad_token_id")
        padding = {*end_ids(completion), *(() if pad is None else (pad,))}
        place = next((place for place, token in enumerate(completion.tail) if token not in padding), None)
        if place is None:
            ids = ", ".join(map(str, sorted(set(completion.tail))))
            return Verdict("passed", f"after its end stand {counted(len(completion.tail), 'pad')} (id {ids})", numbers)
        numbers |= {"index": place, "token": completion.tail[place]}
        reason = (
            f"{counted(place + 1)} after its end stands id {completion.tail[place]}, which is neither the pad token "
            f"({pad}) nor EOS"
        )
        remedy = "remedy  cut every row at its first end token before you decode it"
        return Verdict("failed", reason, numbers, (remedy,))
