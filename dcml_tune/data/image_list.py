"""Lists of images on disk, and data sets made of them. Images are opened only when they are read."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL.ImageFile import ImageFile

from dcml_tune.config.errors import SettingError
from dcml_tune.data.decoding import Picture, decode, identify, open_regular, refuse_size
from dcml_tune.utils.stored import printable

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class UnreadableImageError(SettingError):
    """An image file that is missing, damaged, or not an image."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """An ordered list of images with their classes.

    Example:
        >>> images = ImageList(("a/1.jpg", "b/1.jpg"), np.array([4, 7]), Path("photos"))
        >>> len(images), images.take([1]).paths, images.dense_labels().tolist()
        (2, ('b/1.jpg',), [0, 1])
    """

    paths: tuple[str, ...]
    """Names relative to `root`, with forward slashes."""
    labels: Indices
    """N: class of each image, an index into the classes of the data set."""
    root: Path
    """Directory of the files, or the zip file that holds them."""
    super_labels: Indices | None = None
    """N: super-class of each image; None if the data set has none."""

    def __post_init__(self) -> None:
        assert len(self.paths) == len(self.labels), "one label an image"
        assert self.super_labels is None or len(self.super_labels) == len(self.labels), "one super-class an image"

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: npt.ArrayLike) -> ImageList:
        """The images at the given positions, in that order."""
        at = np.asarray(indices, dtype=np.int64)
        supers = None if self.super_labels is None else self.super_labels[at]
        return ImageList(tuple(self.paths[i] for i in at.tolist()), self.labels[at], self.root, supers)

    def read(self, i: int) -> Pixels:
        """Decode one image by the rules of `dcml_tune.data.decoding`.

        Returns:
            H x W x 3.

        Raises:
            UnreadableImageError: if it cannot be decoded.
        """
        try:
            return np.asarray(self.decode(i).image)
        except Exception as error:  # a damaged file raises anything: OSError, SyntaxError, struct.error, ...
            raise UnreadableImageError(
                f"{self.name(i)}: cannot be decoded ({why(error)}); repair or remove it, "
                "or leave such files out with --skip-unreadable"
            ) from None

    def decode(self, i: int) -> Picture:
        """Decode one image as `read` does; returns a Pillow image and raises Pillow's errors."""
        with self.open(i) as image:
            return decode(image)

    @contextmanager
    def open(self, i: int) -> Iterator[ImageFile]:
        """Open one image for the duration of the block: its header is read, its pixels are not."""
        with self._file(i) as file:
            yield identify(file, self.paths[i])

    def _file(self, i: int) -> BinaryIO:
        if not _is_zip(self.root):
            return open_regular(self.root / self.paths[i])
        # The threads of a process can share a ZipFile, which locks each read. Processes cannot: a fork shares the
        # position in the file.
        archive = _zip_of_process(self.root, os.getpid())
        refuse_size(archive.getinfo(self.paths[i]).file_size)
        return io.BytesIO(archive.read(self.paths[i]))

    def name(self, i: int) -> str:
        """Full path of one image for messages, with control characters escaped."""
        return printable(str(self.root / self.paths[i]))

    def states(self) -> list[str]:
        """Name, size and modification time of each file (checksum in a zip file), in order; of a missing file only its name."""
        if _is_zip(self.root):
            archive = _zip_of_process(self.root, os.getpid())
            entries = ((path, archive.getinfo(path)) for path in self.paths)
            return [f"{path}|{entry.file_size}|{entry.CRC}" for path, entry in entries]
        return [_state(self.root, path) for path in self.paths]

    def dense_labels(self) -> Indices:
        """N: labels renumbered 0 .. number of classes - 1, in the order of the classes."""
        return np.unique(self.labels, return_inverse=True)[1].astype(np.int64)

    @property
    def nb_classes(self) -> int:
        """Number of classes of the images."""
        return len(np.unique(self.labels))


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A set of images on which retrieval is measured."""

    name: str
    """`test`, `validation`, or a name that distinguishes several test sets of a data set."""
    queries: ImageList
    gallery: ImageList | None
    """Images in which queries are searched; None: each query is searched in all others."""
    ks: tuple[int, ...]
    """Ranks k of the reported recall@k."""

    @property
    def lists(self) -> tuple[ImageList, ...]:
        """Queries, and the gallery if there is one."""
        return (self.queries,) if self.gallery is None else (self.queries, self.gallery)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set: training classes, and test sets of other classes."""

    name: str
    class_names: tuple[str, ...]
    """Names of all classes; labels are indices into them."""
    train: ImageList
    """Images of all training classes, including those that will be held out."""
    tests: tuple[EvaluationSet, ...]
    """The test sets; the first one is reported by default."""
    notes: tuple[str, ...] = ()
    """Lines for the user about what was excluded, and why."""

    @property
    def fingerprint_by_time(self) -> str:
        """Order-independent hash of names, sizes and modification times of all files; version 0.1 identified data sets by it."""
        lists = [self.train, *(images for test in self.tests for images in test.lists)]
        return fingerprint(self.name, *sorted({state for images in lists for state in images.states()}))

    @property
    def test_fingerprint(self) -> str:
        """Order-independent hash of names and classes of the test images. No file is accessed."""
        named = {
            f"{path}|{label}"
            for images in self.test_lists
            for path, label in zip(images.paths, images.labels, strict=True)
        }
        return fingerprint(self.name, *sorted(named))

    @property
    def test_lists(self) -> tuple[ImageList, ...]:
        """The lists of test images, without lists that are part of an earlier one (VehicleID's smaller lists)."""
        found: list[tuple[ImageList, set[str]]] = []
        for images in (images for test in self.tests for images in test.lists):
            if not any(known.issuperset(images.paths) for _, known in found):
                found.append((images, set(images.paths)))
        return tuple(images for images, _ in found)

    @property
    def nb_test_classes(self) -> int:
        """Number of classes of all test sets together."""
        return len(set().union(*(np.unique(images.labels) for test in self.tests for images in test.lists)))

    def counts(self) -> str:
        """Numbers of classes and images, in one line."""
        tests = "; ".join(_counts(test) for test in self.tests)
        return (
            f"{self.name}: {self.train.nb_classes:,} training classes ({len(self.train):,} images), "
            f"{self.nb_test_classes:,} test classes ({tests})"
        )


