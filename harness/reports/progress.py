"""What is going on, on stderr: a bar for a person who watches, a line now and then for a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.record import Target
from harness.reports import one_line

EVERY = 30.0  # seconds between two lines of a heartbeat


@contextmanager
def watch(stream: TextIO | None = None) -> Iterator[Bar | Heartbeat]:
    """The observer that suits the stream: a bar on a terminal, else (and in CI) a heartbeat."""
    stream = stream or sys.stderr
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    if in_ci or not stream.isatty():
        yield Heartbeat(stream)
        return
    with _progress(stream) as progress:
        yield Bar(progress)


def _progress(stream: TextIO) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(file=stream),
        transient=True,
        # Whatever a library prints meanwhile goes above the bar; a stdout that is piped elsewhere stays as it is.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
    )


class Bar:
    """One line that moves: what is loaded, or how many requests of a target are answered."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=None, count="")
        self.target = ""

    def says(self, message: str) -> None:
        self.target = ""
        self.progress.reset(self.task, description=one_line(message), total=None, count="")
        self.progress.refresh()

    def batch(self, target: Target, done: int, total: int) -> None:
        if target.name != self.target:
            self.target = target.name
            self.progress.reset(self.task, description=target.name)
        self.progress.update(self.task, completed=done, total=total, count=f"{done}/{total} requests")


class Heartbeat:
    """Plain lines: each message, and every half minute how far the target is."""

    def __init__(self, stream: TextIO, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.every = every
        self.clock = clock
        self.last = clock()

    def says(self, message: str) -> None:
        print(one_line(message), file=self.stream, flush=True)

    def batch(self, target: Target, done: int, total: int) -> None:
        now = self.clock()
        if now - self.last >= self.every:
            self.last = now
            self.says(f"{target.name}: {done}/{total} requests")
