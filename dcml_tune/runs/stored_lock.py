"""StoredLock: one driver at a time of a search with --storage, on whatever machines.

    NAME/record/attempt-NUMBER/begun.json   created by the driver of this number, once (`dcml_tune.runs.stored_files`)
                               alive        written again every few seconds while that driver lives
                               released     written at its end

The driver of the newest number holds the lock. Another one takes the next number if that driver has released it, or if it sees, by
its own clock, no change of `alive` for a minute. Two that try at once cannot get the same number. A driver that was suspended for so
long has lost the lock when it goes on; `check` tells it. What it then writes lies in a directory that nobody reads.
"""

from __future__ import annotations

import atexit
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dcml_tune.runs.storage import Storage, StorageError
from dcml_tune.runs.stored_files import Begun, StoredFiles, directory_of
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.locks import HEARTBEAT_S, LEASE_S, HeldError, LockLostError, SharedLock
from dcml_tune.utils.stored import Count, Stored

RECORD = "record"
"""Key of the record of a search, beside its trials."""

_ALIVE, _RELEASED = "alive", "released"
_NOTE = "storage.json"  # in the directory of the search; see `_Note`
_LOOK_S = 0.5


class _Note(Stored):
    """storage.json: the last driver that had this directory."""

    number: Count
    token: str
    record: Count = 0
    """The directory has the record of this driver, or a newer one."""


