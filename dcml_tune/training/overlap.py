"""Saving an epoch while the next one trains: work in steps, between which the thread may do something else."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar, cast

T = TypeVar("T")

Steps: TypeAlias = Generator[bool, None, T]
"""A work in steps; it returns what the work is for."""


def finish(steps: Steps[T]) -> T:
    """Do the remaining steps of a work; return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)


def timed(steps: Steps[T]) -> Steps[tuple[T, float]]:
    """Do the steps of a work; return what it returns and the seconds that it took, without the time between two steps."""
    took = 0.0
    try:
        while True:
            begun = time.perf_counter()
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value, took + time.perf_counter() - begun
            took += time.perf_counter() - begun
            yield step
    finally:
        steps.close()


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
