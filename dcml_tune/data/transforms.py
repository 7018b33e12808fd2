"""Training augmentation of decoded images: random resized crop and flip, or the augmentation that `album` names.

Numbers are drawn for a whole batch at once from one generator. A batch therefore depends on its seed alone, not on the
process that prepares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dcml_tune.data.crops import LEAST_AREA, Augmentation, AugmentationSettings, crop_and_flip
from dcml_tune.data.image_list import Pixels


class TrainTransform:
    """Random resized crop to `sz_crop` and flip with probability 1/2, or the augmentation that `album` names.

    Example:
        >>> views = [np.zeros((40, 60, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)]
        >>> TrainTransform(32)(views, np.random.default_rng(0)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        sz_crop: int,
        album: str | None = None,
        *,
        crop_scale: float = LEAST_AREA,
        randaugment_ops: int = 2,
        randaugment_magnitude: int = 9,
    ) -> None:
        """Prepare the augmentation.

        Args:
            sz_crop: side of the squares, in pixels.
            album: None, Geom, GeomColor, ColorHeavy or RandAugment (`TrialConfig.album`).
            crop_scale: smallest share of an image's area that a crop takes.
            randaugment_ops: number of operations of RandAugment.
            randaugment_magnitude: magnitude of the operations of RandAugment, 0 to 30.
        """
        self.settings = AugmentationSettings(
            sz_crop=sz_crop,
            album=album,
            crop_scale=crop_scale,
            randaugment_ops=randaugment_ops,
            randaugment_magnitude=randaugment_magnitude,
        )
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
        settings = self.settings
        if self._augment is None and settings.album is not None:
            from dcml_tune.data.augmentations import ALBUMS

            self._augment = ALBUMS[settings.album](settings)
        return self._augment or partial(crop_and_flip, size=settings.sz_crop, least_area=settings.crop_scale)

    def __reduce__(self) -> tuple[partial[TrainTransform], tuple[()]]:
        return partial(TrainTransform, **asdict(self.settings)), ()