class StoredLock:
    """The locks of a search: that of its directory on this machine, and that in the storage.

    Attributes:
        lease_s: seconds without a sign of life of its holder after which another process takes it.
        number: of this driver; None without the lock.
        files: of the record of the search.
    """

    def __init__(
        self, directory: Path, storage: Storage, *, lease_s: float = LEASE_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        """Prepare the locks.

        Args:
            directory: of the search on this machine.
            storage: of all searches.
            lease_s: the same for all processes that take it.
            heartbeat_s: seconds between two signs of life; less than `lease_s`.
        """
        self.lease_s, self._heartbeat_s = lease_s, heartbeat_s
        self.number: int | None = None
        self.files = StoredFiles(storage.child(directory.name, RECORD))
        self._directory = directory
        self._local = SharedLock(directory / "lock", lease_s=lease_s, heartbeat_s=heartbeat_s)
        self._lost_to: str | None = None
        self._seen_s = 0.0  # when this process last saw that its number is the newest one
        self._ended = threading.Event()

    def acquire(self, on_wait: Callable[[str], None] | None = None) -> None:
        """Take both locks; nothing happens if this object has them.

        Args:
            on_wait: called with the name of the holder if only time will tell whether it lives: then its signs of life are
                watched. None: such a holder counts as alive.

        Raises:
            HeldError: if a process that lives holds one.
            StorageError: if the storage does not answer.
        """
        if self.number is not None:
            return
        self._local.acquire(on_wait)
        try:
            self._take(on_wait)
        except BaseException:
            self._local.release()
            raise

    def _take(self, on_wait: Callable[[str], None] | None) -> None:
        newest = self.files.newest_begun()
        if newest is not None and not self._is_free(newest):
            self._watch(newest, on_wait)
        number, token = (0 if newest is None else newest.number) + 1, uuid.uuid4().hex
        owner = f"process {os.getpid()} on {platform.node()}"
        if not self.files.begin_as(number, owner=owner, token=token):
            raise HeldError(self._holder())
        self._beat(self.files.storage, number)
        note = _Note(number=number, token=token, record=self.record_of_directory())
        write_checksummed(self._directory / _NOTE, note.model_dump())
        self.number, self._lost_to, self._seen_s = number, None, time.monotonic()
        self._ended = threading.Event()
        atexit.register(self.release)
        threading.Thread(target=self._live, args=(number, self._ended), name="dcml-storage-lock", daemon=True).start()

    def _is_free(self, newest: Begun) -> bool:
        """Whether its driver has released the lock, or was a process of this directory, which has ended: its lock was free."""
        if f"{directory_of(newest.number)}/{_RELEASED}" in self.files.storage.sizes():
            return True
        note = self._note()
        return note is not None and note.token == newest.token

    def _note(self) -> _Note | None:
        try:
            return _Note(**read_checksummed(self._directory / _NOTE, _Note))
        except CorruptFileError:  # usually there is none
            return None

    def record_of_directory(self) -> int:
        """Return the number of the driver whose record the directory has, or a newer one; 0: it has none."""
        note = self._note()
        return 0 if note is None else note.record

    def has_record(self) -> None:
        """Note that the directory has the newest record, which this driver changes from now on."""
        note = self._note()
        assert note is not None, "the lock is held"
        assert self.number is not None, "the lock is held"
        write_checksummed(self._directory / _NOTE, {**note.model_dump(), "record": self.number})

    def _watch(self, newest: Begun, on_wait: Callable[[str], None] | None) -> None:
        """Return when the holder has shown no sign of life for long.

        Raises:
            HeldError: if it shows one, or on_wait is None.
        """
        holder = newest.owner or "another process"
        if on_wait is None:
            raise HeldError(holder, is_certain=False)
        on_wait(holder)
        first, end = self._sign(newest.number), time.monotonic() + self.lease_s
        while time.monotonic() < end:
            time.sleep(max(_LOOK_S, self._heartbeat_s / 5))
            if self._is_free(newest):
                return
            if self._sign(newest.number) != first:
                raise HeldError(holder)

    def _sign(self, number: int) -> bytes | None:
        try:
            return self.files.storage.read(f"{directory_of(number)}/{_ALIVE}")
        except FileNotFoundError:
            return None

    def _beat(self, storage: Storage, number: int) -> None:
        storage.write(f"{directory_of(number)}/{_ALIVE}", uuid.uuid4().hex.encode())

    def _live(self, number: int, ended: threading.Event) -> None:
        impatient = self.files.storage.impatient()
        while not ended.wait(self._heartbeat_s):
            with suppress(StorageError, OSError):  # a storage that does not answer says nothing about other drivers
                self._beat(impatient, number)
                self._look(StoredFiles(impatient))

    def _look(self, files: StoredFiles) -> None:
        newest = files.newest_begun()
        if newest is not None and self.number is not None and newest.number > self.number:
            self._lost_to = newest.owner or "another process"
        else:
            self._seen_s = time.monotonic()

    def check(self) -> None:
        """Make sure that this process still holds both locks. The storage is asked only after a minute without an answer.

        Raises:
            LockLostError: if another process has taken one.
        """
        if self.number is None:
            return
        self._local.check()
        if self._lost_to is None and time.monotonic() - self._seen_s > self.lease_s:
            with suppress(StorageError):
                self._look(StoredFiles(self.files.storage.impatient()))
        if self._lost_to is not None:
            raise LockLostError(f"{self._lost_to} has taken it over")

    def is_held(self) -> bool:
        """Whether a process that lives holds the lock, this one included; watches its signs for up to 1.5 heartbeats."""
        if self.number is not None or self._local.is_held():
            return True
        newest = self.files.newest_begun()
        if newest is None or self._is_free(newest):
            return False
        first, end = self._sign(newest.number), time.monotonic() + 1.5 * self._heartbeat_s
        while time.monotonic() < end:
            time.sleep(_LOOK_S)
            if self._sign(newest.number) != first:
                return True
        return False

    def _holder(self) -> str | None:
        newest = self.files.newest_begun()
        return None if newest is None else newest.owner or None

    def release(self) -> None:
        """Release both locks, if this process has them."""
        number, self.number = self.number, None
        self._ended.set()
        if number is not None and self._lost_to is None:
            with suppress(StorageError, OSError):
                self.files.storage.impatient().write(f"{directory_of(number)}/{_RELEASED}", b"")
        self._local.release()
