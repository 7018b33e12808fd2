"""The attempts of a trial: which of the processes that were started for it counts, and where its files are.

    KEY/attempt.json     number of the newest attempt, and of the last one whose files were moved to KEY
        attempt-NUMBER/  files of a trial that is running
        ...              files of a trial that has ended

The driver numbers each start of a trial before it starts the process. The process begins with the files of the attempt
before, as hard links in a directory of its own, and writes only there. Files of an attempt are not read any more when there
is a newer one. So a process that was suspended or cut off cannot change what its successor has, whenever it goes on, and no
lock is needed for that.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path

from dcml_tune.utils.files import CorruptFileError, link_or_copy, read_checksummed, write_checksummed
from dcml_tune.utils.stored import Count, Stored

_FILE, _STEM = "attempt.json", "attempt-"
_NOT_OF_AN_ATTEMPT = (_FILE, "lock", "owner", "error.txt")
_TRIES, _LOOK_S = 60, 0.5


class Attempts(Stored):
    """attempt.json."""

    number: Count
    """Number of the newest attempt."""
    settled: Count = 0
    """Attempts up to this number are over: their files were moved to the trial's directory."""


def read_attempts(directory: Path) -> Attempts:
    """Read which attempts a trial had.

    Raises:
        CorruptFileError: if there is no valid file.
    """
    return Attempts(**read_checksummed(directory / _FILE, Attempts))


def next_attempt(directory: Path) -> int:
    """Return the number of a new attempt; from now on no other one counts.

    Args:
        directory: of the trial; its parent exists.
    """
    directory.mkdir(exist_ok=True)
    known = _known(directory)
    _write(directory, Attempts(number=known.number + 1, settled=known.settled))
    return known.number + 1


def files_of(directory: Path) -> Path:
    """Return the directory that has the files of a trial now."""
    known = _known(directory)
    started = [number for number in _started(directory) if known.settled < number <= known.number]
    return directory / f"{_STEM}{max(started):05d}" if started else directory


def begin_attempt(directory: Path, number: int) -> Path:
    """Return the directory for the files of an attempt, with what the attempt before has left.

    Args:
        directory: of the trial.
        number: of the attempt.

    Raises:
        OSError: if an older process, which must end by itself, still changes these files.
    """
    own = directory / f"{_STEM}{number:05d}"
    taken: list[Path] = []
    for left in range(_TRIES - 1, -1, -1):
        fresh = directory / f".{_STEM}{uuid.uuid4().hex}"
        fresh.mkdir()
        try:
            taken = _link_entries(files_of(directory), fresh)
            taken += _link_entries(directory, fresh)  # where a driver was killed while it moved them
            os.rename(fresh, own)  # only now it counts
            break
        except (FileNotFoundError, shutil.Error):
            if not left:
                raise
            time.sleep(_LOOK_S)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    for path in taken:
        if path.parent == directory:
            _remove(path)
    _remove_attempts(directory, below=number)
    return own


def settle(directory: Path) -> None:
    """Move the files of the newest attempt of a trial that has ended to the trial's directory.

    Args:
        directory: of the trial; it may be missing.
    """
    if not directory.is_dir():
        return
    known, source = _known(directory), files_of(directory)
    if source != directory:
        for path in _entries(source):
            target = directory / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    if known.settled < known.number:
        _write(directory, Attempts(number=known.number, settled=known.number))
    _remove_attempts(directory, below=known.number + 1)


def _known(directory: Path) -> Attempts:
    try:
        return read_attempts(directory)
    except CorruptFileError:  # usually there is none
        return Attempts(number=max(_started(directory), default=0))


def _write(directory: Path, attempts: Attempts) -> None:
    write_checksummed(directory / _FILE, attempts.model_dump())


def _started(directory: Path) -> list[int]:
    found = (path.name.removeprefix(_STEM) for path in directory.glob(f"{_STEM}*/"))
    return [int(number) for number in found if number.isdigit()]


def _entries(directory: Path) -> list[Path]:
    """The files and directories that an attempt has written; temporary files are none."""
    return [
        path
        for path in directory.iterdir()
        if not path.name.startswith((".", _STEM)) and path.name not in _NOT_OF_AN_ATTEMPT
    ]


def _link_entries(source: Path, target: Path) -> list[Path]:
    """Link what is missing in `target`; returns all entries of `source`."""
    entries = _entries(source)
    for path in entries:
        if (target / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, copy_function=link_or_copy)
        else:
            link_or_copy(path, target / path.name)
    return entries


def _remove_attempts(directory: Path, below: int) -> None:
    for number in _started(directory):
        if number < below:
            _remove(directory / f"{_STEM}{number:05d}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
