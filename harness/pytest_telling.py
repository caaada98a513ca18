"""What the pytest plugin tells: failures with their reasons, properties of items, the summary at the end."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.record import Record
    from harness.runner import Judged
    from harness.store import Results


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


def share(results: Results) -> dict[str, Any]:
    """What one process adds to the summary, as plain data."""
    from harness.reports import one_line, warnings_counted

    warnings = [[one_line(text), count] for text, count in warnings_counted(results)]
    return {"counts": dict(results.counts), "targets": len(results.facts), "warnings": warnings}


def summary(shares: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not shares:
        return
    # Every worker of xdist collects everything, and each generates for its own targets.
    asked, distinct = (max(share["counts"][key] for share in shares) for key in ("asked", "distinct"))
    generated = sum(share["counts"]["generated"] for share in shares)
    targets = sum(share["targets"] for share in shares)
    warnings: Counter[str] = Counter()
    for share in shares:
        warnings.update(dict(share["warnings"]))
    counts = f"asked {asked:,}, distinct {distinct:,}, generated {generated:,}"
    yield f"harness: requests {counts}; {targets:,} target{'' if targets == 1 else 's'}"
    yield from (f"harness: warning {count:,} × {text}" for text, count in warnings.most_common())


def visible(text: str) -> str:
    from harness import reports

    return reports.visible(text)
