"""Parallel work on images in threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dcml_tune.data.image_list import why
from dcml_tune.utils.errnos import SHORTAGE
from dcml_tune.utils.machine import usable_cores

OnProgress = Callable[[int, int], None]
"""Called with the number of finished items and their total."""

T = TypeVar("T")


def silent(done: int, total: int) -> None:
    """Report no progress."""


def attempt(decode: Callable[[], T]) -> T | str:
    """Result of a decoding, or the reason why it fails. Errors by shortage of resources are raised."""
    try:
        return decode()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises anything: OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            raise
        return why(error)


def map_threads(function: Callable[[int], T], count: int, progress: OnProgress = silent) -> list[T]:
    """Apply a function to 0 .. count - 1 in threads: Pillow and CRC-32 release the GIL."""
    done: list[T] = []
    with _pool() as pool:
        # In parts, so that Ctrl-C does not wait for a hundred thousand images.
        for start in range(0, count, 256):
            done += pool.map(function, range(start, min(start + 256, count)))
            progress(len(done), count)
    return done


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=usable_cores())
