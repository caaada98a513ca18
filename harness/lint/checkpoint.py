"""Rules about the checkpoint: whether it is whole, what it is made of, who can read it, how far it reaches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from math import prod

from harness.backends import sources
from harness.errors import ModelUnavailable
from harness.files import ids_of, is_number, numbers_of, transformers_version
from harness.lint.subject import Finding, Severity, Subject, listed, places

INDEX = "model.safetensors.index.json"
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What transformers 4 takes where it finds no rope_theta: 10000, but for these families.
THETA_IN_4 = {
    "apertus": 12e6,
    "bitnet": 5e5,
    "ernie4_5": 5e5,
    "ernie4_5_moe": 5e5,
    "falcon_h1": 1e5,
    "flex_olmo": 5e5,
    "gemma3_text": 1e6,
    "helium": 1e5,
    "llama4_text": 5e5,
    "longcat_flash": 1e7,
    "minimax": 1e6,
    "mixtral": 1e6,
    "modernbert-decoder": 16e4,
    "persimmon": 25e3,
    "phimoe": 1e6,
    "smollm3": 2e6,
}


def readable(subject: Subject) -> Iterator[Finding]:
    """Every file can be read."""
    files = subject.files
    for name, why in files.broken.items():
        yield Finding("error", f"{name}: {why}", "Copy or download the file again", name)
    if isinstance(files.backend, str):
        missing = files.tokenizer is None
        yield Finding(
            "note" if missing else "error",
            f"{files.backend}, and prompts were not looked at",
            "tokenizer.save_pretrained(FOLDER) with transformers 5 writes one"
            if missing
            else "Copy or download the file again",
            "tokenizer.json",
        )


def loadable(subject: Subject) -> Iterator[Finding]:
    """The weights are safetensors, and all of them are there."""
    files = subject.files
    try:
        sources.check_folder(files.where)
    except ModelUnavailable as error:
        if files.from_hub:
            yield Finding(
                "note",
                f"not all of it is in the local Hub cache: {error.message.rstrip('.')}",
                "`harness run` fetches what is missing",
                "",
            )
        elif "config.json" not in files.broken:
            yield Finding("error", error.message.rstrip("."), error.remedy, str(files.where))
        return
    absent = _absent_tensors(subject)
    if absent:
        yield Finding(
            "error",
            f"{INDEX} names {len(absent)} tensors that no file holds, the first is {absent[0]}: they would be "
            "filled with random numbers",
            "Copy or download the folder again",
            INDEX,
        )


def _absent_tensors(subject: Subject) -> list[str]:
    index = subject.files.where / INDEX
    if not index.is_file():
        return []
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return sorted(set(named) - set(subject.files.tensors))


def dtype(subject: Subject) -> Iterator[Finding]:
    """What `dtype: auto` means here."""
    files = subject.files
    sizes: Counter[str] = Counter()
    for tensor in files.tensors.values():
        sizes[TYPES.get(tensor.dtype, "")] += prod(tensor.shape)
    stored = max((name for name in sizes if name), key=sizes.__getitem__, default="")
    said = _dtype_said(subject)
    auto = [use for use in subject.uses if use.model.dtype == "auto"]
    if "quantization_config" in files.config or not stored or (subject.uses and not auto):
        return
    if said and said != stored:
        yield Finding(
            "warning",
            f"config.json says {said}, the weights are {stored}: `dtype: auto` loads {said}",
            f"Write `dtype: {stored}` under the model in the suite; in code from_pretrained(…, dtype={stored!r})",
            "config.json",
        )
    elif stored != "float32":
        yield Finding(
            "note",
            f"`dtype: auto` is {stored} here; code that names no dtype gets float32 with transformers 4, {stored} "
            "with 5",
            f"Write `dtype: {stored}`, or the one that you deploy, under the model in the suite",
            places(auto) or "config.json",
        )


def _dtype_said(subject: Subject) -> str:
    said = [config.get(key) for config in (subject.files.config, subject.files.text_config) for key in _DTYPE_KEYS]
    return next((name for name in said if isinstance(name, str)), "")


_DTYPE_KEYS = ("dtype", "torch_dtype")


def vocabulary(subject: Subject) -> Iterator[Finding]:
    """Tokenizer, configuration and embedding speak of the same ids."""
    files, rows = subject.files, subject.files.embeddings
    size = files.text_config.get("vocab_size")
    if rows is None:
        return
    if is_number(size) and size != rows:
        yield Finding(
            "error",
            f"config.json says vocab_size {size}, the embedding has {rows} rows: it cannot be loaded",
            f'Write "vocab_size": {rows} into config.json, if the weights are right',
            "config.json",
        )
    beyond = {
        key: ids
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if (ids := [one for one in ids_of(files.generation.get(key)) if not 0 <= one < rows])
    }
    if beyond:
        yield Finding(
            "error",
            f"{files.generation_file} says {listed([f'{key} {ids[0]}' for key, ids in beyond.items()])}, but ids end "
            f"at {rows - 1}",
            "Correct it, or take it out (null)",
            files.generation_file,
        )
    yield from _tokenizer_against(subject, rows)


def _tokenizer_against(subject: Subject, rows: int) -> Iterator[Finding]:
    pipeline = subject.pipeline
    if pipeline is None:
        return
    above = [text for text, number in pipeline.special_tokens.items() if number >= rows]
    if pipeline.size > rows:
        among = f", among them {listed([repr(text) for text in above])}" if above else ""
        yield Finding(
            "error" if above else "warning",
            f"the tokenizer has {pipeline.size} ids, the embedding {rows} rows{among}: the others raise an index "
            "error, on a GPU a device assert",
            "model.resize_token_embeddings(len(tokenizer)) and save, or take the tokenizer of this model",
            "tokenizer.json",
        )
    elif rows - pipeline.size > max(128, rows // 100):
        yield Finding(
            "note",
            f"the embedding has {rows - pipeline.size} rows more than the tokenizer has ids: sampling can give ids "
            "that decode to nothing",
            "Look for ids of len(tokenizer) and above in what a sampled run generates",
            "tokenizer.json",
        )


def dialect(subject: Subject) -> Iterator[Finding]:
    """What one version of transformers writes and another does not understand."""
    files, installed = subject.files, transformers_version()
    severity: Severity = "error" if installed < (5,) else "warning"
    rope = files.text_config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    in_4 = THETA_IN_4.get(str(files.text_config.get("model_type")), 1e4)
    if is_number(theta) and theta != in_4 and "rope_theta" not in files.text_config:
        yield Finding(
            severity,
            f"rope_theta {theta:g} stands in rope_parameters alone: transformers 4 takes {in_4:g} without a word",
            f'Write "rope_theta": {theta:g} into config.json as well',
            "config.json",
        )
    if files.tokenizer_class == "TokenizersBackend":
        yield Finding(
            severity,
            "tokenizer_class is TokenizersBackend, which transformers 4 does not know: it raises",
            'Write "tokenizer_class": "PreTrainedTokenizerFast": both versions read it',
            "tokenizer_config.json",
        )
    if isinstance(files.tokenizer_config.get("extra_special_tokens"), list):
        yield Finding(
            severity,
            "extra_special_tokens is a list, as transformers 5 writes it: transformers 4 raises",
            'Rename it to "additional_special_tokens": both versions read it',
            "tokenizer_config.json",
        )
    writers = [str(config.get("transformers_version") or "") for config in (files.config, files.generation)]
    newest = max(writers, key=numbers_of)
    if installed and numbers_of(newest)[:2] > installed[:2]:
        yield Finding(
            "warning",
            f"transformers {newest} wrote it, {'.'.join(map(str, installed))} is installed: what is new may be "
            "ignored without a word",
            f'pip install "transformers>={newest}"',
            "config.json",
        )


def context(subject: Subject) -> Iterator[Finding]:
    """Prompt and new tokens together have room."""
    files = subject.files
    limits = [limit for limit in (files.context_window, files.max_length) if limit is not None]
    window = min(limits, default=None)
    if window is None or subject.longest is None:
        return
    beyond = [use for use in subject.uses if (subject.length(use) or 0) + subject.new_tokens(use) > window]
    if beyond:
        worst, total = subject.longest
        new = subject.new_tokens(worst)
        name = "max_position_embeddings" if window == files.context_window else "model_max_length"
        yield Finding(
            "error",
            f"{worst} has {total - new} tokens; with {new} new ones that is beyond {name}, {window}",
            f"Shorten the prompt, or write max_new_tokens {window - total + new} or less"
            if total - new < window
            else "Shorten the prompt",
            places([worst, *beyond]),
        )


def window(subject: Subject) -> Iterator[Finding]:
    """Sliding attention is exercised only by what is longer than its window."""
    config = subject.files.text_config
    size = config.get("sliding_window")
    if not is_number(size) or config.get("use_sliding_window") is False or subject.longest is None:
        return
    use, total = subject.longest
    if total > size:
        message = (
            f"{use} reaches {total} tokens, beyond the sliding window of {size:g}: what a wrong window changes shows"
        )
        remedy = "`invariants: all` compares cached with uncached, and eager with sdpa, there"
    else:
        message = f"the longest use reaches {total} tokens, the sliding window has {size:g}: it is never exercised"
        remedy = f"Add a prompt of more than {size:g} tokens, or try `invariants: all` on a model with a small window"
    yield Finding("note", message, remedy, use.where)


def dynamic_rope(subject: Subject) -> Iterator[Finding]:
    """A rope whose base follows the length of the sequence."""
    config = subject.files.text_config
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key)
        if isinstance(rope, dict) and "dynamic" in (rope.get("rope_type"), rope.get("type")):
            yield Finding(
                "note",
                "the rope is dynamic: its base follows the length, so padding, batches and prefixes change tokens "
                "with nothing wrong",
                "Expect no padding, batch or cache invariance beyond the original length; they are skipped",
                "config.json",
            )
            return
