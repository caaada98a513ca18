"""A GGUF file as a folder of safetensors, made once and kept in the user's cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ModelUnavailable

Tell = Callable[[str], None]

VERSION = 1  # raise it when a converted folder would come out differently
SOURCE_FILE = "source.json"

# How llama.cpp splits text before the merges, by its own name for it. Transformers ignores that name: 4.57 turns a
# smollm file into a Llama tokenizer (a BOS before each text, <|im_start|> as EOS, padding left) and 5.x forgets that
# digits stand alone. What is not in this table is left to transformers, and kept apart by its major version.
_DIGITS_APART = {"smollm": True, "gpt-2": False}
_CONTROL, _USER_DEFINED = 3, 4  # token types of a GGUF
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@dataclass(frozen=True)
class Header:
    """What a GGUF says about itself."""

    metadata: dict[str, Any]
    quantization: str  # the type of most of its weights, e.g. Q4_1
    elements: int

    @property
    def portable_tokenizer(self) -> bool:
        """Whether the tokenizer can be written without transformers, the same for every version."""
        known = self.metadata.get("tokenizer.ggml.pre") in _DIGITS_APART
        plain = not self.metadata.get("tokenizer.ggml.add_bos_token", False)
        return self.metadata.get("tokenizer.ggml.model") == "gpt2" and known and plain


def cache_root() -> Path:
    """Where converted models, unpacked wheels and digests are kept."""
    if given := os.environ.get("HARNESS_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "harness"


@contextlib.contextmanager
def writing_cache() -> Iterator[None]:
    """Full disks and folders that cannot be written, told as such."""
    try:
        yield
    except Exception as error:
        # safetensors raises its own class, with the number of the system's error in the text only.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
        denied = getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
        if not full and not denied:
            raise
        raise cache_error("there is no room left" if full else f"it cannot be written ({error})") from error


def cache_error(why: str) -> ModelUnavailable:
    """The cache is the trouble, not the model."""
    return ModelUnavailable(
        f"The model cache {cache_root()} cannot take the model: {why}.",
        "Set HARNESS_CACHE to a folder that can be written and has room, or free some there.",
    )


def sha256_of(path: Path) -> str:
    """Digest of a file's content; remembered by size and time of change, because weights are large."""
    state = path.stat()
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    memory = cache_root() / "digests" / f"{key}.json"
    known = [state.st_size, state.st_mtime_ns]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        seen = json.loads(memory.read_text(encoding="utf-8"))
        if seen["state"] == known:
            return str(seen["sha256"])
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A cache that cannot be written costs a second the next time, nothing else.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps({"path": str(path), "state": known, "sha256": digest}).encode())
    return digest


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def convert(gguf: Path, origin: str, tell: Tell) -> tuple[Path, str]:
    """The converted folder of a GGUF file and its quantization type; converts only if nobody has before."""
    check_magic(gguf)
    digest = sha256_of(gguf)
    if found := converted_folder(digest):
        return found
    models = cache_root() / "models"
    with writing_cache():
        models.mkdir(parents=True, exist_ok=True)
    with writing_cache(), _locked(models / f".{digest[:16]}.lock", tell):
        if found := converted_folder(digest):
            return found
        tell(f"Converting {gguf.name} to safetensors, once (half a minute for 135M parameters) …")
        return _convert(gguf, digest, origin, models)


def _folders(digest: str) -> tuple[str, str]:
    """Name of the folder that every transformers can read, and of the one for this major version alone."""
    from importlib.metadata import version

    name = f"{digest[:16]}-v{VERSION}"
    return name, f"{name}-transformers{version('transformers').split('.')[0]}"


def converted_folder(digest: str) -> tuple[Path, str] | None:
    for name in _folders(digest):
        folder = cache_root() / "models" / name
        with contextlib.suppress(OSError, ValueError, KeyError):
            source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
            if source["digest"] == digest and any(folder.glob("*.safetensors")):
                return folder, str(source["dequantised_from"])
    return None


def check_magic(gguf: Path) -> None:
    try:
        with gguf.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise ModelUnavailable(f"{gguf} cannot be read: {error}.", "Check the file's permissions.") from error
    if not start.startswith(b"GGUF"):
        lfs = " It is a Git LFS pointer: `git lfs pull` fetches the file itself." if start == b"version " else ""
        raise _damaged(gguf, f"it does not begin with the letters GGUF.{lfs}")


def _damaged(gguf: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{gguf} is damaged or not a GGUF file: {why}",
        "Fetch it again and compare its size and sha256 with those where it was published.",
    )


