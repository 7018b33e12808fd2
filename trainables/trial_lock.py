"""Ownership: at most one process per trial, on any node.

A driver that is killed leaves processes of its trials behind: on a cluster that keeps running, Ray does not end a process
during a step. Such a process must not write while another one has taken the trial over.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from dcml_tune.utils.files import write_atomic

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_PATIENCE_S = 90.0
_LOST = 75  # exit code of a process that another one has replaced


class Ownership:
    """The right to write into a directory, until it is released or another process takes it."""

    def __init__(self, directory: Path) -> None:
        """Prepare to own a directory; see `take`."""
        self._file, self._lock = directory / "owner", FileLock(directory / "lock")
        self._name = f"process {os.getpid()} on {platform.node()} {uuid.uuid4().hex}".encode()
        self._released = threading.Event()

    def claim(self) -> None:
        """Write the name of this process, and wait until the previous owner has ended."""
        write_atomic(self._file, self._name)
        try:
            self._lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            raise TimeoutError(f"{self._file.parent}: another process still trains this trial; end it") from None
        threading.Thread(target=self._watch, name="dcml-ownership", daemon=True).start()

    def release(self) -> None:
        """Release the directory."""
        self._released.set()
        self._lock.release()

    def _watch(self) -> None:
        """End this process at once when another one has written its name."""
        while not self._released.wait(_LOOK_S):
            try:
                owner = self._file.read_bytes()
            except OSError:  # a file server that does not answer says nothing about the owner
                continue
            if owner != self._name and not self._released.is_set():
                log.error("%s: %s has taken this trial over", self._file.parent, owner.decode(errors="replace"))
                os._exit(_LOST)


def take(directory: Path) -> Ownership:
    """Become the owner of a trial's directory; a previous owner ends within a few seconds.

    Raises:
        TimeoutError: if it does not, because it is suspended or its file server does not answer.
    """
    ownership = Ownership(directory)
    ownership.claim()
    return ownership
