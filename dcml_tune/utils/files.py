"""Files that are written atomically and protected by a checksum, and sizes on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcml_tune.utils.errnos import SHORTAGE
from dcml_tune.utils.stored import Stored, checked, parse, printable

_SEAL = "seal"
_PIECE = 1 << 24  # bytes that are hashed at once: after each piece a thread waits for the others
_LARGEST = 1 << 28  # bytes of a file with a checksum; the largest lists the files of a data set


class CorruptFileError(ValueError):
    """A file that is missing or incomplete, was changed since it was written, or has invalid content."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically (`replaced`)."""
    with replaced(path) as fresh:
        fresh.write_bytes(data)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Replace a file atomically by the one that the block writes to the given path.

    That is synchronised to the disk, then renamed. A reader sees the old content or the new one, also after a power failure.
    """
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # processes of two machines may have the same number
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_checksummed(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON with a checksum, atomically. Numbers that are not finite become null, as JSON has none."""
    write_atomic(path, to_checksummed(facts))


def to_checksummed(facts: dict[str, Any]) -> bytes:
    """Return the content of a file that `read_checksummed` reads."""
    facts = _plain(facts)
    return json.dumps({**facts, _SEAL: _checksum(facts)}, indent=1).encode()


def read_checksummed(path: Path, kind: type[Stored] | None = None) -> dict[str, Any]:
    """Read the facts that `write_checksummed` wrote.

    Args:
        path: path of the file.
        kind: model that the facts must fit; None: any facts.

    Raises:
        CorruptFileError: if the file is missing, was changed, or its content is not valid. The message has one line.
        OSError: if the machine is short of memory or file descriptors.
    """
    return _from_checksummed(lambda: _read(path), path, kind)


def from_checksummed(content: bytes, place: str, kind: type[Stored] | None = None) -> dict[str, Any]:
    """Return the facts in what `to_checksummed` returned; `place` is for messages.

    Raises:
        CorruptFileError: as `read_checksummed`.
    """
    return _from_checksummed(lambda: content, place, kind)


def _from_checksummed(read: Callable[[], bytes], path: Path | str, kind: type[Stored] | None) -> dict[str, Any]:
    try:
        facts = parse(read())
        seal = facts.pop(_SEAL)
        same = seal == _checksum(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            raise
        why = printable(" ".join(str(error).split()))
        raise CorruptFileError(f"{path}: cannot be read ({type(error).__name__}: {why})") from None
    if not same:
        raise CorruptFileError(f"{path}: does not match its checksum; it was changed since it was written")
    if kind is not None:
        try:
            checked(kind, facts)
        except ValueError as error:
            raise CorruptFileError(f"{path}: has invalid content ({error})") from None
    return dict(facts)


def _read(path: Path) -> bytes:
    """The bytes of a regular file: reading a pipe would block, and a device may never end."""
    if path.exists() and not path.is_file():
        raise ValueError("is not a regular file")
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"has {size:,} bytes, more than {_LARGEST:,}")
    return path.read_bytes()


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Create a hard link, or a copy if the file system has no hard links."""
    Path(target).unlink(missing_ok=True)  # left by an earlier attempt: copying onto a hard link would change its source
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def sha256_of(path: Path) -> str:
    """The SHA-256 of the content of a file."""
    with path.open("rb") as file:
        found, piece = hashlib.sha256(), bytearray(min(_PIECE, path.stat().st_size + 1))
        while count := file.readinto(piece):
            found.update(memoryview(piece)[:count])
    return found.hexdigest()


def size_of(directory: Path) -> int:
    """Total size in bytes of the files below a directory. A file with several hard links counts once."""
    found = {}
    for path in directory.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:  # removed by another process in the meantime
            continue
        found[facts.st_ino] = 0 if path.is_dir() else facts.st_size
    return sum(found.values())


def free_bytes(directory: Path) -> int:
    """Free space in bytes on the disk of an existing directory."""
    return shutil.disk_usage(directory).free


def readable_size(count: float) -> str:
    """A size in bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
