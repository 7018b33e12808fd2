"""Headers of images: which can be read, and how many bytes a store of the images needs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dcml_tune.data.contents import looks
from dcml_tune.data.image_list import Indices
from dcml_tune.data.image_store.reader import ROW_BYTES
from dcml_tune.data.image_store.threads import attempt, map_threads
from dcml_tune.data.image_store.wanted import Wanted


def readable_images(wanted: Wanted) -> tuple[Indices, Indices, list[str]]:
    """Positions of the images with readable headers, their heights and widths (R x 2), and the other images."""
    headers = _headers(wanted)
    readable = [i for i, header in enumerate(headers) if not isinstance(header, str)]
    sizes = np.array([headers[i] for i in readable], dtype=np.int64).reshape(-1, 2)
    names = [f"{wanted.images.name(i)} ({header})" for i, header in enumerate(headers) if isinstance(header, str)]
    return np.array(readable, dtype=np.int64), sizes, names


def _headers(wanted: Wanted) -> list[tuple[int, int] | str]:
    """Stored height and width of each image, or the reason why its header cannot be read."""
    known = known_sizes(looks(wanted.images), len(wanted.images))

    def header(i: int) -> tuple[int, int]:
        if not known[i].all():
            with wanted.images.open(i) as image:
                known[i] = image.size
        width, height = wanted.layout.size(*known[i].tolist())
        return height, width

    return map_threads(lambda i: attempt(lambda: header(i)), len(wanted.images))


@lru_cache(maxsize=8)
def known_sizes(state: str, count: int) -> Indices:
    """N x 2: width and height of each image of a list; 0 if this process has not read its header."""
    return np.zeros((count, 2), dtype=np.int64)


def needed(wanted: Wanted) -> int:
    """Bytes of the requested store."""
    if wanted.layout.kind == "evaluation":
        return nbytes_of(np.full((len(wanted.images), 2), wanted.layout.sz_crop))
    return nbytes_of(readable_images(wanted)[1])


def nbytes_of(sizes: Indices) -> int:
    """Bytes of pixels and index for images of the given sizes, R x 2."""
    return int(3 * sizes.prod(axis=1).sum()) + ROW_BYTES * len(sizes)
