"""What pins cost: the same prompts generated plainly, recorded and held to, in turns on one loaded model.

python benchmarks/recording.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from harness import backends
from harness.answers import Answers, Kept
from harness.backends import Backend
from harness.load import load
from harness.pins.book import Book
from harness.pins.recording import save
from harness.plan import plan
from harness.runner import Runner

SUITES = Path(__file__).parents[1] / "suites"
PLAIN, TOKENS, DISTRIBUTION = "new_tokens: {min: 1}", "pinned: tokens", "pinned: distribution"


def written(folder: Path, name: str, expectation: str) -> Path:
    """The prompts of suites/pinning.yaml, with one other expectation about them."""
    suite = (SUITES / "pinning.yaml").read_text(encoding="utf-8")
    head = suite.replace("extends: ", f"extends: {SUITES}/").partition("tests:")[0]
    tests = f"  - {{name: all, prompts: [counting, story, capital, moon], expect: {{{expectation}}}}}\n"
    file = folder / f"{name}.yaml"
    file.write_text(f"{head}tests:\n{tests}", encoding="utf-8")
    return file


def judged(file: Path, backend: Backend, mode: str) -> tuple[float, float]:
    """Seconds of the run, and of measuring the floor and writing after it."""
    runner = Runner(plan([load(file)]).checks, load=lambda *_, **__: Kept(backend), pins=Book(mode))  # type: ignore[arg-type]
    began = time.perf_counter()
    failed = [one.worst.verdict.reason for one in runner.run() if one.status not in ("passed", "skipped")]
    ran = time.perf_counter()
    if failed:
        raise SystemExit(failed[0])
    save(runner.pins, runner.answers if mode == "update" else Answers())
    return ran - began, time.perf_counter() - ran


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {
            name: written(folder, name, what) for name, what in zip("ptd", (PLAIN, TOKENS, DISTRIBUTION), strict=True)
        }
        backend = backends.load(plan([load(files["p"])]).checks[0].target)
        floors = [judged(files[name], backend, "update")[1] for name in "td"]  # a first time, with the floor
        turns = {"plain": ("p", "compare"), "tokens recorded": ("t", "update"), "tokens held to": ("t", "compare"),
                 "distributions recorded": ("d", "update"), "distributions held to": ("d", "compare")}  # fmt: skip
        ratios: dict[str, list[float]] = {name: [] for name in turns}
        plain = []
        for _ in range(repeats):
            seconds = {name: sum(judged(files[file], backend, mode)) for name, (file, mode) in turns.items()}
            plain.append(seconds["plain"])
            for name in turns:
                ratios[name].append(seconds[name] / seconds["plain"])
    for name, found in ratios.items():
        print(f"{name:<24} × {statistics.median(found):.2f}  [{min(found):.2f}, {max(found):.2f}]")
    usual = statistics.median(plain)
    print(f"the floor, once a file   × {floors[0] / usual:.1f} (tokens), × {floors[1] / usual:.1f} (distributions)")


if __name__ == "__main__":
    main()
