"""Tiny models with random weights, saved as a user would have them: a folder with tokenizer and safetensors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.backends import load
from harness.inputs import Model
from harness.record import Target

WORDS = [f"w{number}" for number in range(90)]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
WINDOW = 16  # of sliding attention: smaller than prompts, so that it is at work
ORIGINAL = 32  # context of the dynamic rope: its base begins to move beyond it
DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GEMMA = DECODER | {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,  # tied, the last word wins for ever
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "dynamic_llama": DECODER
    | {
        "model_type": "llama",
        "max_position_embeddings": ORIGINAL,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    "mistral": DECODER | {"sliding_window": WINDOW},
    "mixtral": DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Text in bytes is long.
    "qwen2": DECODER | {"vocab_size": 264, "max_position_embeddings": 512},
    "qwen3": DECODER | {"head_dim": 8},
    "gemma2": GEMMA | {"attn_logit_softcapping": 5.0},  # low: an implementation without it shows
    "gemma3_text": GEMMA,
    "phi": DECODER | {"num_key_value_heads": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
}
# Where the library's own spread gives one word for ever: standard deviations by what a weight's name holds.
SPREAD: dict[str, dict[str, float]] = {
    "bloom": {"embed": 0.1, "": 0.3},
    "falcon": {"embed": 0.1, "": 0.6},
    "t5": {"relative": 5.0, ".q.": 0.3, ".k.": 0.3, "shared": 0.1, "": 0.6},
    "bart": {"positions": 1.0, "shared": 0.3, "": 0.2},
}
# transformers 5 gives these a byte-level tokenizer of their own class, whatever class the folder names.
SPELLS = ("qwen2",)


def tokenizer(**special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<s>", "<a>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", **special)
    made.chat_template = TEMPLATE
    return made


def byte_tokenizer() -> Any:
    """One token a byte: stop strings need a vocabulary that can spell anything."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def save_model(
    folder: Path,
    architecture: str = "llama",
    *,
    chat: bool = True,
    spells: bool = False,
    bos: bool = False,
    ends: bool = True,
    **config: Any,
) -> Path:
    import torch
    from tokenizers import processors
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    spells = spells or architecture in SPELLS
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sizes = {"vocab_size": 258 if spells else 95, "max_position_embeddings": 128}
    # A wide spread of weights keeps random models from saying one word for ever.
    settings = sizes | special | {"initializer_range": 0.6, "init_std": 0.6} | SIZES[architecture] | config
    made_of = AutoConfig.for_model(settings.pop("model_type", architecture), **settings)
    kind = AutoModelForSeq2SeqLM if made_of.is_encoder_decoder else AutoModelForCausalLM
    made = kind.from_config(made_of)
    spread(made, SPREAD.get(architecture, {}))
    if not ends:
        with torch.no_grad():
            made.get_output_embeddings().weight[1] = 0  # among wide logits, one of zero is never the largest
    made.save_pretrained(folder)
    words = byte_tokenizer() if spells else tokenizer(pad_token="<pad>")
    if bos:
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 2)]
        )
    if not chat:
        words.chat_template = None
    words.save_pretrained(folder)
    return folder


def spread(model: Any, deviations: dict[str, float]) -> None:
    import torch

    if not deviations:
        return
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, next(value for part, value in deviations.items() if part in name))


def load_once(path: Path) -> None:
    """What that imports stays: each later collection, with every model that is closed, need not look at it."""
    load(Target("first", "first", Model(path=str(path), device="cpu"), "nf4")).close()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a tiny model, or take the one that was built before with the same arguments."""
    built: dict[str, Path] = {}

    def build(architecture: str = "llama", **config: Any) -> Path:
        if not built:
            load_once(save_model(tmp_path_factory.mktemp("first"), "llama"))
        key = f"{architecture}{sorted(config.items())}"
        if key not in built:
            built[key] = save_model(tmp_path_factory.mktemp(architecture), architecture, **config)
        return built[key]

    return build
