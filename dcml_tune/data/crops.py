"""Random resized crops and flips of decoded images, with the numbers and the distribution of torchvision.

Shapes: B images, S side of a crop in pixels, T tries. Images are uint8, H x W x 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dcml_tune.data.image_list import Indices, Pixels

# Parameters of torchvision's RandomResizedCrop: least share of the area, range of width / height, and number of tries
# before the centre of the image is used.
LEAST_AREA = 0.08
RATIO = (3 / 4, 4 / 3)
TRIES = 10


class Crops(NamedTuple):
    """B rectangles in pixels, one per image."""

    top: Indices
    left: Indices
    height: Indices
    width: Indices


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """The settings of the augmentation of training images; see `TrialConfig`."""

    sz_crop: int
    album: str | None = None
    crop_scale: float = LEAST_AREA
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9


class Augmentation(Protocol):
    """An augmentation of a batch; `album` selects one by name."""

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
        """Augment images H x W x 3 into B x S x S x 3."""
        ...


def crop_and_flip(
    views: Sequence[Pixels], rng: np.random.Generator, *, size: int, least_area: float = LEAST_AREA
) -> Pixels:
    """Random resized crops of images, half of them mirrored: B x size x size x 3."""
    squares = resized_crops(views, draw_crops(views, rng, least_area), size)
    images = torch.from_numpy(squares)
    for number in np.flatnonzero(rng.random(len(views)) < 0.5).tolist():
        # 14 times as fast as numpy's flip, and as torch's flip of several images at once: both copy byte by byte.
        images[number] = images[number].flip(1)
    return squares


def draw_crops(views: Sequence[Pixels], rng: np.random.Generator, least_area: float = LEAST_AREA) -> Crops:
    """Draw a rectangle in each image with the distribution of torchvision.

    The share of the area is uniform between `least_area` and 1, the logarithm of the ratio is uniform in the range of `RATIO`. The first
    of `TRIES` rectangles that fits into the image is used, at a uniform position. If none fits, the result is the largest
    centred rectangle whose ratio is closest to that of the image.

    Source: torchvision.transforms.RandomResizedCrop.get_params.
    """
    height, width = np.array([view.shape[:2] for view in views], dtype=np.int64).T
    area_BT = (height * width)[:, None] * rng.uniform(least_area, 1.0, (len(views), TRIES))
    ratio_BT = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), area_BT.shape))
    w_BT = np.rint(np.sqrt(area_BT * ratio_BT)).astype(np.int64)
    h_BT = np.rint(np.sqrt(area_BT / ratio_BT)).astype(np.int64)
    fits_BT = (w_BT > 0) & (w_BT <= width[:, None]) & (h_BT > 0) & (h_BT <= height[:, None])
    first = np.arange(len(views)), fits_BT.argmax(axis=1)
    found = fits_BT[first]
    h_middle, w_middle = _nearest_ratio(height, width)
    h, w = np.where(found, h_BT[first], h_middle), np.where(found, w_BT[first], w_middle)
    at = rng.random((2, len(views)))
    top = np.where(found, at[0] * (height - h + 1), (height - h) // 2).astype(np.int64)
    left = np.where(found, at[1] * (width - w + 1), (width - w) // 2).astype(np.int64)
    return Crops(top, left, h, w)


def resized_crops(views: Sequence[Pixels], crops: Crops, size: int) -> Pixels:
    """Crop and resize images as torchvision's resized_crop does for tensors (antialiased).

    Returns:
        B x size x size x 3.
    """
    # Resizing takes about 30 us at 64 px, so the overhead of calls matters: hence torch's operator without its Python
    # wrapper, and channels_last for input and output, for which it needs no conversion.
    resize: Callable[..., Tensor] = torch._C._nn._upsample_bilinear2d_aa
    squares = np.empty((len(views), size, size, 3), dtype=np.uint8)
    outputs = torch.split(torch.from_numpy(squares).permute(0, 3, 1, 2), 1)
    for view, top, left, height, width, output in zip(
        views, *(column.tolist() for column in crops), outputs, strict=True
    ):
        # The copy is dense, as the operator needs, and writable, as torch requires.
        crop = view[None, top : top + height, left : left + width].copy()
        resize(torch.from_numpy(crop).permute(0, 3, 1, 2), (size, size), False, None, None, out=output)
    return squares


def _nearest_ratio(height: Indices, width: Indices) -> tuple[Indices, Indices]:
    """Height and width of the largest rectangles in images whose ratio lies within `RATIO`."""
    ratio = width / height
    h = np.where(ratio < RATIO[0], np.rint(width / RATIO[0]), height)
    w = np.where(ratio > RATIO[1], np.rint(height * RATIO[1]), width)
    return h.astype(np.int64), w.astype(np.int64)
