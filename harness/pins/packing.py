"""The recorded numbers of a pin as one short word of text, and back."""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from harness.pins.pin import Lane
from harness.record import Step

# In lanes whose own noise is a hundred times that, log-probabilities are kept to this many binary places. A fixed grid
# keeps what bfloat16 logits have in common, steps of 1/8 or 1/16: half the bytes of a 16-bit float, and eight times
# as close for what is unlikely.
PLACES = 10
EXACT = 0  # in float32 lanes the bits are kept as they are
LARGEST = 2**30  # on the grid; beyond it stand what is not finite
NOT_FINITE = ((float("inf"), LARGEST + 1), (float("-inf"), -LARGEST - 1), (float("nan"), LARGEST + 2))


def places_of(lane: Lane) -> int:
    """How closely log-probabilities are kept in this lane."""
    return EXACT if lane.dtype == "float32" and lane.quantization == "none" else PLACES


def storage_rounding(lane: Lane) -> float:
    """Nats by which a log-probability may move when it is stored; 0 where none does."""
    return 0.5 * 2.0**-PLACES if places_of(lane) else 0.0


def pack(steps: Sequence[Step], places: int) -> str:
    """Log-probabilities as differences from one to the next, byte by byte of all numbers: so they compress best."""
    import numpy as np

    counts = np.array([len(step.top_ids) for step in steps], "<u4")
    ids = np.array([token for step in steps for token in step.top_ids], "<u4")
    logprobs = np.array([value for step in steps for value in (step.logprob, *step.top_logprobs)], "<f4")
    heights = np.array([step.max_logit for step in steps], "<f4")
    numbers = _on_grid(logprobs, places) if places else logprobs.view("<u4")
    # A difference is small whichever its sign: the sign goes to the last bit, so that the first bytes are zero.
    differences = np.diff(numbers.view("<i4"), prepend=np.int32(0))
    folded = (differences << 1) ^ (differences >> 31)
    parts = [
        np.array([places, len(steps)], "<u4").tobytes(),
        _planes(counts),
        (ids & 0xFFFF).astype("<u2").tobytes(),
        (ids >> 16).astype("<u2").tobytes(),
        _planes(folded.astype("<i4").view("<u4")),
        _planes(heights.view("<u4")),
    ]
    return base64.b85encode(zlib.compress(b"".join(parts), 9)).decode("ascii")


def unpack(text: str) -> tuple[Step, ...]:
    """What `pack` was given, rounded to its places."""
    import numpy as np

    content = zlib.decompress(base64.b85decode(text))
    places, length = (int(number) for number in np.frombuffer(content, "<u4", 2))
    counts = _from_planes(content[8 : 8 + 4 * length])
    total = int(counts.sum())
    rest = content[8 + 4 * length :]
    low, high = np.frombuffer(rest, "<u2", 2 * total).astype("<u4").reshape(2, total)
    folded = _from_planes(rest[4 * total : 8 * total + 4 * length])
    numbers = np.cumsum((folded >> 1) ^ -(folded & 1), dtype="<u4")
    logprobs = _off_grid(numbers.view("<i4"), places) if places else numbers.view("<f4")
    heights = _from_planes(rest[8 * total + 4 * length :]).view("<f4")
    return tuple(_steps(counts, low | high << 16, logprobs, heights))


def _steps(counts: Any, ids: Any, logprobs: Any, heights: Any) -> Sequence[Step]:
    ends = counts.cumsum().tolist()
    all_ids, all_logprobs = array("i", ids.astype("i").tobytes()), array("f", logprobs.astype("f").tobytes())
    return [
        # Before each step's top log-probabilities stands that of the token that was chosen.
        Step(all_logprobs[start + i], all_ids[start:end], all_logprobs[start + i + 1 : end + i + 1], height)
        for i, ((start, end), height) in enumerate(zip(pairwise([0, *ends]), heights.tolist(), strict=True))
    ]


def _on_grid(logprobs: Any, places: int) -> Any:
    import numpy as np

    numbers = np.clip(np.rint(logprobs.astype("f8") * 2**places), -LARGEST, LARGEST)
    for value, number in NOT_FINITE:
        numbers[np.isnan(logprobs) if np.isnan(value) else logprobs == value] = number
    return numbers.astype("<i4")


def _off_grid(numbers: Any, places: int) -> Any:
    logprobs = numbers / 2.0**places
    for value, number in NOT_FINITE:
        logprobs[numbers == number] = value
    return logprobs.astype("<f4")


def _planes(numbers: Any) -> bytes:
    """The first byte of every number, then the second of every number, …"""
    import numpy as np

    return bytes(np.ascontiguousarray(numbers).view("u1").reshape(-1, 4).T.tobytes())


def _from_planes(content: bytes) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.frombuffer(content, "u1").reshape(4, -1).T).view("<u4").reshape(-1)
