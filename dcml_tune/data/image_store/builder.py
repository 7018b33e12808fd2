"""Builds a store: decodes all images into files of their final size, and renames the store when it is complete."""

from __future__ import annotations

import io
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.data.image_list import Indices, UnreadableImageError, named
from dcml_tune.data.image_store.headers import nbytes_of, readable_images
from dcml_tune.data.image_store.reader import INDEX, META, PIXELS, STAMP, ImageStore, crc_of, state_of
from dcml_tune.data.image_store.room import make_room, remove
from dcml_tune.data.image_store.threads import OnProgress, attempt, map_threads
from dcml_tune.data.image_store.wanted import Wanted, identity_of
from dcml_tune.utils.files import readable_size, write_checksummed
from dcml_tune.utils.machine import reserve

logger = logging.getLogger(__name__)


def build(wanted: Wanted, skip: bool, progress: OnProgress) -> ImageStore:
    """Decode all images into a new store, which replaces an old one. The caller holds the lock."""
    with fresh_directory(wanted) as fresh:
        _fill(fresh, wanted, skip, progress)
        put_in_place(fresh, wanted)
    return ImageStore(wanted.final)


@contextmanager
def fresh_directory(wanted: Wanted) -> Iterator[Path]:
    """A directory for the files of a new store, which is removed after the block unless it was renamed."""
    _remove_leftovers(wanted.final)
    fresh = wanted.final.with_name(f"{wanted.final.name}.building-{os.getpid()}")
    fresh.mkdir()  # before images are read, so that a read-only disk is detected at once
    try:
        yield fresh
    finally:
        remove(fresh)


def _fill(fresh: Path, wanted: Wanted, skip: bool, progress: OnProgress) -> None:
    """Write all files of a store."""
    readable, sizes, left_out = readable_images(wanted)
    if left_out and (not skip or not len(readable)):
        raise unreadable(left_out, len(wanted.images))
    need = nbytes_of(sizes)
    make_room(need, wanted)
    logger.info("%s: decoding %s images into %s", wanted.final, f"{len(readable):,}", readable_size(need))
    index, departures = _decode(wanted, readable, sizes, fresh, left_out, progress)
    if left_out and (not skip or not len(index)):
        raise unreadable(left_out, len(wanted.images))
    _describe(fresh, index, wanted, left_out, departures)


def put_in_place(fresh: Path, wanted: Wanted) -> None:
    """Rename a new store to its final name. An old store is moved away directly before, and removed afterwards."""
    if identity_of(wanted.images, wanted.stores) != wanted.identity:
        raise SettingError(
            f"{wanted.images.root}: images were changed while they were stored; leave them as they are and start again"
        )
    old = wanted.final.with_name(f"{wanted.final.name}.old-{os.getpid()}")
    if os.path.lexists(wanted.final):
        wanted.final.rename(old)
    fresh.rename(wanted.final)
    remove(old)


def _remove_leftovers(final: Path) -> None:
    """Remove the files of builders that were killed; running ones, also on other machines, hold the lock."""
    for state in ("building", "old"):
        for left in final.parent.glob(f"{final.name}.{state}-*"):
            remove(left)


def _decode(
    wanted: Wanted, readable: Indices, sizes: Indices, fresh: Path, left_out: list[str], progress: OnProgress
) -> tuple[Indices, Counter[str]]:
    """Write the pixels. Images whose pixels cannot be decoded are added to `left_out`.

    Returns:
        The index, R x 5, and the number of images by applied conversion.
    """
    images, layout = wanted.images, wanted.layout
    nbytes = 3 * sizes.prod(axis=1)
    is_flat = layout.kind != "evaluation"
    starts = np.cumsum(nbytes) - nbytes if is_flat else np.arange(len(readable))
    shape = (int(nbytes.sum()),) if is_flat else (len(readable), layout.sz_crop, layout.sz_crop, 3)
    pixels = _create(fresh / PIXELS, shape)

    def write(row: int) -> tuple[int, tuple[str, ...]]:
        picture = images.decode(int(readable[row]))
        decoded = layout.apply(picture.image)
        # Rotation exchanges height and width, and does not change the number of bytes.
        if decoded.nbytes != nbytes[row]:
            raise ValueError("its number of pixels differs from its header")
        sizes[row] = decoded.shape[:2]
        place = pixels[starts[row] : starts[row] + nbytes[row]] if is_flat else pixels[row]
        place[:] = decoded.reshape(place.shape)
        return crc_of(decoded), picture.departures

    results = map_threads(lambda row: attempt(lambda: write(row)), len(readable), progress)
    failed = [row for row, result in enumerate(results) if isinstance(result, str)]
    left_out += [f"{images.name(int(readable[row]))} ({results[row]})" for row in failed]
    crcs = np.array([0 if isinstance(result, str) else result[0] for result in results], dtype=np.int64)
    departures = Counter(key for result in results if not isinstance(result, str) for key in result[1])
    index = np.delete(np.column_stack([readable, starts, sizes, crcs]), failed, axis=0)
    if failed and not is_flat:
        _close_gaps(fresh / PIXELS, pixels, index)
    pixels.flush()
    return index, departures


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """An array on disk whose blocks are allocated: writing to a memory map on a full disk would kill the process."""
    pixels: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        reserve(file.fileno(), pixels.offset, path.stat().st_size)
    return pixels


def _close_gaps(path: Path, pixels: np.memmap[Any, np.dtype[np.uint8]], index: Indices) -> None:
    """Remove the rows of images that could not be decoded from an evaluation store, and truncate its file."""
    for row, old in enumerate(index[:, 1].tolist()):
        if row != old:
            pixels[row] = pixels[old]
    index[:, 1] = np.arange(len(index))
    pixels.flush()
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(index), *pixels.shape[1:])}
    with path.open("r+b") as file:
        # The header of numpy reserves space for a change of the first axis, so that the offset of the pixels is constant.
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == pixels.offset, "the header has changed its length"
        file.truncate(pixels.offset + len(index) * int(np.prod(pixels.shape[1:])))


def _describe(
    fresh: Path, index: Indices, wanted: Wanted, left_out: Sequence[str], departures: Mapping[str, int]
) -> None:
    """Write index, description and stamp, and flush all files to disk before the store is renamed."""
    written = io.BytesIO()
    np.save(written, index, allow_pickle=False)
    (fresh / INDEX).write_bytes(written.getbuffer())
    pixels = np.load(fresh / PIXELS, mmap_mode="r", allow_pickle=False)
    meta = {
        **wanted.facts,
        "images": len(index),
        "bytes": (fresh / PIXELS).stat().st_size,
        "offset": pixels.offset,
        "shape": pixels.shape,
        "index_crc": zlib.crc32(written.getbuffer()),
        "left_out": list(left_out),
        "departures": dict(departures),
    }
    for name in (PIXELS, INDEX):
        with (fresh / name).open("r+b") as opened:
            os.fsync(opened.fileno())
    write_checksummed(fresh / META, meta)
    write_checksummed(fresh / STAMP, state_of(fresh))


def unreadable(left_out: Sequence[str], total: int) -> UnreadableImageError:
    """The error for images that cannot be decoded."""
    return UnreadableImageError(
        f"{len(left_out):,} of {total:,} images cannot be decoded: {named(left_out, limit=3)}; repair or "
        "remove them, or leave them out with --skip-unreadable"
    )
