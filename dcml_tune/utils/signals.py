"""Signals end a search in good order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_S = 0.05  # after a finaliser has swallowed the exception


class SearchStopped(BaseException):
    """The search ends early, and can be resumed. No handler of exceptions may keep it from doing so."""


_signal: str | None = None
_waits = 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise SearchStopped at SIGINT, SIGTERM and SIGHUP; a second SIGINT or SIGTERM ends the process at once.

    A signal stays pending until `signal_handled` is called. Python drops an exception that is raised inside a finaliser
    (`__del__`, a callback of a weak reference); it is then raised once more, a moment later. Where some other code has
    dropped it, `raise_if_signalled` and the end of `signals_wait` raise it again.

    SIGHUP does nothing where it is ignored (`nohup`), or the terminal of the process is gone: output is dropped then
    (`dcml_tune.cli.streams`), and the search goes on.
    """
    global _signal
    _signal = None
    own, had_terminal, hook = os.getpid(), _has_terminal(), sys.unraisablehook
    alarm: Any = None

    def stop(number: int, frame: Any) -> None:
        global _signal
        if os.getpid() != own:  # a process that was forked since, such as one that loads images: its parent ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGHUP and had_terminal and not _has_terminal():
            return
        for each in previous:  # a shell that ends sends SIGHUP more than once
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
    """Stop here if a signal has come that nobody has acted on.

    Raises:
        SearchStopped: with the name of the signal.
    """
    if _signal is not None:
        raise SearchStopped(_signal)


def signal_handled() -> None:
    """The search is being ended because of the signal: it is not raised any more."""
    global _signal
    _signal = None


@contextmanager
def hangup_ignored() -> Iterator[None]:
    """Have the processes that are started in the block ignore SIGHUP.

    The kernel sends it to all processes of a terminal that is closed. Whether the search ends then is decided by its own
    process, which sees to those that it has started.
    """
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


def _has_terminal() -> bool:
    """Whether the process has a terminal that controls it, wherever its output goes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
