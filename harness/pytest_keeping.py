"""What the pytest plugin keeps of a session: a journal while it runs, its run folder, what workers of xdist leave."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.runner import Judged
    from harness.store import Journal, Results


class Keeper:
    """Makes one run folder, of which the journal is the beginning."""

    def __init__(self, parent: Path, *, page: bool) -> None:
        self.parent = parent
        self.page = page  # with a report.html: of what a worker found there is none
        self._journal: Journal | None = None

    def begin(self, results: Results) -> None:
        """From now on a session that is killed leaves its verdicts."""
        from harness.errors import CannotRun
        from harness.store import Journal

        try:
            self._journal = Journal(results, self.parent)
        except CannotRun as error:
            remedy = "Free some space, or give --harness-report another folder." if self.page else "Free some space."
            raise CannotRun(error.message, remedy) from error

    def add(self, judged: Judged) -> None:
        """A verdict more."""
        if self._journal:
            self._journal.add(judged.records)

    def save(self, results: Results | None) -> Path | None:
        """The folder, in place of the journal; None if nothing was judged. Where it fails the journal stays."""
        from harness.store import save

        folder = save(results, self.parent, self._files(results)) if results else None
        if self._journal:
            self._journal.close()
        return folder

    def _files(self, results: Results) -> dict[str, str]:
        if not self.page:
            return {}
        from harness.reports.html import render

        return {"report.html": render(results)}


def gathered(workers: Path, checks: int, command: str) -> tuple[Results | None, list[str]]:
    """The runs of all workers as one, and what is not known of them; of one that crashed there is its journal."""
    from harness.errors import HarnessError
    from harness.joining import joined
    from harness.store import VERDICTS, read

    runs: list[Results] = []
    unknown: list[str] = []
    for folder in sorted(workers.glob("*/*"), key=lambda folder: (len(folder.parent.name), folder.parent.name)):
        if folder.name.startswith(".") and not (folder / VERDICTS).is_file():
            continue  # it crashed before it had judged anything
        worker = f"worker {folder.parent.name}"
        try:
            run = read(folder)
        except HarnessError as error:
            unknown.append(f"{worker}: {error}")
        else:
            lacks = tuple(f"{worker}: {lack}" for lack in run.lacks)
            unknown += lacks
            runs.append(replace(run, lacks=lacks))
    shutil.rmtree(workers, ignore_errors=True)
    return joined(runs, checks, command) if runs else None, unknown
