"""Options of the whole suite."""

from __future__ import annotations

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write the golden texts anew instead of comparing with them; then read the diff",
    )


def pytest_configure() -> None:
    """A suite that is started in the background inherits an ignored SIGINT, and so would those
    that it starts and interrupts: a handler here is the default there.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
