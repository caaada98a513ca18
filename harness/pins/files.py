"""Pin files: text in git beside the suite, a header line and then one line a pin, each with a checksum of itself."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.errors import CannotRun
from harness.pins import packing
from harness.pins.locking import locked, replace_file
from harness.pins.pin import Header, Lane, Pin, PinFile
from harness.tables import as_json, from_data

KIND, FORMAT = "harness pins", 1
SUFFIX = ".pins"
FRONT = (
    *("prompt", "generation", "finish", "text", "ids", "prompt_ids", "prompt_digest"),
    *("padding", "pads", "batch_size", "fragility"),
)
# What a pin was recorded under, beside its generation config.
UNDER = ("weights", "tokenizer", "template", "pad_token_id", "eos_token_ids", "padding_side", "environment")
HEADER = ("suite", "target", "lane", *UNDER, "floor", "generations")
CONFLICT = (b"<<<<<<<", b"|||||||", b"=======", b">>>>>>>")
SUM = re.compile(rb',"sum":"([0-9a-f]{12})"\}$')
NAME = re.compile(r'\{"prompt":("(?:[^"\\]|\\.)*"),"generation":("(?:[^"\\]|\\.)*")')
# Of the names of lanes: what else is equal counts less the further back it stands.
NEARNESS = ("quantization", "device", "dtype", "attention", "rows")


class PinsUnreadable(CannotRun):
    """A pin file that is there, and is not what was written."""

    kind = "pins_unreadable"


@dataclass(frozen=True)
class StoredPins(PinFile):
    """A pin file as it was read."""

    under: Mapping[str, Header] = field(default_factory=dict)  # of pins that were recorded under another header


def header_of(file: PinFile, name: str) -> Header:
    """The header that this pin was recorded under."""
    return file.under.get(name, file.header) if isinstance(file, StoredPins) else file.header


def path_of(suite_file: str, suite: str, target: str, lane: Lane) -> str:
    """Where the pins of a suite's target lie in this lane."""
    parts = (lane.device, lane.dtype, lane.quantization, lane.attention, lane.rows)
    name = f"{slug(target)}@{'+'.join(map(slug, parts))}{SUFFIX}"
    return (Path(suite_file).parent / "pins" / slug(suite) / name).as_posix()


def slug(name: str) -> str:
    """A safe name for a file; other names have other ones, also where upper and lower case are the same."""
    plain = re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-.")[:60]
    if plain and plain == name and not re.search("(^|-)[0-9a-f]{8}$", name):
        return plain
    return f"{plain}-{_digest(name.encode('utf-8', 'surrogatepass'))[:8]}".lstrip("-")


def nearest(path: str, lane: Lane) -> Lane | None:
    """Of the lanes in which the same target has pins, the one most like this one."""
    here = Path(path)
    beside = sorted(here.parent.glob(f"{here.name.split('@')[0]}@*{SUFFIX}"))
    lanes = [found for other in beside if other != here and (found := _lane_in(other))]

    def likeness(other: Lane) -> list[bool]:
        return [getattr(other, part) == getattr(lane, part) for part in NEARNESS]

    return max(lanes, key=likeness, default=None)


