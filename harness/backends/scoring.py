"""One forward pass, without a cache, over prompt and continuation: what a generation is checked against."""

from __future__ import annotations

from array import array
from typing import Any

import torch

from harness.backends.prompts import Prompts, position
from harness.errors import NotSupported
from harness.record import Batch, Completion, Request, Step, TargetFacts


def score(model: Any, prompts: Prompts, request: Request, side: str, top_k: int, precision: str) -> Completion:
    """Its ids are the likeliest token at each place of the continuation, or the first one if there is none.

    side: on which rows are padded.
    """
    if "encoder_decoder" in prompts.facts.traits:
        raise NotSupported("an encoder-decoder's output does not go on from the prompt")
    texts = prompts.rows([request])
    own = position(request, texts, 0)
    rows = [prompts.encode(text)[1] for text in texts]
    start = len(rows[own])
    rows[own] = (*rows[own], *request.continuation[:-1])
    layout = request.layout if isinstance(request.layout, Batch) else Batch(texts)
    inputs, pads = prompts.pad(rows, side, layout.pad_token_id, model.device)
    if not layout.attention_mask:
        del inputs["attention_mask"]
    elif request.position_ids:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
        logits = model(**inputs, use_cache=False).logits[own]
    end = len(logits) - (pads[own] if side == "right" else 0)
    count = len(rows[own]) - start + 1
    logprobs = logits[end - count : end].float().log_softmax(-1)
    ids = tuple(logprobs.argmax(-1).tolist())
    return Completion(
        request=request,
        prompt_text=prompts.encode(request.prompt)[0],
        prompt_ids=prompts.encode(request.prompt)[1],
        ids=ids,
        tokens=tuple(prompts.tokenizer.batch_decode([[token] for token in ids])),
        text=prompts.tokenizer.decode(ids, skip_special_tokens=True),
        finish=_finish(ids, prompts.facts),
        steps=_steps(logprobs, logits[end - count : end].float().amax(-1), top_k),
        precision=precision,
        padding=side if pads[own] else "",
        pads=pads[own],
        batch_size=len(rows),
        attention=str(getattr(model.config, "_attn_implementation", "")),
    )


def _finish(ids: tuple[int, ...], facts: TargetFacts) -> Any:
    return "eos" if ids and ids[-1] in facts.eos_token_ids else "length"


def _steps(logprobs: Any, heights: Any, top_k: int) -> tuple[Step, ...]:
    values, ids = logprobs.topk(min(top_k, logprobs.shape[-1]))
    rows = zip(ids.tolist(), values.tolist(), heights.tolist(), strict=True)
    return tuple(Step(likely[0], array("i", top), array("f", likely), height) for top, likely, height in rows)
