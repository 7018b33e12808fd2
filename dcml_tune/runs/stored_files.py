"""The files of a trial, or of the record of a search, in a storage (`dcml_tune.runs.storage`).

    KEY/attempt-NUMBER/begun.json       by the driver, before it starts the process of this attempt; never overwritten
                       NAME, NAME.vN    the files, the second and later versions with a number
                       commit-N.json    names, sizes and checksums of the files, written last

What counts is the newest valid commit of the newest attempt that has one. An older attempt that goes on writes into its own
directory, where nobody looks any more. No object that a commit names is overwritten, so a reader finds the files of the last
commit, also while the next one is written.

Above 250 lines because readers and writers know the names of the objects here alone.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcml_tune.runs.storage import Storage, StorageError
from dcml_tune.utils.files import CorruptFileError, from_checksummed, sha256_of, to_checksummed
from dcml_tune.utils.stored import Count, Stored

_STEM, _BEGUN, _COMMIT = "attempt-", "begun.json", "commit-"
_TRIES, _PAUSE_S = 20, 0.5
_THREADS = 8
_NOT_STORED = frozenset({"lock", "lock.lease", "error.txt"})


class _Begun(Stored):
    """begun.json."""

    token: str
    ended: bool = False
    """Whether the driver began this attempt at the end of the trial: no process runs it, and older ones save nothing more."""
    owner: str = ""


class StoredFile(Stored):
    """A file of a commit."""

    object: str
    """Name of its object in the directory of the attempt."""
    size: Count
    sha256: str


class _Commit(Stored):
    files: dict[str, StoredFile]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The files that count."""

    attempt: int
    number: int
    files: dict[str, StoredFile]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The newest attempt."""

    number: int
    token: str = ""
    ended: bool = False
    owner: str = ""
    """The process that began it, in words."""


def directory_of(number: int) -> str:
    """Return the name of the directory of an attempt."""
    return f"{_STEM}{number:05d}"


class StoredFiles:
    """The files of one key.

    Attributes:
        storage: the place of the key.
    """

    def __init__(self, storage: Storage) -> None:
        """Take the place of the key."""
        self.storage = storage

    # -- attempts --------------------------------------------------------------------------------------

    def newest_begun(self) -> Begun | None:
        """Return the newest attempt; None if there is none."""
        number = max(_attempts(self.storage.sizes()), default=None)
        return None if number is None else self._begun(number)

    def _begun(self, number: int) -> Begun:
        try:
            content = self.storage.read(f"{directory_of(number)}/{_BEGUN}")
            return Begun(number=number, **from_checksummed(content, _BEGUN, _Begun))
        except (FileNotFoundError, CorruptFileError):  # it is being written
            return Begun(number=number)

    def begin(self, *, ended: bool = False) -> int:
        """Begin a new attempt, whose number no other process gets; returns the number."""
        while True:
            number = max(_attempts(self.storage.sizes()), default=0) + 1
            if self.begin_as(number, ended=ended):
                return number

    def begin_as(self, number: int, *, ended: bool = False, owner: str = "", token: str | None = None) -> bool:
        """Begin the attempt of a number; returns whether no other process did."""
        facts = {"token": token or uuid.uuid4().hex, "ended": ended, "owner": owner}
        return self.storage.create(f"{directory_of(number)}/{_BEGUN}", to_checksummed(facts))

    def remove_attempts(self, below: int) -> None:
        """Remove the files of older attempts; their numbers stay used, because a newer one has begun."""
        found = self.storage.sizes()
        self.storage.remove(name for name in found if (number := _attempt_of(name)) is not None and number < below)

    # -- files -----------------------------------------------------------------------------------------

    def newest(self) -> Commit | None:
        """Return the newest valid commit; None if there is none."""
        commits = sorted(filter(None, map(_commit_of, self.storage.sizes())), reverse=True)
        for attempt, number in commits:
            with suppress(FileNotFoundError, CorruptFileError):
                content = self.storage.read(f"{directory_of(attempt)}/{_commit_name(number)}")
                facts = from_checksummed(content, _commit_name(number), _Commit)
                files = {name: StoredFile(**each) for name, each in facts["files"].items()}
                return Commit(attempt=attempt, number=number, files=files)
        return None

    def pull(
        self,
        directory: Path,
        wanted: Callable[[str], bool] = lambda name: True,
        *,
        exact: bool = False,
        beside: Path | None = None,
    ) -> Commit | None:
        """Make the files of the newest commit those of a directory; files that are the same are not copied.

        Args:
            directory: it is created.
            wanted: whether a file is copied, by its name.
            exact: remove files of the directory that the commit does not have.
            beside: directory that may have some of the files already.

        Returns:
            The commit; None if there is none, and then nothing is changed.

        Raises:
            StorageError: if its files are not there.
        """
        commit = self._copied(directory, wanted, beside)
        if commit is not None and exact:
            for name, path in files_below(directory):
                if name not in commit.files or not wanted(name):
                    path.unlink(missing_ok=True)
                    with suppress(OSError):
                        path.parent.rmdir()  # only if it is empty now
        return commit

    def _copied(self, directory: Path, wanted: Callable[[str], bool], beside: Path | None) -> Commit | None:
        reason = ""
        for _ in range(_TRIES):
            commit = self.newest()
            if commit is None:
                return None
            try:
                self._copy(commit, directory, {name for name in commit.files if wanted(name)}, beside)
                return commit
            except (FileNotFoundError, CorruptFileError) as error:  # a newer commit has replaced it
                reason = str(error)
                time.sleep(_PAUSE_S)
        raise StorageError(f"{self.storage.address}: files of its newest commit are missing ({reason})")

    def _copy(self, commit: Commit, directory: Path, names: set[str], beside: Path | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)

        def copy(name: str) -> None:
            self._copy_file(commit, name, directory / name, beside)

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(copy, sorted(names)))

    def _copy_file(self, commit: Commit, name: str, target: Path, beside: Path | None) -> None:
        wanted = commit.files[name]
        for known in (target, *([] if beside is None else [beside / name])):
            if known.is_file() and known.stat().st_size == wanted.size and sha256_of(known) == wanted.sha256:
                if known != target:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)
                    os.link(known, target)
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            self.storage.download(f"{directory_of(commit.attempt)}/{wanted.object}", fresh)
            if sha256_of(fresh) != wanted.sha256:
                raise CorruptFileError(f"{name} does not match its checksum")
            os.replace(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)

    def take_over(self, number: int, names: set[str]) -> None:
        """Copy files of the newest commit to an attempt that has begun, within the storage, and commit them there.

        Args:
            number: of the attempt.
            names: of the files; those that the commit does not have are left out.
        """
        for left in range(_TRIES - 1, -1, -1):
            commit = self.newest()
            if commit is None:
                return
            kept = {name: file for name, file in commit.files.items() if name in names}
            try:
                for file in kept.values():
                    source = f"{directory_of(commit.attempt)}/{file.object}"
                    self.storage.copy(source, f"{directory_of(number)}/{file.object}")
                break
            except FileNotFoundError:
                if not left:
                    raise
                time.sleep(_PAUSE_S)
        _write_commit(self.storage.child(directory_of(number)), 1, kept)
        self.remove_attempts(below=number)


class StoredAttempt:
    """Writes the files of one attempt."""

    def __init__(self, files: StoredFiles, number: int) -> None:
        """Take an attempt that has begun and has no files yet."""
        self._files, self._number = files, number
        self._place = files.storage.child(directory_of(number))
        self._known: dict[str, StoredFile] = {}
        self._written: dict[str, tuple[tuple[int, int, int], StoredFile]] = {}
        self._objects: set[str] = set()
        self._commits = 0

    def push(self, directory: Path, wanted: Callable[[str], bool] = lambda name: True) -> bool:
        """Write the files of a directory that are new or changed, then a commit; returns whether there was something to write.

        Args:
            directory: of files that do not change while they are copied; one that is removed is left out.
            wanted: whether a file is written, by its name relative to the directory.
        """
        now: dict[str, StoredFile] = {}
        for name, path in files_below(directory):
            if wanted(name):
                with suppress(FileNotFoundError):
                    now[name] = self._stored(name, path)
        if self._commits and now == self._known:
            return False
        gone = {file.object for file in self._known.values()} - {file.object for file in now.values()}
        self._commits += 1
        _write_commit(self._place, self._commits, now)
        self._known = now
        self._written = {name: each for name, each in self._written.items() if name in now}
        self._place.remove([*sorted(gone), *([_commit_name(self._commits - 1)] if self._commits > 1 else [])])
        if self._commits == 1:
            self._files.remove_attempts(below=self._number)
        return True

    def _stored(self, name: str, path: Path) -> StoredFile:
        facts = path.stat()
        seen = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
        before, known = self._written.get(name, (None, None))
        if known is None or before != seen:
            sha256 = sha256_of(path)
            if known is None or known.sha256 != sha256:
                known = self._write(name, path, sha256, facts.st_size)
            self._written[name] = (seen, known)
        return known

    def _write(self, name: str, path: Path, sha256: str, size: int) -> StoredFile:
        made = name if name not in self._objects else f"{name}.v{self._commits + 1}"
        self._objects |= {name, made}
        self._place.upload(path, made)
        return StoredFile(object=made, size=size, sha256=sha256)


def files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each file below a directory, without locks, error texts and temporary files."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if (
            not any(part.startswith(".") for part in name.parts)
            and name.as_posix() not in _NOT_STORED
            and path.is_file()
        ):
            yield name.as_posix(), path


def _write_commit(place: Storage, number: int, files: dict[str, StoredFile]) -> None:
    facts: dict[str, Any] = {"files": {name: file.model_dump() for name, file in files.items()}}
    place.write(_commit_name(number), to_checksummed(facts))


def _commit_name(number: int) -> str:
    return f"{_COMMIT}{number:08d}.json"


def _attempt_of(name: str) -> int | None:
    number = name.partition("/")[0].removeprefix(_STEM)
    return int(number) if name.startswith(_STEM) and number.isdigit() else None


def _attempts(names: Iterable[str]) -> set[int]:
    return {number for name in names if name.endswith(f"/{_BEGUN}") and (number := _attempt_of(name)) is not None}


def _commit_of(name: str) -> tuple[int, int] | None:
    """The numbers of attempt and commit, from the name of an object; None if it is not a commit."""
    attempt, last = _attempt_of(name), name.rpartition("/")[2]
    number = last.removeprefix(_COMMIT).removesuffix(".json")
    is_commit = last == name.partition("/")[2] and last.startswith(_COMMIT) and number.isdigit()
    return (attempt, int(number)) if attempt is not None and is_commit else None
