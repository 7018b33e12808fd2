"""Decoded images in memory-mapped files, shared by all trials of a node.

Decoding costs 12 to 36 times what cropping a decoded image costs, and a search looks at each image thousands
of times. A store is a directory of four files:

    pixels.npy     full, small: the pixels of all images one after the other; evaluation: N x S x S x 3
    index.npy      R x 5 int64, a row an image that could be read: its position in the list, where its pixels
                   begin (full, small: byte; evaluation: row), height, width, CRC-32 of its pixels
    meta.json      of which images the store is, what the other files must look like, which images were left
                   out and why; with a checksum of itself
    verified.json  in which state the files were when their pixels were last known to match their checksums

It is built beside its final name and then renamed, so that a store that has its name is whole. What happens to
it later is found out: a change of meta.json, of index.npy or of a size whenever the store is opened, a change of
pixels by `open_or_build(verify=True)`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from PIL import Image

from dcml_tune.config import SettingError
from dcml_tune.data.images import ImageList, Indices, Pixels, UnreadableImageError, fingerprint, named, why
from dcml_tune.files import (
    CANNOT_WRITE,
    TornFileError,
    free_bytes,
    read_sealed,
    readable_size,
    size_of,
    write_sealed,
)

logger = logging.getLogger(__name__)

Kind = Literal["full", "small", "evaluation"]
Progress = Callable[[int, int], None]
T = TypeVar("T")

# Counted up when the same images must be decoded anew: another layout, another way of resizing.
VERSION = 1

# Free space that a store leaves to others, in bytes.
RESERVE = 64 << 20

_PIXELS, _INDEX, _META, _STAMP = "pixels.npy", "index.npy", "meta.json", "verified.json"
_ROW_BYTES = 5 * 8

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# The last two: where the directory should be, or above it, there is a file.
_NO_PLACE = CANNOT_WRITE | {errno.EEXIST, errno.ENOTDIR}
# What the machine is short of is no fault of a file, and no reason to build a store anew.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


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
        self._meta: dict[str, Any] = read_sealed(directory / _META)
        index = (directory / _INDEX).read_bytes()
        pixels = directory / _PIXELS
        if (pixels.stat().st_size, zlib.crc32(index)) != (self._meta["bytes"], self._meta["index_crc"]):
            raise ValueError(f"{directory}: {_PIXELS} or {_INDEX} is not what was written")
        self._index: Indices = np.load(io.BytesIO(index), allow_pickle=False)
        # Shape and place come from the description: the header of the file has no checksum.
        place: dict[str, Any] = {"offset": self._meta["offset"], "shape": tuple(self._meta["shape"])}
        # Asking for the plain array spares each view the cost of numpy's memmap class.
        self._pixels: Pixels = np.asarray(np.memmap(pixels, np.uint8, mode="r", **place))
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
        """Rows whose pixels are not what was written, or cannot be read; reads the whole store."""
        with (self.directory / _PIXELS).open("rb") as file:
            found = _map(lambda row: self._crc_on_disk(file.fileno(), row), len(self))
        return [row for row, crc in enumerate(found) if crc != self._index[row, 4]]

    def is_verified(self) -> bool:
        """Whether no file was changed since its pixels were last known to match their checksums."""
        try:
            return bool(read_sealed(self.directory / _STAMP) == _state(self.directory))
        except (TornFileError, OSError):
            return False

    def is_of(self, facts: dict[str, Any]) -> bool:
        """Whether the store says of itself what was asked for."""
        return all(self._meta.get(key) == value for key, value in facts.items())

    def _crc_on_disk(self, file: int, row: int) -> int | None:
        """The checksum of what the disk holds now; None where it cannot be read.

        Reading the map instead would end the process at the first bad block.
        """
        nbytes = 3 * self._heights[row] * self._widths[row]
        start = self._starts[row] * (nbytes if self.kind == "evaluation" else 1)
        try:
            return zlib.crc32(os.pread(file, nbytes, self._meta["offset"] + start))
        except OSError:
            return None


def open_or_build(
    images: ImageList,
    directory: Path,
    *,
    kind: Kind,
    sz_resize: int,
    sz_crop: int,
    skip_unreadable: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> ImageStore:
    """Open the store of some images, or build it where there is none; one process builds, others wait.

    A store that is damaged is built anew, and the log says what was damaged. Processes that have the old one
    open keep it.

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
        verify: read all pixels against their checksums, once for each state of the files (size and times of
            change; those of a copy differ, so that a copy is read once more).
        progress: is told how many images are decoded, of how many.

    Raises:
        UnreadableImageError: if images cannot be decoded and `skip_unreadable` is not set.
        SettingError: if the store cannot be written: no room, no permission, a read-only disk; nothing is left
            behind then.
    """
    wanted = _Wanted.of(images, directory, _Layout(kind, sz_resize, sz_crop))
    store = _ready(wanted, verify)
    if store is None:
        with _writing(wanted), _alone(wanted.final):
            store = _sound(wanted, verify) or _build(wanted, skip_unreadable, progress or _silent)
    if store.left_out and not skip_unreadable:
        raise _unreadable(store.left_out, len(images))
    return store


def undecodable(images: ImageList, progress: Progress | None = None) -> list[str]:
    """Names of the images that cannot be decoded, each with the reason. All are decoded, and nothing is written."""

    def attempt(i: int) -> str | None:
        found = _attempt(lambda: images.decode(i) and None)
        return None if found is None else f"{images.name(i)} ({found})"

    return [name for name in _map(attempt, len(images), progress or _silent) if name is not None]


def needed_bytes(images: ImageList, directory: Path, *, kind: Kind, sz_resize: int, sz_crop: int) -> int:
    """Bytes that `open_or_build` would write; 0 where the store is there.

    Reads the headers of the images, which this process then does not read again to build; opens none for an
    `evaluation` store, whose images are all of one size. Images that cannot be read take nothing.
    """
    wanted = _Wanted.of(images, directory, _Layout(kind, sz_resize, sz_crop))
    if isinstance(_open(wanted), ImageStore):
        return 0
    return _need(wanted)


@dataclass(frozen=True)
class _Layout:
    """What a store keeps of an image."""

    kind: Kind
    sz_resize: int
    sz_crop: int

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that act on this kind of store."""
        names = {"full": (), "small": ("sz_resize",), "evaluation": ("sz_resize", "sz_crop")}[self.kind]
        return {name: getattr(self, name) for name in names}

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


