"""The real thing: `generate()` of transformers on one loaded target, with everything about it recorded."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.backends import Progress, logs, quantizations, sources
from harness.backends.recorder import Recorder
from harness.errors import CannotRun, InvalidRequest, ModelUnavailable, NumericFailure, OutOfMemory
from harness.inputs import Model
from harness.record import Batch, Completion, Failure, Finish, Request, Target, TargetFacts, Text

UNLIMITED = 10**9  # a tokenizer that knows no limit says 1e30


def load(target: Target, *, top_k: int, progress: Progress) -> Transformers:
    """Load the weights, and refuse to go on when they are not what was asked for."""
    began = time.monotonic()
    with logs.captured() as warnings, logs.no_bars():
        source = sources.resolve(target.model, progress)
        progress(f"loading {target.name}")
        tokenizer = _load_tokenizer(source, target.model)
        model, effective = _load_model(source, target)
    facts = _facts(target, source, model, tokenizer, effective)
    facts = dataclasses.replace(facts, load_seconds=time.monotonic() - began, warnings=dict(warnings))
    return Transformers(target, model, tokenizer, facts, top_k)


def _load_tokenizer(source: sources.Source, model: Model) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"the tokenizer of {source.origin} cannot be loaded: {error}") from error


def _load_model(source: sources.Source, target: Target) -> tuple[Any, quantizations.Effective]:
    wanted = target.model
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=wanted.dtype,
            device_map=_device_map(wanted),
            use_safetensors=True,
            trust_remote_code=wanted.trust_remote_code,
            output_loading_info=True,
            **({"attn_implementation": wanted.attention} if wanted.attention else {}),
            **quantizations.arguments(target.quantization, wanted.dtype),
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{target.name} does not fit on the device: {error}", "Take a smaller level, or set `device: auto`."
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise ModelUnavailable(f"{source.origin} cannot be loaded: {error}") from error
    _refuse_incomplete(source, report)
    effective = quantizations.inspect(model)
    quantizations.check(target.quantization, wanted.dtype, effective)
    return model.eval(), effective


def _device_map(model: Model) -> Any:
    if model.device == "auto":
        return "auto"
    return {"": model.device or ("cuda:0" if torch.cuda.is_available() else "cpu")}


def _refuse_incomplete(source: sources.Source, report: Mapping[str, Any]) -> None:
    """A missing tensor is filled with random numbers, and only a log line says so."""
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(map(str, report.get(kind) or ()))
        if keys:
            raise ModelUnavailable(
                f"{source.origin}: {len(keys)} {kind.replace('_', ' ')} in the weights, the first is {keys[0]}",
                "The files do not fit the architecture in config.json: fetch or convert them again.",
            )


def _facts(
    target: Target, source: sources.Source, model: Any, tokenizer: Any, effective: quantizations.Effective
) -> TargetFacts:
    pad, pad_from = _pad_token(model, tokenizer)
    return TargetFacts(
        target=target.name,
        device=str(model.device),
        dtype=effective.dtype,
        attention=str(getattr(model.config, "_attn_implementation", "")),
        tokenizer=type(tokenizer).__name__,
        padding_side=str(tokenizer.padding_side),
        pad_token_id=pad,
        pad_token_from=pad_from,
        eos_token_ids=_ids(model.generation_config.eos_token_id),
        context_window=_context_window(model, tokenizer),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        weights=f"{source.origin}{f' (dequantised from {source.dequantised_from})' if source.dequantised_from else ''}",
        weights_digest=source.digest,
        weight_bytes=effective.weight_bytes,
        modules=effective.modules,
        generation_config=_plain(model.generation_config.to_diff_dict()),
        autocast=torch.is_autocast_enabled(model.device.type),
    )


def _pad_token(model: Any, tokenizer: Any) -> tuple[int, str]:
    """The id to pad with. Nothing is written back: neither tokenizer nor config is changed."""
    eos = _ids(model.generation_config.eos_token_id)
    candidates = (
        (tokenizer.pad_token_id, "tokenizer"),
        (model.generation_config.pad_token_id, "generation config"),
        (eos[0] if eos else None, "EOS (no pad token is set)"),
        (tokenizer.eos_token_id, "EOS of the tokenizer (no pad token is set)"),
    )
    for token, where in candidates:
        if token is not None:
            return int(token), where
    return 0, "id 0 (neither pad nor EOS is set)"


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def _context_window(model: Any, tokenizer: Any) -> int | None:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min((int(limit) for limit in limits if limit and limit < UNLIMITED), default=None)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A generation config as JSON data, without the version that wrote it and what is unset."""
    return {
        key: value
        for key, value in config.items()
        if isinstance(value, (bool, int, float, str, list))
        and key != "transformers_version"
        and not key.startswith("_")
    }


