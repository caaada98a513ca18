"""One process at a time changes a file, and it is either the old file or the new one, whatever happens."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.errors import CannotRun

WAIT = 10.0  # seconds for another process: writing takes milliseconds
PAUSE = 0.02


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by who creates `<path>.lock`; that of a process that is gone is taken over."""
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """The whole file at once; a link goes on to be one."""
    real = Path(os.path.realpath(path))
    partial = real.with_name(f".{real.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, real)
            _sync_folder(real.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _acquire(lock: Path) -> None:
    end = time.monotonic() + WAIT
    while not _created(lock):
        holder = _holder(lock)
        if time.monotonic() > end:
            who = f"process {holder}" if holder else "a process that did not say which"
            raise CannotRun(
                f"{lock} is held by {who}: waited {WAIT:g} seconds",
                f"Wait until it is done; if there is no such process: rm {lock}*",
            )
        if _is_gone(holder):
            _take_away(lock, holder)
        else:
            time.sleep(PAUSE)


def _created(lock: Path) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with open(handle, "w", encoding="utf-8") as file:
        file.write(f"{os.getpid()} on {platform.node()}")
    return True


def _holder(lock: Path) -> str:
    with suppress(FileNotFoundError):
        return lock.read_text(encoding="utf-8", errors="replace")
    return ""


def _is_gone(holder: str) -> bool:
    """Only of this machine can it be said."""
    pid, _, host = holder.partition(" on ")
    if not pid.isdecimal() or host != platform.node():
        return False
    import psutil

    return not psutil.pid_exists(int(pid))


def _take_away(lock: Path, holder: str) -> None:
    # Two may find the same dead process: without a lock of its own the second would take away the lock of the first.
    guard = lock.with_name(lock.name + ".gone")
    if not _created(guard):
        time.sleep(PAUSE)
        return
    try:
        if _holder(lock) == holder:
            lock.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Path, error: OSError) -> CannotRun:
    remedy = "Free some space or make the folder writable; the file is as it was."
    return CannotRun(f"{path} cannot be written: {error.strerror or error}", remedy)
