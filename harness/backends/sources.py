"""Where weights come from: whatever a suite writes as a model's path becomes a folder on this machine."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from harness.backends import packages
from harness.backends.convert import Tell, convert, sha256_of
from harness.errors import ModelUnavailable
from harness.inputs import Model

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
_TIMEOUT = 5  # seconds to hear from the Hub at all; downloads themselves may take as long as they need


@dataclass(frozen=True)
class Source:
    """Where the weights are now, and what identifies them."""

    path: str  # a folder with config, tokenizer and safetensors
    revision: str | None = None  # the commit, for a Hub id
    digest: str = ""  # of the weight files' content; the commit, for a Hub id
    origin: str = ""  # what the suite says
    dequantised_from: str = ""  # "Q4_1" where a GGUF was; else ""


def resolve(model: Model, progress: Tell | None = None) -> Source:
    """Find, fetch or convert the weights of a model."""
    tell = progress or (lambda _: None)
    kind, separator, rest = model.path.partition(":")
    if separator and kind in ("wheel", "package"):
        find = packages.from_wheel if kind == "wheel" else packages.from_package
        return _local(find(rest, tell), model, tell)
    path = Path(model.path).expanduser()
    if path.exists():
        return _local(path, model, tell)
    if looks_local(model.path):
        raise missing(path.absolute(), model.path)
    return _from_hub(model, tell)


def _local(path: Path, model: Model, tell: Tell) -> Source:
    path = path.absolute()
    if path.suffix.lower() == ".gguf" and path.is_file():
        folder, quantization = convert(path, model.path, tell)
        return Source(str(folder), None, sha256_of(path)[:16], model.path, quantization)
    if not path.is_dir():
        raise ModelUnavailable(
            f"{path} is neither a folder nor a GGUF file.", "Give the folder that holds the weights."
        )
    check_folder(path)
    return Source(str(path), None, _folder_digest(path), model.path)


def looks_local(text: str) -> bool:
    separators = text.count("/") + text.count(os.sep if os.sep != "/" else "\0")
    return text.startswith((".", "/", "~")) or separators >= 2 or "\\" in text or text.lower().endswith(".gguf")


def missing(path: Path, written: str) -> ModelUnavailable:
    parent = next(folder for folder in path.parents if folder.is_dir())
    wanted = path.relative_to(parent).parts[0]
    try:
        near = difflib.get_close_matches(wanted, [entry.name for entry in parent.iterdir()], n=3, cutoff=0.5)
    except OSError:
        near = []
    hint = f" Did you mean {' or '.join(str(parent / name) for name in near)}?" if near else ""
    return ModelUnavailable(
        f"There is no {path} (model path {written!r}; {parent} exists, {wanted!r} in it does not).{hint}",
        "Relative paths start at the working directory. A Hub id is written org/name.",
    )


# --- folders ---------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """A folder that can be loaded: a configuration, and weights that are not pickles and all there."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelUnavailable(f"{folder} holds no *.safetensors{_instead(folder)}", _instead_remedy(folder))
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(
            f"{folder} holds weights but no config.json.", "Copy config.json and the tokenizer's files beside them."
        )
    if absent := _absent_shards(folder):
        raise ModelUnavailable(
            f"{folder} lacks {len(absent)} of the weight files that its index names: {', '.join(absent[:3])}.",
            "Copy or download the folder again.",
        )
    for file in weights:
        _check_safetensors(file)


def _instead(folder: Path) -> str:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if pickles:
        return f", only {', '.join(pickles[:3])}: pickles can run code when they are read, and are not loaded."
    return f", but a GGUF file: {', '.join(ggufs[:3])}." if ggufs else "."


def _instead_remedy(folder: Path) -> str:
    if any(file for pattern in _PICKLES for file in folder.glob(pattern)):
        return (
            "If you trust them, convert once: AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False)"
            ".save_pretrained(NEW, safe_serialization=True)."
        )
    if gguf := next(iter(sorted(folder.glob("*.gguf"))), None):
        return f"Give the file itself: path: {gguf}"
    return "Give the folder that holds config.json, the tokenizer's files and the weights."


def _absent_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelUnavailable(f"{index} cannot be read: {error}.", "Copy or download it again.") from error
    return sorted(str(name) for name in named if not (folder / str(name)).is_file())


