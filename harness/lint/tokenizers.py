"""Rules about tokenizer files that versions of transformers read differently."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.files import ModelFiles, transformers_version
from harness.lint.subject import Finding, Subject

# Classes that transformers 4 has put a BOS before each text, whatever tokenizer.json says.
BOS_BY_CLASS_IN_4 = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
# Classes that take tokenizer.json as it is.
GENERIC = ("", "TokenizersBackend", "PreTrainedTokenizer", "PythonBackend", "MistralCommonBackend")
# How classes of transformers 5 split this text, which they do in their own way and not as tokenizer.json says: the
# places where parts begin.
PROBE = "It's 1234(x\n\n y"
SPLITS: Mapping[str, tuple[int, ...]] = {
    "GPT2Tokenizer": (0, 2, 4, 9, 10, 11, 13),
    "CodeGenTokenizer": (0, 2, 4, 9, 10, 11, 13),
    "GPTNeoXTokenizer": (0, 2, 4, 9, 10, 11, 13),
    "Qwen2Tokenizer": (0, 2, 4, 5, 6, 7, 8, 9, 11, 13),
    "CohereTokenizer": (0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13),
}


def tokenizer_class(subject: Subject) -> Iterator[Finding]:
    """The class that transformers 5 takes splits text as tokenizer.json does."""
    files = subject.files
    if subject.pipeline is None or transformers_version() < (5,):
        return
    taken, forced = class_in_5(files, _byte_level(subject.pipeline.tokenizer))
    as_written = splits(subject.pipeline.tokenizer)
    named = f"model_type {files.model_type}" if forced or not files.tokenizer_class else "tokenizer_class"
    if taken in SPLITS and as_written != SPLITS[taken]:
        yield Finding(
            "error",
            f"by {named}, transformers 5 reads the tokenizer as {taken}, which splits {PROBE!r} at "
            f"{_places(SPLITS[taken])}; tokenizer.json says {_places(as_written)}: the ids are not those of training",
            "Load it with PreTrainedTokenizerFast.from_pretrained(FOLDER); no file of the folder changes that"
            if forced
            else 'Write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json',
            "tokenizer_config.json",
        )
    elif forced and files.tokenizer_class not in ("", taken):
        yield Finding(
            "warning",
            f"tokenizer_config.json says {files.tokenizer_class}, but by {named} transformers 5 takes {taken}, "
            "and its normalizer and decoder",
            f'Write "tokenizer_class": "{taken}", if that is how the model was trained; compare the ids of both',
            "tokenizer_config.json",
        )


def class_in_5(files: ModelFiles, byte_level: bool) -> tuple[str, bool]:
    """The class that AutoTokenizer of the installed transformers 5 takes, and whether it overrules the files."""
    families, overruled = _mapping()
    # A type that is overruled without a class of its own is read as the file stands.
    unnamed = "TokenizersBackend" if files.model_type in overruled else ""
    declared, family = files.tokenizer_class, families.get(files.model_type, unnamed)
    forced = files.model_type in overruled and family not in GENERIC
    if forced and declared:
        return family, declared != family
    if declared == "LlamaTokenizer" and byte_level:
        return "", False
    if declared and family in GENERIC[1:]:
        return "", False
    return declared or family, False


@cache
def _mapping() -> tuple[Mapping[str, str], frozenset[str]]:
    """Tokenizer classes by model type, and the types whose files are overruled: read, not imported."""
    spec = find_spec("transformers")
    file = Path(spec.origin or "").parent / "models" / "auto" / "tokenization_auto.py" if spec else Path()
    if not file.is_file():
        return {}, frozenset()
    text = file.read_text(encoding="utf-8")
    families = re.findall(r'\(\s*"([\w.-]+)",\s*\(?\s*"(\w+)"', text)
    overruled = re.search(r"INCORRECT_HUB_TOKENIZER_CLASS[^={]*=\s*\{([^}]*)\}", text)
    names = frozenset(re.findall(r'"([\w.-]+)"', overruled[1])) if overruled else frozenset[str]()
    return {kind: name.removesuffix("Fast") for kind, name in families}, names


def _byte_level(tokenizer: Any) -> bool:
    return "ByteLevel" in repr(tokenizer.pre_tokenizer)


def splits(tokenizer: Any) -> tuple[int, ...]:
    """Where tokenizer.json has the parts of PROBE begin."""
    if tokenizer.pre_tokenizer is None:
        return (0,)
    return tuple(begin for _, (begin, _) in tokenizer.pre_tokenizer.pre_tokenize_str(PROBE))


def _places(starts: tuple[int, ...]) -> str:
    parts = [PROBE[begin:end] for begin, end in zip(starts, (*starts[1:], len(PROBE)), strict=True)]
    return "|".join(part.replace("\n", "\\n") for part in parts)


def bos_flag(subject: Subject) -> Iterator[Finding]:
    """Whether a BOS stands before plain text: tokenizer_config.json says one thing, tokenizer.json another."""
    files, pipeline = subject.files, subject.pipeline
    if pipeline is None or pipeline.bos_token_id is None:
        return
    flag = files.tokenizer_config.get("add_bos_token")
    by_file = pipeline.encode("a", special=True)[:1] == (pipeline.bos_token_id,)
    # The flag counts only in transformers 4, and only for these classes; both go by tokenizer.json otherwise.
    in_4 = flag is not False if files.tokenizer_class in BOS_BY_CLASS_IN_4 else by_file
    does = "puts" if by_file else "does not put"
    if in_4 != by_file:
        yield Finding(
            "warning",
            f"tokenizer.json {does} {files.token('bos_token')!r} before text, and transformers 5 goes by it; "
            f"transformers 4 {'does' if in_4 else 'does not'}, because it is a {files.tokenizer_class}",
            'Write "tokenizer_class": "PreTrainedTokenizerFast": then both go by tokenizer.json',
            "tokenizer_config.json",
        )
    elif isinstance(flag, bool) and flag != by_file:
        yield Finding(
            "warning",
            f"add_bos_token is {str(flag).lower()}, but has no effect: tokenizer.json {does} "
            f"{files.token('bos_token')!r} before text",
            "Change the post_processor in tokenizer.json, or the flag",
            "tokenizer_config.json",
        )


def cuts_off(subject: Subject) -> Iterator[Finding]:
    """Truncation that is written in tokenizer.json."""
    limit = subject.files.tokenizer_settings["truncation"].get("max_length")
    if limit:
        yield Finding(
            "note",
            f"tokenizer.json truncates to {limit} tokens: transformers does not, other programs that read it do",
            'Write "truncation": null into tokenizer.json',
            "tokenizer.json",
        )
