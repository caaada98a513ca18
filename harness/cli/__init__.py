"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from harness.cli import history, judging, looking, pinning, reporting
from harness.cli.app import app, main

__all__ = ["app", "history", "judging", "looking", "main", "pinning", "reporting"]
