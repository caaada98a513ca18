"""Forward passes without a cache: over prompt and continuation, to check a generation; over a text, to judge it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch

from harness.backends.prompts import Prompts, position
from harness.errors import NotSupported
from harness.record import Batch, Completion, Request, Step, TargetFacts

WINDOW = 1024  # tokens of a text that are read at once: the logits of more would not fit beside a large model


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
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
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
        steps=_steps(logprobs, logits[end - count : end].float().amax(-1), top_k, ids),
        precision=precision,
        padding=side if pads[own] else "",
        pads=pads[own],
        batch_size=len(rows),
        attention=str(getattr(model.config, "_attn_implementation", "")),
    )


def likelihood(model: Any, prompts: Prompts, request: Request, top_k: int, precision: str) -> Completion:
    """How likely each token of a text is after those before it; its ids are the text's own.

    The first is predicted from BOS (or EOS, where there is none), so that every tokenizer answers for the whole text.
    A text beyond the window is read in steps of half of it: each token sees at least half a window before it.
    """
    if "encoder_decoder" in prompts.facts.traits:
        raise NotSupported("an encoder-decoder does not say how likely a text is")
    ids = tuple(prompts.tokenizer(request.prompt.last, add_special_tokens=False)["input_ids"])
    begin = next((one for one in (prompts.tokenizer.bos_token_id, *prompts.facts.eos_token_ids) if one is not None), 0)
    row = [begin, *ids]
    steps: list[Step] = []
    window = min(WINDOW, prompts.facts.context_window or WINDOW)
    for start in range(0, max(1, len(ids) - window // 2), window // 2):
        part = row[start : start + window + 1]
        new = len(part) - 1 if start == 0 else len(part) - 1 - (window - window // 2)
        inputs = torch.tensor([part[:-1]], device=model.device)
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0, -new:]
        # In float32 the sum over a large vocabulary is off by 1e-5 nats, and always to the same side.
        precise = logits.double() if logits.device.type != "mps" else logits.float()
        steps += _steps(precise.log_softmax(-1), logits.float().amax(-1), top_k, part[-new:])
    return Completion(
        request=request,
        prompt_text=request.prompt.last,
        prompt_ids=(begin,),
        ids=ids,
        tokens=tuple(prompts.tokenizer.batch_decode([[token] for token in ids])),
        text=request.prompt.last,
        finish="length",
        steps=tuple(steps),
        precision=precision,
        attention=str(getattr(model.config, "_attn_implementation", "")),
    )


def _finish(ids: tuple[int, ...], facts: TargetFacts) -> Any:
    return "eos" if ids and ids[-1] in facts.eos_token_ids else "length"


def _steps(logprobs: Any, heights: Any, top_k: int, chosen: Sequence[int]) -> tuple[Step, ...]:
    values, ids = logprobs.topk(min(top_k, logprobs.shape[-1]))
    own = logprobs.gather(-1, torch.tensor(chosen, device=logprobs.device)[:, None])[:, 0]
    rows = zip(own.tolist(), ids.tolist(), values.tolist(), heights.tolist(), strict=True)
    return tuple(Step(one, array("i", top), array("f", likely), height) for one, top, likely, height in rows)