def fingerprint(*parts: object) -> str:
    """A short hash of the string forms of some values, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        # No file name contains the separator, so that ("ab", "c") and ("a", "bc") differ.
        digest.update(f"{part}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def why(error: BaseException) -> str:
    """The reason of an error on one line, without the name of the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "cannot identify image file" in text:
        return "no image in a format that is read"
    return printable(" ".join(text.split())) or type(error).__name__


def named(names: Sequence[str], *, limit: int = 10) -> str:
    """Up to `limit` names, separated by commas and with control characters escaped, and the number of further ones."""
    rest = len(names) - limit
    return ", ".join(map(printable, names[:limit])) + (f" and {rest:,} more" if rest > 0 else "")


def _counts(test: EvaluationSet) -> str:
    if test.gallery is None:
        return f"{len(test.queries):,} images"
    return f"{len(test.queries):,} queries, {len(test.gallery):,} in the gallery"


def _state(root: Path, path: str) -> str:
    try:
        stat = os.stat(os.path.join(root, path))
    except OSError:  # it is handled as an image that cannot be decoded
        return f"{path}|missing"
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _is_zip(root: Path) -> bool:
    return root.suffix == ".zip"


@lru_cache(maxsize=8)
def _zip_of_process(root: Path, process: int) -> zipfile.ZipFile:
    """The open archive of a process; the process id is part of the cache key because forked processes need their own."""
    return zipfile.ZipFile(root)
