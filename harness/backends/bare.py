"""Calls as careless code makes them: what each resolves to and says, without paying for all that it would generate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, pipeline
from transformers.pipelines import SUPPORTED_TASKS

from harness.backends import logs
from harness.backends.loading import plain

OWN_LIMIT = 8  # max_new_tokens of the GenerationConfig that is passed over the model's own


@dataclass(frozen=True)
class BareCall:
    """What one such call does.

    Besides the effective arguments, generation_config holds new_token_limit, how many tokens it would generate at
    most; padding_side, on which a batch would be padded; dtype and device; raised and message, where it raised.
    """

    generation_config: Mapping[str, Any]
    warnings: Mapping[str, int]


def bare(kind: str, model: Any, tokenizer: Any, text: str, ids: Sequence[int]) -> BareCall:
    """Make the call, and leave model and tokenizer as they were."""
    watch = _Watch()
    raised: dict[str, str] = {}
    with logs.captured() as warnings, _untouched(model, tokenizer), watch.over(model):
        try:
            CALLS[kind](model, tokenizer, text, ids)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it raises is what happens to those who call like this
            raised = {"raised": type(error).__name__, "message": str(error)}
        seen = {
            "padding_side": str(tokenizer.padding_side),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        }
    config = watch.resolved()
    if raised:
        config.pop("new_token_limit", None)
    return BareCall({**config, **seen, **raised}, dict(warnings))


def _generate(model: Any, tokenizer: Any, text: str, ids: Sequence[int], **arguments: Any) -> None:
    row = torch.tensor([list(ids)], device=model.device)
    model.generate(row, attention_mask=torch.ones_like(row), **arguments)


def _generate_with_config(model: Any, tokenizer: Any, text: str, ids: Sequence[int]) -> None:
    _generate(model, tokenizer, text, ids, generation_config=GenerationConfig(max_new_tokens=OWN_LIMIT))


def _pipeline(model: Any, tokenizer: Any, text: str, ids: Sequence[int]) -> None:
    to_text = model.config.is_encoder_decoder and "text2text-generation" in SUPPORTED_TASKS
    pipeline("text2text-generation" if to_text else "text-generation", model=model, tokenizer=tokenizer)(text)


CALLS: Mapping[str, Callable[[Any, Any, str, Sequence[int]], None]] = {
    "bare_generate": _generate,
    "bare_config": _generate_with_config,
    "bare_pipeline": _pipeline,
}


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees what a call of generate() resolves to, and ends it after its first token; the call knows nothing of it."""

    def __init__(self) -> None:
        self._config: Any = None
        self._start: int | None = None  # length of what is gone on from

    @contextmanager
    def over(self, model: Any) -> Iterator[None]:
        prepare, measure = model._prepare_generation_config, model._prepare_generated_length
        criteria = model._get_stopping_criteria

        def keep_config(*args: Any, **kwargs: Any) -> Any:
            prepared = prepare(*args, **kwargs)
            if self._start is None:  # earlier ones are a pipeline's own, later ones those of a draft in this call
                self._config = prepared[0]
            return prepared

        def keep_start(*args: Any, **kwargs: Any) -> Any:
            if self._start is None:
                self._start = kwargs["input_ids_length"]
            return measure(*args, **kwargs)

        def end_soon(*args: Any, **kwargs: Any) -> Any:
            found = criteria(*args, **kwargs)
            found.append(self)
            return found

        model._prepare_generation_config, model._prepare_generated_length = keep_config, keep_start
        model._get_stopping_criteria = end_soon
        try:
            yield
        finally:
            del model._prepare_generation_config, model._prepare_generated_length, model._get_stopping_criteria

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def resolved(self) -> dict[str, Any]:
        """The effective arguments, empty where the call never came so far."""
        if self._config is None:
            return {}
        config = plain(self._config.to_dict())
        if self._start is not None and "max_length" in config:
            config["new_token_limit"] = config["max_length"] - self._start
        return config


@contextmanager
def _untouched(model: Any, tokenizer: Any) -> Iterator[None]:
    """Pipelines set padding_side, move the model to a GPU, and may write to its configuration: they get a copy."""
    own, side, device = model.generation_config, tokenizer.padding_side, model.device
    tasks = vars(model.config).get("task_specific_params")
    model.generation_config = copy.deepcopy(own)
    if tasks is not None:
        model.config.task_specific_params = copy.deepcopy(tasks)
    try:
        yield
    finally:
        model.generation_config, tokenizer.padding_side = own, side
        if tasks is not None:
            model.config.task_specific_params = tasks
        if model.device != device:
            model.to(device)
