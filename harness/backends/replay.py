"""The real `generate()` on a path that is given: the whole distributions of every step, however they differ."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from transformers import LogitsProcessor

from harness.backends.recorder import Recorder, columns, steps_of
from harness.errors import CannotRun
from harness.record import Distributions, Step


class Forced(LogitsProcessor):  # type: ignore[misc]
    """The last of all processors: keeps what came before and after them, then leaves one token to choose.

    A row without a path, a neighbour, goes its own way.
    """

    def __init__(self, recorder: Recorder, paths: Sequence[tuple[int, ...] | None], end: int, *, whole: bool) -> None:
        self._recorder = recorder
        self._paths = paths
        self._end = end  # what a row is given that has nothing left to say
        self._place = 0
        self._processed_too = True
        self._processed: list[tuple[Any, ...]] = []  # per step, as the recorder has them: (B, …)
        self._whole = _Spool(len(paths)) if whole else None

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
            with self._whole.writing() if self._whole else nullcontext():
                yield
        finally:
            del model._get_logits_processor

    @property
    def limit(self) -> dict[str, int]:
        """For `generate()`: the path may be longer or shorter than the model would have gone."""
        return {"max_new_tokens": max(1, max(len(path) for path in self._paths if path is not None))}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        on_path = [path is not None and self._place < len(path) for path in self._paths]
        if self._whole:
            sides = [self._recorder.logits, scores] if self._processed_too else [self._recorder.logits]
            self._whole.write(sides, on_path)
        forced = torch.full_like(scores, float("-inf"))
        chosen = []
        for row, path in enumerate(self._paths):
            if path is None:
                forced[row] = scores[row]
                chosen.append(int(scores[row].argmax()))
            else:
                chosen.append(path[self._place] if on_path[row] else self._end)
                forced[row, chosen[row]] = 0
        if self._processed_too:
            ids = torch.tensor(chosen, device=scores.device)[:, None]
            self._processed.append(self._recorder.reduced(scores.float(), ids))
        self._place += 1
        return forced

    def processed_steps(self, row: int) -> tuple[Step, ...]:
        """After all processors; nothing where there are none."""
        return steps_of(columns(self._processed), row, len(self._paths[row] or ()))

    def distributions(self, row: int) -> Distributions | None:
        return self._whole.distributions(row, processed_too=self._processed_too) if self._whole else None


class _Spool:
    """A file for each row, with whole distributions."""

    def __init__(self, rows: int) -> None:
        self._paths = [_folder() / f"{uuid4().hex}.logits" for _ in range(rows)]
        self._steps = [0] * rows
        self._vocabulary = 0
        self._files: list[BinaryIO] = []

    @contextmanager
    def writing(self) -> Iterator[None]:
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

    def write(self, sides: Sequence[Any], rows: Sequence[bool]) -> None:
        kept = torch.stack(list(sides), 1).float().cpu().numpy()  # one copy off the device for all rows
        self._vocabulary = kept.shape[-1]
        for row, wanted in enumerate(rows):
            if wanted:
                self._files[row].write(kept[row].tobytes())
                self._steps[row] += 1

    def distributions(self, row: int, *, processed_too: bool) -> Distributions:
        return Distributions(self._paths[row], self._steps[row], self._vocabulary, processed_too)


@cache
def _folder() -> Path:
    """Where the distributions lie until the process ends, or whoever compared them deletes them."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="harness-"))
    return Path(_KEPT[0].name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # its folder goes with it
