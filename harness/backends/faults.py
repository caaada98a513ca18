"""Faults to plant in a loaded model, as deployments have them: a suite is worth what it catches of these.

To add one: write a context manager over the loaded target and add it to FAULTS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from harness.backends import Backend
from harness.backends.loading import ids_of
from harness.backends.transformers import Transformers
from harness.errors import NotSupported

Plant = Callable[[Transformers], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One way in which a deployment goes wrong."""

    summary: str
    plant: Plant


def plant(backend: Backend, name: str) -> AbstractContextManager[None]:
    """The backend with this fault for a while."""
    if not isinstance(backend, Transformers):
        raise NotSupported("faults can be planted only in a model that really runs (backend: transformers)")
    return FAULTS[name].plant(backend)


@contextmanager
def _set(holder: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object, for a while. What only its class had is taken away again."""
    before = {name: vars(holder)[name] for name in values if name in vars(holder)}
    for name, value in values.items():
        setattr(holder, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(holder, name, before[name])
            else:
                delattr(holder, name)


def _calling(change: Callable[[dict[str, Any]], None]) -> Plant:
    """A fault in how generate() is called."""

    @contextmanager
    def planted(backend: Transformers) -> Iterator[None]:
        generate = backend.model.generate

        def changed(*args: Any, **arguments: Any) -> Any:
            change(arguments)
            return generate(*args, **arguments)

        with _set(backend.model, generate=changed):
            yield

    return planted


def _without(*names: str) -> Plant:
    """A fault in how generate() is called: some arguments are forgotten."""

    def forget(arguments: dict[str, Any]) -> None:
        for name in names:
            arguments.pop(name, None)

    return _calling(forget)


def _unmasked(arguments: dict[str, Any]) -> None:
    """What generate() falls back on where it cannot infer the mask; where it can, leaving it out does no harm."""
    if "attention_mask" in arguments:
        arguments["attention_mask"] = torch.ones_like(arguments["attention_mask"])


def _sampling() -> Plant:
    seeds = count(1)

    def sample(arguments: dict[str, Any]) -> None:
        if arguments.get("num_beams", 1) == 1 and "prompt_lookup_num_tokens" not in arguments:
            arguments |= {"do_sample": True, "temperature": 1.0, "top_k": 50}
        torch.manual_seed(next(seeds))

    return _calling(sample)


def _shipping(**values: Any) -> Plant:
    """A fault in the generation config that comes with the model."""
    return lambda backend: _set(backend.model.generation_config, **values)


@contextmanager
def _right_padding(backend: Transformers) -> Iterator[None]:
    with _set(backend, side=lambda layout: "right"):
        yield


@contextmanager
def _template(backend: Transformers, template: str) -> Iterator[None]:
    backend.prompts.forget()
    with _set(backend.tokenizer, chat_template=template):
        yield
    backend.prompts.forget()


@contextmanager
def _no_template(backend: Transformers) -> Iterator[None]:
    if not backend.tokenizer.chat_template:
        raise NotSupported("the tokenizer has no chat template that could go missing")
    with _template(backend, "{{ messages | map(attribute='content') | join('\n') }}"):
        yield


@contextmanager
def _double_bos(backend: Transformers) -> Iterator[None]:
    from tokenizers.processors import TemplateProcessing

    token, fast = backend.tokenizer.bos_token, getattr(backend.tokenizer, "backend_tokenizer", None)
    if token is None or fast is None:
        raise NotSupported("the tokenizer has no BOS token that could be doubled")
    before, doubled = fast.post_processor, [(token, backend.tokenizer.bos_token_id)]
    template = backend.tokenizer.chat_template
    try:
        fast.post_processor = TemplateProcessing(single=f"{token} {token} $A", special_tokens=doubled)
        with _template(backend, f"{{{{ bos_token + bos_token }}}}{template}" if template else template):
            yield
    finally:
        fast.post_processor = before


@contextmanager
def _layer_perturbed(backend: Transformers) -> Iterator[None]:
    """Every weight of the middle layer is a tenth too large."""
    lists = [list(module) for module in backend.model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not any(lists):
        raise NotSupported("the model has no list of layers to choose one from")
    layers = max(lists, key=len)
    weights = [weight for weight in layers[len(layers) // 2].parameters() if weight.is_floating_point()]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.1)
        try:
            yield
        finally:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


@contextmanager
def _cache_positions(backend: Transformers) -> Iterator[None]:
    """Tokens that are generated with a cache are placed further on than they stand."""

    def shift(module: Any, args: Any, arguments: dict[str, Any]) -> Any:
        ids, places = arguments.get("input_ids"), arguments.get("position_ids")
        if ids is not None and ids.shape[1] == 1 and places is not None:
            return args, arguments | {"position_ids": places + 16}
        return None

    handle = backend.model.register_forward_pre_hook(shift, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _one_token(backend: Transformers) -> Iterator[None]:
    """As with an overflow in the head: one token wins, whatever was said before."""

    def overflow(module: Any, args: Any, output: Any) -> None:
        output.logits[..., min(100, output.logits.shape[-1] - 1)] = output.logits.max() + 10

    handle = backend.model.register_forward_hook(overflow)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _processors_reversed(backend: Transformers) -> Iterator[None]:
    build = backend.model._get_logits_processor

    def reversed_list(*args: Any, **arguments: Any) -> Any:
        processors = build(*args, **arguments)
        processors.reverse()
        return processors

    with _set(backend.model, _get_logits_processor=reversed_list):
        yield


@contextmanager
def _text_after_the_end(backend: Transformers) -> Iterator[None]:
    """Rows that have ended are filled with text, as where an engine goes on with them."""
    generate, ends = backend.model.generate, ids_of(backend.model.generation_config.eos_token_id)

    def filled(*args: Any, **arguments: Any) -> Any:
        output = generate(*args, **arguments)
        start = arguments["input_ids"].shape[1]
        for row in output.sequences:
            ended = [place for place in range(start, len(row)) if int(row[place]) in ends]
            if ended:
                row[ended[0] + 1 :] = min(100, backend.facts.vocabulary - 1)
        return output

    with _set(backend.model, generate=filled):
        yield


@contextmanager
def _prompt_in_output(backend: Transformers) -> Iterator[None]:
    complete = backend._completion

    def with_prompt(request: Any, ids: tuple[int, ...] = (), **fields: Any) -> Any:
        return complete(request, (*backend.prompts.encode(request.prompt)[1], *ids), **fields)

    with _set(backend, _completion=with_prompt):
        yield


@contextmanager
def _drawn_colder(backend: Transformers) -> Iterator[None]:
    draw = torch.multinomial
    with _set(torch, multinomial=lambda shares, *args, **rest: draw(shares**2, *args, **rest)):
        yield


# Those that most expectations notice come first: a quick selftest asks each only until it has noticed one.
FAULTS: Mapping[str, Fault] = {
    "sampling_on": Fault("sampling is on, with another seed each time", _sampling()),
    "one_token": Fault("one token wins, whatever was said before", _one_token),
    "right_padding": Fault("batches are padded on the right", _right_padding),
    "dropped_mask": Fault("the padding is not masked", _calling(_unmasked)),
    "missing_template": Fault("messages are joined as plain text", _no_template),
    "double_bos": Fault("prompts begin with BOS twice", _double_bos),
    "eos_removed": Fault("the generation config has no EOS id", _shipping(eos_token_id=None)),
    "penalty_added": Fault("the generation config has repetition_penalty 1.3", _shipping(repetition_penalty=1.3)),
    "layer_perturbed": Fault("the weights of one layer are a tenth too large", _layer_perturbed),
    "cache_positions": Fault("cached tokens stand at wrong positions", _cache_positions),
    "limit_dropped": Fault("max_new_tokens is not passed", _without("max_new_tokens")),
    "minimum_dropped": Fault("min_new_tokens is not passed", _without("min_new_tokens")),
    "stop_dropped": Fault("stop_strings are not passed", _without("stop_strings")),
    "one_sequence": Fault("num_return_sequences is not passed", _without("num_return_sequences")),
    "processors_reversed": Fault("logits processors act in the reverse order", _processors_reversed),
    "drawn_colder": Fault("tokens are drawn as at half the temperature", _drawn_colder),
    "text_after_end": Fault("rows that have ended are filled with text", _text_after_the_end),
    "prompt_in_output": Fault("the prompt is counted as output", _prompt_in_output),
}
