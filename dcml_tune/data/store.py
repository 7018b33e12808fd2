"""Decoded images in memory-mapped files, shared by all trials of a node.

Decoding costs 12 to 36 times what cropping a decoded image costs, and a search looks at each image thousands
of times. A store is a directory of three files:

    pixels.npy   full, small: the pixels of all images one after the other; evaluation: N x S x S x 3
    index.npy    R x 5 int64, a row an image that could be read: its position in the list, where its pixels
    begin
                 (full, small: byte; evaluation: row), height, width, CRC-32 of its pixels
    meta.json    what the files must look like, and which images were left out and why

It is built beside its final name and then renamed, so that a store that has its name is whole.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import AcquireReturnProxy, FileLock, Timeout
from PIL import Image

from dcml_tune.config import SettingError
from dcml_tune.data.images import ImageList, Indices, Pixels, UnreadableImageError, fingerprint, named, why

logger = logging.getLogger(__name__)

Kind = Literal["full", "small", "evaluation"]
Progress = Callable[[int, int], None]
T = TypeVar("T")

# Counted up when the same images must be decoded anew: another layout, another way of resizing.
VERSION = 1

# Free space that a store leaves to others, in bytes.
RESERVE = 64 << 20


def _silent(done: int, total: int) -> None:
    """Report no progress."""


class ImageStore:
    """Decoded images of an image list; row r is image `kept[r]` of it.

    Opening reads the index alone. Passing a store to another process passes its directory.

    Raises:
        ValueError: if the files are not what the store's own description says.
    """

    def __init__(self, directory: Path) -> None:
        """Open a store that was built."""
        self.directory = directory
        self._meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
        self._index: Indices = np.load(directory / "index.npy", allow_pickle=False)
        pixels = directory / "pixels.npy"
        if (pixels.stat().st_size, _crc(self._index)) != (self._meta["bytes"], self._meta["index_crc"]):
            raise ValueError(f"{directory}: the store is damaged")
        # Asking for the plain array spares each view the cost of numpy's memmap class.
        self._pixels: Pixels = np.asarray(np.load(pixels, mmap_mode="r", allow_pickle=False))
        _, self._starts, self._heights, self._widths, _ = self._index.T.tolist()

    def __reduce__(self) -> tuple[type[ImageStore], tuple[Path]]:
        return ImageStore, (self.directory,)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def key(self) -> str:
        """What the store was built from: images, kind, sizes and version; no two contents share it."""
        return self.directory.name

    @property
    def kind(self) -> Kind:
        """What the pixels are: full size, shorter side `sz_resize`, or the squares of the evaluation."""
        kind: Kind = self._meta["kind"]
        return kind

    @property
    def kept(self) -> Indices:
        """R: positions in the image list of the images that could be read, ascending."""
        return self._index[:, 0]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The images that could not be read, each with the reason."""
        return tuple(self._meta["left_out"])

    @property
    def nbytes(self) -> int:
        """Size on disk, in bytes, of the pixels."""
        return int(self._meta["bytes"])

    @property
    def array(self) -> Pixels:
        """All images of an evaluation store: R x S x S x 3, read-only."""
        assert self.kind == "evaluation", "the images of this store differ in size"
        return self._pixels

    def image(self, row: int) -> Pixels:
        """One image: H x W x 3, a read-only view."""
        if self.kind == "evaluation":
            square: Pixels = self._pixels[row]
            return square
        start, height, width = self._starts[row], self._heights[row], self._widths[row]
        return self._pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def images(self, rows: npt.ArrayLike) -> list[Pixels]:
        """Some images, each H x W x 3, as read-only views."""
        return [self.image(row) for row in np.asarray(rows, dtype=np.int64).tolist()]

    def damaged(self) -> list[int]:
        """Rows whose pixels are not what was written; reads the whole store."""
        with _pool() as pool:
            found = pool.map(lambda row: _crc(self.image(row)), range(len(self)))
            return [row for row, crc in enumerate(found) if crc != self._index[row, 4]]


