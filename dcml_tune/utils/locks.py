"""SharedLock: one process at a time, on all machines that share a directory, also where its file system has no locks.

`flock` is exact and immediate. Some network file systems refuse it, and on others it acts on one machine only, without
saying so. So the holder of a SharedLock also has a lease: a file that names the holder, and that one of its threads touches
every few seconds. Another process takes the lease if it sees, by its own clock, no change of the file for a minute, or if the
holder was a process of the same machine that has ended. A holder that was suspended for so long has lost the lock when it
goes on; `check` tells it. On a full disk, which has no room for a lease, `flock` alone counts.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from dcml_tune.utils.errnos import DISK_FULL, NO_LOCKS
from dcml_tune.utils.signals import SearchStopped

HEARTBEAT_S = 10.0
"""Seconds between two signs of life of a holder, by default."""

LEASE_S = 60.0
"""Seconds without a sign of life after which another process takes the lock, by default."""

_LOOK_S, _POLL_S = 0.5, 0.05
_SUFFIX = ".lease"
_NO_LEASE = "no lease"  # token of a holder on a full disk, which has no room for one


class HeldError(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: str | None, *, is_certain: bool = True) -> None:
        """Take the name of that process, None if it is not known, and whether it certainly lives."""
        super().__init__(f"{holder or 'another process'} holds the lock")
        self.holder, self.is_certain = holder, is_certain


class LockLostError(SearchStopped):
    """Another process has taken the lock: this one must not write any more."""


class SharedLock:
    """A lock by `flock`, where the file system has it, and by a lease.

    Attributes:
        lease_s: seconds without a sign of life of its holder after which another process takes it.
    """

    def __init__(self, file: Path, *, lease_s: float = LEASE_S, heartbeat_s: float = HEARTBEAT_S) -> None:
        """Prepare a lock.

        Args:
            file: its file; the lease is beside it.
            lease_s: the same for all processes that take it.
            heartbeat_s: seconds between two signs of life; less than `lease_s`.
        """
        self._file, self.lease_s, self._heartbeat_s = file, lease_s, heartbeat_s
        self._token: str | None = None
        self._at_end: weakref.finalize[..., SharedLock] | None = None
        self._seen: tuple[tuple[int, int], float] | None = None
        self._flock = FileLock(file, fallback_to_soft=False, thread_local=False)
        self._lease = SoftFileLease(
            f"{file}{_SUFFIX}", lease_duration=lease_s, heartbeat_interval=heartbeat_s, thread_local=False
        )

    def acquire(self, on_wait: Callable[[str], None] | None = None) -> None:
        """Take the lock; nothing happens if this object has it.

        Args:
            on_wait: called with the name of the holder if only time will tell whether it lives: then its lease is watched
                until it changes or ends. None: such a holder counts as alive.

        Raises:
            HeldError: if a process that lives holds it.
            OSError: if the directory cannot be written.
        """
        if self._token is not None:
            return
        try:
            self._flock.acquire(blocking=False)
        except Timeout:
            raise HeldError(self._holder()) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        try:
            self._take_lease(on_wait)
            self._token = self._lease.token
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            if not (full and self._flock.is_locked):
                self._flock.release()
                raise
            self._token = _NO_LEASE
        # A lease that is left, also at the end of the process, costs the next process on another machine a minute.
        self._at_end = weakref.finalize(self, _release, self._lease, self._flock)

    def _take_lease(self, on_wait: Callable[[str], None] | None) -> None:
        first: tuple[int, int] | None = None
        while not self._is_leased():
            beat = self._beat()
            if beat is None:
                continue  # released in the meantime
            if on_wait is None or (first is not None and beat != first):
                raise HeldError(self._holder(), is_certain=first is not None)
            if first is None:
                on_wait(self._holder() or "another process")
            first = beat
            time.sleep(_LOOK_S)

    def _is_leased(self) -> bool:
        try:
            self._lease.acquire(blocking=False)
        except Timeout:
            self._break_empty()
            return False
        return True

    def _break_empty(self) -> None:
        """Remove a lease that names nobody, as a power failure leaves it, when it has not changed for long."""
        beat, now = self._beat(), time.monotonic()
        if beat is None or self._seen is None or self._seen[0] != beat:
            self._seen = None if beat is None else (beat, now)
        elif self._lease.owner is None and now - self._seen[1] > self.lease_s:
            self._lease.force_break()

    def _beat(self) -> tuple[int, int] | None:
        """Return what changes with each sign of life of the holder; None if there is no holder."""
        try:
            facts = os.stat(self._lease.lock_file)
        except FileNotFoundError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    def _holder(self) -> str | None:
        owner = self._lease.owner
        return None if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"

    def check(self) -> None:
        """Make sure that this process still holds the lock.

        Raises:
            LockLostError: if another process has taken it.
        """
        if self._token in (None, _NO_LEASE):
            return
        if self._is_taken():
            time.sleep(_LOOK_S)  # a process that looks whether this one lives may move the file for a moment
            if self._is_taken():
                raise LockLostError(self._taken_by())
        elif self._lease.compromise is not None and self._lease.owner is not None:
            self._lease.release()  # it could not be touched for a while, and nobody has taken it: take it again
            if not self._is_leased():
                raise LockLostError(self._taken_by())
            self._token = self._lease.token

    def _taken_by(self) -> str:
        return f"{self._holder() or 'another process'} has taken it over"

    def _is_taken(self) -> bool:
        """Whether the lease is that of another process, or gone: another one may have taken and released it."""
        owner = self._lease.owner
        if owner is not None:
            return owner.token != self._token
        try:
            return self._beat() is None
        except OSError:  # a file server that does not answer says nothing about the holder
            return False

    def __enter__(self) -> SharedLock:
        """Take the lock, and wait for that as long as another process has it."""
        while True:
            try:
                self.acquire()
            except HeldError:
                time.sleep(_POLL_S)
            else:
                return self

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self.release()

    def is_held(self) -> bool:
        """Whether a process that lives holds the lock, this one included; watches a lease for up to 1.5 heartbeats."""
        other = SharedLock(self._file, lease_s=self.lease_s, heartbeat_s=self._heartbeat_s)
        end = time.monotonic() + 1.5 * self._heartbeat_s
        first = self._beat()
        while True:
            try:
                other.acquire()
            except HeldError as error:
                if error.is_certain or self._beat() != first:
                    return True
                if time.monotonic() > end:
                    return False
                time.sleep(_LOOK_S)
            else:
                other.release()
                return False

    def release(self) -> None:
        """Release the lock, if this process has it."""
        self._token = None
        if self._at_end is not None:
            self._at_end()


def _release(lease: SoftFileLease, lock: BaseFileLock) -> None:
    lease.release()
    lock.release()
