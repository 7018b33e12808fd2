"""Ownership: of the processes of a trial, on any node, only that of the newest attempt goes on.

A driver that is killed leaves processes of its trials behind: on a cluster that keeps running, Ray does not end a process
during a step. Such a process cannot change the files of its successor (`dcml_tune.runs.attempts`); here it ends itself, so
that it does not hold a GPU, and reports nothing more.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from dcml_tune.runs.attempts import Attempts, begin_attempt, next_attempt, read_attempts
from dcml_tune.utils.errnos import NO_LOCKS
from dcml_tune.utils.files import CorruptFileError

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_PATIENCE_S = 10.0
_LOST = 75  # exit code of a process that another one has replaced


class Ownership:
    """The right to write the files of a trial, until it is released or another process takes it.

    Attributes:
        files: directory of the files; `take` sets it.
    """

    files: Path

    def __init__(self, directory: Path, number: int) -> None:
        """Prepare to own the files of an attempt; see `take`."""
        self._directory, self._number = directory, number
        self._lock = FileLock(directory / "lock", fallback_to_soft=False)
        self._released = threading.Event()

    def claim(self) -> None:
        """Wait a few seconds for the end of the previous owner, then take over its files."""
        self._end_if_replaced()
        try:
            self._lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            log.warning("%s: another process of this trial does not end; its work is not used", self._directory)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        self.files = begin_attempt(self._directory, self._number)
        threading.Thread(target=self._watch, name="dcml-ownership", daemon=True).start()

    def is_over(self) -> bool:
        """Whether the driver has ended the trial, so that nothing more is saved. Ends a process that was replaced."""
        return (known := self._end_if_replaced()) is not None and known.settled >= self._number

    def push(self) -> None:
        """Do nothing: the files lie on storage that all nodes share."""

    def release(self) -> None:
        """Release the files."""
        self._released.set()
        self._lock.release()

    def _watch(self) -> None:
        while not self._released.wait(_LOOK_S):
            self._end_if_replaced()

    def _end_if_replaced(self) -> Attempts | None:
        """End this process at once if the trial was started again, or its directory is gone; return its attempts, if known."""
        try:
            known = read_attempts(self._directory)
        except (OSError, CorruptFileError):  # a file server that does not answer says nothing about the trial
            if _is_gone(self._directory) and not self._released.is_set():
                log.error("%s: was moved or removed; attempt %d ends", self._directory, self._number)
                os._exit(_LOST)
            return None
        if known.number > self._number and not self._released.is_set():
            log.error("%s: was started again; attempt %d ends", self._directory, self._number)
            os._exit(_LOST)
        return known


def _is_gone(directory: Path) -> bool:
    try:
        directory.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def take(directory: Path, number: int = 0) -> Ownership:
    """Become the owner of the files of a trial; a previous owner ends within seconds, or whenever it goes on.

    Args:
        directory: of the trial; its parent exists.
        number: of this attempt, from the driver; 0: the next one.
    """
    directory.mkdir(exist_ok=True)
    ownership = Ownership(directory, number or next_attempt(directory))
    ownership.claim()
    return ownership
