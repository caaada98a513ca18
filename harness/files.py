"""The files of a model, read as they lie: configuration, tokenizer, headers of the weights; no weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeGuard

from harness.backends import convert, packages, sources
from harness.errors import ModelUnavailable
from harness.inputs import Model

UNLIMITED = 10**9  # a tokenizer that knows no limit says 1e30
LONGEST_HEADER = 100_000_000  # bytes, by the format's own limit
NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "shared")
# Tokenizer classes that pad on the left unless the files say otherwise; all others pad on the right.
LEFT_BY_CLASS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "XLNetTokenizer")
# Arguments of generate() that a configuration may hold, and what stands for “unset”.
DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
}
OF_GENERATION = {*DEFAULTS, "bos_token_id", "eos_token_id", "pad_token_id"}

Json = dict[str, Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor, as the header of its file describes it."""

    dtype: str  # as safetensors writes it: F32, BF16 …
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFiles:
    """What the files of one model say."""

    where: Path
    config: Json
    generation_config: Json | None = None  # None: there is no such file
    tokenizer_config: Json = field(default_factory=dict)
    special_tokens_map: Json = field(default_factory=dict)
    chat_template: str | None = None
    template_file: str = ""  # where the template stands; chat_template.json is not read by tokenizers
    tokenizer: Path | None = None  # tokenizer.json
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)  # file -> what is wrong with it
    from_hub: bool = False  # what is not here yet would be fetched

    @property
    def text_config(self) -> Json:
        """The part of the configuration that is about the language model."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type") or "")

    def token(self, name: str) -> str | None:
        """A named special token, e.g. pad_token, as text."""
        # The map counts only where tokenizer_config.json is of the old kind, without a table of added tokens.
        old = "added_tokens_decoder" not in self.tokenizer_config
        for source in (self.special_tokens_map if old else {}, self.tokenizer_config):
            if (written := _content(source.get(name))) is not None:
                return written
        return _content(self.tokenizer_settings["padding"].get("pad_token")) if name == "pad_token" else None

    @cached_property
    def backend(self) -> Any:
        """The tokenizer of tokenizer.json, as it is read without transformers; a sentence where that cannot be."""
        if self.tokenizer is None:
            return "there is no tokenizer.json: only transformers can read this tokenizer"
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.tokenizer))
        except Exception as error:  # it has no class of its own for files that it cannot read
            return f"tokenizer.json cannot be read: {error}"

    @cached_property
    def tokenizer_settings(self) -> Mapping[str, Json]:
        """Truncation and padding that are written in tokenizer.json."""
        return {name: getattr(self.backend, name, None) or {} for name in ("truncation", "padding")}

    @property
    def tokenizer_class(self) -> str:
        """As tokenizer_config.json names it, without the “Fast” of old; "" where it does not."""
        return str(self.tokenizer_config.get("tokenizer_class") or "").removesuffix("Fast")

    @property
    def padding_side(self) -> str:
        """The side that the tokenizer pads on as shipped."""
        by_class = "left" if self.tokenizer_class in LEFT_BY_CLASS else "right"
        in_file = str(self.tokenizer_settings["padding"].get("direction") or by_class).lower()
        return str(self.tokenizer_config.get("padding_side") or in_file)

    @property
    def truncation_side(self) -> str:
        in_file = str(self.tokenizer_settings["truncation"].get("direction") or "right").lower()
        return str(self.tokenizer_config.get("truncation_side") or in_file)

    @property
    def max_length(self) -> int | None:
        """The length to which the tokenizer truncates when asked to; None without a limit."""
        limit = self.tokenizer_config.get("model_max_length")
        return int(limit) if is_number(limit) and 0 < limit < UNLIMITED else None

    @property
    def encoder_decoder(self) -> bool:
        return bool(self.config.get("is_encoder_decoder"))

    @property
    def generation(self) -> Json:
        """What generate() starts from: generation_config.json alone where it is there, else config.json."""
        if self.generation_config is not None:
            return self.generation_config
        written = self.text_config | {name: value for name, value in self.config.items() if value is not None}
        return {name: value for name, value in written.items() if name in OF_GENERATION}

    @property
    def generation_file(self) -> str:
        return "config.json" if self.generation_config is None else "generation_config.json"

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return ids_of(self.generation.get("eos_token_id"))

    @property
    def context_window(self) -> int | None:
        """Positions that the model has."""
        names = ("max_position_embeddings",) if self.encoder_decoder else ("max_position_embeddings", "n_positions")
        found = [self.text_config.get(name) for name in names]
        return next((int(value) for value in found if is_number(value) and value > 0), None)

    @property
    def embeddings(self) -> int | None:
        """Rows of the embedding: by the weights, else by the configuration."""
        for name, tensor in self.tensors.items():
            if name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS and len(tensor.shape) == 2:
                return tensor.shape[0]
        size = self.text_config.get("vocab_size")
        return int(size) if is_number(size) else None


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _content(token: Any) -> str | None:
    """A special token is written as text or as a mapping."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def transformers_version() -> tuple[int, ...]:
    """Of the installed transformers, without importing it; () where there is none."""
    try:
        return numbers_of(version("transformers"))
    except PackageNotFoundError:
        return ()


