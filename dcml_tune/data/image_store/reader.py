"""Reads a store: description, index and pixels."""

from __future__ import annotations

import io
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcml_tune.data.image_list import Indices, Pixels
from dcml_tune.data.image_store.layout import Kind
from dcml_tune.data.image_store.threads import map_threads
from dcml_tune.utils.files import CorruptFileError, read_checksummed
from dcml_tune.utils.stored import Count, Stored

# The files of a store.
PIXELS, INDEX, META, STAMP = "pixels.npy", "index.npy", "meta.json", "verified.json"
ROW_BYTES = 5 * 8


class Meta(Stored):
    """meta.json: description of a store."""

    key: str
    version: Count
    kind: Kind
    images: Count
    bytes: Count
    offset: Count
    shape: list[Count]
    index_crc: Count
    left_out: list[str]
    departures: dict[str, Count]


class ImageStore:
    """Decoded images of an image list; row r is image `kept[r]` of the list.

    Opening reads only the index. Pickling a store pickles its directory.

    Raises:
        ValueError: if the files do not match the description of the store.
    """

    def __init__(self, directory: Path) -> None:
        """Open a store."""
        self.directory = directory
        self._meta: dict[str, Any] = read_checksummed(directory / META, Meta)
        index = (directory / INDEX).read_bytes()
        pixels = directory / PIXELS
        if (pixels.stat().st_size, zlib.crc32(index)) != (self._meta["bytes"], self._meta["index_crc"]):
            raise ValueError(f"{directory}: {PIXELS} or {INDEX} does not match its checksum")
        self._index: Indices = np.load(io.BytesIO(index), allow_pickle=False)
        self._refuse_impossible()
        # Shape and offset are those of the description, because the header of the file has no checksum.
        place: dict[str, Any] = {"offset": self._meta["offset"], "shape": tuple(self._meta["shape"])}
        # A plain array avoids the overhead of numpy's memmap class for each view.
        self._pixels: Pixels = np.asarray(np.memmap(pixels, np.uint8, mode="r", **place))
        _, self._starts, self._heights, self._widths, _ = self._index.T.tolist()

    def _refuse_impossible(self) -> None:
        """Check that the index refers to places within the pixels; its checksum does not guarantee this."""
        meta, index = self._meta, self._index
        size = math.prod(meta["shape"])
        axes = 4 if meta["kind"] == "evaluation" else 1
        fits = index.dtype == np.int64 and index.shape == (meta["images"], 5) and (index[:, :4] >= 0).all()
        fits = fits and len(meta["shape"]) == axes and meta["offset"] + size <= meta["bytes"]
        if fits and axes == 1:
            ends = [start + 3 * height * width for _, start, height, width, _ in index.tolist()]
            fits = max(ends, default=0) <= size
        elif fits:
            fits = len(index) == meta["shape"][0] and (index[:, 1] < max(1, len(index))).all()
            fits = fits and (index[:, 2:4] == meta["shape"][1:3]).all() and meta["shape"][3] == 3
        if not fits:
            raise ValueError(f"{self.directory}: {META} and {INDEX} hold values that are not possible")

    def __reduce__(self) -> tuple[type[ImageStore], tuple[Path]]:
        return ImageStore, (self.directory,)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def key(self) -> str:
        """Unique name of the store: kind, sizes, and hash of images and version."""
        return self.directory.name

    @property
    def kind(self) -> Kind:
        """Kind of the images: full size, shorter side limited to `sz_resize`, or squares for evaluation."""
        kind: Kind = self._meta["kind"]
        return kind

    @property
    def kept(self) -> Indices:
        """R: positions in the image list of the stored images, ascending."""
        return self._index[:, 0]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the images that could not be decoded, each with the reason."""
        return tuple(self._meta["left_out"])

    @property
    def departures(self) -> dict[str, int]:
        """Number of images by applied conversion; keys as in `decoding.DEPARTURES`."""
        return dict(self._meta["departures"])

    @property
    def nbytes(self) -> int:
        """Size of the pixels on disk, in bytes."""
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
        """Rows whose pixels have changed or cannot be read. The whole store is read."""
        with (self.directory / PIXELS).open("rb") as file:
            found = map_threads(lambda row: self._crc_on_disk(file.fileno(), row), len(self))
        return [row for row, crc in enumerate(found) if crc != self._index[row, 4]]

    def is_verified(self) -> bool:
        """Whether the files are unchanged since their pixels last matched their checksums."""
        try:
            return bool(read_checksummed(self.directory / STAMP) == state_of(self.directory))
        except (CorruptFileError, OSError):
            return False

    def is_of(self, facts: dict[str, Any]) -> bool:
        """Whether the description of the store contains the given facts."""
        return all(self._meta.get(key) == value for key, value in facts.items())

    def _crc_on_disk(self, file: int, row: int) -> int | None:
        """Checksum of the current pixels on disk; None if they cannot be read.

        Reading the memory map instead would kill the process at the first bad block.
        """
        nbytes = 3 * self._heights[row] * self._widths[row]
        start = self._starts[row] * (nbytes if self.kind == "evaluation" else 1)
        try:
            return zlib.crc32(os.pread(file, nbytes, self._meta["offset"] + start))
        except OSError:
            return None


def state_of(directory: Path) -> dict[str, list[int]]:
    """State of the files, which differs after each change.

    It includes the change time of the inode, because the modification time can be set to any value.
    """
    stats = {name: (directory / name).stat() for name in (PIXELS, INDEX)}
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}


def crc_of(array: npt.NDArray[Any]) -> int:
    """CRC-32 of the values of an array."""
    return zlib.crc32(np.ascontiguousarray(array).data)