@contextlib.contextmanager
def _locked(path: Path, tell: Tell) -> Iterator[None]:
    """One process converts, the others wait; where files cannot be locked, each converts and the first one counts."""
    with path.open("a") as handle:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("Waiting for another process that converts the same model …")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, digest: str, origin: str, models: Path) -> tuple[Path, str]:
    header = read_header(gguf)
    needed = header.elements * 4 + 2**26
    if (free := shutil.disk_usage(models).free) < needed:
        raise cache_error(f"it needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
    work = Path(tempfile.mkdtemp(dir=models, prefix=".converting-"))
    try:
        with _quiet():
            dtype = _save_model(gguf, work)
            portable = _rewrite_config(work) and header.portable_tokenizer
            if header.portable_tokenizer:
                _write_tokenizer(header.metadata, work)
            else:
                _save_tokenizer(gguf, header.metadata, work)
        source = {"origin": origin, "digest": digest, "dequantised_from": header.quantization, "dtype": dtype}
        write_whole(work / SOURCE_FILE, json.dumps(source, indent=2).encode())
        everywhere, here = _folders(digest)
        return _put_in_place(work, models / (everywhere if portable else here)), header.quantization
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, folder: Path) -> Path:
    try:
        work.rename(folder)
    except OSError:
        # Somebody else was first: theirs is the same.
        if not (folder / SOURCE_FILE).is_file():
            raise
    return folder


def read_header(gguf: Path) -> Header:
    """Read metadata and tensor table; a truncated file is found out here."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(gguf))
        metadata = {name: _value(field) for name, field in reader.fields.items()}
        weights: Counter[str] = Counter()
        for tensor in reader.tensors:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
    except Exception as error:  # the reader has no error class of its own
        raise _damaged(gguf, f"reading it stopped with “{type(error).__name__}: {error}”.") from error
    if not weights:
        raise _damaged(gguf, "it holds no weights.")
    return Header(metadata, weights.most_common(1)[0][0], weights.total())


def _value(field: Any) -> Any:
    from gguf import GGUFValueType

    if not field.types:
        return None
    if field.types[-1] == GGUFValueType.STRING:
        values = [bytes(field.parts[index]).decode() for index in field.data]
    else:
        values = [field.parts[index].tolist()[0] for index in field.data]
    return values if field.types[0] == GGUFValueType.ARRAY else values[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars, log lines and warnings about the conversion to ourselves."""
    from transformers.utils import logging  # imported first: its handler keeps the stderr that it sees here

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _save_model(gguf: Path, folder: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # any class: the loader meets whatever the file says
        raise ModelUnavailable(
            f"transformers cannot load {gguf}: {type(error).__name__}: {error}",
            "If it names an architecture, use the model's original safetensors; else fetch the file again.",
        ) from error
    # The weights are plain numbers by now; transformers 5 refuses to save them while this is set.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    dtype = _smallest_lossless(model)
    model.to(dtype).save_pretrained(str(folder), safe_serialization=True)
    return str(dtype).removeprefix("torch.")


def _smallest_lossless(model: Any) -> Any:
    """The dtype that keeps every weight as it is.

    A Q4_1 weight is scale * q + minimum with both in float16: rounding SmolLM2-135M's to bfloat16 moves them by up to
    0.014, to float16 by up to 0.002, and more than half of them; so float32. F16 and BF16 files keep their own size.
    """
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).float(), weight) for weight in model.state_dict().values()):
            return dtype
    return torch.float32


def _rewrite_config(folder: Path) -> bool:
    """Make the configuration mean the same to every transformers; false when that cannot be done."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    rope = config.get("rope_parameters") or {}
    # Transformers 4 knows only rope_theta, and would take 10000 without a word where 5 has written rope_parameters.
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    portable = rope.get("rope_type", "default") == "default" and not config.get("rope_scaling")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return portable


def _special_tokens(metadata: dict[str, Any]) -> dict[str, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {word: metadata.get(f"tokenizer.ggml.{name}_token_id") for word, name in _SPECIAL.items()}
    return {word: tokens[id] for word, id in ids.items() if id is not None and id < len(tokens)}


def _write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """A byte-level BPE tokenizer from the GGUF's own tables."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if _DIGITS_APART[metadata["tokenizer.ggml.pre"]]:
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, metadata.get("tokenizer.ggml.token_type") or (), strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == _CONTROL)
            (tokenizer.add_special_tokens if kind == _CONTROL else tokenizer.add_tokens)([added])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    # Without it transformers 4 also returns token_type_ids, which a causal model's generate() refuses.
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    settings |= _special_tokens(metadata)
    if length := metadata.get(f"{metadata['general.architecture']}.context_length"):
        settings["model_max_length"] = length
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if template := metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _save_tokenizer(gguf: Path, metadata: dict[str, Any], folder: Path) -> None:
    """Transformers' own reading of the tokenizer, with the special tokens that the file names."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as error:  # any class, as above
        raise ModelUnavailable(
            f"transformers cannot read the tokenizer of {gguf}: {type(error).__name__}: {error}",
            "Use the model's original folder or Hub id, which hold the tokenizer itself.",
        ) from error
    for word, token in _special_tokens(metadata).items():
        setattr(tokenizer, word, token)
    tokenizer.save_pretrained(str(folder))
