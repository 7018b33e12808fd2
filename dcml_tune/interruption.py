"""Signals end a search in good order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SearchStopped(BaseException):
    """The search ends early, and can be resumed. No handler of exceptions may keep it from doing so."""


_signal: str | None = None
_waits = 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise SearchStopped at SIGINT and SIGTERM; a second signal ends the process at once."""
    global _signal
    _signal = None

    def stop(number: int, frame: Any) -> None:
        global _signal
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        _signal = signal.Signals(number).name
        if not _waits:
            raise_if_signalled()

    previous = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait until the end of the block, or for a call of `raise_if_signalled` in it.

    An exception that a handler raises in the middle of Ray's compiled code becomes a SystemError.
    """
    global _waits
    _waits += 1
    try:
        yield
    finally:
        _waits -= 1
    raise_if_signalled()


def raise_if_signalled() -> None:
    """Stop here if a signal has come.

    Raises:
        SearchStopped: once for each signal.
    """
    global _signal
    if _signal is not None:
        name, _signal = _signal, None
        raise SearchStopped(name)
