"""Training augmentation of decoded images: random resized crop and flip, and what `album` adds.

Numbers are drawn for a whole batch at once from one generator; so a batch depends on its seed alone, not on
the process that prepares it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dcml_tune.data.image_list import Indices, Pixels

# torchvision's RandomResizedCrop: shares of the area, range of width / height, and tries before the middle
# of the image is taken.
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10


class Crops(NamedTuple):
    """B rectangles in pixels, one an image."""

    top: Indices
    left: Indices
    height: Indices
    width: Indices


class Augmentation(Protocol):
    """What `album` names: from the views of a batch to squares."""

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
        """Augment images H x W x 3 into B x S x S x 3."""
        ...


class TrainTransform:
    """Random resized crop to `sz_crop` and flip with probability 1/2, or the augmentation that `album` names.

    Example:
        >>> views = [np.zeros((40, 60, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)]
        >>> TrainTransform(32)(views, np.random.default_rng(0)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, sz_crop: int, album: str | None = None) -> None:
        """Prepare the augmentation.

        Args:
            sz_crop: side of the squares, in pixels.
            album: None, Geom, GeomColor or ColorHeavy (`TrialConfig.album`).
        """
        self.sz_crop, self.album = sz_crop, album
        # albumentations takes seconds to import, so it is imported by those who use it.
        self._augment: Augmentation | None = None

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Tensor:
        """Augment a batch.

        Args:
            views: decoded images, each H x W x 3; they are not written to.
            rng: the source of everything random.

        Returns:
            B x 3 x S x S uint8, in channels_last memory format.
        """
        squares = self._prepared()(views, rng)
        return torch.from_numpy(squares).permute(0, 3, 1, 2)

    def _prepared(self) -> Augmentation:
        if self._augment is None and self.album is not None:
            from dcml_tune.data.augmentations import ALBUMS

            self._augment = ALBUMS[self.album](self.sz_crop)
        return self._augment or partial(crop_and_flip, size=self.sz_crop)

    def __reduce__(self) -> tuple[type[TrainTransform], tuple[int, str | None]]:
        return TrainTransform, (self.sz_crop, self.album)


def crop_and_flip(views: Sequence[Pixels], rng: np.random.Generator, *, size: int) -> Pixels:
    """Random resized crops of images, half of them mirrored: B x size x size x 3."""
    squares = resized_crops(views, draw_crops(views, rng), size)
    images = torch.from_numpy(squares)
    for number in np.flatnonzero(rng.random(len(views)) < 0.5).tolist():
        # 14 times as fast as numpy's, which goes byte by byte, as torch's own of several images at once does.
        images[number] = images[number].flip(1)
    return squares


def draw_crops(views: Sequence[Pixels], rng: np.random.Generator) -> Crops:
    """Draw a rectangle in each image by torchvision's law.

    Area uniform in `SCALE` of the image's, logarithm of the ratio uniform in `RATIO`; the first of `TRIES`
    tries that lies within the image, at a uniform position; else the largest rectangle in the middle whose
    ratio is nearest to the image's.

    Source: torchvision.transforms.RandomResizedCrop.get_params.
    """
    height, width = np.array([view.shape[:2] for view in views], dtype=np.int64).T
    area_BT = (height * width)[:, None] * rng.uniform(*SCALE, (len(views), TRIES))
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
    """Cut out rectangles and resize them as torchvision's resized_crop does on tensors (antialiased).

    Returns:
        B x size x size x 3.
    """
    # An image is resized in about 30 us at 64 px, where the calls count: hence torch's operator
    # without its Python wrapper, and channels_last on either side, for which it has a path without
    # conversions.
    resize: Callable[..., Tensor] = torch._C._nn._upsample_bilinear2d_aa
    squares = np.empty((len(views), size, size, 3), dtype=np.uint8)
    outputs = torch.split(torch.from_numpy(squares).permute(0, 3, 1, 2), 1)
    for view, top, left, height, width, output in zip(
        views, *(column.tolist() for column in crops), outputs, strict=True
    ):
        # The copy is dense, which the operator would make of it anyway, and may be written to, as torch
        # wants.
        crop = view[None, top : top + height, left : left + width].copy()
        resize(torch.from_numpy(crop).permute(0, 3, 1, 2), (size, size), False, None, None, out=output)
    return squares


def _nearest_ratio(height: Indices, width: Indices) -> tuple[Indices, Indices]:
    """Height and width of the largest rectangles in images whose ratio lies within `RATIO`."""
    ratio = width / height
    h = np.where(ratio < RATIO[0], np.rint(width / RATIO[0]), height)
    w = np.where(ratio > RATIO[1], np.rint(height * RATIO[1]), width)
    return h.astype(np.int64), w.astype(np.int64)
