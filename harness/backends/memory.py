"""What this process holds on a device, the most that it held, and giving it back; and how fast the device is now."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Names of glibc's settings, and what it comes to by itself in a process that frees large blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
_ONE_BY_ONE = 2**16

ROUNDS = 5  # the best of them counts: other processes only ever make one slower

_unresettable = 0  # the most that was ever held, where the system cannot forget it


def held(device: str) -> int:
    """Bytes of this process now: allocated on all its GPUs, or resident on a CPU."""
    if _on_gpu(device):
        import torch

        return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))
    import psutil

    return int(psutil.Process().memory_info().rss)


def reset_peak(device: str) -> None:
    """Let `peak` begin anew."""
    global _unresettable
    if _on_gpu(device):
        import torch

        torch.cuda.init()  # before that there is nothing to reset, which would be an error
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        _unresettable = 0
    except OSError:
        _unresettable = _highest()


def peak(device: str) -> int:
    """The most bytes held since `reset_peak`. Where the system cannot tell: those held now, which is a lower bound."""
    if _on_gpu(device):
        import torch

        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    highest = _highest()
    return highest if highest > _unresettable else held(device)


def release(device: str | None = None) -> None:
    """Give back what nothing uses any more; without a device, on all of them."""
    gc.collect()
    if device is None or _on_gpu(device):
        torch: Any = sys.modules.get("torch")  # not imported: nothing was allocated by it
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
    # The C library keeps freed memory for the next allocation; the next target needs it elsewhere.
    _libc("malloc_trim", 0)


@contextlib.contextmanager
def returnable() -> Iterator[None]:
    """Let what is allocated meanwhile go back to the system when it is freed.

    Libraries load with threads of theirs, and what is freed in a thread's own heap stays there: up to 64 MB for each,
    which no `release` gets at. Blocks that the system itself hands out are not in a heap.
    """
    _libc("mallopt", _MMAP_THRESHOLD, _ONE_BY_ONE)
    try:
        yield
    finally:
        for setting, value in _USUAL.items():
            _libc("mallopt", setting, value)


def _libc(function: str, *arguments: int) -> None:
    """Only glibc has these: elsewhere nothing is done."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def yardstick(device: str) -> float:
    """Seconds of a fixed piece of work: products of matrices, and a copy that no cache holds.

    Taken before and after a measurement, it tells a slower target from a machine that was busy meanwhile.
    """
    import torch

    gpu = _on_gpu(device)
    size, floats = (4096, 2**26) if gpu else (640, 2**24)
    where = torch.device(device if gpu else "cpu")
    factor = torch.full((size, size), 0.5, device=where)
    source = torch.full((floats,), 0.5, device=where)
    copied = torch.empty_like(source)
    seconds = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first one warms up
            began = _now(torch, where)
            for _ in range(3):
                torch.mm(factor, factor)
            copied.copy_(source)
            seconds.append(_now(torch, where) - began)
    return min(seconds[1:])


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _now(torch: Any, device: Any) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _highest() -> int:
    """The largest resident set so far."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024
    return held("cpu")
