"""What is going on, on stderr: a bar for a person who watches, a line now and then for a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
from rich.text import Text

from harness.record import Target
from harness.reports import one_line
from harness.reports.terminal import sayable

EVERY = 30.0  # seconds between two lines of a heartbeat
SOON = 5.0  # seconds: what is over so soon is not announced
NARROW = 80  # cells: below that the words are worth more than a bar
BAR, SPINNER, ELAPSED = 20, 2, 8  # cells; with a space after each column
LEAST = 8  # cells of what is going on, on however narrow a terminal


@contextmanager
def watch(stream: TextIO | None = None) -> Iterator[Bar | Heartbeat]:
    """The observer that suits the stream: a bar on a terminal, else (and in CI) a heartbeat."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    if in_ci or not stream.isatty() or console.is_dumb_terminal:
        with Heartbeat(stream).beating() as heartbeat:
            yield heartbeat
        return
    bar = Bar(console)
    with bar.progress:
        yield bar


@dataclass
class _Part:
    """What a run asks of one target, and how long that took until now."""

    announced: int = 0  # requests; 0 where it is not known beforehand
    requests: int = 0  # as far as it is known now
    done: int = 0
    began: float | None = None
    first: tuple[float, int] | None = None  # when the first batch was answered, and how many requests that were
    last: float = 0.0  # when something was last heard of it
    over: bool = False

    @property
    def pace(self) -> float | None:
        """Seconds a request. The first batch does not count: it came with the loading."""
        if self.first is None or self.done <= self.first[1]:
            return None
        return (self.last - self.first[0]) / (self.done - self.first[1])


class Pace:
    """An observer that can say what is going on, how far the run is, and about how long the rest will take."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._doing = "starting"
        self._counts = ""
        self._parts: dict[Target, _Part] = {}
        self._part = _Part()  # of the target that is loaded
        self._once_more = False

    def says(self, message: str) -> None:
        self._doing, self._counts = message, ""

    def announced(self, target: Target, requests: int) -> None:
        part = self._parts.setdefault(target, _Part())
        if part.began is not None:  # a run of its own, of which there may be many more
            self._once_more = True
            part = self._parts[target] = _Part()
        part.announced += requests
        part.requests += requests

    def batch(self, target: Target, done: int, total: int) -> None:
        now, part = self.clock(), self._parts.setdefault(target, _Part())
        if done:
            self._doing, self._counts = target.name, f"{done:,}/{total:,}"
        if part.over:  # asked again, or beside another one: the run is further than that
            return
        if part is not self._part:
            self._part.over, self._part.last = True, now
            self._part, part.began = part, now
            if not done:
                self._doing, self._counts = target.name, ""
        if done < part.done:
            part.first = None
        part.done, part.last = done, now
        if done:
            part.first, part.requests = part.first or (now, done), total

    def line(self, room: int | None = None) -> str:
        """`loading m-nf4 (target 2 of 5), about 3 min left`, in so many cells."""
        doing, rest = one_line(self._doing), self._rest("target ", " requests", "about ")
        if room is None:
            return doing + rest
        if cell_len(doing + rest) > room:
            rest = self._rest("", "", "")
        cells = max(LEAST, room - len(rest))
        return (doing if cell_len(doing) <= cells else f"{set_cell_size(doing, cells - 1)}…") + rest

    def _rest(self, target: str, requests: str, about: str) -> str:
        parts, left = list(self._parts.values()), self.left
        place = sum(part.began is not None for part in parts)
        return (
            (f" ({target}{place} of {len(parts)})" if place and len(parts) > 1 else "")
            + (f": {self._counts}{requests}" if self._counts else "")
            + (f", {about}{_about(left)} left" if left is not None and left >= SOON else "")
        )

    @property
    def share(self) -> float | None:
        """How much of the run is done; None while that is not known."""
        parts = list(self._parts.values())
        asked = sum(part.requests for part in parts)
        return sum(part.requests if part.over else part.done for part in parts) / asked if asked else None

    @property
    def left(self) -> float | None:
        """Seconds; None while they cannot be told."""
        parts, part, now = list(self._parts.values()), self._part, self.clock()
        past = [one for one in parts if one.over and one.done and one.began is not None]
        taken, done = sum(one.last - (one.began or 0) for one in past), sum(one.done for one in past)
        pace = part.pace or (taken / done if done else None)
        if self._once_more or part.began is None or pace is None:
            return None
        own = max(0.0, (part.requests - part.done) * pace - (now - part.last))
        later = [one for one in parts if one.began is None]
        # More is asked than was announced: of replays, of causes, of speed. Later targets are taken to be like those.
        if all(one.announced for one in (part, *later)):
            whole = taken + now - part.began + own
            return own + whole / sum(one.announced for one in (*past, part)) * sum(one.announced for one in later)
        return own + taken / len(past) * len(later) if past else None


def _about(seconds: float) -> str:
    if seconds < 55:
        return f"{max(10, round(seconds, -1)):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Bar(Pace):
    """One line that moves."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        utf = console.encoding.lower().startswith("utf")
        columns: list[ProgressColumn] = [SpinnerColumn("dots" if utf else "line")]
        if console.width >= NARROW:
            columns += [BarColumn(BAR), TimeElapsedColumn()]
        self.progress = Progress(
            *columns,
            _Line(self, console),
            console=console,
            transient=True,
            # Whatever a library prints meanwhile goes above the bar; a stdout that is piped elsewhere stays as it is.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        self.task = self.progress.add_task("", total=None)

    def says(self, message: str) -> None:
        super().says(message)
        self.progress.refresh()

    def batch(self, target: Target, done: int, total: int) -> None:
        super().batch(target, done, total)
        if self.share is not None:
            self.progress.update(self.task, total=1.0, completed=self.share)


class _Line(ProgressColumn):
    """What is going on, in the width that the other columns leave."""

    def __init__(self, pace: Pace, console: Console) -> None:
        super().__init__()
        self.pace, self.console = pace, console

    def render(self, task: Task) -> Text:
        taken = SPINNER + (BAR + 1 + ELAPSED if self.console.width >= NARROW else 0)
        return Text(sayable(self.pace.line(self.console.width - taken), self.console), no_wrap=True)


class Heartbeat(Pace):
    """Says nothing but one plain line every half minute: so that a log shows that the run is alive, and how far."""

    def __init__(self, stream: TextIO, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.stream = stream
        self.every = every

    def beat(self) -> None:
        print(self.line(), file=self.stream, flush=True)

    @contextmanager
    def beating(self) -> Iterator[Heartbeat]:
        """From a thread: a target that loads for minutes is heard of, too."""
        over = threading.Event()

        def beat() -> None:
            with suppress(OSError, ValueError):  # nobody listens any more
                while not over.wait(self.every):
                    self.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
