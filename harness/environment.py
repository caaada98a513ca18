"""What identifies this machine and its libraries, without importing any of them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "harness",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "evaluate",
    "sacrebleu",
)
# An allow-list, because the rest of the environment holds secrets (tokens, keys) and reports are shared.
VARIABLES = (
    "CI",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
    "TRANSFORMERS_VERBOSITY",
)


def describe() -> dict[str, Any]:
    """Everything about this machine that can change what a model writes, as plain JSON data."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "torch": _torch_facts(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": _git(),
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _torch_facts() -> dict[str, Any]:
    """Torch's own settings; empty where torch is not loaded, because loading it costs seconds."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    has_cuda = bool(_ask(torch.cuda.is_available))
    facts = {
        "threads": _ask(torch.get_num_threads),
        "deterministic_algorithms": _ask(torch.are_deterministic_algorithms_enabled),
        "float32_matmul_precision": _ask(torch.get_float32_matmul_precision),
        "cuda": has_cuda,
    }
    if not has_cuda:
        return facts
    return facts | {
        "devices": _ask(lambda: [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]),
        "cuda_version": _ask(lambda: torch.version.cuda),
        "driver": _driver(),
        "cudnn": _ask(torch.backends.cudnn.version),
        "allow_tf32": _ask(lambda: torch.backends.cuda.matmul.allow_tf32),
        "cudnn_allow_tf32": _ask(lambda: torch.backends.cudnn.allow_tf32),
        "cudnn_deterministic": _ask(lambda: torch.backends.cudnn.deterministic),
    }


def _ask(question: Callable[[], Any]) -> Any:
    """An answer, or why there is none: a description must never end a run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return question()
    except Exception as error:
        # E.g. allow_tf32 raises a RuntimeError once the newer fp32_precision has been set.
        return f"unknown ({type(error).__name__})"


def _driver(version_file: Path = Path("/proc/driver/nvidia/version")) -> str:
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", version_file.read_text(errors="replace"))
    except OSError:
        return ""
    return found[0] if found else ""


def _git() -> dict[str, Any]:
    commit = _run_git("rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _run_git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _run_git(*arguments: str) -> str | None:
    """What git says of the current folder; None where there is no git, no repository or no quick answer."""
    # Without optional locks `git status` leaves the index of the user's repository alone.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=1,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
