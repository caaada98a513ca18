"""What the libraries say is counted, not printed."""

from __future__ import annotations

import logging
import warnings

import pytest

from harness.backends.logs import captured


def test_messages_are_counted_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    with captured() as said:
        for _ in range(3):
            logger.warning("cast from %s", "bfloat16")
        logger.info("not a warning")
        warnings.warn("careful", UserWarning, stacklevel=1)

    assert said == {"cast from bfloat16": 3, "careful": 1}
    assert "".join(capsys.readouterr()) == ""


def test_loggers_are_as_before_afterwards() -> None:
    logger = logging.getLogger("transformers")
    before = (logger.handlers, logger.propagate, warnings.showwarning)
    with pytest.raises(ZeroDivisionError), captured():
        _ = 1 / 0

    assert (logger.handlers, logger.propagate, warnings.showwarning) == before


def test_a_warning_given_once_comes_back_each_time() -> None:
    from transformers.utils import logging as library

    logger = library.get_logger("transformers.some.module")
    for _ in range(2):
        with captured() as said:
            logger.warning_once("right-padding was detected")
            logger.warning_once("right-padding was detected")

        assert said == {"right-padding was detected": 1}
