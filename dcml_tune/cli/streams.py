"""Standard output and error that never end a command: output that cannot be written is dropped.

The reader of a pipe may be gone (`| head`), the disk of a log file full, the terminal closed. A search continues in these
cases, and its exit code does not change.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any


class _Dropping(io.FileIO):
    """A file descriptor whose writes never fail. If it is non-blocking, a write waits until it is ready."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except (OSError, ValueError):
            return len(data)
        return written


def make_lenient() -> None:
    """Make `sys.stdout` and `sys.stderr` drop what they cannot write. Call it once, before any file is opened.

    A closed descriptor is opened on the null device. Otherwise the next file that is opened would get its number, and
    `print` would write into that file. Characters that the encoding lacks are written as escapes.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # tests and notebooks put their own stream there
            setattr(sys, name, _lenient(descriptor, stream))


def _lenient(descriptor: int, like: io.TextIOWrapper | None) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Dropping(descriptor, "wb", closefd=False))
    if like is None:
        return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    errors = "backslashreplace" if like.errors == "strict" else like.errors
    return io.TextIOWrapper(
        raw,
        encoding=like.encoding,
        errors=errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
