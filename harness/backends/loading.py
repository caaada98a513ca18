"""Opens a target: tokenizer, weights, and the facts about them. What is not as asked is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from harness.backends import Progress, kernels, logs, memory, quantizations, sources, weights
from harness.errors import LevelUnavailable, ModelUnavailable, OutOfMemory
from harness.inputs import Model
from harness.record import Target, TargetFacts

UNLIMITED = 10**9  # a tokenizer that knows no limit says 1e30


@dataclass(frozen=True)
class Opened:
    """Weights, tokenizer, and what they really are."""

    model: Any
    tokenizer: Any
    facts: TargetFacts


@dataclass(frozen=True)
class _Loaded:
    model: Any
    effective: quantizations.Effective
    held_before: int
    peak: int


def open_target(target: Target, progress: Progress) -> Opened:
    """Load the weights, and refuse to go on when they are not what was asked for."""
    began = time.monotonic()
    with logs.captured() as warnings, logs.no_bars():
        source = sources.resolve(target.model, progress)
        progress(f"loading {target.name}")
        tokenizer = _load_tokenizer(source, target.model)
        loaded = _load_model(source, target, warnings)
    facts = dataclasses.replace(
        _facts(target, source, loaded.model, tokenizer, loaded.effective),
        held_before_bytes=loaded.held_before,
        load_peak_bytes=max(0, loaded.peak - loaded.held_before),
        load_seconds=time.monotonic() - began,
        warnings=dict(warnings),
    )
    return Opened(loaded.model, tokenizer, facts)


def _load_tokenizer(source: sources.Source, model: Model) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"the tokenizer of {source.origin} cannot be loaded: {error}") from error


def _load_model(source: sources.Source, target: Target, warnings: Mapping[str, int]) -> _Loaded:
    wanted = target.model
    where = {"revision": source.revision, "trust_remote_code": wanted.trust_remote_code}
    device = _device(wanted)
    arguments = quantizations.arguments(target.quantization, wanted.dtype, device)
    try:
        config = AutoConfig.from_pretrained(source.path, **where)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        memory.release()
        before = memory.held(device)
        memory.reset_peak(device)
        with memory.returnable():
            model, report = kind.from_pretrained(
                source.path,
                **where,
                device_map="auto" if wanted.device == "auto" else {"": device},
                use_safetensors=True,
                output_loading_info=True,
                **({"attn_implementation": wanted.attention} if wanted.attention else {}),
                **arguments,
            )
            weights.bring_in(model, apart=quantizations.quantized(target.quantization))
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{target.name} does not fit on the device: {error}", "Take a smaller level, or set `device: auto`."
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, AssertionError) as error:
        if quantizations.quantized(target.quantization) and (cause := _unconvertible(error, warnings)):
            raise LevelUnavailable(
                f"quantization {target.quantization!r} does not take the weights of {source.origin}: {cause}",
                "Ask for another level.",
            ) from error
        raise ModelUnavailable(f"{source.origin} cannot be loaded: {error}") from error
    peak = memory.peak(device)
    _refuse_incomplete(source, report)
    effective = weights.inspect(model)
    quantizations.check(target.quantization, wanted.dtype, effective)
    kernels.check(target.quantization, model.eval())
    return _Loaded(model, effective, before, peak)


def _device(model: Model) -> str:
    """Where the weights go; of several GPUs the first stands for all of them."""
    if model.device in (None, "auto"):
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return str(model.device)


def _unconvertible(error: Exception, warnings: Mapping[str, int]) -> str:
    """What a library's quantizer said of the first weight that it refused; transformers 5 only logs it."""
    if isinstance(error, AssertionError):
        return str(error)
    pattern = r"([^\n]+)\nError: \w+ on tensors destined for (\S+)\."
    found = next((match for text in warnings if (match := re.search(pattern, text))), None)
    return f"{found[2]}: {found[1]}" if found else ""


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
        tokenizer_digest=_digest(tokenizer),
        padding_side=str(tokenizer.padding_side),
        chat_template=bool(tokenizer.chat_template),
        template_digest=_sha256(str(tokenizer.chat_template)) if tokenizer.chat_template else "",
        pad_token_id=pad,
        pad_token_from=pad_from,
        eos_token_ids=ids_of(model.generation_config.eos_token_id),
        context_window=_context_window(model, tokenizer),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        weights=f"{source.origin}{f' (dequantised from {source.dequantised_from})' if source.dequantised_from else ''}",
        weights_digest=source.digest,
        weight_bytes=effective.weight_bytes,
        modules=effective.modules,
        generation_config=plain(model.generation_config.to_diff_dict()),
        autocast=torch.is_autocast_enabled(model.device.type),
        traits=_traits(model.config),
    )


def _digest(tokenizer: Any) -> str:
    """Of the vocabulary, added tokens included: equal digests, comparable ids."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return _sha256(json.dumps(vocabulary))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _pad_token(model: Any, tokenizer: Any) -> tuple[int, str]:
    """The id to pad with. Nothing is written back: neither tokenizer nor config is changed."""
    eos = ids_of(model.generation_config.eos_token_id)
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


def ids_of(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def _traits(config: Any) -> tuple[str, ...]:
    """What some expectations do not apply to."""
    found = {"encoder_decoder": bool(config.is_encoder_decoder), "dynamic_rope": _dynamic_factor(config) != 1}
    return tuple(name for name, holds in found.items() if holds)


def _dynamic_factor(config: Any) -> float:
    """How far a dynamic NTK rope reaches beyond the positions that the config names; 1 where there is none."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) != "dynamic":
        return 1
    return float(rope.get("factor") or 1)


def _context_window(model: Any, tokenizer: Any) -> int | None:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None)
    limits = [positions and positions * _dynamic_factor(model.config), tokenizer.model_max_length]
    return min((int(limit) for limit in limits if limit and limit < UNLIMITED), default=None)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A generation config as JSON data, without the version that wrote it and what is unset."""
    return {
        key: value
        for key, value in config.items()
        if isinstance(value, (bool, int, float, str, list))
        and key != "transformers_version"
        and not key.startswith("_")
    }
