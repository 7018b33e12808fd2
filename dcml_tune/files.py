"""Files that are there whole or not at all, and that say when they were changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG})
"""What the system says when nothing can be written: no fault of whoever wanted to."""

_SEAL = "seal"
_TOO_MUCH = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the machine is short of says nothing of a file


class TornFileError(ValueError):
    """A file that is missing, torn, or was changed since it was written."""


def write_whole(path: Path, data: bytes) -> None:
    """Write to a new name, to the disk, and rename: nobody ever sees half a file, also after a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_sealed(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON, with a checksum of them."""
    write_whole(path, json.dumps({**facts, _SEAL: _checksum(facts)}, indent=1).encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """The facts that `write_sealed` wrote.

    Raises:
        TornFileError: if the file is missing, or does not hold what was written.
    """
    try:
        facts = json.loads(path.read_text())
        seal = facts.pop(_SEAL)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in _TOO_MUCH:
            raise
        raise TornFileError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    if seal != _checksum(facts):
        raise TornFileError(f"{path}: does not match its checksum; it was changed since it was written")
    return dict(facts)


def size_of(directory: Path) -> int:
    """Bytes that the files below a directory take, each once however many names it has."""
    found = {}
    for path in directory.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # removed by another process meanwhile
            continue
        found[facts.st_ino] = 0 if path.is_dir() else facts.st_size
    return sum(found.values())


def free_bytes(directory: Path) -> int:
    """Bytes that can still be written below a directory that exists."""
    return shutil.disk_usage(directory).free


def readable_size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
