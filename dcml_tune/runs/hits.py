"""hits.npz: for each query of a run, its class and whether its nearest neighbour has this class.

The file holds the classes, one bit for each query, and a SHA-256 of both. It is about 1 kB for the test images of CUB. Runs
of earlier versions have none.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcml_tune.utils.errnos import SHORTAGE
from dcml_tune.utils.files import CorruptFileError, write_atomic
from dcml_tune.utils.stored import printable

HITS_FILE = "hits.npz"
"""Name of the file in the directory of a run."""

_SEAL = "seal"


@dataclass(frozen=True, kw_only=True)
class QueryHits:
    """What one run retrieved, query by query.

    The mean of `hits` is recall@1 of queries that are searched in all others or, where the data set has one, in its
    gallery. For VehicleID this is not the official protocol, which draws galleries.

    Example:
        >>> found = QueryHits(classes=np.array([3, 3, 7]), hits=np.array([True, False, True]))
        >>> len(found.hits)
        3

    Raises:
        ValueError: if the arrays are not of one shape (Q,).
    """

    classes: NDArray[np.int64]
    """(Q,) Class of each query."""
    hits: NDArray[np.bool_]
    """(Q,) Whether the nearest neighbour of each query has its class."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.classes.ndim != 1 or self.classes.shape != self.hits.shape:
            raise ValueError(f"one class per query must be given, but got {self.classes.shape} and {self.hits.shape}")

    def write(self, file: Path) -> None:
        """Write both arrays with their checksum, atomically."""
        classes, bits = self.classes.astype(np.int32), np.packbits(self.hits)
        made = io.BytesIO()
        np.savez_compressed(made, classes=classes, hits=bits, seal=_checksum(classes, bits))
        write_atomic(file, made.getvalue())

    @classmethod
    def read(cls, file: Path) -> QueryHits | None:
        """Read what `write` wrote; None if there is no file, as for runs of earlier versions.

        Raises:
            CorruptFileError: if the file was changed, or its content is not valid. The message has one line.
            OSError: if the machine is short of memory or file descriptors.
        """
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
                classes, bits, seal = found["classes"], found["hits"], found[_SEAL]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in SHORTAGE:
                raise
            why = printable(" ".join(str(error).split()))
            raise CorruptFileError(f"{file}: cannot be read ({type(error).__name__}: {why})") from None
        if not np.array_equal(seal, _checksum(classes, bits)):
            raise CorruptFileError(f"{file}: does not match its checksum; it was changed since it was written")
        return cls(classes=classes.astype(np.int64), hits=np.unpackbits(bits, count=len(classes)).astype(np.bool_))


def _checksum(classes: NDArray[np.int32], hits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    digest = hashlib.sha256(classes.tobytes() + b"|" + hits.tobytes()).digest()
    return np.frombuffer(digest, dtype=np.uint8)
