"""What the libraries say while they work: captured, counted, shown once."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGERS = ("transformers", "bitsandbytes", "accelerate", "huggingface_hub", "torchao", "torch.utils._pytree")


class _Counting(logging.Handler):
    def __init__(self, messages: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages[record.getMessage()] += 1


@contextmanager
def captured() -> Iterator[Counter[str]]:
    """Count warnings by text instead of printing them: int8 alone prints one line per layer call."""
    messages: Counter[str] = Counter()
    handler = _Counting(messages)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    forget_warned_once()
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: messages.update([str(message)])
            yield messages
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def forget_warned_once() -> None:
    """transformers warns once per process; without this only the first request would show it."""
    logging_module: Any = sys.modules.get("transformers.utils.logging")
    for name in ("warning_once", "info_once"):
        clear = getattr(getattr(logging_module, name, None), "cache_clear", None)
        if clear:
            clear()


@contextmanager
def no_bars() -> Iterator[None]:
    """The libraries draw no bars of their own: progress is the observer's to show."""
    from transformers.utils import logging as library

    drawn = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            library.enable_progress_bar()