@dataclass(frozen=True)
class _Wanted:
    """The store that is asked for."""

    images: ImageList
    directory: Path
    layout: _Layout
    identity: str
    """Tells one state of one list of images from all others."""

    @classmethod
    def of(cls, images: ImageList, directory: Path, layout: _Layout) -> _Wanted:
        assert len(images), "an image list without images"
        return cls(images, Path(directory), layout, _identity(images))

    @property
    def final(self) -> Path:
        """The directory of the store."""
        return self.directory / "-".join([self.layout.kind, *map(str, self.layout.sizes.values()), self.identity])

    @property
    def facts(self) -> dict[str, Any]:
        """What the store must say of itself."""
        return {"key": self.final.name, "version": VERSION, "kind": self.layout.kind, **self.layout.sizes}


def _identity(images: ImageList) -> str:
    # Two directories may hold files of the same names, sizes and times; the checksums of a zip tell enough.
    place = images.root.resolve() if images.root.is_dir() else "zip"
    return fingerprint(VERSION, place, images.fingerprint)


def _open(wanted: _Wanted) -> ImageStore | str | None:
    """The store, or what is wrong with it; None where there is none."""
    if not os.path.lexists(wanted.final):
        return None
    try:
        store = ImageStore(wanted.final)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in _SHORTAGE:
            raise
        return str(error)
    return store if store.is_of(wanted.facts) else f"{wanted.final / _META}: describes another store"


def _ready(wanted: _Wanted, verify: bool) -> ImageStore | None:
    """The store, if it can be used without reading more of it."""
    store = _open(wanted)
    return store if isinstance(store, ImageStore) and (store.is_verified() or not verify) else None


def _sound(wanted: _Wanted, verify: bool) -> ImageStore | None:
    """The store, if it is there and whole; a damaged one is told in the log."""
    store = _open(wanted)
    if isinstance(store, ImageStore) and verify and not store.is_verified():
        store = _verified(store, wanted.images)
    if isinstance(store, str):
        logger.warning("%s: the image store is damaged (%s); it is built anew", wanted.final, store)
        return None
    return store


