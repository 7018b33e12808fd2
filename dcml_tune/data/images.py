"""ImageList, EvaluationSet, DataSet: what a data set is made of. Listing opens no image."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def fingerprint(*parts: Any) -> str:
    """Sixteen hexadecimal digits that change when one of the parts does."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageList:
    """Images and their classes."""

    paths: tuple[str, ...]
    """Relative to the root."""
    labels: NDArray[np.int64]
    """Class of each image, as an index into all classes of the data set."""
    root: Path
    """A directory, or a zip file."""
    super_labels: NDArray[np.int64] | None = None
    """Super-class of each image, where the data set has them."""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: NDArray[np.int64]) -> ImageList:
        """The images at some indices."""
        chosen = None if self.super_labels is None else self.super_labels[indices]
        paths = tuple(self.paths[i] for i in indices)
        return replace(self, paths=paths, labels=self.labels[indices], super_labels=chosen)

    def open(self, index: int) -> Image.Image:
        """An image, its pixels not decoded yet."""
        if self.root.suffix == ".zip":
            return Image.open(io.BytesIO(_archive(self.root).read(self.paths[index])))
        return Image.open(self.root / self.paths[index])

    def read(self, index: int) -> Pixels:
        """An image as RGB, H x W x 3 (`convert("RGB")`: palettes are resolved, transparency is dropped)."""
        with self.open(index) as image:
            return np.asarray(image.convert("RGB"))

    def key(self) -> str:
        """Fingerprint of names, sizes and times of change; of a zip file, of names and checksums."""
        if self.root.suffix == ".zip":
            archive = _archive(self.root)
            return fingerprint([(path, archive.getinfo(path).CRC) for path in self.paths])
        stats = [(self.root / path).stat() for path in self.paths]
        facts = [(p, s.st_size, s.st_mtime_ns) for p, s in zip(self.paths, stats, strict=True)]
        return fingerprint(str(self.root.resolve()), facts)


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class EvaluationSet:
    """Test images, and how they are searched."""

    name: str
    queries: ImageList
    gallery: ImageList | None
    """None: the queries are searched in each other."""
    ks: tuple[int, ...]


@dataclass(frozen=True)
class DataSet:
    """A data set with its published split."""

    name: str
    class_names: tuple[str, ...]
    train: ImageList
    """Images of all training classes."""
    tests: tuple[EvaluationSet, ...]
    notes: tuple[str, ...] = ()
    """Lines that a user should see, such as classes left out."""

    @property
    def fingerprint(self) -> str:
        """Changes when an image or the split does."""
        return fingerprint(self.train.key(), [test.queries.key() for test in self.tests])

    def counts(self) -> str:
        """`3,339 training images of 621 classes, 3,314 test images of 620 classes`."""
        parts = [(self.train, "training"), (self.tests[0].queries, "test")]
        return ", ".join(f"{len(i):,} {role} images of {len(np.unique(i.labels)):,} classes" for i, role in parts)
