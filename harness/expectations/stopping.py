"""When generation ends: stops_at_eos, finish, stop_string, new_tokens, truncated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, StrictInt, WithJsonSchema, model_validator

from harness.expectations.content import quote
from harness.expectations.shorthand import Written
from harness.inputs import Number
from harness.record import Completion, Request, Verdict
from harness.wording import counted

ENDED = {"eos": "EOS", "stop": "a stop string", "length": "the limit"}
PROMPT_SHOWN = 60  # characters of a prompt in a list of prompts


class StopsAtEos(Written):
    """Generation ends by an end-of-sequence token, not because the limit was reached."""

    catches: ClassVar[tuple[str, ...]] = ("E1", "E5")

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        numbers = {"new_tokens": completion.new_tokens, "finish": completion.finish}
        if completion.finish == "eos":
            return Verdict("passed", f"stopped at EOS after {counted(completion.new_tokens)}", numbers)
        return Verdict("failed", _why_not_eos(completion), numbers, (*_output(completion), *_how_to_end(completion)))


def end_ids(completion: Completion) -> tuple[int, ...]:
    """Every id that ends generation, as the effective config has it."""
    eos = completion.generation_config.get("eos_token_id")
    return tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,)


def _why_not_eos(completion: Completion) -> str:
    if completion.finish == "stop":
        return f"a stop string ended it after {counted(completion.new_tokens)}, no EOS token did"
    eos = completion.generation_config.get("eos_token_id")
    if eos is None:
        return "it cannot stop: the effective generation config has no eos_token_id"
    return f"rambled on until the limit of {completion.new_tokens} new tokens{_default_limit(completion)}, without EOS"


def _default_limit(completion: Completion) -> str:
    if completion.request.generation.max_new_tokens is not None:
        return ""
    return " (the default: the suite sets no max_new_tokens)"


def _how_to_end(completion: Completion) -> tuple[str, ...]:
    """What to do about an output that only the limit ended."""
    if completion.finish != "length":
        return ()
    ends = end_ids(completion)
    if not ends:
        return ("remedy  set eos_token_id in the model's generation_config.json",)
    place = next((place for place in range(completion.new_tokens) if is_special(completion, place)), None)
    listed = ", ".join(map(str, ends))
    if place is not None:
        token = f"token {place} of the output is {completion.tokens[place]!r} (id {completion.ids[place]})"
        return (f"remedy  {token}; if that ends a turn, add it to eos_token_id, which is {listed}",)
    if completion.request.prompt.messages is None:
        return ("remedy  raise max_new_tokens; a chat model ends its turns only if asked by `messages:`",)
    return (f"remedy  raise max_new_tokens; see that eos_token_id ({listed}) has the id that ends a turn",)


def is_special(completion: Completion, place: int) -> bool:
    """Whether this token was left out of the text, as special tokens are."""
    token = completion.tokens[place]
    if not token.strip() or "\ufffd" in token:  # white space may be cleaned up; \ufffd is a part of a character
        return False
    return completion.tokens.count(token) > completion.text.count(token.strip())


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, (str, int)) else value


def _list_of(item: Mapping[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


Reasons = Annotated[
    tuple[Literal["eos", "stop", "length"], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
    _list_of({"enum": list(ENDED)}),
]
TokenIds = Annotated[
    tuple[Annotated[StrictInt, Field(ge=0)], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
    _list_of({"type": "integer", "minimum": 0}),
]


class Finish(Written):
    """Generation ends for this reason: eos, stop (a stop string) or length (the limit); or for one of a list."""

    value_field: ClassVar[str] = "reason"
    catches: ClassVar[tuple[str, ...]] = ("E1", "E5")
    reason: Reasons = Field(("eos",), description="eos, stop or length; or a list of those that are right.")
    token_ids: TokenIds | None = Field(None, description="Where EOS ended it: with one of these ids.")

    @model_validator(mode="after")
    def _end_tokens_are_of_eos(self) -> Self:
        if self.token_ids is not None and "eos" not in self.reason:
            raise ValueError("token_ids are those of EOS: add eos to reason, or leave token_ids out")
        return self

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        numbers: dict[str, float | int | str] = {"new_tokens": completion.new_tokens, "finish": completion.finish}
        if completion.finish == "eos":
            numbers["end_token"] = completion.ids[-1]
        seen = f"{_ended_by(completion)} ended it after {counted(completion.new_tokens)}"
        if completion.finish not in self.reason:
            wanted = " or ".join(ENDED[reason] for reason in self.reason)
            rambled = completion.finish == "length" and "eos" in self.reason
            if not rambled:
                return Verdict("failed", f"{seen}, not {wanted}", numbers, _output(completion))
            details = (*_output(completion), *_how_to_end(completion))
            return Verdict("failed", _why_not_eos(completion), numbers, details)
        if completion.finish == "eos" and self.token_ids and completion.ids[-1] not in self.token_ids:
            wanted = " or ".join(map(str, self.token_ids))
            details = (*_output(completion), self._about_end_tokens(completion))
            return Verdict("failed", f"{seen}, not {wanted}", numbers, details)
        return Verdict("passed", seen, numbers)

    def _about_end_tokens(self, completion: Completion) -> str:
        unlisted = [token for token in self.token_ids or () if token not in end_ids(completion)]
        if unlisted:
            return f"remedy  {unlisted[0]} cannot end it: add it to eos_token_id in the model's generation_config.json"
        return f"remedy  if {completion.ids[-1]} is a right end as well, add it to token_ids"


def _ended_by(completion: Completion) -> str:
    """What ended it; of several end tokens, which."""
    if completion.finish != "eos":
        return ENDED[completion.finish]
    ends = end_ids(completion)
    among = f", one of {', '.join(map(str, ends))}," if len(ends) > 1 else ""
    return f"EOS token {completion.ids[-1]} ({completion.tokens[-1]!r}){among}"


class StopString(Written):
    """One of the generation's stop_strings ends the output: there, in the last token, and nowhere before."""

    catches: ClassVar[tuple[str, ...]] = ("E4",)

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        stops = completion.request.generation.stop_strings
        if not stops:
            return Verdict("error", 'the generation of this test has no stop strings: write stop_strings: ["…"] there')
        numbers: dict[str, float | int | str] = {"new_tokens": completion.new_tokens, "finish": completion.finish}
        after = counted(completion.new_tokens)
        found = _first_stop(completion, stops)
        if found is None:
            reason = f"{_ended_by(completion)} ended it after {after}: none of {', '.join(map(quote, stops))} is in it"
            return Verdict("failed", reason, numbers, _output(completion))
        text, stop, end = found
        rest = len(text) - end
        numbers |= {"stop_string": stop, "trailing": rest}
        in_last_token = end > _start_of_last_token(completion, text)
        if in_last_token and completion.finish != "length":
            trailing = f", with {counted(rest, 'more character')} of that token" if rest else ""
            return Verdict("passed", f"ended by {quote(stop)} after {after}{trailing}", numbers)
        went_on = f"generation went on for {counted(rest, 'character')}" if rest else "only the limit ended it"
        reason = f"{quote(stop)} at character {end - len(stop)} of the output did not end it: {went_on}"
        remedy = "remedy  cut the text there yourself, or stop at a token id by eos_token_id"
        return Verdict("failed", reason, numbers, (*_output(completion), remedy))


