"""What operating systems do differently: cores, memory, disk space. Linux is tested; others get the closest equivalent."""

from __future__ import annotations

import os
import sys

from dcml_tune.utils.errnos import UNSUPPORTED

_CHUNK = 1 << 20


def usable_cores() -> int:
    """Number of cores that this process may use; all cores of the machine if the system does not report it (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reserve(file: int, start: int, end: int) -> None:
    """Allocate the disk blocks of a file up to `end`; its bytes from `start` on are still unused.

    Without this, writing to a memory map of the file would kill the process when the disk is full. If the system or the
    file system does not support the call (macOS, some network disks), zeros are written.

    Args:
        file: file descriptor.
        start: first unused byte.
        end: size of the file in bytes.

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
    """Largest resident memory of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
