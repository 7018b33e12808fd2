"""Signals that stop a search cleanly, so that it can be resumed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_S = 0.05  # delay before the exception is raised again if a finaliser has discarded it


class SearchStopped(BaseException):
    """The search stops early and can be resumed. A BaseException, so that `except Exception` does not catch it."""


_signal: str | None = None
_waits = 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise SearchStopped at SIGINT, SIGTERM and SIGHUP; a second SIGINT or SIGTERM ends the process at once.

    A signal is pending until `signal_handled` is called. Python discards an exception that is raised inside a finaliser
    (`__del__`, a callback of a weak reference); it is then raised again after a short delay. If other code has discarded
    it, `raise_if_signalled` and the end of `signals_wait` raise it again.

    SIGHUP has no effect if it is ignored (`nohup`) or the terminal of the process is closed: the search continues, and
    its output is dropped (`dcml_tune.cli.streams`).
    """
    global _signal
    _signal = None
    own, had_terminal, hook = os.getpid(), _has_terminal(), sys.unraisablehook
    alarm: Any = None

    def stop(number: int, frame: Any) -> None:
        global _signal
        if os.getpid() != own:  # a forked process, such as one that loads images; its parent ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGHUP and had_terminal and not _has_terminal():
            return
        for each in previous:  # a shell that exits sends SIGHUP more than once
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        _signal = signal.Signals(number).name
        if not _waits:
            raise_if_signalled()

    def stop_again(number: int, frame: Any) -> None:
        if not _waits:
            raise_if_signalled()

    def swallowed(unraisable: Any) -> None:
        nonlocal alarm
        if not issubclass(unraisable.exc_type, SearchStopped):
            hook(unraisable)
            return
        handler = signal.signal(signal.SIGALRM, stop_again)
        alarm = handler if alarm is None else alarm
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)

    stops = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        stops.append(signal.SIGHUP)
    previous = {each: signal.signal(each, stop) for each in stops}
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        for each, handler in previous.items():
            signal.signal(each, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Defer signals to the end of the block, or to a call of `raise_if_signalled` in it.

    An exception that a handler raises inside Ray's compiled code would become a SystemError.
    """
    global _waits
    _waits += 1
    try:
        yield
    finally:
        _waits -= 1
    raise_if_signalled()


def raise_if_signalled() -> None:
    """Stop if a signal is pending.

    Raises:
        SearchStopped: the message is the name of the signal.
    """
    if _signal is not None:
        raise SearchStopped(_signal)


def signal_handled() -> None:
    """Clear the pending signal, because the search is already stopping."""
    global _signal
    _signal = None


@contextmanager
def hangup_ignored() -> Iterator[None]:
    """Make processes that are started in the block ignore SIGHUP.

    When a terminal is closed, the kernel sends SIGHUP to all of its processes. Only the main process of a search decides
    whether the search stops, and it then stops the processes that it has started.
    """
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal; its output may go elsewhere."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
