"""The record of a search in the storage: what a driver on another machine needs to go on with it.

    NAME/record/attempt-NUMBER/...     of the driver of this number (`dcml_tune.runs.stored_lock`):
        search.json  state.json  verdict.json  report/...
        optuna.db                      a consistent copy of the study, unless it is on a server
        tracking/...                   the outbox

The files are linked or copied into one directory first, so that they do not change while they are pushed. The study comes first and the
outbox second: what the study knows is then in the outbox, too.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import MLFLOW, SPOOL, STUDY, VERDICT
from dcml_tune.runs.record import Record, State, is_search, read_asked
from dcml_tune.runs.storage import Storage, StorageError, at_most
from dcml_tune.runs.stored_files import StoredAttempt, StoredFiles
from dcml_tune.runs.stored_lock import RECORD, StoredLock
from dcml_tune.runs.study_file import copy_study
from dcml_tune.utils import tracebacks
from dcml_tune.utils.files import CorruptFileError, link_or_copy
from dcml_tune.utils.signals import SearchStopped

log = logging.getLogger(__name__)

EVERY_S = 60.0
"""Longest time between two pushes while trials run, in seconds."""

AT_LEAST_S = 5.0
"""Shortest time between the ends of two pushes, unless the search ends."""

LAST_S = 20.0
"""Time for which calls of the storage are repeated when the search ends, in seconds."""

_APART_S = 0.5  # between the copy of the study and that of the outbox: both learn of a report within that time
DELIVERED = "delivered.json"
"""In the outbox: how far its records were delivered."""

_STAGING = ".storage"
_WRITTEN_ATOMICALLY = ("search.json", "state.json", VERDICT)
_REPORT, _OUTBOX = "report", "spool.jsonl"


def pull_record(lock: StoredLock, directory: Path) -> bool:
    """Get the record from the storage, unless the directory has the newest one; returns whether the storage has a record.

    Args:
        lock: held by this process.
        directory: of the search on this machine.
    """
    commit = lock.files.newest()
    if commit is None:
        return False
    if commit.attempt > lock.record_of_directory():
        shutil.rmtree(directory / SPOOL, ignore_errors=True)
        for rest in ("", "-journal", "-wal", "-shm"):
            directory.joinpath(f"{STUDY}{rest}").unlink(missing_ok=True)
        lock.files.pull(directory)
        if read_asked(directory)["flags"].get("tracking_uri") is None and not (directory.parent / MLFLOW).exists():
            (directory / SPOOL / DELIVERED).unlink(missing_ok=True)  # all records go to the new database
    lock.has_record()
    return True


def storage_of(directory: Path, given: str | None) -> str | None:
    """Return the address of the storage of a search: as it is given, or as the directory of the search has recorded it."""
    with suppress(CorruptFileError):
        recorded: str | None = read_asked(directory)["flags"].get("storage")
        return recorded  # another one is refused with the other flags that may not change
    return given


def is_stored(storage: Storage, name: str) -> bool:
    """Whether a storage has the record of a search."""
    return StoredFiles(storage.child(name, RECORD)).newest() is not None


def refuse_stored(storage: Storage, name: str, kind: type[SettingError] = SettingError) -> None:
    """Refuse the name of a new search that the storage has.

    Raises:
        SettingError: of this kind, if there is such a search.
    """
    if is_stored(storage, name):
        place = storage.child(name).address
        raise kind(f"--name {name}: {place} exists; go on with it by --start-or-resume {name}, or choose another name")


def open_stored(directory: Path, storage: Storage) -> Record:
    """Get the record of a search from the storage; returns it, held by this process.

    Args:
        directory: of the search on this machine; it may be missing.
        storage: of all searches.

    Raises:
        SettingError: if there is no such search.
        SearchRunningError: if another process runs it.
    """
    directory.mkdir(exist_ok=True)
    lock = StoredLock(directory, storage)
    Record(directory, {}, State(), lock).hold()
    try:
        if not pull_record(lock, directory) and not is_search(directory):
            place = storage.child(directory.name).address
            raise SettingError(f"--resume {directory.name}: neither {directory} nor {place} holds a search")
        return Record.open(directory, lock)
    except BaseException:
        lock.release()
        raise


def stage(directory: Path, study: Path | None) -> Path:
    """Link or copy the files of the record into one directory; returns it.

    Args:
        directory: of the search.
        study: file of the study; None: it is on a server.
    """
    staging = directory / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    if study is not None and study.exists():
        copy_study(study, staging / STUDY)
        time.sleep(_APART_S)
    for name in _WRITTEN_ATOMICALLY:
        with suppress(FileNotFoundError):
            link_or_copy(directory / name, staging / name)
    _stage_outbox(directory / SPOOL, staging / SPOOL)
    if (directory / _REPORT).is_dir():
        shutil.copytree(directory / _REPORT, staging / _REPORT)
    return staging


def _stage_outbox(spool: Path, target: Path) -> None:
    """Copy the mark of what was delivered before the records, and these before their files: what a record names is there."""
    if not spool.is_dir():
        return
    target.mkdir()
    others = [path for path in spool.iterdir() if path.is_file() and path.name != _OUTBOX]
    for path in others:
        with suppress(FileNotFoundError):
            shutil.copy2(path, target / path.name)
    with suppress(FileNotFoundError):
        shutil.copy2(spool / _OUTBOX, target / _OUTBOX)
    for path in (spool / "files").rglob("*"):
        if path.is_file():
            place = target / path.relative_to(spool)
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # delivered in the meantime
                link_or_copy(path, place)


class RecordPusher:
    """Pushes the record of a search while its trials run, from a thread, and at its end."""

    def __init__(
        self, lock: StoredLock, directory: Path, study: Path | None, on_push: Callable[[float | None], None]
    ) -> None:
        """Start the thread.

        Args:
            lock: held by this process.
            directory: of the search.
            study: file of the study; None: it is on a server.
            on_push: called after each push with the time when it began (`time.monotonic`), and after the last one with None.
        """
        assert lock.number is not None, "the lock is held"
        self._lock, self._directory, self._study, self._on_push = lock, directory, study, on_push
        self._attempt = StoredAttempt(lock.files, lock.number)
        self._wanted, self._ends, self._failed = threading.Event(), threading.Event(), False
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="dcml-storage", daemon=True)
        self._thread.start()

    def want(self) -> None:
        """Push soon, because a trial has started or ended."""
        self._wanted.set()

    def push(self) -> None:
        """Push now.

        Raises:
            StorageError: if the storage does not answer for minutes.
            LockLostError: if another driver runs the search now.
        """
        with self._one_at_a_time:
            self._lock.check()
            began, staging = time.monotonic(), stage(self._directory, self._study)
            try:
                self._attempt.push(staging)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            self._on_push(began)

    def push_or_stop(self) -> None:
        """Push now; a storage that does not answer stops the search in good order."""
        try:
            self.push()
        except StorageError as error:
            raise SearchStopped(str(error)) from None

    def _run(self) -> None:
        while not self._ends.is_set():
            self._wanted.wait(EVERY_S)
            self._wanted.clear()
            if self._ends.is_set():
                return
            try:
                self.push()
                if self._failed:
                    log.warning("the record of the search is in the storage again")
                self._failed = False
            except SearchStopped:  # the driver sees it, too
                return
            except Exception as error:
                if not self._failed:
                    tracebacks.warn(
                        log, "the record of the search was not written to the storage; it is tried again", error
                    )
                self._failed = True
            self._ends.wait(AT_LEAST_S)

    def close(self, *, knows_ends: bool) -> None:
        """End the thread and push for the last time; an error is logged.

        Args:
            knows_ends: whether the study knows the end of each trial that has ended.
        """
        if self._ends.is_set():
            return
        self._ends.set()
        self._wanted.set()
        try:
            with at_most(LAST_S):
                self._thread.join()
                self.push()
                if knows_ends:
                    self._on_push(None)
        except StorageError as error:
            log.error("the record of the search is not complete in the storage, only in %s: %s", self._directory, error)
