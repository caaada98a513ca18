"""A comparison made by hand: what its figures are can be worked out in the head."""

import pytest

from harness.comparison.measured import Answered, Candidate, Measured, Passage, Replay, Timing
from harness.inputs import GREEDY
from harness.record import Completion, Record, Request, Text, Verdict
from harness.store import Results

PROMPTS = tuple(f"p{number}" for number in range(8))
BUDGET = {"max_kl": 0.1, "min_top1": 0.6, "max_memory_mb": 400, "must_pass": ["counts"]}
TOKENS = 4
MEGA = 1_000_000


def asked(prompt, **changes):
    return Request(Text(f"Say {prompt}"), GREEDY, **changes)


def replay(kl, flips=0):
    """Four tokens with this KL each; the first `flips` of them are others than the baseline's 100, 101 …"""
    own = tuple(100 + i for i in range(TOKENS))
    flipped = tuple(i < flips for i in range(TOKENS))
    return Replay(
        kl=(kl,) * TOKENS,
        baseline_top=own,
        top=tuple(200 if other else token for token, other in zip(own, flipped, strict=True)),
        baseline_margin=tuple(0.5 + i if other else 0.0 for i, other in enumerate(flipped)),
        margin=tuple(0.25 if other else 0.0 for other in flipped),
        baseline_logprob=(-1.0,) * TOKENS,
        logprob=(-1.0,) * TOKENS,
        processed_distance=(0.0,) * TOKENS,
        processed_top1=(True,) * TOKENS,
    )


def completion(prompt, text, request=None, token="x"):
    ids = (100, 101, 102, 200)
    tokens = (" one", " two", " three", f" {token}")
    return Completion(request or asked(prompt), f"Say {prompt}", (1,), ids, tokens, text, "eos")


def record(target, outcome="passed", prompt="p0"):
    return Record(
        check=f"suites/levels.yaml::{target}::counts[{prompt}]",
        suite="levels",
        file="suites/levels.yaml",
        line=3,
        test="counts",
        target=target,
        model="m",
        quantization="none",
        prompt=prompt,
        generation="greedy",
        expectation="contains",
        verdict=Verdict(outcome, f"it {outcome}"),
        requests=(asked(prompt).id,),
    )


def timing(candidate, weights, peak, *batch):
    return Timing(
        candidate,
        load_seconds=1.5,
        weight_bytes=weights * MEGA,
        peak_bytes=peak * MEGA,
        first_token=(0.01, 0.012, 0.02),
        single=(10.0, 10.0, 10.0),
        batch=batch,
        batch_size=4,
    )


# name: KL of a token of each prompt, flips a prompt, weights MB, peak MB, tokens/s of a batch, nats of a text
LEVELS = {
    "fp32": ((0.0,) * 8, 0, 538, 600, (30.0, 31.0, 32.0), 100.0),
    "int8": ((0.01, 0.03) * 4, 0, 162, 300, (20.0, 22.0, 23.0), 101.0),
    "nf4": ((0.2, 0.25, 0.3, 0.35, 0.25, 0.3, 0.35, 0.4), 1, 110, 250, (33.0, 36.0, 40.0), 130.0),
}


def measured(levels=LEVELS, **changes):
    """float32, int8, which is good and slow, nf4, which is bad and fast; fp8, which cannot be run."""
    made = Measured(
        baseline="fp32",
        candidates=(*(Candidate(name, name, "greedy") for name in levels), Candidate("fp8", "fp8", "greedy")),
        answered=tuple(
            Answered(name, prompt, asked(prompt).id, replay(kl[number], flips))
            for name, (kl, flips, *_) in levels.items()
            for number, prompt in enumerate(PROMPTS)
        ),
        passages=tuple(
            Passage(name, f"prose-{number}", nats + number, 40, 180)
            for name, (*_, nats) in levels.items()
            for number in range(8)
        ),
        timings=tuple(timing(name, weights, peak, *batch) for name, (_, _, weights, peak, batch, _) in levels.items()),
        not_measured={"fp8": "fp8 needs a GPU\n  Leave it out, or use a machine with CUDA."},
        notes=("nf4: a note",),
    )
    return Measured(**(vars(made) | changes))


def results(**changes):
    made = {
        "records": (record("fp32"), record("int8"), record("nf4", "failed")),
        "completions": tuple(
            (name, completion(prompt, "one two" if name != "nf4" else "one three"))
            for name in LEVELS
            for prompt in PROMPTS
        ),
        "failures": (),
        "facts": (),
        "counts": {"asked": 40, "distinct": 22, "generated": 22},
        "suites": ({"name": "levels", "file": "suites/levels.yaml", "sha256": "ab12" * 16},),
        "started": "2025-01-01T00:00:00+00:00",
        "seconds": 31.2,
        "environment": {},
        "command": "harness compare suites/levels.yaml",
        "errors": ("fp8: fp8 needs a GPU",),
        "measured": measured(),
        "budget": BUDGET,
    }
    return Results(**(made | changes))


@pytest.fixture
def compared():
    """compared(**changes): results of a comparison."""
    return results


@pytest.fixture
def measures():
    """measures(levels, **changes): what a comparison measured."""
    return measured
