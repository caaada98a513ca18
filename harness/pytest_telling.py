"""What the pytest plugin tells: progress, failures with their reasons, properties of items, the summary at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.record import Record, Target
    from harness.runner import Judged
    from harness.store import Results


class Progress:
    """Tells on the terminal what is going on, past pytest's capturing."""

    def __init__(self, plugins: Any) -> None:
        from harness.reports.progress import Pace

        self.terminal = plugins.getplugin("terminalreporter")
        self.capture = plugins.getplugin("capturemanager")
        self.pace = Pace()

    def says(self, message: str) -> None:
        """One line of its own."""
        self.pace.says(message)
        self._write()

    def announced(self, target: Target, requests: int) -> None:
        """How much is to come."""
        self.pace.announced(target, requests)

    def batch(self, target: Target, done: int, total: int) -> None:
        """How far a target is."""
        self.pace.batch(target, done, total)
        if done:
            self._write()

    def _write(self) -> None:
        with self.capture.global_and_fixture_disabled() if self.capture else nullcontext():
            self.terminal.ensure_newline()
            self.terminal.write_line(self.pace.line())


def told(judged: Judged) -> str:
    """The reason first, then every expectation that is not met where several are not, then the details."""
    from harness.reports.drawing import plain

    bad = [record for record in judged.records if record.verdict.status in ("error", "failed")]
    bad.sort(key=lambda record: record.verdict.status)  # "error" comes before "failed"
    lines = [bad[0].verdict.reason]
    lines += [f"{record.expectation}: {record.verdict.reason}" for record in bad if len(bad) > 1]
    width = shutil.get_terminal_size().columns
    lines += [line for record in bad for line in plain(record.verdict.details, width)]
    return visible("\n".join(lines))


def place(record: Record) -> str:
    from harness.reports import one_line, reproduce

    return f"\nat {one_line(record.file)}:{record.line}\n{one_line(reproduce(record))}"


def properties(judged: Judged) -> Iterable[tuple[str, object]]:
    """What JUnit XML and other readers of reports get; text that xdist and XML can carry."""
    record = judged.worst
    yield from ((name, getattr(record, name)) for name in ("model", "quantization", "target", "prompt", "finish"))
    for each in judged.records:
        yield f"verdict.{each.expectation}".rstrip("."), visible(f"{each.outcome}: {each.verdict.reason}")
    yield "text", visible(record.text)
    yield "new_tokens", "" if record.new_tokens is None else record.new_tokens


def summary(results: Results) -> Iterator[str]:
    from harness.reports import one_line, requests_line, warnings_counted
    from harness.wording import counted

    yield f"harness: requests {requests_line(results)}; {counted(len(results.facts), 'target')}"
    yield from (f"harness: warning {count:,} × {one_line(text)}" for text, count in warnings_counted(results))


def visible(text: str) -> str:
    from harness import reports

    return reports.visible(text)
