"""Memory that is really held, the most of it, and what comes back."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.backends import load, memory
from harness.backends.sources import resolve
from harness.inputs import Generation, Model
from harness.record import Completion, Request, Target, TargetFacts, Text

SUITE = Path(__file__).parents[2] / "suites" / "models" / "smollm2.yaml"
MB = 2**20
BLOCK = 64 * MB
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def block() -> Iterator[Any]:
    """Memory from the system itself, all of it touched."""
    with mmap.mmap(-1, BLOCK) as held:
        held.write(b"x" * BLOCK)
        yield held


def passing(size: int) -> None:
    with mmap.mmap(-1, size) as held:
        held.write(b"x" * size)


def near(value: int, wanted: int, margin: int = 8 * MB) -> bool:
    return abs(value - wanted) <= margin


def test_what_is_held_is_the_resident_set(block: Any) -> None:
    with_it = memory.held("cpu")
    block.close()
    assert near(with_it - memory.held("cpu"), BLOCK)


@linux
def test_a_peak_is_that_since_the_last_reset() -> None:
    passing(2 * BLOCK)
    memory.reset_peak("cpu")
    before = memory.held("cpu")
    assert near(memory.peak("cpu"), before)
    passing(BLOCK)
    assert near(memory.held("cpu"), before)
    assert near(memory.peak("cpu") - before, 2 * BLOCK)  # the bytes that are written lie in memory, too


@linux
def test_a_peak_that_cannot_be_reset_is_not_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> int:
        raise PermissionError

    passing(2 * BLOCK)
    monkeypatch.setattr(Path, "write_text", refuse)
    memory.reset_peak("cpu")
    assert near(memory.peak("cpu"), memory.held("cpu"))
    passing(4 * BLOCK)
    assert memory.peak("cpu") - memory.held("cpu") > 4 * BLOCK
    monkeypatch.undo()
    memory.reset_peak("cpu")
    assert near(memory.peak("cpu"), memory.held("cpu"))


def test_without_proc_there_is_still_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    memory.reset_peak("cpu")
    assert memory.peak("cpu") >= memory.held("cpu") - 8 * MB
    monkeypatch.undo()
    memory.reset_peak("cpu")


def test_release_collects_cycles_and_does_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.block, self.own = mmap.mmap(-1, BLOCK), self
            self.block.write(b"x" * BLOCK)

    before = memory.held("cpu")
    Cycle()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.release()
    assert near(memory.held("cpu"), before)


def test_what_is_loaded_in_threads_comes_back() -> None:
    """In a thread's own heap, tensors under the threshold of the C library would stay resident once they are freed."""
    torch = pytest.importorskip("torch")
    kept: list[Any] = []

    def fill() -> None:
        kept.extend(torch.ones(MB // 16) for _ in range(128))  # 32 MB of 256 kB each

    memory.release()
    before = memory.held("cpu")
    with memory.returnable():
        threads = [threading.Thread(target=fill) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert memory.held("cpu") - before > 120 * MB
    kept.clear()
    assert near(memory.held("cpu"), before)


def test_the_yardstick_is_short_and_steady() -> None:
    memory.yardstick("cpu")
    taken = sorted(memory.yardstick("cpu") for _ in range(3))
    assert 0.0001 < taken[0] < 2
    assert taken[1] < 5 * taken[0]


@linux
def test_the_yardstick_gives_back_what_it_takes() -> None:
    memory.yardstick("cpu")
    memory.release()
    before = memory.held("cpu")
    memory.yardstick("cpu")
    memory.release()
    assert near(memory.held("cpu"), before)


def smollm2(device: str) -> Model:
    written = yaml.safe_load(SUITE.read_text(encoding="utf-8"))["models"]["smollm2"]
    return Model(path=written["path"], dtype="float32", device=device)


def loaded_and_dropped(model: Model, level: str) -> tuple[TargetFacts, int, int]:
    """Facts, and bytes held with the weights loaded, and after they were used and dropped."""
    device = model.device or ""
    backend = load(Target(f"smollm2-{level}", "smollm2", model, level))
    facts = backend.facts
    memory.release()
    with_it = memory.held(device)
    (answer,) = backend.generate([Request(Text(text="Red, orange"), Generation(do_sample=False, max_new_tokens=3))])
    assert isinstance(answer, Completion), answer
    backend.close()
    del backend
    memory.release()
    return facts, with_it, memory.held(device)


@linux
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("LD_PRELOAD", "") != "", reason="another allocator than the C library's")
@pytest.mark.parametrize("level", ["fp32", "bf16", "int8", "nf4"])
def test_a_dropped_model_gives_its_memory_back(level: str) -> None:
    model = smollm2("cpu")
    file = next(Path(resolve(model).path).glob("*.safetensors")).stat().st_size
    embedding = 49_152 * 576 * 4
    loaded_and_dropped(model, level)  # libraries come along with the first, and stay
    after = []
    for _ in range(2):
        facts, with_it, left = loaded_and_dropped(model, level)
        assert near(with_it - facts.held_before_bytes, facts.weight_bytes, 30 * MB)
        # While it is loaded the file is resident as well, which float32 weights are taken from as they are, and
        # a copy of its largest tensor for as long as that is converted, if the peak is looked at just then.
        own = 0 if level == "fp32" else facts.weight_bytes
        assert file + own - 80 * MB < facts.load_peak_bytes < file + own + embedding + 80 * MB
        after.append((facts.held_before_bytes, left))
    for before, left in after:
        assert left - before < 8 * MB
    assert near(after[1][1], after[0][1])


@pytest.mark.gpu
@pytest.mark.model
@pytest.mark.parametrize("level", ["bf16", "int8", "nf4"])
def test_a_dropped_model_gives_its_gpu_memory_back(level: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    for _ in range(2):
        facts, with_it, left = loaded_and_dropped(smollm2("cuda:0"), level)
        # Blocks of the allocator are multiples of 512 bytes, and there are some thousand tensors.
        assert near(with_it - facts.held_before_bytes, facts.weight_bytes, 20 * MB)
        assert facts.load_peak_bytes >= facts.weight_bytes
        assert left - facts.held_before_bytes < 20 * MB
    assert memory.yardstick("cuda:0") < 1