def _check_safetensors(file: Path) -> None:
    """Find out pointers and cut files before a library stops over them in words of its own."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        whole = len(start) == 8 and 8 + length <= file.stat().st_size
        if whole:
            header = stream.read(length)
    if start == b"version ":
        raise ModelUnavailable(
            f"{file} is a Git LFS pointer, not the weights.", "Run `git lfs pull` in its repository."
        )
    if whole:
        try:
            tensors = json.loads(header)
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0) == file.stat().st_size
        except (ValueError, KeyError, AttributeError, TypeError, IndexError):
            whole = False
    if not whole:
        raise ModelUnavailable(f"{file} is damaged: it is cut short or not safetensors.", "Copy or download it again.")


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()[:16]


def _from_hub(model: Model, tell: Tell) -> Source:
    """A snapshot in the local Hub cache, taken as it is; fetched, without pickles, if it is not there yet."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    patterns = [*_WANTED, "*.py"] if model.trust_remote_code else _WANTED
    try:
        folder = huggingface_hub.snapshot_download(
            model.path, revision=model.revision, local_files_only=True, allow_patterns=patterns
        )
    except HFValidationError as error:
        raise ModelUnavailable(
            f"{model.path!r} is no folder here and cannot be a Hub id: {error}", "A Hub id is written org/name."
        ) from error
    except Exception:  # another class in each version of the library; all of them mean “not here, or not whole”
        folder = None
    if folder is None or not _loadable(Path(folder)):
        folder = _download(model, patterns, tell)
    check_folder(Path(folder))
    commit = Path(folder).name
    return Source(str(folder), commit, commit, model.path)


def _loadable(folder: Path) -> bool:
    try:
        check_folder(folder)
    except ModelUnavailable:
        return False
    return True


def _download(model: Model, patterns: list[str], tell: Tell) -> str:
    import huggingface_hub

    if _offline():
        raise _not_on_hub(model, "the Hub was not asked, because HF_HUB_OFFLINE is set")
    try:
        # Asked first with a short time limit: the download itself would try again and again for minutes.
        info = huggingface_hub.HfApi().model_info(model.path, revision=model.revision, timeout=_TIMEOUT)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        if files and not any(name.endswith(".safetensors") and "/" not in name for name in files):
            raise _no_safetensors(model, files)
        tell(f"Fetching {model.path} from the Hub …")
        return str(huggingface_hub.snapshot_download(model.path, revision=info.sha, allow_patterns=patterns))
    except ModelUnavailable:
        raise
    except Exception as error:  # its own classes, its HTTP library's, the system's: see _why
        raise _not_on_hub(model, _why(error)) from error


def _offline() -> bool:
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return said or bool(constants.HF_HUB_OFFLINE)


def _why(error: Exception) -> str:
    from huggingface_hub import errors

    meanings: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, "the Hub has it but gates it: accept its terms there and `hf auth login`"),
        (errors.RepositoryNotFoundError, "the Hub knows no such model, or it is private and you are not logged in"),
        (errors.RevisionNotFoundError, "the Hub has the model but not this revision"),
    ]
    status = getattr(getattr(error, "response", None), "status_code", None)
    for kind, meaning in meanings:
        if isinstance(error, kind):
            return meaning
    first = (str(error).splitlines() or [""])[0][:200]
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"that cache cannot be written ({error}); HF_HOME chooses another place for it"
    if status is not None:
        return f"the Hub answered with HTTP {status} ({first})"
    return f"the Hub cannot be reached ({type(error).__name__}: {first})"


def _not_on_hub(model: Model, why: str) -> ModelUnavailable:
    from huggingface_hub import constants

    name = f"{model.path} at revision {model.revision}" if model.revision else model.path
    unknown = (
        "; so it cannot be told whether it exists there or is gated"
        if "HF_HUB_OFFLINE" in why or "reached" in why
        else ""
    )
    option = f" --revision {model.revision}" if model.revision else ""
    return ModelUnavailable(
        f"The model {name} is not here: there is no such folder, it is not whole in the local Hub cache "
        f"{constants.HF_HUB_CACHE}, and {why}{unknown}.",
        f"Where there is a network: hf download {model.path}{option}; then bring that cache here, or put the files in "
        "a folder and write path: ./folder",
    )


def _no_safetensors(model: Model, files: list[str]) -> ModelUnavailable:
    pickles = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    ggufs = [name for name in files if name.endswith(".gguf")]
    what = f"only pickles ({pickles[0]} …), which are not loaded" if pickles else "no weights that can be loaded"
    remedy = "Convert them once with save_pretrained(FOLDER, safe_serialization=True) and write path: ./FOLDER"
    if ggufs:
        what = f"GGUF files ({', '.join(ggufs[:3])} …) but no safetensors"
        remedy = (
            f"Fetch one: hf download {model.path} {ggufs[0]} --local-dir FOLDER; then write path: FOLDER/{ggufs[0]}"
        )
    return ModelUnavailable(f"{model.path} has {what}.", remedy)
