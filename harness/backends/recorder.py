"""Watches one call of `generate()`: raw log-probabilities, the effective config, where each row ends.

A forward hook keeps the raw logits of the step (custom logits processors would see them only after the
penalties), and a stopping criterion, called once the token is chosen, reduces them. Everything stays on the
device until the end: a `.item()` per step would cost a synchronization each.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StoppingCriteria, StopStringCriteria

from harness.backends.loading import ids_of
from harness.inputs import Generation
from harness.record import Finish, Returned, Step


class Recorder(StoppingCriteria):  # type: ignore[misc]
    """One for each call of `generate()`."""

    def __init__(self, model: Any, tokenizer: Any, generation: Generation, top_k: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.top_k = top_k
        self.stop = StopStringCriteria(tokenizer, list(generation.stop_strings)) if generation.stop_strings else None
        self.generation_config: Mapping[str, Any] = {}
        self.cache = ""
        self._config: Any = None
        self._rows = 1
        self.logits: Any = None  # of the latest step, raw
        self._steps: list[tuple[Any, ...]] = []  # per step: chosen, top ids, top values, largest logit, finite; (B, …)
        self._columns: list[Any] = []  # the same, stacked over steps and on the CPU

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooked to the model for the length of one call."""
        handle = self.model.register_forward_hook(self._keep_logits)
        prepare = self.model._prepare_generation_config

        def keep_config(*args: Any, **kwargs: Any) -> Any:
            prepared = prepare(*args, **kwargs)
            if self._config is None:  # later ones are those of a draft within this very call
                self._config = prepared[0]  # generate() goes on filling it in: read at the end
            return prepared

        self.model._prepare_generation_config = keep_config
        try:
            yield
        finally:
            handle.remove()
            del self.model._prepare_generation_config
        self.generation_config = self._config.to_dict()
        self._columns = columns(self._steps)

    def _keep_logits(self, module: Any, args: Any, output: Any) -> None:
        self.logits = output.logits[:, -1].float()
        cache = output.get("past_key_values")
        self.cache = "none" if cache is None else type(cache).__name__

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Called after each token is chosen: records it and stops nothing; generate() has its own criteria."""
        self._rows = input_ids.shape[0]
        if self._records:
            self._steps.append(self.reduced(self.logits, input_ids[:, -1:]))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    @property
    def _records(self) -> bool:
        """Beams are reordered as they go, and drafts make several tokens a step: neither fits row and step."""
        config = self._config
        drafted = config.prompt_lookup_num_tokens or config.assistant_early_exit
        return (config.num_beams or 1) == 1 and not drafted

    def reduced(self, logits: Any, chosen: Any) -> tuple[Any, ...]:
        """What is kept of one step, for every row; it stays on the device."""
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(self.top_k, logprobs.shape[-1]))
        logprob = logprobs.gather(-1, chosen.to(logprobs.device)).squeeze(-1)
        finite = ~(logits.isnan() | logits.isposinf()).any(-1)
        return logprob, ids, values, logits.amax(-1), finite

    def own(self, sequence: Any, start: int) -> tuple[tuple[int, ...], Finish, tuple[int, ...]]:
        """The new tokens that are the row's own, why it ended, and what stands after; from ids, never from text."""
        length, finish = self._end(sequence, start)
        new = tuple(sequence[start:].tolist())
        return new[:length], finish, new[length:]

    def ended(self, sequence: Any, start: int, limit: int) -> bool:
        """Whether the row ended of itself, or only because of this limit."""
        length, finish = self._end(sequence, start)
        return finish != "length" or length < limit

    def _end(self, sequence: Any, start: int) -> tuple[int, Finish]:
        config = self.generation_config or self._config.to_dict()
        eos_ids, fill = set(ids_of(config.get("eos_token_id"))), {config.get("pad_token_id")}
        new = sequence[start:].tolist()
        for index, token in enumerate(new):
            if token in eos_ids:
                return index + 1, "eos"
            # A stop string ended the row only if nothing but filling follows: generate() may have missed it.
            # Without EOS rows that have ended are not filled, and go on as long as the others.
            filled = set(new[index + 1 :]) <= fill | eos_ids or (not eos_ids and self._rows > 1)
            if filled and self._stops(sequence[: start + index + 1]):
                return index + 1, "stop"
        return len(new), "length"

    def _stops(self, sequence: Any) -> bool:
        return self.stop is not None and bool(self.stop(sequence[None], None)[0])

    def returned(self, output: Any, row: int, copies: int, start: int) -> tuple[Returned, ...]:
        """All sequences that were returned for one prompt."""
        scores = getattr(output, "sequences_scores", None)
        made = []
        for index in range(row * copies, (row + 1) * copies):
            ids, _, _ = self.own(output.sequences[index], start)
            score = None if scores is None else float(scores[index])
            made.append(Returned(ids, self.tokenizer.decode(ids, skip_special_tokens=True), score))
        return tuple(made)

    def steps(self, row: int, length: int) -> tuple[Step, ...]:
        """What was recorded at the row's own tokens; nothing under beam search."""
        return steps_of(self._columns, row, length)

    def first_nonfinite(self, row: int, length: int) -> int | None:
        """The first step whose logits held NaN or Inf: greedy goes on with token 0 as if nothing were wrong."""
        finite: Sequence[bool] = self._columns[4][:length, row].tolist() if self._columns else ()
        return next((index for index, good in enumerate(finite) if not good), None)


def columns(reduced: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What was kept of each step, stacked over steps, and on the CPU."""
    return [torch.stack(column).cpu() for column in zip(*reduced, strict=True)]


def steps_of(kept: Sequence[Any], row: int, length: int) -> tuple[Step, ...]:
    """The steps of one row."""
    if not kept:
        return ()
    logprob, ids, values, height, _ = (column[:length, row].tolist() for column in kept)
    return tuple(Step(logprob[i], array("i", ids[i]), array("f", values[i]), height[i]) for i in range(len(logprob)))