def _verified(store: ImageStore, images: ImageList) -> ImageStore | str:
    """The store, after its pixels were read, or which of them are damaged."""
    logger.info("%s: reading %s against their checksums", store.directory, readable_size(store.nbytes))
    # Taken before reading: what is changed meanwhile makes the stamp void.
    state = _state(store.directory)
    if rows := store.damaged():
        names = [images.name(i) for i in store.kept[rows].tolist()]
        return f"{len(rows):,} of {len(store):,} images are not what was written: {named(names, limit=3)}"
    try:
        write_sealed(store.directory / _STAMP, state)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        logger.info("%s: is sound, but that cannot be noted there (%s)", store.directory, why(error))
    return store


def _state(directory: Path) -> dict[str, list[int]]:
    """What changes with every change of the files.

    The time of change of the inode is among it, because the time of modification can be set to any value.
    """
    stats = {name: (directory / name).stat() for name in (_PIXELS, _INDEX)}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}


@contextmanager
def _writing(wanted: _Wanted) -> Iterator[None]:
    """Make the directory of all stores, and say in one line why it cannot be written."""
    try:
        wanted.directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise _cannot_write(error, wanted) from None


def _alone(final: Path) -> AbstractContextManager[Any]:
    """Take the lock under which a store is built, until the end of the block; says so when another has it."""
    if not os.access(final.parent, os.W_OK | os.X_OK, effective_ids=True):
        return nullcontext()  # nobody builds here, and a store that is whole can be read without the lock
    lock = FileLock(f"{final}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        logger.info("%s: waiting for the process that builds this image store", final)
        return lock.acquire()


def _build(wanted: _Wanted, skip: bool, progress: Progress) -> ImageStore:
    """Decode all images into a new store, which takes the place of the old one. The caller holds the lock."""
    _remove_leftovers(wanted.final)
    fresh = wanted.final.with_name(f"{wanted.final.name}.building-{os.getpid()}")
    fresh.mkdir()  # before anything is read, so that a disk that is read-only is noticed at once
    try:
        _fill(fresh, wanted, skip, progress)
        _put_in_place(fresh, wanted)
    finally:
        _remove(fresh)
    return ImageStore(wanted.final)


def _fill(fresh: Path, wanted: _Wanted, skip: bool, progress: Progress) -> None:
    """Write all files of a store."""
    readable, sizes, left_out = _readable(wanted)
    if left_out and (not skip or not len(readable)):
        raise _unreadable(left_out, len(wanted.images))
    need = _nbytes(sizes)
    _make_room(need, wanted)
    logger.info("%s: decoding %s images into %s", wanted.final, f"{len(readable):,}", readable_size(need))
    index = _decode(wanted.images, readable, sizes, fresh, wanted.layout, left_out, progress)
    if left_out and (not skip or not len(index)):
        raise _unreadable(left_out, len(wanted.images))
    _describe(fresh, index, wanted, left_out)


def _readable(wanted: _Wanted) -> tuple[Indices, Indices, list[str]]:
    """Positions of the images whose headers can be read, R x 2 height and width of them, and the other images."""
    headers = _headers(wanted)
    readable = [i for i, header in enumerate(headers) if not isinstance(header, str)]
    sizes = np.array([headers[i] for i in readable], dtype=np.int64).reshape(-1, 2)
    names = [f"{wanted.images.name(i)} ({header})" for i, header in enumerate(headers) if isinstance(header, str)]
    return np.array(readable, dtype=np.int64), sizes, names


def _headers(wanted: _Wanted) -> list[tuple[int, int] | str]:
    """Height and width that are kept of each image, or why its header cannot be read."""
    known = _known_sizes(wanted.identity, len(wanted.images))

    def header(i: int) -> tuple[int, int]:
        if not known[i].all():
            with wanted.images.open(i) as image:
                known[i] = image.size
        width, height = wanted.layout.size(*known[i].tolist())
        return height, width

    return _map(lambda i: _attempt(lambda: header(i)), len(wanted.images))


@lru_cache(maxsize=8)
def _known_sizes(identity: str, count: int) -> Indices:
    """N x 2: width and height of the images of a list, so far as this process has read them; 0: not yet."""
    return np.zeros((count, 2), dtype=np.int64)


def _need(wanted: _Wanted) -> int:
    """Bytes of the store that is wanted."""
    if wanted.layout.kind == "evaluation":
        return _nbytes(np.full((len(wanted.images), 2), wanted.layout.sz_crop))
    return _nbytes(_readable(wanted)[1])


def _nbytes(sizes: Indices) -> int:
    """Bytes of pixels and index of images of some sizes, R x 2."""
    return int(3 * sizes.prod(axis=1).sum()) + _ROW_BYTES * len(sizes)


def _make_room(need: int, wanted: _Wanted) -> None:
    """Refuse what the disk has no room for; a damaged store goes first where there is room for one only.

    That helps only if no process, this one included, has it open.
    """
    short = need + RESERVE - free_bytes(wanted.directory)
    if short > 0 and os.path.lexists(wanted.final) and size_of(wanted.final) >= short:
        _remove(wanted.final)
        short = need + RESERVE - free_bytes(wanted.directory)
    if short > 0:
        raise _no_room(need, wanted)


def _put_in_place(fresh: Path, wanted: _Wanted) -> None:
    """Give a new store its name. A store that has the name goes last, so that there is none for an instant only."""
    if _identity(wanted.images) != wanted.identity:
        raise SettingError(
            f"{wanted.images.root}: images were changed while they were stored; leave them as they are and start again"
        )
    old = wanted.final.with_name(f"{wanted.final.name}.old-{os.getpid()}")
    if os.path.lexists(wanted.final):
        wanted.final.rename(old)
    fresh.rename(wanted.final)
    _remove(old)


def _remove_leftovers(final: Path) -> None:
    """Remove what builders that were killed left; living ones, on other machines too, hold the lock."""
    for state in ("building", "old"):
        for left in final.parent.glob(f"{final.name}.{state}-*"):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
    pixels = _create(fresh / _PIXELS, shape)

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
        _close_gaps(fresh / _PIXELS, pixels, index)
    pixels.flush()
    return index


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """An array on disk whose blocks are all taken: writing to a map without room would kill the process."""
    pixels: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
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


def _describe(fresh: Path, index: Indices, wanted: _Wanted, left_out: Sequence[str]) -> None:
    """Write index, description and stamp, and make sure that all is on disk before the store gets its name."""
    written = io.BytesIO()
    np.save(written, index, allow_pickle=False)
    (fresh / _INDEX).write_bytes(written.getbuffer())
    pixels = np.load(fresh / _PIXELS, mmap_mode="r", allow_pickle=False)
    meta = {
        **wanted.facts,
        "images": len(index),
        "bytes": (fresh / _PIXELS).stat().st_size,
        "offset": pixels.offset,
        "shape": pixels.shape,
        "index_crc": zlib.crc32(written.getbuffer()),
        "left_out": list(left_out),
    }
    for name in (_PIXELS, _INDEX):
        with (fresh / name).open("r+b") as opened:
            os.fsync(opened.fileno())
    write_sealed(fresh / _META, meta)
    write_sealed(fresh / _STAMP, _state(fresh))


def _cannot_write(error: OSError, wanted: _Wanted) -> SettingError:
    """What to say of a directory that no store can be written to."""
    if error.errno in _FULL:
        return _no_room(_need(wanted), wanted, f" ({why(error)})")
    return SettingError(
        f"{wanted.directory}: the image store cannot be written there ({why(error)}); make it a directory that "
        "can be written, or take another"
    )


def _no_room(need: int, wanted: _Wanted, reason: str = "") -> SettingError:
    """What to say of a store that would fill the disk."""
    there = next(path for path in (wanted.directory, *wanted.directory.parents) if path.is_dir())
    free = readable_size(free_bytes(there))
    smaller = ", or keep smaller images with --image-store small" if wanted.layout.kind == "full" else ""
    return SettingError(
        f"{wanted.directory}: the image store needs {readable_size(need)} and {free} are free there{reason}; free "
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
        if isinstance(error, OSError) and error.errno in _SHORTAGE:
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
