"""Backends: one loaded target each. The only place where torch and transformers are imported.

To add one: write a module with a function `load(target, ...) -> Backend` and add one line to TABLE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Protocol

from harness.record import Completion, Failure, Request, Target, TargetFacts

# Told what is going on during a load: "converting …", "loading …".
Progress = Callable[[str], None]


class Backend(Protocol):
    """One loaded target."""

    @property
    def facts(self) -> TargetFacts:
        """What the target really is; the kind of cache is known once something was generated."""

    def length(self, request: Request) -> int:
        """Tokens of the prompt, for planning batches; 0 when it cannot be told."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Completion | Failure]:
        """Answer these requests as one batch, in order.

        Requests whose layout is a Batch come together with that batch's other rows or without them; either
        way exactly the batch that they name is generated.
        """

    def texts(self, ids: Sequence[int]) -> Sequence[str]:
        """What each of these tokens says on its own."""

    def close(self) -> None:
        """Give the memory back."""


TABLE: Mapping[str, str] = {
    "transformers": "harness.backends.transformers",
    "scripted": "harness.backends.scripted",
}


def load(target: Target, *, top_k: int = 20, progress: Progress | None = None) -> Backend:
    """Load a target with the backend that its model names."""
    from harness.backends import logs

    with logs.captured():  # importing some libraries alone has them say things
        module = import_module(TABLE[target.model.backend])
    backend: Backend = module.load(target, top_k=top_k, progress=progress or (lambda _: None))
    return backend
