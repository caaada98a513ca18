"""The pins of a run: what is remembered for each check, what is recorded, and what nothing asked for any more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.answers import Setting
from harness.environment import describe
from harness.errors import UsageError
from harness.pins import files
from harness.pins.diagnosis import digest_of
from harness.pins.drift import default_floor, fragility
from harness.pins.pin import ANY_ROWS, Floor, Lane, Memory, Pin, PinFile, header_now
from harness.pins.review import propose
from harness.plan import Case, Check, prompts
from harness.record import Completion, Request, Step, TargetFacts
from harness.suite import Suite

Mode = Literal["compare", "update", "new"]  # new: record what is not pinned yet, compare the rest
# What numbers depend on, beside the lane.
LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate", "tokenizers")
SETTINGS = ("threads", "float32_matmul_precision", "allow_tf32", "deterministic_algorithms", "cuda_version", "devices")


def mode_of(wanted: str | None) -> Mode:
    """What `--update-pins` says; in CI nothing is ever recorded."""
    if wanted is None:
        return "compare"
    if wanted not in ("all", "new"):
        raise UsageError(
            f"--update-pins={wanted}: no such choice",
            "Write --update-pins=new, or --update-pins behind the paths: pytest suites/ --update-pins",
        )
    # An empty string and "false" are what people write to switch it off.
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise UsageError("pins are never recorded in CI", "Record them where you can look at them, and commit them.")
    return "update" if wanted == "all" else "new"


@dataclass(frozen=True)
class Asked:
    """A pin that was recorded, and what was asked of which target for it."""

    setting: Setting
    request: Request
    pin: Pin
    attention: str  # that was really used


@dataclass
class Book:
    """The pin files of the suites of one run."""

    mode: Mode = "compare"
    pending: bool = False  # what is recorded is put beside the pins, to be reviewed
    _files: dict[str, PinFile | None] = field(default_factory=dict)  # by path
    _recorded: dict[str, PinFile] = field(default_factory=dict)  # by path
    asked: dict[str, dict[str, Asked]] = field(default_factory=dict)  # by path and pin: what was recorded
    _expected: dict[str, set[str]] = field(default_factory=dict)  # by path: what the suite pins
    _environment: Mapping[str, str] = field(default_factory=dict)

    def recall(self, check: Check, case: Case, facts: TargetFacts) -> Memory:
        """What is remembered of a prompt, in the lane that the target is really in."""
        lane = lane_of(check, facts)
        path = files.path_of(check.suite_file, check.suite.suite, check.target.name, lane)
        found = self._file(path)
        name = f"{case.name}@{check.test.generation}"
        self._expected.setdefault(path, names_pinned(check.suite))
        pin = found.pins.get(name) if found else None
        memory = Memory(
            check=check.id,
            suite_file=check.suite_file,
            lane=lane,
            facts=facts,
            environment=self._now(),
            pin=pin,
            header=files.header_of(found, name) if found else None,
            recording=self.mode == "update" or (self.mode == "new" and pin is None),
        )
        return memory if pin else replace(memory, **self._missing(check, name, path, lane))

    def record(self, memory: Memory, check: Check, case: Case, completions: Sequence[Completion]) -> None:
        """Keep what the model does now, the free run and its replay if there is one; it is written at the end."""
        done = completions[0]
        pin = pin_of(case.name, check.test.generation, done, completions[-1].processed_steps)
        path = files.path_of(check.suite_file, check.suite.suite, check.target.name, memory.lane)
        before = self._recorded.get(path)
        configs = dict(before.header.generations) if before else {}
        configs[check.test.generation] = done.generation_config
        floor = default_floor(memory.lane, memory.lane)
        header = header_now(memory, check.suite.suite, check.target.name, configs, floor)
        pins = dict(before.pins) if before else {}
        if pin.name in pins and not pin.processed:  # another test pins its distributions
            pin = replace(pin, processed=pins[pin.name].processed)
        self._recorded[path] = PinFile(path, header, pins | {pin.name: pin})
        asked = Asked(Setting.of_check(check), done.request, pin, memory.facts.attention)
        self.asked.setdefault(path, {})[pin.name] = asked

    def is_calibrated(self, path: str) -> bool:
        """Whether the floor of a file was measured."""
        found = self._file(path)
        return bool(found and found.header.floor.measured)

    def write(self, floors: Mapping[str, Floor] | None = None) -> list[tuple[str, int]]:
        """Write what was recorded: path and number of pins of each file. A floor that was measured replaces the old."""
        written = []
        for path, file in self._recorded.items():
            old = self._file(path)
            floor = (floors or {}).get(path) or (old.header.floor if old else file.header.floor)
            pins = {name: replace(pin, fragility=fragility(pin.steps, floor)) for name, pin in file.pins.items()}
            kept = replace(file, header=replace(file.header, floor=floor), pins=pins)
            put = propose if self.pending else files.write
            put(kept, pins.keys())
            written.append((path, len(file.pins)))
        return written

    def unused(self) -> dict[str, list[str]]:
        """Pins in files that were read, which no test of their suite asks for."""
        left = {
            path: sorted(set(file.pins) - self._expected.get(path, set()))
            for path, file in self._files.items()
            if file is not None
        }
        return {path: names for path, names in left.items() if names}

    def _file(self, path: str) -> PinFile | None:
        if path not in self._files:
            try:
                self._files[path] = files.read(path)
            except files.PinsUnreadable:
                if self.mode != "update":  # recording it again is the remedy
                    raise
                self._files[path] = None
        return self._files[path]

    def _missing(self, check: Check, name: str, path: str, lane: Lane) -> dict[str, Any]:
        from harness.pins import files

        command = f"pytest {check.suite_file} --update-pins=new"
        near = files.nearest(path, lane)
        if near is None:
            return {"missing": f"nothing is pinned for {name} in lane {lane.name}; record it: {command}"}
        floor = default_floor(near, lane)
        told = (
            f"nearest  lane {near.name} has pins; between the two up to {floor.rms:g} nats are rounding",
            f"next     record this lane, too: {command}",
        )
        return {"missing": f"nothing is pinned for {name} in lane {lane.name}", "details": told}

    def _now(self) -> Mapping[str, str]:
        self._environment = self._environment or environment()
        return self._environment


def names_pinned(suite: Suite) -> set[str]:
    """Every pin that the tests of a suite ask for."""
    return {
        f"{prompt}@{test.generation}"
        for test in suite.tests
        if "pinned" in test.expect.expectations()
        for name in test.prompts
        for prompt, _, _ in prompts(name, suite.prompts[name])
    }


def environment() -> dict[str, str]:
    """What a pin notes of machine and libraries; nothing that changes from run to run."""
    described = describe()
    torch = described["torch"]
    noted = {name: described["libraries"].get(name, "") for name in LIBRARIES}
    noted |= {name: str(torch[name]) for name in SETTINGS if name in torch}
    return {"cpu": described["cpu"]} | {name: value for name, value in noted.items() if value}


def lane_of(check: Check, facts: TargetFacts) -> Lane:
    from harness.backends.quantizations import quantized

    exact = facts.dtype == "float32" and not quantized(check.target.quantization)
    return Lane(
        device=facts.device.split(":")[0],
        dtype=facts.dtype,
        quantization=check.target.quantization,
        attention=facts.attention,
        rows=ANY_ROWS if exact else str(check.suite.batch_size or 1),
    )


def pin_of(prompt: str, generation: str, done: Completion, processed: Sequence[Step] = ()) -> Pin:
    return Pin(
        prompt=prompt,
        generation=generation,
        prompt_digest=digest_of(done.prompt_text),
        prompt_ids=done.prompt_ids,
        ids=done.ids,
        finish=done.finish,
        text=done.text,
        steps=done.steps,
        processed=tuple(processed),
        padding=done.padding,
        pads=done.pads,
        batch_size=done.batch_size,
    )
