"""Saving an epoch while the next one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def work_during(save: Callable[[], None], work: Callable[[], bool]) -> None:
    """Save in a thread, and work in this one until that has ended.

    Files are written and hashed without Python's global lock, so a GPU, or another core, trains meanwhile.

    Args:
        save: saves what no longer changes.
        work: does the next piece of work, such as an update; returns False when none is left that may be done.

    Raises:
        Exception: that of `save`, otherwise that of `work`; after the save has ended.
    """
    with ThreadPoolExecutor(1, "dcml-save") as thread:
        saved = thread.submit(save)
        try:
            while not saved.done() and work():
                pass
        finally:
            saved.result()