def open_or_build(
    images: ImageList,
    directory: Path,
    *,
    kind: Kind,
    sz_resize: int,
    sz_crop: int,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> ImageStore:
    """Open the store of some images, or build it where there is none; one process builds, others wait.

    A store belongs to the names, sizes and times of change of its images: when one of them changes, another
    store is built. `full` keeps images as they are, `small` those with a shorter side above `sz_resize`
    resized to it, `evaluation` what the network sees in evaluation: shorter side resized to `sz_resize`
    (bilinear, antialiased), the middle `sz_crop` x `sz_crop` of it, exactly as torchvision does on Pillow's
    images.

    Args:
        images: what to store.
        directory: of all stores; it is made where it is missing.
        kind: see above.
        sz_resize: pixels.
        sz_crop: pixels.
        skip_unreadable: leave out images that cannot be decoded; `kept` says which are there.
        progress: is told how many images are done, of how many.

    Raises:
        UnreadableImageError: if images cannot be decoded and `skip_unreadable` is not set.
        SettingError: if the disk has no room for the store; nothing is written then.
    """
    assert len(images), "an image list without images"
    layout = _Layout(kind, sz_resize, sz_crop)
    final = Path(directory) / layout.name(images)
    store = _open(final)
    if store is None:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _alone(final):
            store = _open(final) or _build(images, final, layout, skip_unreadable, progress or _silent)
    if store.left_out and not skip_unreadable:
        raise _unreadable(store.left_out, len(images))
    return store


@dataclass(frozen=True)
class _Layout:
    """What a store keeps of an image."""

    kind: Kind
    sz_resize: int
    sz_crop: int

    def name(self, images: ImageList) -> str:
        """The name of the directory of the store."""
        sizes = {"full": (), "small": (self.sz_resize,), "evaluation": (self.sz_resize, self.sz_crop)}[
            self.kind
        ]
        # Two directories may hold files of the same names, sizes and times; the checksums of a zip tell
        # enough.
        place = images.root.resolve() if images.root.is_dir() else "zip"
        return "-".join([self.kind, *map(str, sizes), fingerprint(VERSION, place, images.fingerprint)])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that are kept of an image."""
        if self.kind == "evaluation":
            return self.sz_crop, self.sz_crop
        if self.kind == "full" or min(width, height) <= self.sz_resize:
            return width, height
        return self._resized(width, height)

    def apply(self, image: Image.Image) -> Pixels:
        """The pixels that are kept of a decoded image."""
        if self.kind != "evaluation":
            return np.asarray(_resize(image, self.size(*image.size)))
        resized = _resize(image, self._resized(*image.size))
        # Rounded as torchvision's CenterCrop does: to the even number where the margins differ by one.
        left, top = (round((side - self.sz_crop) / 2) for side in resized.size)
        return np.asarray(resized.crop((left, top, left + self.sz_crop, top + self.sz_crop)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image whose shorter side is `sz_resize`."""
        longer = int(self.sz_resize * max(width, height) / min(width, height))
        return (longer, self.sz_resize) if height <= width else (self.sz_resize, longer)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at another width and height; Pillow's bilinear filter is antialiased."""
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _open(final: Path) -> ImageStore | None:
    """The store, if it is there and whole."""
    if not final.exists():
        return None
    try:
        return ImageStore(final)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("%s: the image store is damaged (%s); it is built anew", final, error)
        return None


def _alone(final: Path) -> AcquireReturnProxy[Any]:
    """Take the lock under which a store is built, until the end of the block; says so when another has it."""
    lock = FileLock(f"{final}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("%s: waiting for the process that builds this image store", final)
        return lock.acquire()


def _build(images: ImageList, final: Path, layout: _Layout, skip: bool, progress: Progress) -> ImageStore:
    """Decode all images into a new store. The caller holds the lock."""
    for old in [final, *final.parent.glob(f"{final.name}.building-*")]:
        shutil.rmtree(old, ignore_errors=True)
    headers = _map(lambda i: _attempt(lambda: _header(images, i, layout)), len(images))
    readable = [i for i, header in enumerate(headers) if not isinstance(header, str)]
    left_out = [f"{images.name(i)} ({header})" for i, header in enumerate(headers) if isinstance(header, str)]
    if left_out and (not skip or not readable):
        raise _unreadable(left_out, len(images))
    sizes = np.array([headers[i] for i in readable], dtype=np.int64).reshape(-1, 2)
    need = int(3 * sizes.prod(axis=1).sum())
    if need + RESERVE > shutil.disk_usage(final.parent).free:
        raise _no_room(need, final.parent, layout)
    logger.info("%s: decoding %s images into %s", final, f"{len(readable):,}", _size(need))
    fresh = final.with_name(f"{final.name}.building-{os.getpid()}")
    fresh.mkdir()
    try:
        index = _decode(images, np.array(readable, dtype=np.int64), sizes, fresh, layout, left_out, progress)
        if left_out and (not skip or not len(index)):
            raise _unreadable(left_out, len(images))
        _describe(fresh, index, layout, left_out)
        fresh.rename(final)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _no_room(need, final.parent, layout) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ImageStore(final)


def _header(images: ImageList, i: int, layout: _Layout) -> tuple[int, int]:
    """Height and width that are kept of an image, from its header."""
    with images.open(i) as image:
        width, height = layout.size(*image.size)
    return height, width


def _decode(
    images: ImageList,
    readable: Indices,
    sizes: Indices,
    fresh: Path,
    layout: _Layout,
    left_out: list[str],
    progress: Progress,
) -> Indices:
    """Write the pixels; images that cannot be decoded after all are added to `left_out`.

    Returns:
        The index, R x 5.
    """
    nbytes = 3 * sizes.prod(axis=1)
    is_flat = layout.kind != "evaluation"
    starts = np.cumsum(nbytes) - nbytes if is_flat else np.arange(len(readable))
    shape = (int(nbytes.sum()),) if is_flat else (len(readable), layout.sz_crop, layout.sz_crop, 3)
    pixels = _create(fresh / "pixels.npy", shape)

    def write(row: int) -> int:
        decoded = layout.apply(images.decode(int(readable[row])))
        place = pixels[starts[row] : starts[row] + nbytes[row]] if is_flat else pixels[row]
        place[:] = decoded.reshape(place.shape)
        return _crc(decoded)

    results = _map(lambda row: _attempt(lambda: write(row)), len(readable), progress)
    failed = [row for row, result in enumerate(results) if isinstance(result, str)]
    left_out += [f"{images.name(int(readable[row]))} ({results[row]})" for row in failed]
    crcs = np.array([0 if isinstance(result, str) else result for result in results], dtype=np.int64)
    index = np.delete(np.column_stack([readable, starts, sizes, crcs]), failed, axis=0)
    if failed and not is_flat:
        _close_gaps(fresh / "pixels.npy", pixels, index)
    pixels.flush()
    return index


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """An array on disk whose blocks are all taken: writing to a map without room would kill the process."""
    pixels: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=shape
    )
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels


def _close_gaps(path: Path, pixels: np.memmap[Any, np.dtype[np.uint8]], index: Indices) -> None:
    """Move the rows of an evaluation store up over those that could not be decoded, and shorten its file."""
    for row, old in enumerate(index[:, 1].tolist()):
        if row != old:
            pixels[row] = pixels[old]
    index[:, 1] = np.arange(len(index))
    pixels.flush()
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(index), *pixels.shape[1:])}
    with path.open("r+b") as file:
        # numpy leaves room in the header for the first axis to change, so that the pixels stay where they
        # are.
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == pixels.offset, "the header has changed its length"
        file.truncate(pixels.offset + len(index) * int(np.prod(pixels.shape[1:])))


