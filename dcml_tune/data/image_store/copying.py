"""Copies a store from the directory that all nodes share, where that takes less time than decoding the images."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcml_tune.data.image_list import why
from dcml_tune.data.image_store.builder import fresh_directory, put_in_place
from dcml_tune.data.image_store.damage import damaged_pixels, opened
from dcml_tune.data.image_store.reader import INDEX, META, PIXELS, ROW_BYTES, STAMP, ImageStore, state_of
from dcml_tune.data.image_store.room import make_room
from dcml_tune.data.image_store.threads import OnProgress, attempt, map_threads
from dcml_tune.data.image_store.wanted import Wanted
from dcml_tune.utils.errnos import SHORTAGE
from dcml_tune.utils.files import readable_size, write_checksummed

logger = logging.getLogger(__name__)

_BLOCK = 8 << 20  # bytes per read
# What is read and decoded to compare the times: bytes of the store, and images.
_SAMPLE_BYTES, _SAMPLE_IMAGES = 32 << 20, 64


class _LostError(Exception):
    """The store of the shared directory cannot be read any longer, or its copy is damaged."""


def copied(wanted: Wanted, progress: OnProgress) -> ImageStore | None:
    """Copy the store of the shared directory. The caller holds the lock.

    Returns:
        The copy, whose pixels were compared with their checksums; None if there is no such store, it is damaged, or decoding
        the images takes less time.
    """
    if wanted.stores.shared is None:
        return None
    source = opened(wanted.stores.shared / wanted.key, wanted.facts)
    if source is None:
        return None
    try:
        if isinstance(source, str):
            raise _LostError(source)
        return _copied(source, wanted, progress)
    except _LostError as error:
        logger.warning("%s: no copy can be made (%s); the images are decoded", wanted.stores.shared / wanted.key, error)
        return None


def _copied(source: ImageStore, wanted: Wanted, progress: OnProgress) -> ImageStore | None:
    if not is_faster(source, wanted):
        logger.info("%s: decoding the images takes less time than copying %s", wanted.final, source.directory)
        return None
    make_room(source.nbytes + ROW_BYTES * len(source), wanted)
    logger.info("%s: copying %s from %s", wanted.final, readable_size(source.nbytes), source.directory)
    with fresh_directory(wanted) as fresh:
        for name in (PIXELS, INDEX, META):
            _copy_file(source.directory / name, fresh / name)
        # Determined before the pixels are read: a later change invalidates the stamp.
        store, state = opened(fresh, wanted.facts), state_of(fresh)
        fault = damaged_pixels(store, wanted.images) if isinstance(store, ImageStore) else store
        if fault is not None:
            raise _LostError(fault)
        write_checksummed(fresh / STAMP, state)
        put_in_place(fresh, wanted)
    progress(len(wanted.images), len(wanted.images))
    return ImageStore(wanted.final)


def is_faster(source: ImageStore, wanted: Wanted) -> bool:
    """Whether copying a store takes less time than building it, by a sample of both. Both write the same bytes."""
    return _seconds_to_read(source) < _seconds_to_decode(source, wanted)


def _seconds_to_read(source: ImageStore) -> float:
    size = min(source.nbytes, _SAMPLE_BYTES)
    began = time.perf_counter()
    with _reading(), (source.directory / PIXELS).open("rb") as file:
        file.seek((source.nbytes - size) // 2)
        file.read(size)
    return (time.perf_counter() - began) * source.nbytes / size


def _seconds_to_decode(source: ImageStore, wanted: Wanted) -> float:
    first = max(0, (len(source) - _SAMPLE_IMAGES) // 2)
    sample = source.kept[first : first + _SAMPLE_IMAGES].tolist()
    began = time.perf_counter()
    map_threads(
        lambda row: attempt(lambda: wanted.layout.apply(wanted.images.decode(sample[row]).image).shape), len(sample)
    )
    return (time.perf_counter() - began) * len(source) / len(sample)


def _copy_file(source: Path, target: Path) -> None:
    with _reading():
        read = source.open("rb")
    with read, target.open("wb") as written:
        while block := _next_block(read.fileno()):
            written.write(block)
        written.flush()
        os.fsync(written.fileno())


def _next_block(file: int) -> bytes:
    with _reading():
        return os.read(file, _BLOCK)


@contextmanager
def _reading() -> Iterator[None]:
    """Tell errors of reading the shared directory from those of writing the copy."""
    try:
        yield
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        raise _LostError(why(error)) from None
