"""StoredOwnership: the files of a trial on the disk of its node, and their way to the storage of --storage.

The process of an attempt begins with the files of the newest commit, in a directory of its own on its node:

    OUTPUT/NAME/local/KEY/attempt-NUMBER/

It pushes them after each epoch, before the report. It ends itself when a newer attempt of the trial has begun.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from dcml_tune.runs.paths import LOCAL, TRIALS
from dcml_tune.runs.storage import Storage, StorageError
from dcml_tune.runs.stored_files import StoredAttempt, StoredFiles, directory_of

log = logging.getLogger(__name__)

_LOOK_S = 10.0  # a look is a call of the storage
_LOST = 75  # exit code of a process that another one has replaced


class StoredOwnership:
    """The right to write the files of a trial in a storage, until it is released or a newer attempt begins.

    Attributes:
        files: directory of the files on this node.
    """

    def __init__(self, files: StoredFiles, directory: Path, number: int) -> None:
        """Take over the files of the attempt before; see `take_stored`."""
        self._stored, self._number = files, number
        self._attempt = StoredAttempt(files, number)
        self._released = threading.Event()
        self._end_if_replaced()
        directory.mkdir(parents=True, exist_ok=True)
        self.files = directory / directory_of(number)
        others = sorted(path for path in directory.iterdir() if path != self.files)
        self.files.mkdir(exist_ok=True)
        files.pull(self.files, exact=True, beside=others[-1] if others else None)
        for path in others:
            shutil.rmtree(path, ignore_errors=True)
        threading.Thread(target=self._watch, name="dcml-ownership", daemon=True).start()

    def push(self) -> None:
        """Write to the storage what was saved since the last push.

        Raises:
            StorageError: if the storage does not answer for minutes.
        """
        self._attempt.push(self.files)

    def is_over(self) -> bool:
        """Whether the driver has ended the trial, so that nothing more is saved. Ends a process that was replaced."""
        return self._end_if_replaced()

    def release(self) -> None:
        """Remove the files from this node; the storage has them."""
        self._released.set()
        shutil.rmtree(self.files, ignore_errors=True)
        with suppress(OSError):
            self.files.parent.rmdir()

    def _watch(self) -> None:
        looks = StoredFiles(self._stored.storage.impatient())
        while not self._released.wait(_LOOK_S):
            with suppress(StorageError):  # a storage that does not answer says nothing about the trial
                self._end_if_replaced(looks)

    def _end_if_replaced(self, files: StoredFiles | None = None) -> bool:
        """End this process at once if the trial was started again; return whether the driver has ended the trial."""
        newest = (files or self._stored).newest_begun()
        if newest is None or newest.number <= self._number:
            return False
        if not newest.ended and not self._released.is_set():
            log.error("%s: was started again; attempt %d ends", self._stored.storage.address, self._number)
            os._exit(_LOST)
        return True


def take_stored(directory: Path, number: int, storage: str) -> StoredOwnership:
    """Become the process whose files of a trial count.

    Args:
        directory: of the trial, below the directory of its search.
        number: of this attempt, from the driver; 0: the next one.
        storage: address of --storage.

    Raises:
        StorageError: if the storage does not answer.
    """
    search = directory.parent.parent
    files = StoredFiles(Storage(storage).child(search.name, TRIALS, directory.name))
    return StoredOwnership(files, search / LOCAL / directory.name, number or files.begin())
