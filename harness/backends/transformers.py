"""The real thing: `generate()` of transformers on one loaded target, with everything about it recorded."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from harness.backends import Progress, bare, logs, memory, quantizations, variants
from harness.backends.loading import open_target, plain
from harness.backends.pipeline import TokenizerPipeline
from harness.backends.prompts import Prompts, position
from harness.backends.recorder import Recorder
from harness.backends.replay import Forced
from harness.backends.scoring import likelihood, score
from harness.errors import CannotRun, InvalidRequest, NotSupported, NumericFailure, OutOfMemory
from harness.record import Batch, Completion, Failure, Request, Target, TargetFacts, Text
from harness.rendering import TemplateFailed, describe


def load(target: Target, *, top_k: int, progress: Progress) -> Transformers:
    """The target, ready to answer."""
    opened = open_target(target, progress)
    return Transformers(target, opened.model, opened.tokenizer, opened.facts, top_k)


class Transformers:
    """One loaded model."""

    def __init__(self, target: Target, model: Any, tokenizer: Any, facts: TargetFacts, top_k: int) -> None:
        self.target = target
        self.model = model
        self.tokenizer = tokenizer
        self.facts = facts
        self.top_k = top_k
        self.prompts = Prompts(tokenizer, facts)

    def length(self, request: Request) -> int:
        return self.prompts.length(request.prompt)

    def generate(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """One batch. A row that cannot be run fails alone; running out of memory halves the batch."""
        answers: dict[int, Completion | Failure] = {}
        runnable: list[int] = []
        for index, request in enumerate(requests):
            try:
                self.prompts.refuse_impossible(request, request.prompt)
                runnable.append(index)
            except CannotRun as error:
                answers[index] = Failure(request, error.kind, str(error))
        for index, answer in zip(runnable, self._run([requests[i] for i in runnable]), strict=True):
            answers[index] = answer
        return [answers[index] for index in range(len(requests))]

    def texts(self, ids: Sequence[int]) -> list[str]:
        return list(self.tokenizer.batch_decode([[token] for token in ids])) if ids else []  # of none: ""

    def close(self) -> None:
        self.model = None
        memory.release()

    def _run(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        if not requests:
            return []
        try:
            with variants.as_asked(self.model, requests[0], self.target.quantization):
                return self._answer(requests)
        except torch.OutOfMemoryError as error:
            message = str(error).split("\n", 1)[0]
        except CannotRun as error:
            return [Failure(request, error.kind, str(error)) for request in requests]
        except Exception as error:  # whatever generate() raises is the answer to these requests, not our end
            kind = NotSupported.kind if _says_unsupported(error) else "error"
            return [Failure(request, kind, f"{type(error).__name__}: {error}") for request in requests]
        # Outside the except block: its traceback would keep the batch's tensors alive.
        memory.release()
        if len(requests) == 1 or isinstance(requests[0].layout, Batch):
            remedy = "Take a smaller level, fewer new tokens or a smaller batch_size."
            return [Failure(request, OutOfMemory.kind, f"out of memory: {message}\n  {remedy}") for request in requests]
        half = len(requests) // 2
        answers = [*self._run(requests[:half]), *self._run(requests[half:])]
        return [_marked_split(answer) for answer in answers]

    def _answer(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """By what the requests of the batch ask for."""
        if requests[0].kind in ("generate", "replay"):
            return self._generate_batch(requests)
        single: Mapping[str, Callable[[Request], Completion]] = {
            "score": self._scored,
            "likelihood": self._likelihood,
            "render": self._rendered,
            "processed": self._processed,
        }
        answers: list[Completion | Failure] = []
        for request in requests:
            with logs.captured() as warnings:
                done = single.get(request.kind, self._bare)(request)
            answers.append(dataclasses.replace(done, warnings=dict(warnings) | dict(done.warnings)))
        return answers

    def _generate_batch(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        first = requests[0]
        layout = first.layout if isinstance(first.layout, Batch) else None
        rows = self.prompts.rows(requests)
        side = self.side(layout)
        encoded = [self.prompts.encode(row)[1] for row in rows]
        inputs, pads = self.prompts.pad(encoded, side, layout.pad_token_id if layout else None, self.model.device)
        if layout and not layout.attention_mask:
            del inputs["attention_mask"]
        recorder = Recorder(self.model, self.tokenizer, first.generation, self.top_k)
        # An encoder-decoder starts a sequence of its own, with one token that it is given.
        start = 1 if "encoder_decoder" in self.facts.traits else inputs["input_ids"].shape[1]
        forced = self._forced(requests, rows, recorder) if first.kind == "replay" else None
        with logs.captured() as warnings, forced.listening(self.model) if forced else nullcontext():
            output, seconds, peak = self._call(inputs, first, recorder, **(forced.limit if forced else {}))
        self.facts = dataclasses.replace(self.facts, cache=recorder.cache)
        config = plain(recorder.generation_config)
        copies = len(output.sequences) // len(rows)
        answers: list[Completion | Failure] = []
        for index, request in enumerate(requests):
            row = position(request, rows, index)
            ids, finish, tail = recorder.own(output.sequences[row * copies], start)
            nonfinite = recorder.first_nonfinite(row * copies, len(ids))
            if nonfinite is not None:
                where = f"NaN or Inf in the logits, first at new token {nonfinite}"
                answers.append(Failure(request, NumericFailure.kind, where))
                continue
            answers.append(
                self._completion(
                    request,
                    ids=ids,
                    finish=finish,
                    steps=recorder.steps(row * copies, len(ids)),
                    generation_config=config,
                    padding=side if pads[row] else "",
                    pads=pads[row],
                    batch_size=len(rows),
                    seconds=seconds,
                    memory_bytes=peak,
                    warnings=dict(warnings),
                    tail=tail,
                    cache=recorder.cache,
                    returned=recorder.returned(output, row, copies, start) if copies > 1 else (),
                    processed_steps=forced.processed_steps(row) if forced else (),
                    distributions=forced.distributions(row) if forced else None,
                )
            )
        return answers

    def _forced(self, requests: Sequence[Request], rows: Sequence[Text], recorder: Recorder) -> Forced:
        generation = requests[0].generation
        drafted = generation.prompt_lookup_num_tokens or generation.assistant_early_exit
        if (generation.num_beams or 1) > 1 or (generation.num_return_sequences or 1) > 1 or drafted:
            raise NotSupported("only one token at a time can be led along a given path: no beams, drafts or copies")
        highest = max((max(request.continuation, default=0) for request in requests), default=0)
        if highest >= self.facts.vocabulary:
            raise InvalidRequest(f"the path holds id {highest}, but the model has {self.facts.vocabulary} embeddings")
        end = next(iter(self.facts.eos_token_ids), self.facts.pad_token_id or 0)
        paths: list[tuple[int, ...] | None] = [None] * len(rows)
        for index, request in enumerate(requests):
            row = position(request, rows, index)
            if paths[row] not in (None, request.continuation):
                raise NotSupported("one row of a batch cannot be led along two paths at once")
            paths[row] = request.continuation
        return Forced(recorder, paths, end, whole=requests[0].whole)

    def _completion(self, request: Request, ids: tuple[int, ...] = (), **fields: Any) -> Completion:
        text, prompt_ids = self.prompts.encode(request.prompt)
        return Completion(
            request=request,
            prompt_text=text,
            prompt_ids=prompt_ids,
            ids=ids,
            tokens=tuple(self.texts(ids)),
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            precision=self._precision(request),
            attention=str(getattr(self.model.config, "_attn_implementation", "")),
            **{"finish": "length", **fields},
        )

    def _call(
        self, inputs: Mapping[str, Any], request: Request, recorder: Recorder, **changes: Any
    ) -> tuple[Any, float, int]:
        device = self.model.device
        torch.manual_seed(request.generation.seed)
        memory.reset_peak(str(device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.monotonic()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), recorder.listening():
            output = self._resumed(inputs, request, recorder) or self._generated(inputs, request, recorder, **changes)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return output, time.monotonic() - began, memory.peak(str(device))

    def _generated(self, inputs: Mapping[str, Any], request: Request, recorder: Recorder, **changes: Any) -> Any:
        layout = request.layout
        pad = layout.pad_token_id if isinstance(layout, Batch) else None
        arguments = request.generation.arguments()
        if arguments.get("num_return_sequences", 1) > 1:
            arguments["output_scores"] = True  # else the scores of beams are not returned
        with variants.all_layers(self.model, early_exit=request.generation.assistant_early_exit):
            return self.model.generate(
                **inputs,
                **(arguments | changes),
                pad_token_id=self.facts.pad_token_id if pad is None else pad,
                stopping_criteria=[recorder],
                **self._for_stop_strings(request),
                return_dict_in_generate=True,
            )

    def _for_stop_strings(self, request: Request) -> dict[str, Any]:
        """Only they need the tokenizer; transformers 4 would hand it on to forward(), which not every model bears."""
        wanted = request.generation.stop_strings or self.model.generation_config.stop_strings
        return {"tokenizer": self.tokenizer} if wanted else {}

    def _resumed(self, inputs: Mapping[str, Any], request: Request, recorder: Recorder) -> Any:
        """Some tokens first, then the rest from the cache that they left; None when that was not asked for."""
        first = request.resume_after
        if not first:
            return None
        held_back = min(request.generation.min_new_tokens or 0, first)
        begun = self._generated(
            inputs, request, recorder, max_new_tokens=first, **({"min_new_tokens": held_back} if held_back else {})
        )
        ids = begun.sequences
        if recorder.ended(ids[0], inputs["input_ids"].shape[1], first):
            return begun
        changes: dict[str, Any] = {"max_new_tokens": (request.generation.max_new_tokens or 20) - first}
        if request.generation.min_new_tokens:
            changes["min_new_tokens"] = max(0, request.generation.min_new_tokens - first)
        cache = getattr(begun, "past_key_values", None)
        if cache is None or recorder.cache == "none":
            raise NotSupported("this model has no key-value cache that a later call could go on with")
        rest = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        return self._generated(rest, request, recorder, **changes)

    def _scored(self, request: Request) -> Completion:
        side = self.side(request.layout if isinstance(request.layout, Batch) else None)
        return score(self.model, self.prompts, request, side, self.top_k, self._precision(request))

    def _likelihood(self, request: Request) -> Completion:
        return likelihood(self.model, self.prompts, request, self.top_k, self._precision(request))

    def _rendered(self, request: Request) -> Completion:
        try:
            rendering = describe(TokenizerPipeline(self.tokenizer, self.facts.vocabulary), request.prompt)
        except TemplateFailed as error:
            raise InvalidRequest(f"the model's chat template raised: {error}") from error
        return self._completion(request, rendering=rendering)

    def _bare(self, request: Request) -> Completion:
        text, ids = self.prompts.encode(request.prompt)
        with torch.autocast(self.model.device.type, enabled=False):
            call = bare.bare(request.kind, self.model, self.tokenizer, text, ids)
        return self._completion(request, generation_config=call.generation_config, warnings=call.warnings)

    def _processed(self, request: Request) -> Completion:
        """The distribution of the first new token, before and after all logits processors."""
        inputs, _ = self.prompts.pad([self.prompts.encode(request.prompt)[1]], "left", None, self.model.device)
        recorder = Recorder(self.model, self.tokenizer, request.generation, self.top_k)
        torch.manual_seed(request.generation.seed)
        with torch.no_grad(), torch.autocast(self.model.device.type, enabled=False), recorder.listening():
            output = self._generated(
                inputs, request, recorder, max_new_tokens=1, output_scores=True, output_logits=True
            )
        raw, processed = output.logits[0][0].float(), output.scores[0][0].float()
        return self._completion(
            request,
            generation_config=plain(recorder.generation_config),
            raw_logits=raw.tolist(),
            processed_logits=processed.tolist(),
        )

    def side(self, layout: Batch | None) -> str:
        """On which rows are padded."""
        if "encoder_decoder" in self.facts.traits and (layout is None or layout.padding == "left"):
            return "right"  # an encoder reads from the left: pads there would shift absolute positions
        if layout is None:
            return "left"
        if layout.padding == "shipped":
            return self.target.model.padding_side or self.facts.padding_side
        return layout.padding

    def _precision(self, request: Request) -> str:
        """Quantized weights compute at the precision of a 16-bit type at best: int8 keeps 8 bits of an activation."""
        if request.float32:
            return "float32"
        if quantizations.quantized(self.target.quantization):
            return "bfloat16"
        return self.facts.dtype


def _says_unsupported(error: Exception) -> bool:
    """Whether the library refuses what this model cannot do, as against failing at it."""
    # No TypeError: "unsupported operand type(s)" is what Python itself says of a fault in the model's code.
    return isinstance(error, (ValueError, NotImplementedError)) and bool(
        re.search(r"not support|unsupported|does not implement", str(error))
    )


def _marked_split(answer: Completion | Failure) -> Completion | Failure:
    return dataclasses.replace(answer, split_after_oom=True) if isinstance(answer, Completion) else answer
