"""A run as Python holds it: what came of it, as frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.store import Results

if TYPE_CHECKING:
    from pandas import DataFrame

    from harness.comparison.decision import Decision
    from harness.comparison.difference import RunDifference


class Run:
    """What `harness.run()`, `harness.compare()` and `harness.read()` give back."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def __repr__(self) -> str:
        names = ", ".join(suite["name"] for suite in self.results.suites)
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.results.outcomes.items())
        return f"<Run of {names or 'nothing'}: {outcomes or 'no checks'}>"

    def frame(self) -> DataFrame:
        """A row for each verdict."""
        from harness.frame import results_frame

        return results_frame(self.results)

    def matrix(self) -> DataFrame:
        """Test × target: checks passed/judged."""
        from harness.frame import matrix

        return matrix(self.frame())

    def targets(self) -> DataFrame:
        """A row for each target: what it was asked to be, what it was, how its checks went."""
        from harness.frame import targets_frame

        return targets_frame(self.results)

    def compare(self) -> DataFrame:
        """A row for each candidate: every statistic against the baseline, with its interval."""
        from harness.comparison.frames import comparison_frame

        return comparison_frame(self.results)

    def prompts(self) -> DataFrame:
        """A row for each prompt of each candidate that was compared."""
        from harness.comparison.frames import prompts_frame

        return prompts_frame(self.results)

    def tokens(self) -> DataFrame:
        """A row for each token of the baseline's continuations, with each candidate's view of it."""
        from harness.comparison.frames import tokens_frame

        return tokens_frame(self.results)

    def flips(self) -> DataFrame:
        """A row for each place where a candidate holds another token for the likeliest."""
        from harness.comparison.frames import flips_frame

        return flips_frame(self.results)

    def differences(self) -> DataFrame:
        """A row for every two candidates: which is better, or that it cannot be told."""
        from harness.comparison.frames import differences_frame

        return differences_frame(self.results)

    @property
    def decision(self) -> Decision:
        """Who keeps the budget, the Pareto set, the cheapest that passes."""
        from harness.comparison.decision import decide

        return decide(self.results)

    def against(self, before: Run) -> RunDifference:
        """This run, after, against one before it."""
        from harness.comparison.runs import compare_runs

        return compare_runs(before.results, self.results)

    def save(self, parent: str | Path = "reports") -> Path:
        """Write a run folder under `parent`, with its report."""
        from harness.reports.html import render
        from harness.store import save

        return save(self.results, Path(parent), {"report.html": render(self.results)})
