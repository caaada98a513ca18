"""A suite compared: the checks of every target, and its measurements while it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness.answers import Observer, Quiet
from harness.comparison.measuring import Measurer, Timed, in_order
from harness.errors import UsageError
from harness.load import Loaded, load_all
from harness.plan import Check, plan
from harness.record import Target
from harness.runner import Runner, provenance
from harness.selection import select
from harness.store import Results


def prepare(  # noqa: PLR0913  an option of the comparison each
    suites: Sequence[str | Path],
    observer: Observer | None = None,
    *,
    keyword: str = "",
    mark: str = "",
    targets: Sequence[str] = (),
    baseline: str = "",
    limit: int | None = None,
    checks: bool = True,
    speed: Timed = True,
) -> Comparison:
    """What `harness compare SUITE` runs."""
    loaded = load_all(suites)
    if len(loaded) != 1:
        names = ", ".join(one.file for one in loaded)
        raise UsageError(f"one suite is compared at a time, and there are {len(loaded)}: {names}", "Name one of them.")
    chosen = in_order(loaded[0].suite, targets, baseline)
    judged = select(plan(loaded).checks, keyword=keyword, mark=mark) if checks else ()
    return Comparison(loaded[0], chosen, judged, observer, limit=limit, speed=speed)


class Comparison:
    """Judges the checks of every target, and measures it while it is loaded."""

    def __init__(
        self,
        loaded: Loaded,
        targets: Sequence[Target],  # the baseline first
        checks: Sequence[Check],
        observer: Observer | None = None,
        *,
        limit: int | None = None,
        speed: Timed = True,
    ) -> None:
        self._loaded = loaded
        observer = observer or Quiet()
        for target in targets:  # those without checks are to come, too
            observer.announced(target, 0)
        self._targets = targets
        self._runner = Runner([check for check in checks if check.target in targets], observer)
        self._measurer = Measurer(loaded.suite, self._runner.answers, targets[0], limit, speed)

    def run(self) -> Iterator[Target]:
        """Each target when it is measured, and closed; then the next is loaded."""
        try:
            for target in self._targets:
                for check in self._runner.checks:
                    if check.target == target:
                        self._runner.judge(check)
                self._measurer.target(target)
                yield target
        finally:
            self._runner.close()
            self._measurer.close()

    def results(self, command: str = "") -> Results:
        """Everything that came of it, until now."""
        suite, path = self._loaded.suite, self._loaded.path or self._loaded.file
        return replace(
            self._runner.results(command),
            # also where none of its checks was judged
            suites=(provenance(suite.suite, self._loaded.file, path, self._loaded.reads),),
            measured=self._measurer.measured,
            budget=suite.budget.model_dump(exclude_none=True) if suite.budget else None,
        )
