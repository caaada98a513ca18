"""Debian's Chromium, driven by Playwright, for the tests, the timings and the screenshots of reports."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
AXE = Path(sys.prefix) / "axe-core" / "axe.min.js"  # `make browser` puts it there


@dataclass
class Watch:
    """What a page must not do: complain in the console, where refusals of its policy are told too, or ask for files."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def missing() -> str:
    """What there has to be and is not, and how to get it; "" when all is there."""
    if not _executable():
        return "Chromium is not installed: apt-get install chromium"
    if find_spec("playwright") is None:
        return "Playwright is not installed: make browser, or pip install playwright"
    if not AXE.is_file():
        return f"axe-core is not at {AXE}: make browser fetches it"
    return ""


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_executable(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched(browser: Browser, **options: Any) -> Iterator[tuple[Page, Watch]]:
    """An empty page of its own profile; it may open files by name, and everything else that it asks for is refused."""
    watch = Watch()
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
    try:
        page = context.new_page()

        def decide(route: Route) -> None:
            request = route.request
            if request.is_navigation_request() and request.url.startswith("file:") and request.frame == page.main_frame:
                route.continue_()
            else:
                watch.requests.append(request.url)
                route.abort()

        context.route("**/*", decide)
        page.on(
            "console", lambda told: watch.complaints.append(told.text) if told.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: watch.complaints.append(str(error)))
        yield page, watch
    finally:
        context.close()


def opened(page: Page, file: Path, state: str = "") -> None:
    """Open a report and wait until all of it is there, and answers."""
    page.goto(f"{file.resolve().as_uri()}{'#' if state else ''}{state}")
    until(page, "performance.getEntriesByName('harness:ready').length > 0")


def until(page: Page, holds: str, argument: Any = None, seconds: float = 20) -> None:
    """Ask the page again and again; its own policy forbids what Playwright would leave there to wait."""
    patience = time.monotonic() + seconds
    while not page.evaluate(holds, argument):
        if time.monotonic() > patience:
            raise TimeoutError(f"after {seconds} s still not so: {holds}")
        page.wait_for_timeout(20)


def _executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)
