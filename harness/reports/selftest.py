"""What a suite catches, on a terminal: expectation by expectation, then what nothing catches."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from harness.reports import one_line
from harness.reports.terminal import say
from harness.selftest import SelfTest, Tooth


def show(result: SelfTest, console: Console) -> None:
    """Print one target's selftest; the last line is the verdict."""
    width = max((len(_place(tooth)) for tooth in result.teeth), default=0)
    for tooth in result.teeth:
        style = "bold red" if tooth.toothless else "dim" if tooth.healthy != "passed" else ""
        say(console, f"{_place(tooth):<{width}}  {_found(tooth)}", style=style)
    for line in _faults(result):
        say(console, line)
    count = len(result.toothless)
    if count:
        say(console, (f"TOOTHLESS  {count} of {len(result.teeth)} expectations catch nothing", "bold red"))
    else:
        judged = sum(tooth.healthy == "passed" for tooth in result.teeth)
        say(console, ("GOOD TEETH  ", "bold green"), f"each of {judged} expectations catches a fault")


def _place(tooth: Tooth) -> str:
    return f"{tooth.suite}::{tooth.test}  ({tooth.expectation})"


def _found(tooth: Tooth) -> str:
    if tooth.toothless:
        return "toothless: catches none of these faults"
    if tooth.healthy != "passed":
        return f"not tried: {tooth.healthy} without a fault"
    return ", ".join(tooth.caught)


def _faults(result: SelfTest) -> Iterator[str]:
    yield ""
    nothing = "nothing that was still tried" if result.quick else "nothing"
    for fault in result.faults:
        count = sum(fault in tooth.caught for tooth in result.teeth)
        yield f"{fault:<16}  caught by {count or nothing}"
    for fault, reason in result.not_planted.items():
        yield f"{fault:<16}  not planted: {one_line(reason)}"
    yield ""
