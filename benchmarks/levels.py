"""The figures of `harness compare` against plain calls of transformers and torch.

    harness compare suites/levels.yaml
    python benchmarks/levels.py reports/RUN

Each level is loaded by from_pretrained() and run once, without a cache, over every prompt and the baseline's
continuation; KL, top-1 agreement and the perplexity ratio are worked out in float64 by torch, and printed beside
those of the run.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import harness
from harness.backends.sources import resolve

LEVELS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": torch.float32},
    "bf16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.float32, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    "nf4": {
        "dtype": torch.float32,
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    },
    "fp4": {
        "dtype": torch.float32,
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
        ),
    },
}


def distributions(model: Any, prompt: list[int], continuation: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + continuation[:-1]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 :].double().log_softmax(-1)


def paragraph_nats(model: Any, words: Any, text: str) -> tuple[float, int]:
    ids = words(text, add_special_tokens=False)["input_ids"]
    row = torch.tensor([[words.bos_token_id, *ids]])
    with torch.no_grad():
        logprobs = model(input_ids=row[:, :-1], use_cache=False).logits[0].double().log_softmax(-1)
    return -float(logprobs.gather(-1, row[0, 1:, None]).sum()), len(ids)


def main(folder: str) -> None:
    run = harness.read(folder)
    measured, table = run.results.measured, run.compare()
    path = resolve(run.results.targets[0].model).path
    words = AutoTokenizer.from_pretrained(path)
    asked = {one.request for one in measured.answered}
    base = {
        done.request.id: done
        for target, done in run.results.completions
        if target == measured.baseline and done.request.id in asked and done.request.kind == "generate"
    }
    texts = list(
        dict.fromkeys(
            done.text
            for target, done in run.results.completions
            if target == measured.baseline and done.request.kind == "likelihood"
        )
    )
    reference: dict[str, torch.Tensor] = {}
    nats_of: dict[str, float] = {}
    print(f"{'level':<6} {'':<17} {'of the run':>12} {'plain calls':>12} {'difference':>11}")
    for target in run.results.targets:
        level = target.quantization
        if level not in LEVELS:
            continue
        model = AutoModelForCausalLM.from_pretrained(path, **LEVELS[level]).eval()
        divergence, agree, tokens = 0.0, 0, 0
        for name, done in base.items():
            own = distributions(model, list(done.prompt_ids), list(done.ids))
            theirs = reference.setdefault(name, own)
            divergence += float((theirs.exp() * (theirs - own)).sum())
            agree += int((theirs.argmax(-1) == own.argmax(-1)).sum())
            tokens += len(done.ids)
        nats, length = map(sum, zip(*(paragraph_nats(model, words, text) for text in texts), strict=True))
        first = nats_of.setdefault("first", nats)
        plain = {
            "kl": divergence / tokens,
            "top1": agree / tokens,
            "perplexity_ratio": math.exp((nats - first) / length),
            "perplexity": math.exp(nats / length),
        }
        for statistic, value in plain.items():
            own = table.loc[target.name, statistic]
            print(f"{level:<6} {statistic:<17} {own:>12.7f} {value:>12.7f} {own - value:>11.1e}")


if __name__ == "__main__":
    main(sys.argv[1])
