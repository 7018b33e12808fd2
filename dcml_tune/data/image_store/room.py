"""Disk space of a new store, and the errors if it cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.data.image_list import why
from dcml_tune.data.image_store.headers import needed
from dcml_tune.data.image_store.wanted import Wanted
from dcml_tune.utils.errnos import CANNOT_WRITE, DISK_FULL
from dcml_tune.utils.files import free_bytes, readable_size, size_of

# Free space that must remain after a store is written, in bytes.
RESERVE = 64 << 20


# The last two: the directory, or one of its parents, is a file.
NO_PLACE = CANNOT_WRITE | {errno.EEXIST, errno.ENOTDIR}


@contextmanager
def writing(wanted: Wanted) -> Iterator[None]:
    """Create the directory of all stores, and turn write errors inside the block into a SettingError."""
    try:
        wanted.directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        raise cannot_write(error, wanted) from None


def make_room(need: int, wanted: Wanted) -> None:
    """Check the free disk space. A damaged store is removed first if the space is enough for one store only.

    Removing it frees space only if no process, including this one, has it open.
    """
    short = need + RESERVE - free_bytes(wanted.directory)
    if short > 0 and os.path.lexists(wanted.final) and size_of(wanted.final) >= short:
        remove(wanted.final)
        short = need + RESERVE - free_bytes(wanted.directory)
    if short > 0:
        raise no_room(need, wanted)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def cannot_write(error: OSError, wanted: Wanted) -> SettingError:
    """The error if a store cannot be written to its directory."""
    if error.errno in DISK_FULL:
        return no_room(needed(wanted), wanted, f" ({why(error)})")
    return SettingError(
        f"{wanted.directory}: the image store cannot be written there ({why(error)}); make the directory "
        "writable, or choose another"
    )


def no_room(need: int, wanted: Wanted, reason: str = "") -> SettingError:
    """The error if the disk has no space for a store."""
    there = next(path for path in (wanted.directory, *wanted.directory.parents) if path.is_dir())
    free = readable_size(free_bytes(there))
    smaller = ", or keep smaller images with --image-store small" if wanted.layout.kind == "full" else ""
    return SettingError(
        f"{wanted.directory}: the image store needs {readable_size(need)} and {free} are free there{reason}; free "
        f"some space, or choose a directory on another disk{smaller}"
    )
