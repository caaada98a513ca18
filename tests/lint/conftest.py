"""Models that are files only, written by hand, and suites on them. A sound one gives no finding but notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

from harness.files import read
from harness.lint import Finding, lint, lint_model
from harness.load import load
from harness.plan import plan

SPECIAL = ["<pad>", "<eos>", "<s>", "<|start|>", "<|end|>"]
ROWS = 261  # these, and one token a byte
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "eos_token_id": [1, 4],
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "dtype": "float32",
    "transformers_version": "4.57.0",
}
GENERATION = {"eos_token_id": [1, 4], "pad_token_id": 0}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "padding_side": "left",
}
EMBEDDING = {"model.embed_tokens.weight": ("F32", (ROWS, 2))}

Make = Callable[..., Path]
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def tokenizer(adds_bos: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return made


def safetensors(file: Path, tensors: Tensors) -> None:
    """Zeros, laid out by hand."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * {"F32": 4, "BF16": 2, "F16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """With these values instead; None takes a key out."""
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the files of a model: each argument changes one of them."""

    def write(
        *,
        config: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | bool | None = None,
        settings: Mapping[str, Any] | None = None,
        template: str | None = CHATML,
        tensors: Tensors = EMBEDDING,
        words: Any = None,
    ) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        files = {
            "config.json": changed(CONFIG, config or {}),
            "tokenizer_config.json": changed(TOKENIZER, settings or {}),
        }
        if generation is not False:
            files["generation_config.json"] = changed(GENERATION, generation or {})  # type: ignore[arg-type]
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        (words or tokenizer()).save(str(folder / "tokenizer.json"))
        safetensors(folder / "model.safetensors", tensors)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return write


def found_in(folder: Path, rule: str, suite: str = "", model: str = "") -> list[Finding]:
    """What a rule finds in a folder, by itself or as the tests of a suite use it."""
    if not suite:
        findings: list[Finding] = list(lint_model(read(folder)))
    else:
        file = folder.parent / "suite.yaml"
        head = f"suite: s\nmodels:\n  m: {{path: {folder}{', ' if model else ''}{model}}}\n"
        file.write_text(head + suite)
        [looked] = lint(plan([load(file)]).checks)
        findings = list(looked.findings)
    stumbled = [finding for finding in findings if "something unexpected" in finding.message]
    assert not stumbled, stumbled
    return [finding for finding in findings if finding.rule == rule]


@pytest.fixture
def found() -> Callable[..., list[Finding]]:
    return found_in


@pytest.fixture
def adding_bos() -> Any:
    """A tokenizer that puts <s> before plain text."""
    return tokenizer(adds_bos=True)
