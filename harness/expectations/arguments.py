"""Arguments of generate(): their names, and the values at which they do nothing. Read by those who judge a config."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SHOWN = 60  # characters of a value in a sentence
UNSET = "unset"  # how a suite says that an argument has no value

# The values at which an argument does nothing, or no more than the library does unasked.
Neutral = Mapping[str, tuple[Any, ...]]
SAMPLING: Neutral = {
    "temperature": (1.0,),
    "top_k": (50, 0),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
OF_BEAMS: Neutral = {"length_penalty": (1.0,), "early_stopping": (False,)}
ALWAYS: Neutral = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "force_words_ids": (),
    "constraints": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "diversity_penalty": (0.0,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (False,),
    "stop_strings": (),
    "max_time": (),
}
NEUTRAL: Neutral = {**SAMPLING, **OF_BEAMS, **ALWAYS}

# All that a GenerationConfig may hold, in transformers 4 or 5.
ARGUMENTS = frozenset(
    {
        *NEUTRAL,
        "assistant_confidence_threshold",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "do_sample",
        "eos_token_id",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_length",
        "max_matching_ngram_size",
        "max_new_tokens",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "renormalize_logits",
        "return_dict_in_generate",
        "return_legacy_cache",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "watermarking_config",
    }
)


def known(name: str, names: Iterable[str] = ARGUMENTS) -> str:
    """The name, if there is such an argument."""
    if name in names:
        return name
    close = difflib.get_close_matches(name, sorted(names), n=1)
    meant = f"did you mean '{close[0]}'?" if close else "take a name that GenerationConfig has"
    raise ValueError(f"'{name}' is no argument of generate(); {meant}")


def active(config: Mapping[str, Any], names: Neutral) -> Iterator[tuple[str, Any]]:
    """Those of the arguments that are not neutral."""
    for name, neutral in names.items():
        value = config.get(name)
        if value is not None and value not in neutral:
            yield name, value


def idle(config: Mapping[str, Any]) -> dict[str, str]:
    """The arguments that have no effect, and what would give them one."""
    without_sampling = {} if config.get("do_sample") else dict.fromkeys(SAMPLING, "do_sample: true")
    without_beams = {} if (config.get("num_beams") or 1) > 1 else dict.fromkeys(OF_BEAMS, "num_beams above 1")
    return without_sampling | without_beams


def same(got: Any, wanted: Any) -> bool:
    """1 is 1.0 but not true, one id is a list of one, and UNSET is nothing."""
    wanted = None if wanted == UNSET else wanted
    if isinstance(got, bool) or isinstance(wanted, bool):
        return got is wanted
    one, other = (value if isinstance(value, list) else [value] for value in (got, wanted))
    return one == other


def shown(value: Any) -> str:
    """A value as YAML and JSON have it."""
    text = UNSET if value in (None, UNSET) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def pair(name: str, value: Any) -> str:
    return f"{name}: {shown(value)}"


def told(config: Mapping[str, Any]) -> str:
    """How this configuration generates, in a few words."""
    without_effect = idle(config)
    words = {name: f"{name} {shown(value)}" for name, value in active(config, NEUTRAL) if name not in without_effect}
    how = "samples" if config.get("do_sample") else "greedy"
    if config.get("min_new_tokens"):
        words.pop("min_length", None)  # generate() counts it up from the other
    shape = ", ".join(words[name] for name in words if name in SAMPLING)
    rest = [words[name] for name in words if name not in SAMPLING]
    return ", ".join((f"{how} ({shape})" if shape else how, *rest))
