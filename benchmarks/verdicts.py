"""Does the ladder of pins tell noise from change? What it says of changes that are none and of real ones.

    python benchmarks/verdicts.py [--prompts 12] [--tokens 24] [--lanes float32 bfloat16]

Prompts are pinned in each lane, and the lane's floor is measured, as `harness pin` does it. Then every row of ROWS is
run and judged against these pins. Beside our level stands what other methods say of the same tokens: exact match;
allclose, of the recorded log-probabilities up to the first token that differs; membership, by which at that token each
side has to have the other's among its five likeliest.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from harness import backends
from harness.answers import Answers, Kept, Setting
from harness.backends import Backend, faults
from harness.inputs import Generation, Message, Model
from harness.load import load
from harness.pins.book import Asked, environment, pin_of
from harness.pins.judging import judge_prompt, judge_set
from harness.pins.ladder import Judgement, Level, Limits
from harness.pins.packing import pack, places_of, unpack
from harness.pins.pin import ANY_ROWS, Header, Lane, Memory, Replayed, header_now
from harness.pins.recording import measure
from harness.plan import prompts
from harness.record import Batch, Completion, Failure, Request, Target, Text
from harness.schedule import batches

ROOT = Path(__file__).parents[1]
TOP_K = 20
MEMBERS = 5
CLOSE = 1e-5  # relative and absolute
ABOVE = 1.5  # times the floor: what has to be found in a lane that is not exact
QUESTIONS = [
    "Why is the sea salty?",
    "How many legs does a spider have?",
    "Give me a name for a brown dog.",
    "What do bees make?",
    "Explain gravity to a child.",
    "Translate 'good morning' into French.",
    "Which planet is the largest?",
    "How do I boil an egg?",
    "Tell me a joke about a cat.",
    "What is the square root of 81?",
    "Write one sentence about autumn.",
    "Who wrote Romeo and Juliet?",
]
PLAIN = [
    "Once upon a time there was a",
    "Monday, Tuesday, Wednesday,",
    "The opposite of hot is",
    "A list of colors: red, blue",
    "Water boils at a temperature of",
    "In the year 1969, the first",
    "for i in range(10):\n    print(",
    "The three largest cities of Spain are",
]

LEVELS = get_args(Level)
WIDTH = 11  # of a column

Requests = list[Request]


@dataclass(frozen=True)
class Row:
    """One way to run the pinned prompts again."""

    name: str
    kind: Literal["noise", "change"]
    planted: Callable[[Any], AbstractContextManager[None]] = lambda backend: nullcontext()
    asked: Callable[[Requests], Requests] = list
    level: str = ""  # another load of the weights
    lanes: tuple[str, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Seen:
    """What was made of one row."""

    row: Row
    set: Judgement
    prompts: tuple[Judgement, ...]
    others: Mapping[str, tuple[bool, ...]]  # by method: an alarm, for each prompt
    cause: str

    @property
    def times(self) -> float:
        return self.set.numbers["rms"] / self.set.numbers["rms_floor"]


@dataclass(frozen=True)
class Pinned:
    """A lane, and what was recorded in it."""

    header: Header
    requests: tuple[Request, ...]
    done: tuple[Completion, ...]


# --- rows ------------------------------------------------------------------------------------------------------------


@contextmanager
def scaled(weights: Sequence[torch.Tensor], by: float | torch.Tensor) -> Iterator[None]:
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(by)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def layer(by: float) -> Callable[[Any], AbstractContextManager[None]]:
    def planted(backend: Any) -> AbstractContextManager[None]:
        layers = backend.model.model.layers
        return scaled(list(layers[len(layers) // 2].parameters()), by)

    return planted


def final_norm(backend: Any) -> AbstractContextManager[None]:
    return scaled([backend.model.model.norm.weight], 1.02)


def rope(backend: Any) -> AbstractContextManager[None]:
    """The base one per cent smaller."""
    frequencies = backend.model.model.rotary_emb.inv_freq
    return scaled([frequencies], 0.99 ** -(torch.arange(len(frequencies)) / len(frequencies)))


@contextmanager
def epsilon(backend: Any) -> Iterator[None]:
    norms = [module for module in backend.model.modules() if hasattr(module, "variance_epsilon")]
    before = norms[0].variance_epsilon
    for norm in norms:
        norm.variance_epsilon = 1e-6
    try:
        yield
    finally:
        for norm in norms:
            norm.variance_epsilon = before


@contextmanager
def threads(backend: Any) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batched(size: int, padding: Literal["left", "right"] = "left") -> Callable[[Requests], Requests]:
    def asked(requests: Requests) -> Requests:
        groups = [requests[start : start + size] for start in range(0, len(requests), size)]
        layouts = [Batch(tuple(request.prompt for request in group), padding) for group in groups]
        return [
            request.replace(layout=layout, row=row)
            for group, layout in zip(groups, layouts, strict=True)
            for row, request in enumerate(group)
        ]

    return asked


def eager(requests: Requests) -> Requests:
    return [request.replace(attention="eager") for request in requests]


def penalized(requests: Requests) -> Requests:
    given = {"repetition_penalty": 1.05}
    return [request.replace(generation=request.generation.model_copy(update=given)) for request in requests]


ROWS = (
    Row("exact repeat", "noise"),
    Row("batch of 4", "noise", asked=batched(4)),
    Row("batch of 8", "noise", asked=batched(8)),
    Row("eager attention", "noise", asked=eager),
    Row("another number of threads", "noise", threads),
    Row("rms eps 1e-5 -> 1e-6", "change", epsilon),
    Row("rope theta -1 %", "change", rope),
    Row("final norm x1.02", "change", final_norm),
    Row("one layer x1.01", "change", layer(1.01)),
    Row("one layer x1.001", "change", layer(1.001), lanes=("float32",)),  # in bfloat16 it rounds back to what it was
    Row("repetition_penalty 1.05", "change", asked=penalized),
    Row("no chat template", "change", lambda backend: faults.plant(backend, "missing_template")),
    Row("right padding", "change", asked=batched(4, "right")),
    Row("bf16", "change", level="bf16", lanes=("float32",)),
    Row("int8", "change", level="int8"),
    Row("nf4", "change", level="nf4"),
    Row("fp4", "change", level="fp4"),
)


# --- other methods: whether they raise an alarm ----------------------------------------------------------------------


def exact_match(pinned: Completion, now: Completion) -> bool:
    return pinned.ids != now.ids


def allclose(pinned: Completion, now: Completion) -> bool:
    kept = slice(parted(pinned, now) + 1)
    old, new = ([(step.logprob, *step.top_logprobs) for step in done.steps[kept]] for done in (pinned, now))
    common = min(len(old), len(new))
    return not torch.allclose(torch.tensor(old[:common]), torch.tensor(new[:common]), rtol=CLOSE, atol=CLOSE)


def membership(pinned: Completion, now: Completion) -> bool:
    at = parted(pinned, now)
    if at >= min(len(pinned.ids), len(now.ids)):
        return False
    pairs = ((pinned, now), (now, pinned))
    return any(other.ids[at] not in list(own.steps[at].top_ids)[:MEMBERS] for own, other in pairs)


def parted(pinned: Completion, now: Completion) -> int:
    """The first token that differs."""
    shorter = min(len(pinned.ids), len(now.ids))
    return next((index for index in range(shorter) if pinned.ids[index] != now.ids[index]), shorter)


OTHERS = {"exact match": exact_match, f"allclose {CLOSE:g}": allclose, f"top-{MEMBERS} membership": membership}


# --- a lane ----------------------------------------------------------------------------------------------------------


def texts(count: int) -> list[Text]:
    written = load(ROOT / "suites" / "levels.yaml").suite.prompts
    own = [text for name, prompt in written.items() for _, text, _ in prompts(name, prompt)]
    own += [Text(messages=(Message(role="user", content=question),)) for question in QUESTIONS]
    return [*own, *(Text(text=text) for text in PLAIN)][:count]


def opened(model: Model, level: str = "none") -> tuple[Target, Backend]:
    target = Target("smollm2", "smollm2", model, level)
    return target, backends.load(target, top_k=TOP_K)


def answered(backend: Backend, requests: Sequence[Request]) -> list[Completion]:
    found: dict[Request, Completion] = {}
    for batch in batches(requests, backend.length, exact=False, rows=1):
        for request, done in zip(batch, backend.generate(batch), strict=True):
            if isinstance(done, Failure):
                raise SystemExit(f"{done.kind}: {done.message}")
            found[request] = done
    return [found[request] for request in requests]


def recorded(backend: Backend, target: Target, requests: Sequence[Request]) -> Pinned:
    """Pins and the floor, as `harness pin` writes them."""
    facts, done = backend.facts, answered(backend, requests)
    rows = ANY_ROWS if facts.dtype == "float32" else "1"
    setting = Setting(target, TOP_K, None)
    asked = [
        Asked(setting, one.request, pin_of(f"p{number:02}", "greedy", one), facts.attention)
        for number, one in enumerate(done)
    ]
    floor, unsteady = measure(Answers(load=lambda *_, **__: Kept(backend)), asked)
    lane = Lane(facts.device.split(":")[0], facts.dtype, "none", facts.attention, rows)
    memory = Memory("", "", lane, facts, environment())
    header = header_now(memory, "verdicts", target.name, {"greedy": done[0].generation_config}, floor)
    print(f"\n{header.lane.name}: {len(done)} prompts, {sum(len(one.ids) for one in done)} tokens; floor of ", end="")
    print(f"{', '.join(floor.measured)}: RMS {floor.rms:.3g}, KL {floor.kl:.3g}, gap {floor.gap:.3g}. {unsteady}")
    return Pinned(header, tuple(requests), tuple(done))


def seen(row: Row, pinned: Pinned, backend: Backend) -> Seen:
    """Free runs, replays where tokens differ, and what every method says."""
    places = places_of(pinned.header.lane)
    with row.planted(backend):
        free = answered(backend, row.asked(list(pinned.requests)))
        apart = [(now, old) for old, now in zip(pinned.done, free, strict=True) if old.ids != now.ids]
        wanted = [now.request.replace(kind="replay", continuation=old.ids, whole=False) for now, old in apart]
        led = dict(zip((now.request for now, _ in apart), answered(backend, wanted), strict=True))
        noted = environment()
    replayed, memories = [], []
    for number, (old, now) in enumerate(zip(pinned.done, free, strict=True)):
        pin = replace(pin_of(f"p{number:02}", "greedy", old), steps=unpack(pack(old.steps, places)))
        replayed.append(Replayed(pin, now, led.get(now.request, now).steps, backend.facts))
        memories.append(Memory(row.name, "", pinned.header.lane, backend.facts, noted, pin, pinned.header))
    both = zip(replayed, memories, strict=True)
    one_by_one = [judge_prompt(one, memory, "tokens", Limits())[0] for one, memory in both]
    judgement, told = judge_set(replayed, memories[0], "tokens", Limits())
    pairs = list(zip(pinned.done, free, strict=True))
    others = {name: tuple(alarms(old, now) for old, now in pairs) for name, alarms in OTHERS.items()}
    return Seen(row, judgement, tuple(one_by_one), others, told[0])


def tell(one: Seen, seconds: float) -> None:
    numbers, counts = one.set.numbers, Counter(judgement.level for judgement in one.prompts)
    levels = " ".join(f"{counts[level]:>3}" for level in LEVELS)
    equal = 1 - sum(one.others["exact match"]) / len(one.prompts)
    alarms = " ".join(f"{'alarm' if any(found) else '-':>{WIDTH}}" for found in one.others.values())
    print(
        f"{one.row.kind:<7} {one.row.name:<26} {one.set.level:<10} {levels}  {one.times:>9.3g} {numbers['kl']:>8.2g} "
        f"{numbers['top1']:>6.3f} {equal:>6.2f} {alarms}  {seconds:>4.0f} s\n        {one.cause}",
        flush=True,
    )


def rates(lane: str, rows: Sequence[Seen]) -> None:
    """Of sets and of prompts: false alarms and detections."""
    print(f"\n{lane:<24}{'false alarms':>14}{'(of prompts)':>14}{'detections':>14}{'(of prompts)':>14}")
    alarming = {"ladder": ("changed", "broken"), "ladder, drift counted": ("drift", "changed", "broken")}
    for name in (*alarming, *OTHERS):
        cells = []
        for kind in ("noise", "change"):
            some = [one for one in rows if one.row.kind == kind]
            sets = [one.set.level in alarming[name] if name in alarming else any(one.others[name]) for one in some]
            each = [
                found
                for one in some
                for found in (
                    [judged.level in alarming[name] for judged in one.prompts] if name in alarming else one.others[name]
                )
            ]
            cells += [f"{sum(sets)}/{len(sets)}", f"{sum(each)}/{len(each)}"]
        print(f"{name:<24}{''.join(f'{cell:>14}' for cell in cells)}")
    for one in rows:
        missed = one.row.kind == "change" and one.set.is_quiet
        if missed and lane != "float32" and one.times <= ABOVE:
            print(f"below {ABOVE:g} × floor, not to be seen in this lane: {one.row.name}, {one.times:.3g} × floor")
        elif missed or (one.row.kind == "noise" and not one.set.is_quiet):
            print(f"against the goal: {one.row.kind} {one.row.name} is {one.set.level}: {one.set.rule}")
    print(flush=True)


def run(lane: str, count: int, tokens: int) -> None:
    model = load(ROOT / "suites" / "levels.yaml").suite.models["smollm2"].model_copy(update={"dtype": lane})
    generation = Generation(do_sample=False, max_new_tokens=tokens)
    target, backend = opened(model)
    pinned = recorded(backend, target, [Request(text, generation, "alone") for text in texts(count)])
    levels = " ".join(f"{level[:3]:>3}" for level in LEVELS)
    print(
        f"{'kind':<7} {'row':<26} {'set':<10} {levels}  {'RMS/floor':>9} {'KL':>8} {'top-1':>6} {'equal':>6} ", end=""
    )
    print(" ".join(f"{name.split()[0]:>{WIDTH}}" for name in OTHERS))
    rows = []
    for row in (row for row in ROWS if lane in row.lanes):
        began = time.monotonic()
        other = opened(model, row.level)[1] if row.level else backend
        rows.append(seen(row, pinned, other))
        if row.level:
            other.close()
        tell(rows[-1], time.monotonic() - began)
    rates(lane, rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=12, help="so many, up to 36")
    parser.add_argument("--tokens", type=int, default=24, help="new ones, at most")
    parser.add_argument("--lanes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    for lane in options.lanes:
        run(lane, options.prompts, options.tokens)


if __name__ == "__main__":
    main()
