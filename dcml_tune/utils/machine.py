"""What systems do differently: cores, memory, room on a disk. Linux is what is tested; others get the nearest thing."""

from __future__ import annotations

import os
import sys

from dcml_tune.utils.errnos import UNSUPPORTED

_CHUNK = 1 << 20


def usable_cores() -> int:
    """Cores that this process may use; all of the machine where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reserve(file: int, start: int, end: int) -> None:
    """Have the disk give all blocks of a file, whose bytes from `start` on hold nothing yet.

    Writing to a memory map of a file without blocks ends the process when the disk is full. Where the system or the
    file system has no call for it (macOS; some network disks), zeros are written.

    Raises:
        OSError: if the disk has no room.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, end)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    zeros = bytes(_CHUNK)
    while start < end:
        start += os.pwrite(file, zeros[: end - start], start)


def peak_memory_bytes() -> int:
    """Most memory that this process has had so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
