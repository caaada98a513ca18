"""What a recording would change, for a human to accept or reject pin by pin. It lies beside the pins until then."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from harness.divergence import SHOWN
from harness.errors import UsageError
from harness.pins import files
from harness.pins.locking import locked
from harness.pins.pin import Header, Pin, PinFile
from harness.record import to_data
from harness.wording import near

PENDING = ".new"
CONTEXT = 24  # characters of a text that are shown before and after the first difference


@dataclass(frozen=True)
class PinChange:
    """One pin, before and after."""

    name: str
    kind: Literal["added", "changed", "unchanged", "removed"]
    old: Pin | None
    new: Pin | None
    conditions: tuple[str, ...] = ()  # what it was recorded under, where that differs: "torch 2.6.0 -> 2.7.0"

    @property
    def lines(self) -> tuple[str, ...]:
        """What there is to see, in words."""
        if self.old is None or self.new is None:
            there = self.new or self.old
            assert there is not None
            return (f"text    {there.text!r}", f"finish  {there.finish}, {len(there.ids)} tokens")
        return (*_facts(self.old, self.new), *_drawn(self.old, self.new), *_numbers(self.old, self.new))


def changes(old: PinFile | None, new: PinFile) -> list[PinChange]:
    """Every pin of both, sorted by name. A recording of some prompts only has no others: those count as removed."""
    before: Mapping[str, Pin] = old.pins if old else {}
    return [_change(name, old, new) for name in sorted({*before, *new.pins})]


def pending_path(path: str) -> str:
    return path + PENDING


def pending(path: str) -> PinFile | None:
    """What was recorded for this pin file and is neither accepted nor rejected."""
    return files.read(pending_path(path))


def propose(file: PinFile, changed: Collection[str]) -> None:
    """Put a recording beside the pins, to be reviewed."""
    files.write(replace(file, path=pending_path(file.path)), changed)


def accept(path: str, names: Sequence[str]) -> tuple[str, ...]:
    """Move the pins that fit these names or patterns from the recording to the pins; their names."""
    with locked(Path(pending_path(path))):
        waiting, chosen = _chosen(path, names)
        # First there, then away from here: whatever happens in between, it is in one of the two.
        files.write(replace(waiting, path=path), chosen)
        files.merge(waiting, (), removed=chosen)
    return chosen


def reject(path: str, names: Sequence[str]) -> tuple[str, ...]:
    """Drop the pins that fit these names or patterns from the recording; their names."""
    with locked(Path(pending_path(path))):
        waiting, chosen = _chosen(path, names)
        files.merge(waiting, (), removed=chosen)
    return chosen


def header_changes(old: Header, new: Header, generation: str) -> tuple[str, ...]:
    """What is different between two headers for pins of this generation config, a line each."""
    lines = []
    for one in fields(Header):
        if one.name in ("lane", "generations"):
            continue
        ours, theirs = getattr(old, one.name), getattr(new, one.name)
        if one.name in ("environment", "floor"):
            prefix = "floor " if one.name == "floor" else ""
            lines += _mapping_changes(prefix, to_data(ours), to_data(theirs))
        elif ours != theirs:
            lines.append(f"{one.name} {ours} -> {theirs}")
    if old.lane != new.lane:
        lines.append(f"lane {old.lane.name} -> {new.lane.name}")
    configs = (to_data(side.generations.get(generation, {})) for side in (old, new))
    return (*lines, *_mapping_changes(f"generation {generation}: ", *configs))


def _mapping_changes(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{prefix}{key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _change(name: str, old: PinFile | None, new: PinFile) -> PinChange:
    before, after = old.pins.get(name) if old else None, new.pins.get(name)
    if old is None or before is None:
        return PinChange(name, "added", None, after)
    if after is None:
        return PinChange(name, "removed", before, None)
    conditions = header_changes(files.header_of(old, name), files.header_of(new, name), after.generation)
    lane = new.header.lane
    # Fragility follows from the floor; one side may come fresh from the model, and not have been rounded yet.
    was, now = files.stored(before, lane), files.stored(after, lane)
    same = was == replace(now, fragility=was.fragility)
    return PinChange(name, "unchanged" if same else "changed", before, after, conditions)


def _facts(old: Pin, new: Pin) -> list[str]:
    lines = []
    if old.prompt_digest != new.prompt_digest:
        lines.append("prompt  its rendered text is another one")
    elif old.prompt_ids != new.prompt_ids:
        lines.append(
            f"prompt  the same text is tokenized otherwise: {len(old.prompt_ids)} -> {len(new.prompt_ids)} ids"
        )
    pairs = (
        ("finish", old.finish, new.finish),
        ("tokens", len(old.ids), len(new.ids)),
        ("batch", old.batch_size, new.batch_size),
        ("padding", f"{old.pads} {old.padding}".strip(), f"{new.pads} {new.padding}".strip()),
    )
    return lines + [f"{label:<7} {before} -> {after}" for label, before, after in pairs if before != after]


def _drawn(old: Pin, new: Pin) -> list[str]:
    """Tokens and text around the first difference, the old above the new, and a caret below."""
    lines = []
    if old.ids != new.ids:
        index = _first_difference(old.ids, new.ids)
        start = max(0, index - SHOWN)
        before, after = (_shown_ids(pin, start, index + SHOWN) for pin in (old, new))
        column = sum(len(str(token)) + 1 for token in old.ids[start:index])
        lines += _two_lines("ids", "… " if start else "", before, after, column)
        lines[-1] += f" token {index}"
    if old.text != new.text:
        index = _first_difference(old.text, new.text)
        start = max(0, index - CONTEXT)
        before, after = (repr(pin.text[start : index + CONTEXT])[1:-1] for pin in (old, new))
        column = len(repr(old.text[start:index])) - 2
        lines += _two_lines("text", "… " if start else "", before, after, column)
    return lines


def _shown_ids(pin: Pin, start: int, end: int) -> str:
    words = [str(token) for token in pin.ids[start:end]]
    return " ".join(words if len(pin.ids) >= end else [*words, f"<{pin.finish}>"])


def _two_lines(label: str, prefix: str, old: str, new: str, column: int) -> list[str]:
    return [f"{label:<5}old  {prefix}{old}", f"     new  {prefix}{new}", " " * (10 + len(prefix) + column) + "^"]


def _first_difference(old: Sequence[Any], new: Sequence[Any]) -> int:
    shorter = min(len(old), len(new))
    return next((i for i in range(shorter) if old[i] != new[i]), shorter)


def _numbers(old: Pin, new: Pin) -> list[str]:
    """By how much the pinned tokens became more or less likely, as far as the tokens are the same."""
    same = _first_difference(old.ids, new.ids)
    moved = [abs(a.logprob - b.logprob) for a, b in zip(old.steps[:same], new.steps[:same], strict=False)]
    if not moved or not max(moved):
        return []
    return [f"logprob of the same tokens moved by up to {max(moved):.3g} nats, at token {moved.index(max(moved))}"]


def _chosen(path: str, patterns: Sequence[str]) -> tuple[PinFile, tuple[str, ...]]:
    waiting = pending(path)
    if waiting is None:
        raise UsageError(f"nothing is waiting to be reviewed for {path}", "Record first: pytest SUITE --update-pins")
    for pattern in patterns:
        if not any(_fits(pin, pattern) for pin in waiting.pins.values()):
            raise UsageError(f"no pin that waits for review fits {pattern!r}{near(pattern, waiting.pins)}")
    return waiting, tuple(
        name for name, pin in waiting.pins.items() if any(_fits(pin, pattern) for pattern in patterns)
    )


def _fits(pin: Pin, pattern: str) -> bool:
    """The name of the pin or of its prompt, as it stands or as a pattern."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in (pin.name, pin.prompt))
