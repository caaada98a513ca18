"""Tiny models with random weights, saved as a user would have them: a folder with tokenizer and safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = [f"w{number}" for number in range(90)]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<s> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}


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
    **config: Any,
) -> Path:
    import torch
    from tokenizers import processors
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sizes = {"vocab_size": 258 if spells else 95, "max_position_embeddings": 128}
    # A wide spread of weights keeps random models from saying one word for ever.
    settings = SIZES[architecture] | sizes | special | {"initializer_range": 0.6, "init_std": 0.6} | config
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a tiny model, or take the one that was built before with the same arguments."""
    built: dict[str, Path] = {}

    def build(architecture: str = "llama", **config: Any) -> Path:
        key = f"{architecture}{sorted(config.items())}"
        if key not in built:
            built[key] = save_model(tmp_path_factory.mktemp(architecture), architecture, **config)
        return built[key]

    return build
