"""When generation ends: stops_at_eos, new_tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, StrictInt, model_validator

from harness.expectations.content import quote
from harness.expectations.shorthand import Written
from harness.record import Completion, Request, Verdict


class StopsAtEos(Written):
    """Generation ends by an end-of-sequence token, not because the limit was reached."""

    def needs(self, request: Request, peers: Sequence[Request]) -> Sequence[Request]:
        return (request,)

    def judge(self, completions: Sequence[Completion]) -> Verdict:
        (completion,) = completions
        numbers = {"new_tokens": completion.new_tokens, "finish": completion.finish}
        if completion.finish == "eos":
            return Verdict("passed", f"stopped at EOS after {counted(completion.new_tokens)}", numbers)
        return Verdict("failed", _why_not_eos(completion), numbers, (f"output  {quote(completion.text)}",))


def counted(number: int, word: str = "token") -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


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


class NewTokens(Written):
    """The number of new tokens, the prompt not counted."""

    bare: ClassVar[Mapping[str, Any]] = {"type": "integer", "minimum": 0}
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
        ended = {"eos": "EOS", "stop": "a stop string", "length": "the limit"}[completion.finish]
        seen = f"{counted(count, 'new token')}, ended by {ended}"
        if completion.finish == "length":
            seen += _default_limit(completion)
        if self.min is not None and count < self.min:
            return Verdict("failed", f"too short: {seen}, at least {self.min} wanted", numbers, _output(completion))
        if self.max is not None and count > self.max:
            return Verdict("failed", f"too long: {seen}, at most {self.max} wanted", numbers, _output(completion))
        return Verdict("passed", seen, numbers)


def _output(completion: Completion) -> tuple[str, ...]:
    return (f"output  {quote(completion.text)}",)
