"""The command line: parses, calls, prints. Everything heavy is imported by the command that needs it."""

from harness.cli import judging, looking, pinning
from harness.cli.app import app, main

__all__ = ["app", "judging", "looking", "main", "pinning"]
