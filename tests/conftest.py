"""Shared by all tests: process-wide changes of one test do not affect the next."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest

from vidshard.util.console import LOGGERS


def pytest_configure(config: pytest.Config) -> None:
    """Make every warning an error in CI, except the ignored ones."""
    if os.environ.get("CI"):
        config.getini("filterwarnings").insert(0, "error")


def pytest_collection_finish() -> None:
    """Spare garbage collections the modules imported so far: visiting them took half a minute in all."""
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """Undo what a command run in this process does to the loggers: show messages on standard output."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