def _first_stop(completion: Completion, stops: Sequence[str]) -> tuple[str, str, int] | None:
    """The text that has it, the stop string that is complete first, and where it ends."""
    for text in (completion.text, "".join(completion.tokens)):  # the latter has the special tokens as well
        ends = []
        for stop in stops:
            before = completion.prompt_text[-(len(stop) - 1) :] if len(stop) > 1 else ""  # it may begin in the prompt
            start = (before + text).find(stop)
            if start >= 0:
                ends.append((start + len(stop) - len(before), stop))
        if ends:
            end, stop = min(ends)
            return text, stop, end
    return None


def _start_of_last_token(completion: Completion, text: str) -> int:
    if text == completion.text and is_special(completion, completion.new_tokens - 1):
        return len(text)
    start = len(text) - len(completion.tokens[-1])
    # Decoded by themselves, the tokens of some tokenizers lose the space before them.
    return start if "".join(completion.tokens) == text else start - 1


class NewTokens(Written):
    """The number of new tokens, the prompt not counted; min_new_tokens and max_new_tokens are kept."""

    bare: ClassVar[Mapping[str, Any]] = {"type": "integer", "minimum": 0}
    catches: ClassVar[tuple[str, ...]] = ("E3", "L1", "L3", "L4", "X1")
    min: StrictInt | None = Field(None, ge=0, description="At least this many.")
    max: StrictInt | None = Field(None, ge=0, description="At most this many.")

    @model_validator(mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        return value

    @model_validator(mode="after")
    def _a_range(self) -> NewTokens:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        return self

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        count = completion.new_tokens
        numbers = {"new_tokens": count, "finish": completion.finish}
        seen = f"{counted(count, 'new token')}, ended by {ENDED[completion.finish]}"
        if completion.finish == "length":
            seen += _default_limit(completion)
        broken = _limit_not_kept(completion)
        if broken:
            return Verdict("failed", broken, numbers, _output(completion))
        if self.min is not None and count < self.min:
            return Verdict("failed", f"too short: {seen}, at least {self.min} wanted", numbers, _output(completion))
        if self.max is not None and count > self.max:
            return Verdict("failed", f"too long: {seen}, at most {self.max} wanted", numbers, _output(completion))
        return Verdict("passed", seen, numbers)


def _limit_not_kept(completion: Completion) -> str:
    """What generate() was told and did not do, whatever the expectation wants."""
    least = completion.generation_config.get("min_new_tokens") or 0
    most = completion.request.generation.max_new_tokens
    if completion.finish == "eos" and completion.new_tokens <= least:
        return (
            f"EOS was new token {completion.new_tokens}, although min_new_tokens: {least} is to hold it back; "
            "see that eos_token_id lists every end token, and that no processor of your own undoes it"
        )
    if most is not None and completion.new_tokens > most:
        return (
            f"{counted(completion.new_tokens, 'new token')}, although max_new_tokens is {most}; "
            "speculative decoding may overrun it: leave it out, or cut the output"
        )
    return ""


class Truncated(Written):
    """Over all prompts of the test, at most this share stops only because of the limit."""

    value_field: ClassVar[str] = "max_rate"
    catches: ClassVar[tuple[str, ...]] = ("E1", "E5")
    max_rate: Number = Field(ge=0, le=1, description="From 0 (no prompt at all) to 1.")

    @property
    def over_set(self) -> bool:
        return True

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        return self.judge_set([(self, completions)])

    def judge_set(self, prompts: Sequence[tuple[Self, Sequence[Completion]]]) -> Verdict:
        completions = [completion for _, some in prompts for completion in some]
        cut = [completion for completion in completions if completion.finish == "length"]
        rate = len(cut) / len(completions)
        numbers = {"truncated": len(cut), "prompts": len(completions), "rate": rate, "max_rate": self.max_rate}
        reason = f"{len(cut)} of {counted(len(completions), 'prompt')} ({rate:.0%}) stopped only because of the limit"
        details = tuple(f"{counted(completion.new_tokens)}: {_shown_prompt(completion)}" for completion in cut)
        if rate <= self.max_rate:
            return Verdict("passed", reason, numbers, details)
        default = _default_limit(cut[0])
        wanted = f"{default}, at most {self.max_rate:.0%} wanted"
        return Verdict("failed", f"{reason}{wanted}", numbers, (*details, *_how_to_end(cut[0])))


def _shown_prompt(completion: Completion) -> str:
    """The end of the prompt's last message: what tells prompts of one set apart."""
    text = completion.request.prompt.last
    return repr(text) if len(text) <= PROMPT_SHOWN else f"…{text[-PROMPT_SHOWN:]!r}"


def _output(completion: Completion) -> tuple[str, ...]:
    return (f"output  {quote(completion.text)}",)