def _describe(fresh: Path, index: Indices, layout: _Layout, left_out: Sequence[str]) -> None:
    """Write index and description, and make sure that all is on disk before the store gets its name."""
    np.save(fresh / "index.npy", index, allow_pickle=False)
    meta = {
        "version": VERSION,
        "kind": layout.kind,
        "sz_resize": layout.sz_resize,
        "sz_crop": layout.sz_crop,
        "images": len(index),
        "bytes": (fresh / "pixels.npy").stat().st_size,
        "index_crc": _crc(index),
        "left_out": list(left_out),
    }
    (fresh / "meta.json").write_text(json.dumps(meta, indent=1))
    for file in fresh.iterdir():
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def _no_room(need: int, directory: Path, layout: _Layout) -> SettingError:
    """What to say of a store that would fill the disk."""
    free = shutil.disk_usage(directory).free
    smaller = ", or keep smaller images with --image-store small" if layout.kind == "full" else ""
    return SettingError(
        f"{directory}: the image store needs {_size(need)} and {_size(free)} are free there; free "
        f"some space, or take a directory on another disk{smaller}"
    )


def _unreadable(left_out: Sequence[str], total: int) -> UnreadableImageError:
    return UnreadableImageError(
        f"{len(left_out):,} of {total:,} images cannot be decoded: {named(left_out, limit=3)}; repair or "
        "remove them, or leave them out with --skip-unreadable"
    )


def _attempt(decode: Callable[[], T]) -> T | str:
    """What a decoding gives, or why it fails. What the machine is short of is no fault of the image."""
    try:
        return decode()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises anything: OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return why(error)


def _map(function: Callable[[int], T], count: int, progress: Progress = _silent) -> list[T]:
    """Apply a function to 0 .. count - 1 in threads: Pillow and CRC-32 let go of the interpreter's lock."""
    done: list[T] = []
    with _pool() as pool:
        # A part at a time, so that Ctrl-C does not wait for a hundred thousand images.
        for start in range(0, count, 256):
            done += pool.map(function, range(start, min(start + 256, count)))
            progress(len(done), count)
    return done


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))


def _crc(array: npt.NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