def _lane_in(path: Path) -> Lane | None:
    try:
        with path.open("rb") as file:
            found: Lane = from_data(Lane, json.loads(file.readline())["lane"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def storage_rounding(lane: Lane) -> float:
    """Nats by which a log-probability may move when it is stored; 0 where none does."""
    return packing.storage_rounding(lane)


def stored(pin: Pin, lane: Lane) -> Pin:
    """The pin as it is when it has been written and read back."""
    places = packing.places_of(lane)
    steps, processed = (packing.unpack(packing.pack(some, places)) for some in (pin.steps, pin.processed))
    return replace(pin, steps=steps, processed=processed, fragility=_short(pin.fragility))


def read(path: str, suite: str = "SUITE") -> StoredPins | None:
    """The pins of a file, None where there is no such file; `suite` is the file to name in what to type next."""
    text = _read_text(path, suite)
    if text is None:
        return None
    for line in (text.header, *text.lines):
        if line.fault:
            raise line.fault
    header = text.header.noun
    under = {line.name: _own_header(line, header) for line in text.lines if "under" in line.data}
    return StoredPins(path, header, {line.name: line.noun for line in text.lines}, under)


def write(file: PinFile, changed: Collection[str], removed: Collection[str] = (), suite: str = "SUITE") -> None:
    """Put these pins of `file` into its file on disk, and take those that are removed out of it."""
    if not changed and not removed:
        return
    with locked(Path(file.path)):
        merge(file, changed, removed, suite)


def merge(file: PinFile, changed: Collection[str], removed: Collection[str] = (), suite: str = "SUITE") -> None:
    """`write` for who holds the lock: whatever else lies on disk stays as it is, byte for byte."""
    old = _read_text(file.path, suite)
    known = {line.name: line for line in old.lines} if old else {}
    kept = {name: line for name, line in known.items() if name not in changed and name not in removed}
    if not changed and len(kept) == len(known):
        return
    if not changed and not kept:
        Path(file.path).unlink(missing_ok=True)
        return
    header = _new_header(old, kept, file, changed)
    first = _as_line({"kind": KIND, "format": FORMAT} | {key: _plain(header)[key] for key in HEADER})
    lines = {name: line.raw for name, line in kept.items()}
    for name in changed:
        lines[name] = _new_line(file, name, header, known.get(name))
    content = b"".join(raw + b"\n" for raw in (first, *(lines[name] for name in sorted(lines))))
    if old is None or content != old.content:
        replace_file(Path(file.path), content)


@dataclass(frozen=True)
class _Line:
    raw: bytes
    name: str  # of its pin; where it is damaged, as far as it can still be read
    data: Mapping[str, Any] = field(default_factory=dict)
    noun: Any = None  # the Header or Pin
    fault: PinsUnreadable | None = None


@dataclass(frozen=True)
class _Text:
    content: bytes
    header: _Line
    lines: tuple[_Line, ...]


def _read_text(path: str, suite: str) -> _Text | None:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PinsUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
    raws = [raw.removesuffix(b"\r") for raw in content.split(b"\n")]
    at = next((number for number, raw in enumerate(raws, 1) if raw.startswith(CONFLICT)), 0)
    if at:
        raise PinsUnreadable(f"{path}:{at}: a merge conflict that is not resolved", _after_conflict(path, suite))
    if not content.strip():
        raise PinsUnreadable(f"{path} is empty: not even a header is left", _again(path, suite))
    reader = _Reader(path, suite, lines=len(raws))
    header = reader.header(raws[0])
    pins = [reader.pin(number, raw) for number, raw in enumerate(raws[1:], 2) if raw.strip()]
    reader.refuse_repetition(pins)
    return _Text(content, header, tuple(pins))


@dataclass(frozen=True)
class _Reader:
    """Finds what is wrong with the lines of one file."""

    path: str
    suite: str
    lines: int  # the last is empty where the file is whole

    def header(self, raw: bytes) -> _Line:
        data, wrong = self._checked(1, raw)
        if data.get("kind") != KIND:
            return _Line(raw, "", fault=self._fault(1, f"the header {wrong or 'is not one of a pin file'}"))
        version = data.get("format")
        if isinstance(version, int) and version > FORMAT:
            message = f"{self.path} was written by a newer harness: format {version}, this one reads up to {FORMAT}"
            raise PinsUnreadable(message, "Upgrade harness: pip install --upgrade harness")
        return self._understood(1, _Line(raw, ""), data, wrong)

    def pin(self, number: int, raw: bytes) -> _Line:
        return self._understood(number, _Line(raw, _name_in(raw)), *self._checked(number, raw))

    def refuse_repetition(self, lines: Sequence[_Line]) -> None:
        counts = Counter(line.name for line in lines if line.name)
        for name, count in counts.items():
            if count > 1:
                remedy = (
                    f"Delete the lines of it that are not wanted, or take all of them out: git checkout {self.path}"
                )
                raise PinsUnreadable(f"{self.path}: pin {name!r} is there {count} times", remedy)

    def _checked(self, number: int, raw: bytes) -> tuple[Mapping[str, Any], str]:
        """The line's data as far as it is JSON, and what is wrong with it."""
        try:
            data = json.loads(raw)
        except ValueError:  # of JSON and of UTF-8
            return {}, "is cut off: the file is truncated" if number == self.lines else "is not JSON"
        if not isinstance(data, dict):
            return {}, "is not a JSON object"
        found = SUM.search(raw)
        if not found or found[1].decode() != _sum(raw[: found.start()]):
            return data, "was edited by hand: its checksum does not fit"
        return data, ""

    def _understood(self, number: int, line: _Line, data: Mapping[str, Any], wrong: str) -> _Line:
        whose = f"pin {line.name!r}" if line.name else "the header" if number == 1 else "this line"
        if wrong:
            return replace(line, fault=self._fault(number, f"{whose} {wrong}"))
        try:
            return replace(line, data=data, noun=from_data(Header, data) if number == 1 else _pin(data))
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            return replace(line, fault=self._fault(number, f"{whose} cannot be understood: {error!r}"))

    def _fault(self, number: int, what: str) -> PinsUnreadable:
        return PinsUnreadable(f"{self.path}:{number}: {what}", _again(self.path, self.suite))


def _again(path: str, suite: str) -> str:
    return f"Bring back what was committed: git checkout {path}   or record again: pytest {suite} --update-pins"


def _after_conflict(path: str, suite: str) -> str:
    return (
        f"Take one side: git checkout --ours {path} (or --theirs), "
        f"then record what the other one changed: pytest {suite} --update-pins"
    )


def _name_in(raw: bytes) -> str:
    found = NAME.match(raw.decode("utf-8", "replace"))
    try:
        return f"{json.loads(found[1])}@{json.loads(found[2])}" if found else ""
    except ValueError:
        return ""


def _pin(data: Mapping[str, Any]) -> Pin:
    pin: Pin = from_data(Pin, {key: data[key] for key in FRONT} | {"steps": ()})
    processed = packing.unpack(data["processed"]) if "processed" in data else ()
    return replace(pin, steps=packing.unpack(data["numbers"]), processed=processed)


def _own_header(line: _Line, header: Header) -> Header:
    under = dict(line.data["under"])
    configs = {line.data["generation"]: under.pop("config")} if "config" in under else {}
    plain = _plain(header)
    own: Header = from_data(Header, plain | under | {"generations": plain["generations"] | configs})
    return own


def _new_header(old: _Text | None, kept: Mapping[str, _Line], file: PinFile, changed: Collection[str]) -> Header:
    if old is None or not kept:
        return file.header
    for line in (old.header, *kept.values()):
        if line.fault:
            raise line.fault
    header: Header = old.header.noun
    if not changed:
        return header
    _refuse_another(header, file)
    return _joined(header, kept, file, changed)


def _refuse_another(header: Header, file: PinFile) -> None:
    theirs = (header.suite, header.target, header.lane.name)
    own = (file.header.suite, file.header.target, file.header.lane.name)
    if theirs != own:
        message = f"{file.path} holds pins of {' '.join(theirs)}, not of {' '.join(own)}"
        raise PinsUnreadable(message, "Was it copied or renamed? Move it away, and record again.")


def _joined(old: Header, kept: Mapping[str, _Line], file: PinFile, changed: Collection[str]) -> Header:
    """What the pins that stay were recorded under goes on to be true of them; the floor is the lane's."""
    theirs = {line.data["generation"]: old.generations for line in kept.values()}
    used = {file.pins[name].generation: file.header.generations for name in changed} | theirs
    configs = {name: source[name] for name, source in sorted(used.items()) if name in source}
    return replace(old, generations=configs, floor=file.header.floor)


def _new_line(file: PinFile, name: str, header: Header, old: _Line | None) -> bytes:
    pin = stored(file.pins[name], header.lane)
    under = _under(header, header_of(file, name), pin.generation)
    if old and old.noun == pin and old.data.get("under", {}) == under:
        return old.raw  # the same numbers may be packed otherwise by another version of zlib
    plain = json.loads(as_json(replace(pin, steps=(), processed=())))
    data = {key: plain[key] for key in FRONT} | ({"under": under} if under else {})
    places = packing.places_of(header.lane)
    if pin.processed:
        data |= {"processed": packing.pack(pin.processed, places)}
    return _as_line(data | {"numbers": packing.pack(pin.steps, places)})


def _under(header: Header, own: Header, generation: str) -> dict[str, Any]:
    """In what this pin was recorded otherwise than the header says."""
    ours, theirs = _plain(own), _plain(header)
    under = {key: ours[key] for key in UNDER if ours[key] != theirs[key]}
    config = ours["generations"].get(generation)
    return under | ({"config": config} if config != theirs["generations"].get(generation) else {})


def _plain(header: Header) -> dict[str, Any]:
    """As JSON data; what is a mapping of names in alphabetical order, for that order says nothing."""
    plain: dict[str, Any] = json.loads(as_json(header))
    ordered = {key: json.loads(json.dumps(plain[key], sort_keys=True)) for key in ("generations", "environment")}
    return plain | ordered


def _as_line(data: Mapping[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # What cannot be seen, or turns the direction of what follows, is written as its number: this is to be reviewed.
    body = re.sub(r"[^ -~]", lambda one: one[0] if one[0].isprintable() else json.dumps(one[0])[1:-1], text[:-1])
    raw = body.encode()
    return raw + f',"sum":"{_sum(raw)}"}}'.encode()


def _sum(raw: bytes) -> str:
    return _digest(raw)[:12]


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _short(number: float) -> float:
    return float(f"{number:.4g}")
