"""Recording: how much a lane moves by itself, and what is told when pins were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.answers import Answers
from harness.errors import HarnessError
from harness.pins.book import Asked, Book
from harness.pins.drift import EXACT_REPEAT, Drift, compare, floor, nondeterminism
from harness.pins.pin import Floor, Pin
from harness.record import Batch, Completion, Request

PROMPTS = 9  # with so many, the floor was within a quarter of what it is with four times as many
OTHER = {"sdpa": "eager", "eager": "sdpa", "flash_attention_2": "sdpa", "flex_attention": "sdpa"}


def save(book: Book, answers: Answers, *, calibrate: bool = False) -> list[str]:
    """Write what was recorded, with the floor of its lane; a line for each file, and for what nothing asks for."""
    floors: dict[str, Floor] = {}
    lines = []
    for path, by_name in book.asked.items():
        asked = tuple(by_name.values())
        if calibrate or not book.is_calibrated(path):
            answers.observer.says(f"measuring how much {asked[0].setting.target.name} moves by itself")
            try:
                measured, unsteady = measure(answers, asked)
                floors |= {path: measured} if measured.measured else {}
                lines += [f"pins: {path}: {unsteady}"] if unsteady else []
            except HarnessError as error:
                lines.append(f"pins: the floor of {path} could not be measured, defaults stand in: {error.message}")
    for path, count in book.write(floors):
        lines.append(f"pins: {count} recorded in {path}")
    for path, names in book.unused().items():
        lines.append(
            f"pins: {len(names)} in {path} are of no test any more ({', '.join(names[:3])}…): harness pin --prune"
        )
    return lines


def measure(answers: Answers, asked: Sequence[Asked]) -> tuple[Floor, str]:
    """How far changes that are none move the pinned tokens' log-probabilities; and what is wrong with the lane."""
    chosen = [one for one in asked if one.pin.steps][:PROMPTS]
    drifts: dict[str, list[Drift]] = {}
    for name, requests in perturbed(chosen).items():
        done = answers.of(chosen[0].setting, requests)
        reference: Sequence[Completion | Pin] = [one.pin for one in chosen]
        if name == EXACT_REPEAT:
            reference = [one for one in done[: len(chosen)] if isinstance(one, Completion)]
            done = done[len(chosen) :]
        drifts[name] = [
            compare(theirs.steps, own.steps, own.request.continuation if own.request.kind == "replay" else ())
            for theirs, own in zip(reference, done, strict=False)
            if isinstance(own, Completion) and len(own.steps) == len(theirs.steps)
        ]
    drifts = {name: some for name, some in drifts.items() if some}
    return floor(drifts), nondeterminism(drifts)


def perturbed(asked: Sequence[Asked]) -> Mapping[str, list[Request]]:
    """Led along the pinned tokens: twice the same, in another batch, with another attention, without a cache."""
    led = [one.request.replace(kind="replay", continuation=one.pin.ids, whole=False, layout="alone") for one in asked]
    batch = Batch(tuple(one.request.prompt for one in asked))
    attention = OTHER.get(asked[0].attention, "eager")
    return {
        EXACT_REPEAT: [request.replace(repeat=number) for number in (1, 2) for request in led],
        "another batch": [request.replace(layout=batch, row=row) for row, request in enumerate(led)],
        "another attention": [request.replace(attention=attention) for request in led],
        "no cache": [request.replace(kind="score", whole=True) for request in led],
    }
