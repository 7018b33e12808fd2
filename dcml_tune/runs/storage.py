"""Storage: files at an address that fsspec opens, such as s3://BUCKET/PREFIX, for searches whose nodes share no directory.

Every call is repeated for minutes while the storage does not answer. Objects are written whole: a reader never needs one that is
written only in part, because the name of a complete group of objects is written last (`dcml_tune.runs.stored_files`).

Above 250 lines because all calls pass through the same patience.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dcml_tune.utils.errnos import DISK_FULL
from dcml_tune.utils.signals import raise_if_signalled
from dcml_tune.utils.tracebacks import one_line

T = TypeVar("T")

log = logging.getLogger(__name__)

FLAG = "--storage"

PATIENCE_S = 300.0
"""Seconds for which calls are repeated while the storage does not answer."""

_AGAIN_S = 1.0
_SETTLED_S = 1.0  # time after which two processes that write one object at once see the same one

_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"})
"""Stores without directories: to create one would create a bucket."""

_OF_LIBRARIES = (
    "botocore",
    "aiobotocore",
    "aiohttp",
    "gcsfs",
    "google",
    "azure",
    "requests",
    "urllib3",
    "paramiko",
    "fsspec",
)
_MAY_NOT_PASS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


_limit_s: float | None = None


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Limit the repeats of calls in the block, in all threads, because the process is about to end."""
    global _limit_s
    before, _limit_s = _limit_s, seconds
    try:
        yield
    finally:
        _limit_s = before


class StorageError(Exception):
    """The storage did not answer for minutes, or refuses a call. The message names the address, the reason and the remedy."""


class Storage:
    """A place below an address.

    Attributes:
        address: of the place, without a slash at its end.

    Example:
        >>> place = Storage("memory://bucket/runs").child("cars-night")
        >>> place.write("state.json", b"{}")
        >>> place.sizes(), place.address
        ({'state.json': 2}, 'memory://bucket/runs/cars-night')
    """

    def __init__(self, address: str, *, patience_s: float | None = None) -> None:
        """Open an address; nothing is read or written.

        Args:
            address: as `dcml_tune.runs.storage_address.checked_address` accepts it.
            patience_s: seconds for which calls are repeated; `PATIENCE_S` by default.
        """
        from fsspec.core import url_to_fs  # imported here: most searches have no storage

        self.address = address.rstrip("/")
        self._patience_s = patience_s
        options = {"auto_mkdir": True} if self.address.startswith(("file:", "local:")) else {}
        self._fs, self._root = url_to_fs(self.address, **options)
        kinds = self._fs.protocol
        self._has_directories = not _OBJECTS & set((kinds,) if isinstance(kinds, str) else kinds)

    def child(self, *names: str) -> Storage:
        """Return a place below this one."""
        made = copy.copy(self)
        made.address, made._root = "/".join([self.address, *names]), "/".join([self._root.rstrip("/"), *names])
        return made

    def impatient(self) -> Storage:
        """Return the same place; its calls are not repeated."""
        made = copy.copy(self)
        made._patience_s = 0.0
        return made

    # -- calls -----------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: if there is none.
            StorageError: if the storage does not answer.
        """
        return bytes(self._call(lambda: self._fs.cat_file(self._path(name)), f"{name} cannot be read"))

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        path = self._path(name)
        self._call(lambda: self._in_directory(path, lambda: self._fs.pipe_file(path, content)), self._not_written(name))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists; returns whether this call, with this content, created it.

        A store that has conditional writes decides this itself (S3, Google Cloud Storage, local disks). For others the
        content is read again after a second: of two processes that write at once the last one has created it.

        Args:
            name: of the object.
            content: no other process writes the same.
        """
        path = self._path(name)
        try:
            self._call(
                lambda: self._in_directory(path, lambda: self._fs.pipe_file(path, content, mode="create")),
                self._not_written(name),
            )
        except FileExistsError:
            return self.read(name) == content  # an earlier attempt of this call may have created it
        except (NotImplementedError, TypeError, ValueError):
            if name in self.sizes(name):
                return self.read(name) == content
            self.write(name, content)
            time.sleep(_SETTLED_S)
            return self.read(name) == content
        return True

    def upload(self, file: Path, name: str) -> None:
        """Copy a file to an object."""
        path = self._path(name)
        put = self._fs.put_file
        self._call(lambda: self._in_directory(path, lambda: put(str(file), path)), self._not_written(name))

    def download(self, name: str, file: Path) -> None:
        """Copy an object to a file, whose directory exists.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        self._call(lambda: self._fs.get_file(self._path(name), str(file)), f"{name} cannot be read")

    def copy(self, name: str, to: str) -> None:
        """Copy an object within the storage.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        paths = self._path(name), self._path(to)
        self._call(lambda: self._in_directory(paths[1], lambda: self._fs.cp_file(*paths)), self._not_written(to))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that do not exist are left out."""
        for name in names:

            def remove(path: str = self._path(name)) -> None:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)

            self._call(remove, f"{name} cannot be removed")

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the names of all objects below a directory (or the object of this name), with their sizes in bytes."""
        path = self._path(prefix) if prefix else self._root

        def find() -> dict[str, Any]:
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.find(path, detail=True))
            except FileNotFoundError:
                return {}

        found = self._call(find, "its objects cannot be listed")
        start = self._root.strip("/") + "/"
        return {place.strip("/").removeprefix(start): int(facts["size"] or 0) for place, facts in found.items()}

    # -- their patience --------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _not_written(self, name: str) -> str:
        return f"{name} cannot be written"

    def _in_directory(self, path: str, write: Callable[[], T]) -> T:
        """Call a function that writes an object, and create its directory if there is none."""
        try:
            return write()
        except FileNotFoundError:
            if not self._has_directories:
                raise
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            return write()

    def _call(self, call: Callable[[], T], what: str) -> T:
        start, pause, waits = time.monotonic(), _AGAIN_S, False
        while True:
            patience = PATIENCE_S if self._patience_s is None else self._patience_s
            patience = patience if _limit_s is None else min(patience, _limit_s)
            try:
                done = call()
            except (FileNotFoundError, FileExistsError, NotImplementedError, TypeError, ValueError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                if not _is_of_storage(error):
                    raise
                if isinstance(error, _MAY_NOT_PASS) or time.monotonic() - start >= patience:
                    raise StorageError(self._complaint(what, error, patience)) from error
                if not waits:
                    log.warning("%s", f"{FLAG} {self.address}: {what} ({reason_of(error)}); it is tried again")
                waits = True
            else:
                if waits:
                    log.warning("%s", f"{FLAG} {self.address}: can be used again")
                return done
            if threading.current_thread() is threading.main_thread():
                raise_if_signalled()
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _complaint(self, what: str, error: Exception, patience: float) -> str:
        if isinstance(error, PermissionError):
            return (
                f"{FLAG} {self.address}: {what} ({reason_of(error)}); give this user the right to read and write there"
            )
        for_long = f", for {patience / 60:.0f} minutes now" if patience >= 60 else ""
        return f"{FLAG} {self.address}: {what} ({reason_of(error)}){for_long}; see to the storage, or to the way there"


def _is_of_storage(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _OF_LIBRARIES


def reason_of(error: BaseException) -> str:
    """The error in one line, without passwords."""
    return one_line(error)[:300]
