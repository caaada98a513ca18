"""Every error the harness raises on purpose, each with the remedy in its text.

HarnessError
├── SuiteError          a suite file is wrong: every mistake of the file at once        exit 2
├── UsageError          the command line is wrong                                       exit 2
├── NothingSelected     the selection leaves nothing to run                             exit 5
└── CannotRun           a model or a request could not be run                           exit 3
    ├── ModelUnavailable    the weights are not there, or cannot be read
    ├── LevelMismatch       the loaded weights are not at the quantization level asked for
    ├── LevelUnavailable    this machine cannot run the level (its checks are skipped)
    ├── NotSupported        the model or the backend cannot do this at all (its expectation is skipped)
    ├── InvalidRequest      the request cannot be run on this model (too long, empty, …)
    ├── OutOfMemory         even a single row does not fit
    └── NumericFailure      the model produced NaN or Inf
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HarnessError(Exception):
    """An error to show to the user as it stands: message first, then what to do."""

    exit_code = 3

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a suite file, with its place."""

    file: str
    line: int
    column: int
    message: str
    source: str = ""

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: error: {self.message}"
        if not self.source:
            return text
        return f"{text}\n    | {self.source}\n    | {' ' * (self.column - 1)}^"


class SuiteError(HarnessError):
    """All the mistakes of the suite files that were read."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(HarnessError):
    exit_code = 2


class NothingSelected(HarnessError):
    exit_code = 5


class CannotRun(HarnessError):
    """Something could not be run; `kind` is the word that reports show for it."""

    kind = "error"


class ModelUnavailable(CannotRun):
    kind = "model_unavailable"


class LevelMismatch(CannotRun):
    kind = "level_mismatch"


class LevelUnavailable(CannotRun):
    kind = "level_unavailable"


class NotSupported(CannotRun):
    kind = "not_supported"


class InvalidRequest(CannotRun):
    kind = "invalid_request"


class OutOfMemory(CannotRun):
    kind = "out_of_memory"


class NumericFailure(CannotRun):
    kind = "numeric"
