"""What pages have in common: their templates, in which foreign text is made visible, and digests for their policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.reports import visible

FOLDER = Path(__file__).parent


@cache
def template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _finalize(value: Any) -> Any:
    """Every {{ value }} passes here on its way to the page, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def joined(names: Iterable[str]) -> str:
    """Several files of rules or scripts as one."""
    return "\n".join((FOLDER / name).read_text("utf-8") for name in names)


def digest(text: str) -> str:
    """By which a page's policy names its own rules and scripts."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
