"""The real `generate()` on a path that is given: the whole distributions of every step, however they differ."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from transformers import LogitsProcessor

from harness.backends.recorder import Recorder
from harness.errors import CannotRun
from harness.record import Distributions


class Forced(LogitsProcessor):  # type: ignore[misc]
    """The last of all processors: keeps what came before and after them, then leaves one token to choose."""

    def __init__(self, recorder: Recorder, continuations: Sequence[tuple[int, ...]], start: int, end: int) -> None:
        self._recorder = recorder
        self._continuations = continuations
        self._start = start  # where the first new token stands
        self._end = end  # what a row is given that has nothing left to say
        self._steps = [0] * len(continuations)
        self._vocabulary = 0
        self._processed_too = True
        self._paths = [_folder() / f"{uuid4().hex}.logits" for _ in continuations]
        self._files: list[BinaryIO] = []

    @contextmanager
    def listening(self, model: Any) -> Iterator[None]:
        """Behind all processors and warpers of the model, for the length of one call."""
        build = model._get_logits_processor

        def with_this_last(*args: Any, **arguments: Any) -> Any:
            processors = build(*args, **arguments)
            self._processed_too = len(processors) > 0
            processors.append(self)
            return processors

        model._get_logits_processor = with_this_last
        try:
            self._files = [path.open("wb") for path in self._paths]
            yield
        except OSError as error:
            raise CannotRun(
                f"the distributions cannot be written to {_folder()}: {error.strerror or error}",
                "Point TMPDIR to a disk with room: a replay needs 8 bytes for each token and word of the vocabulary.",
            ) from error
        finally:
            for file in self._files:
                file.close()
            del model._get_logits_processor

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        place = input_ids.shape[1] - self._start
        sides = [self._recorder.logits, scores] if self._processed_too else [self._recorder.logits]
        kept = torch.stack(sides, 1).float().cpu().numpy()  # one copy off the device for all rows
        self._vocabulary = kept.shape[-1]
        forced = torch.full_like(scores, float("-inf"))
        for row, tokens in enumerate(self._continuations):
            if place < len(tokens):
                self._files[row].write(kept[row].tobytes())
                self._steps[row] += 1
            forced[row, tokens[place] if place < len(tokens) else self._end] = 0
        return forced

    @property
    def limit(self) -> dict[str, int]:
        """For `generate()`: the path may be longer or shorter than the model would have gone."""
        return {"max_new_tokens": max(1, max(map(len, self._continuations)))}

    def distributions(self, row: int) -> Distributions:
        return Distributions(self._paths[row], self._steps[row], self._vocabulary, self._processed_too)


@cache
def _folder() -> Path:
    """Where the distributions lie until the process ends, or whoever compared them deletes them."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="harness-"))
    return Path(_KEPT[0].name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # its folder goes with it
