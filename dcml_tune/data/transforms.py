"""Training augmentation of decoded images: random resized crop and flip, or the augmentation that `album` names.

Numbers are drawn for a whole batch at once from one generator. A batch therefore depends on its seed alone, not on the
process that prepares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dcml_tune.data.crops import Augmentation, crop_and_flip
from dcml_tune.data.image_list import Pixels


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
        # Importing albumentations takes seconds, so it is imported when it is used.
        self._augment: Augmentation | None = None

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Tensor:
        """Augment a batch.

        Args:
            views: decoded images, each H x W x 3; they are not changed.
            rng: source of all random numbers.

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
