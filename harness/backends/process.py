"""Answers requests in a process of their own: what only a fresh interpreter can show, such as hash seeds.

The parent writes target and requests to the child's standard input and reads completions from its standard
output. Both ends are this file, started by us: pickle is safe here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

from harness import backends
from harness.errors import CannotRun
from harness.record import Completion, Failure, Request, Target


def generate(target: Target, top_k: int, requests: Sequence[Request]) -> list[Completion | Failure]:
    """Load the target in a new process and generate there."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.backends.process"],
        input=pickle.dumps((target, top_k, tuple(requests))),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        message = f"the fresh process ended with code {done.returncode}: {said[-1] if said else 'it said nothing'}"
        return [Failure(request, "error", message) for request in requests]
    answers: list[Completion | Failure] = pickle.loads(done.stdout)
    return answers


def main() -> None:
    """The child: whatever else is printed must not reach the pipe that carries the answers."""
    answers_to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    target, top_k, requests = pickle.loads(sys.stdin.buffer.read())
    try:
        backend = backends.load(target, top_k=top_k)
        answers = [answer for request in requests for answer in backend.generate([request])]
    except CannotRun as error:
        answers = [Failure(request, error.kind, str(error)) for request in requests]
    with answers_to:
        pickle.dump(answers, answers_to)


if __name__ == "__main__":
    main()