class Transformers:
    """One loaded model."""

    def __init__(self, target: Target, model: Any, tokenizer: Any, facts: TargetFacts, top_k: int) -> None:
        self.target = target
        self.model = model
        self.tokenizer = tokenizer
        self.facts = facts
        self.top_k = top_k
        self._encoded: dict[Text, tuple[str, tuple[int, ...]]] = {}

    def length(self, request: Request) -> int:
        try:
            return len(self._encode(request.prompt)[1])
        except CannotRun:
            return 0

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """One batch. A row that cannot be run fails alone; running out of memory halves the batch."""
        answers: dict[int, Completion | Failure] = {}
        runnable: list[int] = []
        for index, request in enumerate(requests):
            try:
                self._refuse_impossible(request, request.prompt)
                runnable.append(index)
            except CannotRun as error:
                answers[index] = Failure(request, error.kind, str(error))
        for index, answer in zip(runnable, self._run([requests[i] for i in runnable]), strict=True):
            answers[index] = answer
        return [answers[index] for index in range(len(requests))]

    def close(self) -> None:
        self.model = None
        self._encoded.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        if not requests:
            return []
        try:
            return list(self._generate_batch(requests))
        except torch.OutOfMemoryError as error:
            message = str(error).split("\n", 1)[0]
        except CannotRun as error:
            return [Failure(request, error.kind, str(error)) for request in requests]
        except Exception as error:  # whatever generate() raises is the answer to these requests, not our end
            return [Failure(request, "error", f"{type(error).__name__}: {error}") for request in requests]
        # Outside the except block: its traceback would keep the batch's tensors alive.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(requests) == 1 or isinstance(requests[0].layout, Batch):
            remedy = "Take a smaller level, fewer new tokens or a smaller batch_size."
            return [Failure(request, OutOfMemory.kind, f"out of memory: {message}\n  {remedy}") for request in requests]
        half = len(requests) // 2
        answers = [*self._run(requests[:half]), *self._run(requests[half:])]
        return [_marked_split(answer) for answer in answers]

    def _refuse_impossible(self, request: Request, prompt: Text) -> None:
        """What would fail obscurely, or not at all, is said before it runs."""
        _, ids = self._encode(prompt)
        if not ids:
            raise InvalidRequest("the prompt is empty: no token to start from", "Give it text.")
        if max(ids) >= self.facts.vocabulary:
            raise InvalidRequest(
                f"the tokenizer gives id {max(ids)}, but the model has {self.facts.vocabulary} embeddings",
                "Tokenizer and weights do not belong together; check `path` and `revision`.",
            )
        new = request.generation.max_new_tokens or 0
        window = self.facts.context_window
        if window is not None and len(ids) + new > window:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens; with {new} new ones that is beyond the context of {window}",
                "Shorten the prompt or lower max_new_tokens.",
            )

    def _rows(self, requests: Sequence[Request]) -> tuple[Text, ...]:
        """The prompts of the batch. A neighbour that cannot be run is left out; its own check says why."""
        layout = requests[0].layout
        if not isinstance(layout, Batch):
            return tuple(request.prompt for request in requests)
        rows = []
        for row in layout.rows:
            with suppress(InvalidRequest):
                self._refuse_impossible(requests[0], row)
                rows.append(row)
        return tuple(rows)

    def _encode(self, prompt: Text) -> tuple[str, tuple[int, ...]]:
        """Rendered text and ids of a prompt. A template's text already holds its special tokens."""
        if prompt not in self._encoded:
            text = prompt.text if prompt.messages is None else self._render(prompt)
            try:
                ids = self.tokenizer(text, add_special_tokens=prompt.messages is None)["input_ids"]
            except TypeError as error:  # lone surrogates and the like
                raise InvalidRequest(f"the tokenizer refuses this prompt: {error}") from error
            self._encoded[prompt] = (str(text), tuple(ids))
        return self._encoded[prompt]

    def _render(self, prompt: Text) -> str:
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                "the prompt has messages, but the model's tokenizer has no chat template",
                "Write the prompt as plain text, or take the model's instruct variant.",
            )
        messages = [message.model_dump() for message in prompt.messages or ()]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise InvalidRequest(
                f"the model's chat template raised {type(error).__name__}: {error}",
                "Many templates refuse a system message, or turns that do not alternate.",
            ) from error

    def _generate_batch(self, requests: Sequence[Request]) -> Sequence[Completion | Failure]:
        first = requests[0]
        layout = first.layout if isinstance(first.layout, Batch) else None
        rows = self._rows(requests)
        side = self._side(layout)
        inputs, pads = self._pad([self._encode(row)[1] for row in rows], side)
        if layout and not layout.attention_mask:
            del inputs["attention_mask"]
        recorder = Recorder(self.model, self.tokenizer, first.generation, self.top_k)
        with logs.captured() as warnings:
            sequences, seconds, memory = self._call(inputs, first, recorder)
        self.facts = dataclasses.replace(self.facts, cache=recorder.cache)
        config = _plain(recorder.generation_config)
        answers: list[Completion | Failure] = []
        for index, request in enumerate(requests):
            position = rows.index(request.prompt) if layout else index
            ids, finish = _own_tokens(recorder, sequences[position], inputs["input_ids"].shape[1])
            nonfinite = recorder.first_nonfinite(position, len(ids))
            if nonfinite is not None:
                where = f"NaN or Inf in the logits, first at new token {nonfinite}"
                answers.append(Failure(request, NumericFailure.kind, where))
                continue
            text, prompt_ids = self._encode(request.prompt)
            answers.append(
                Completion(
                    request=request,
                    prompt_text=text,
                    prompt_ids=prompt_ids,
                    ids=ids,
                    tokens=tuple(self.tokenizer.batch_decode([[token] for token in ids])),
                    text=self.tokenizer.decode(ids, skip_special_tokens=True),
                    finish=finish,
                    steps=recorder.steps(position, len(ids)),
                    precision=self._precision(),
                    generation_config=config,
                    padding=side if pads[position] else "",
                    pads=pads[position],
                    batch_size=len(rows),
                    seconds=seconds,
                    memory_bytes=memory,
                    warnings=dict(warnings),
                )
            )
        return answers

    def _call(self, inputs: dict[str, Any], request: Request, recorder: Recorder) -> tuple[Any, float, int]:
        device = self.model.device
        torch.manual_seed(request.generation.seed)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.synchronize(device)
        began = time.monotonic()
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), recorder.listening():
            sequences = self.model.generate(
                **inputs,
                **request.generation.arguments(),
                pad_token_id=self.facts.pad_token_id,
                stopping_criteria=[recorder],
                tokenizer=self.tokenizer,
                return_dict_in_generate=False,
            )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return sequences, time.monotonic() - began, _memory(device)

    def _side(self, layout: Batch | None) -> str:
        if layout is None:
            return "left"
        if layout.padding == "shipped":
            return self.target.model.padding_side or self.facts.padding_side
        return layout.padding

    def _pad(self, rows: Sequence[tuple[int, ...]], side: str) -> tuple[dict[str, Any], list[int]]:
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids, mask = [], []
        for row, count in zip(rows, pads, strict=True):
            padding, real = [self.facts.pad_token_id] * count, [1] * len(row)
            ids.append([*padding, *row] if side == "left" else [*row, *padding])
            mask.append([0] * count + real if side == "left" else real + [0] * count)
        device = self.model.device
        inputs = {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
        return inputs, pads

    def _precision(self) -> str:
        """Quantized weights compute at the precision of a 16-bit type at best: int8 keeps 8 bits of an activation."""
        if self.target.quantization != "none":
            return "bfloat16"
        return self.facts.dtype


def _own_tokens(recorder: Recorder, sequence: Any, prompt_length: int) -> tuple[tuple[int, ...], Finish]:
    length, finish = recorder.end(sequence, prompt_length)
    return tuple(sequence[prompt_length : prompt_length + length].tolist()), finish


def _marked_split(answer: Completion | Failure) -> Completion | Failure:
    return dataclasses.replace(answer, split_after_oom=True) if isinstance(answer, Completion) else answer


def _memory(device: torch.device) -> int:
    """Peak bytes of the batch on the GPU; on a CPU the resident size of the process after it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)
