"""Does the margin rule tell rounding from change? Counts, on the embedded model, verdicts that should all be one way.

    python benchmarks/margins.py [bfloat16 …]

For each dtype: every prompt alone against a batch of 4, against left padding (both harmless: every failure is a
false alarm), and against right padding (harmful: every pass is a miss, unless the tokens are equal).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

from harness import backends
from harness.expectations.invariance import BatchInvariant, PaddingInvariant
from harness.inputs import Generation, Message
from harness.load import load
from harness.record import Completion, Failure, Request, Target, Text
from harness.schedule import batches

ROOT = Path(__file__).parents[1]
GREEDY = Generation(do_sample=False, max_new_tokens=24)
COUNTRIES = ["France", "Japan", "Italy", "Peru", "Kenya", "Norway", "India", "Cuba"]
PLAIN = [
    "1, 2, 3,",
    "A list of colors: red, blue",
    "The opposite of hot is",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
    "Water boils at a temperature of",
    "Monday, Tuesday, Wednesday,",
    "The three largest cities of Spain are",
    "My favourite dish is",
    "To make tea, first",
    "The sun rises in the",
    "Roses are red, violets are",
    "In the year 1969, the first",
    "A triangle has",
    "The quick brown fox",
    "Portugal is",
]
EXPECTATIONS = {
    "batch of 4": BatchInvariant(sizes=(4,)),
    "left padding": PaddingInvariant(),
    "right padding": PaddingInvariant(side="right"),
}


def requests() -> list[Request]:
    asked = [f"What is the capital of {country}?" for country in COUNTRIES]
    asked += [f"Write one sentence about {country}." for country in COUNTRIES]
    chats = [Text(messages=(Message(role="user", content=text),)) for text in asked]
    return [Request(text, GREEDY) for text in (*chats, *(Text(text=text) for text in PLAIN))]


def measure(dtype: str) -> None:
    model = load(ROOT / "suites" / "basics.yaml").suite.models["smollm2"].model_copy(update={"dtype": dtype})
    backend = backends.load(Target("smollm2", "smollm2", model))
    peers = requests()
    groups = [peers[start : start + 4] for start in range(0, len(peers), 4)]  # a batch of 4 is a test of 4 prompts
    answers: dict[Request, Completion | Failure] = {}
    for name, expectation in EXPECTATIONS.items():
        began = time.monotonic()
        needs = {request: tuple(expectation.needs(request, group)) for group in groups for request in group}
        missing = dict.fromkeys(need for wanted in needs.values() for need in wanted if need not in answers)
        for batch in batches(tuple(missing), backend.length, exact=False, rows=1):
            answers.update(zip(batch, backend.generate(batch), strict=True))
        counts: Counter[str] = Counter()
        margins = []
        for wanted in needs.values():
            verdict = expectation.judge([answers[need] for need in wanted])  # type: ignore[misc]
            differs = "index" in verdict.numbers
            counts[f"{'differ' if differs else 'equal'}, {verdict.status}"] += 1
            if differs:
                margins.append(float(verdict.numbers.get("margin", float("inf"))))
        shown = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        largest = f"; margins up to {max(margins):.3g} nats" if margins else ""
        print(f"{dtype:<9} {name:<14} {shown}{largest}  ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    for dtype in sys.argv[1:] or ["float32", "bfloat16"]:
        measure(dtype)