def numbers_of(text: str) -> tuple[int, ...]:
    """5.23.0.dev0 -> (5, 23, 0)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


# --- finding them ----------------------------------------------------------------------------------------------------


def find(model: Model) -> ModelFiles | str:
    """The files of a model as far as they are on this machine; else a sentence why they cannot be looked at."""
    if model.backend != "transformers":
        return f"a model of backend {model.backend} has no files: nothing to look at"
    try:
        found = _folder(model)
    except ModelUnavailable as error:
        return f"{error.message.rstrip('.')}: not looked at. {error.remedy}"
    return read(*found) if isinstance(found, tuple) else f"{found}; not looked at"


def _folder(model: Model) -> tuple[Path, bool] | str:
    """A folder and whether it is a snapshot of the Hub; or why there is none."""
    kind, separator, rest = model.path.partition(":")
    if separator and kind in ("wheel", "package"):
        path = packages.from_package(rest, lambda _: None) if kind == "package" else _from_wheel(rest)
        if path is None:
            return f"{model.path.split('#')[0]} is not fetched yet: `harness run` fetches it once"
    else:
        path = Path(model.path).expanduser()
    if path.is_dir():
        return path.absolute(), False
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _converted(path.absolute())
    if path.exists():
        return f"{path} is neither a folder nor a GGUF file"
    if sources.looks_local(model.path):
        raise sources.missing(path.absolute(), model.path)
    return _snapshot(model)


def _from_wheel(rest: str) -> Path | None:
    """The file of a wheel that is installed or was unpacked before; None where it would have to be fetched."""
    match = packages.WHEEL.fullmatch(rest)
    if match and match["sha256"] and not packages.installed_file(match["name"], match["version"], match["file"]):
        kept = convert.cache_root() / "wheels" / match["sha256"][:32] / Path(match["file"]).name
        return kept if kept.is_file() else None
    return packages.from_wheel(rest, lambda _: None)  # installed, or refused with its reason


def _converted(gguf: Path) -> tuple[Path, bool] | str:
    if any((convert.cache_root() / "models").glob(f"*/{convert.SOURCE_FILE}")):  # else the digest is for nothing
        convert.check_magic(gguf)
        if found := convert.converted_folder(convert.sha256_of(gguf)):
            return found[0], False
    return f"{gguf.name} is not converted yet: `harness run` converts it once"


def _snapshot(model: Model) -> tuple[Path, bool] | str:
    """The newest snapshot of a Hub id in the local cache, found by the layout of that cache alone."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{model.path.replace('/', '--')}"
    revision = model.revision or "main"
    reference = folder / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if (folder / "snapshots" / commit / "config.json").is_file():
        return folder / "snapshots" / commit, True
    option = f" --revision {model.revision}" if model.revision else ""
    return f"{model.path} is not in the local Hub cache: `hf download {model.path}{option}` fetches it"


# --- reading them ----------------------------------------------------------------------------------------------------


def read(folder: Path, from_hub: bool = False) -> ModelFiles:
    """What the files of a folder say; what cannot be read is told in `broken`."""
    broken: dict[str, str] = {}
    names = ("config", "generation_config", "tokenizer_config", "special_tokens_map")
    found = {name: _json(folder / f"{name}.json", broken) for name in names}
    if found["config"] is None:
        broken.setdefault("config.json", "there is no such file")
    template, template_file = _template(folder, found["tokenizer_config"] or {}, broken)
    tokenizer = folder / "tokenizer.json"
    return ModelFiles(
        where=folder,
        config=found["config"] or {},
        generation_config=found["generation_config"],
        tokenizer_config=found["tokenizer_config"] or {},
        special_tokens_map=found["special_tokens_map"] or {},
        chat_template=template,
        template_file=template_file,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        tensors=_tensors(folder),
        broken=broken,
        from_hub=from_hub,
    )


def _json(path: Path, broken: dict[str, str]) -> Json | None:
    """A mapping; None where there is no such file or it is broken."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        broken[path.name] = f"it cannot be read as JSON: {error}"
        return None
    if isinstance(data, dict):
        return data
    broken[path.name] = f"it holds a {type(data).__name__}, not a mapping"
    return None


def _template(folder: Path, settings: Json, broken: dict[str, str]) -> tuple[str | None, str]:
    """The default chat template and its file: a file of its own wins over tokenizer_config.json."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8"), own.name
        except (OSError, ValueError) as error:
            broken[own.name] = f"it cannot be read: {error}"
            return None, ""
    if template := _default_template(settings.get("chat_template")):
        return template, "tokenizer_config.json"
    legacy = _json(folder / "chat_template.json", broken) or {}
    template = _default_template(legacy.get("chat_template"))
    return template, "chat_template.json" if template else ""


def _default_template(written: Any) -> str | None:
    """One template, or the one named default of several."""
    if isinstance(written, list):
        named = {one.get("name"): one.get("template") for one in written if isinstance(one, dict)}
        written = named.get("default")
    return written if isinstance(written, str) else None


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the safetensors files; a file that is no such file has none."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(file).items():
            try:
                found[name] = Tensor(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            except (KeyError, TypeError, ValueError):
                continue  # __metadata__, or a header that is told of as damaged elsewhere
    return found


def _header(file: Path) -> Json:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            data = json.loads(stream.read(length)) if length <= min(LONGEST_HEADER, file.stat().st_size) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def ids_of(value: Any) -> tuple[int, ...]:
    """Token ids as configurations write them: none, one or a list."""
    values: Iterable[Any] = value if isinstance(value, list) else (value,)
    return tuple(one for one in values if isinstance(one, int) and not isinstance(one, bool))
