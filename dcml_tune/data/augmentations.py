"""The augmentations that `album` selects: two pipelines of albumentations, heavy colour jitter, and RandAugment.

Each draws one seed per image from a generator, so that the augmentation of an image depends only on the generator and its
position in the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dcml_tune.data.crops import RATIO, Augmentation, AugmentationSettings, crop_and_flip
from dcml_tune.data.image_list import Pixels

# Without this, importing albumentations asks a server for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2

# Largest relative change of brightness, contrast and saturation; hue changes by up to a quarter of it.
JITTER = 0.4


class Pipeline:
    """An albumentations pipeline, seeded for each image."""

    def __init__(self, steps: list[Any]) -> None:
        """Compose the steps; the last one that changes the size must return squares."""
        # A trial has few cores; by default OpenCV starts one thread per core of the machine.
        cv2.setNumThreads(0)
        self._pipeline = A.Compose(steps)

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
        """Augment images H x W x 3 into B x S x S x 3."""
        seeds = rng.integers(2**32, size=len(views)).tolist()
        return np.stack([self._one(view, seed) for view, seed in zip(views, seeds, strict=True)])

    def _one(self, view: Pixels, seed: int) -> Pixels:
        self._pipeline.set_random_seed(seed)
        # Some steps change images in place, and the views of the store are read-only.
        square: Pixels = self._pipeline(image=view.copy())["image"]
        return square


class ColorHeavy:
    """Random resized crop, flip, colour jitter (p 0.8), grey (p 0.2)."""

    def __init__(self, settings: AugmentationSettings) -> None:
        """Create the augmentation."""
        self._settings = settings

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
        """Augment images H x W x 3 into B x S x S x 3."""
        squares = _cropped(views, rng, self._settings)
        for square, seed in zip(squares, rng.integers(2**32, size=len(views)).tolist(), strict=True):
            own = np.random.default_rng(seed)
            image = torch.from_numpy(square).permute(2, 0, 1)
            jittered = jitter(image, own) if own.random() < 0.8 else image
            grey = F.rgb_to_grayscale(jittered, num_output_channels=3) if own.random() < 0.2 else jittered
            square[:] = grey.permute(1, 2, 0).numpy()
        return squares


class RandAugment:
    """Random resized crop, flip, then torchvision's RandAugment: a few random operations of one magnitude.

    torchvision draws from torch's global generator. It is seeded for each image, and set back afterwards.

    Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019.
    """

    def __init__(self, settings: AugmentationSettings) -> None:
        """Create the augmentation."""
        self._settings = settings
        self._operations = v2.RandAugment(settings.randaugment_ops, settings.randaugment_magnitude)

    def __call__(self, views: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
        """Augment images H x W x 3 into B x S x S x 3."""
        squares = _cropped(views, rng, self._settings)
        seeds = rng.integers(2**32, size=len(views)).tolist()
        with torch.random.fork_rng(devices=[]):
            for square, seed in zip(squares, seeds, strict=True):
                # Not torch.manual_seed, which seeds the generators of GPUs, too.
                torch.default_generator.manual_seed(seed)
                square[:] = self._operations(torch.from_numpy(square).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        return squares


def jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of an image 3 x H x W, in a random order.

    Source: torchvision's ColorJitter, which uses torch's global generator and therefore depends on earlier draws.
    """
    brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, 3).tolist()
    hue = float(rng.uniform(-JITTER / 4, JITTER / 4))
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.adjust_brightness(x, brightness),
        lambda x: F.adjust_contrast(x, contrast),
        lambda x: F.adjust_saturation(x, saturation),
        lambda x: F.adjust_hue(x, hue),
    ]
    for step in rng.permutation(len(steps)).tolist():
        image = steps[step](image)
    return image


def geom(settings: AugmentationSettings) -> Augmentation:
    """Rotation, then random resized crop, flip, holes, blur; no colour."""
    return Pipeline([_rotation(), _crop(settings), A.HorizontalFlip(p=0.5), _holes(settings.sz_crop), _blur()])


def geom_color(settings: AugmentationSettings) -> Augmentation:
    """Random resized crop, brightness and contrast, flip, rotation, holes, blur."""
    light = A.RandomBrightnessContrast(brightness_limit=(-0.2, 0.2), contrast_limit=(-0.2, 0.2), p=0.5)
    return Pipeline([_crop(settings), light, A.HorizontalFlip(p=0.5), _rotation(), _holes(settings.sz_crop), _blur()])


ALBUMS: dict[str, Callable[[AugmentationSettings], Augmentation]] = {
    "Geom": geom,
    "GeomColor": geom_color,
    "ColorHeavy": ColorHeavy,
    "RandAugment": RandAugment,
}


def hole_side(size: int) -> int:
    """Side of a hole in pixels: 40, as in the original, and the same share of the side for crops below 224.

    Five holes of 40 pixels would hide most of an image of 64 pixels.
    """
    return max(1, round(40 * min(1.0, size / 224)))


def _cropped(views: Sequence[Pixels], rng: np.random.Generator, settings: AugmentationSettings) -> Pixels:
    return crop_and_flip(views, rng, size=settings.sz_crop, least_area=settings.crop_scale)


def _crop(settings: AugmentationSettings) -> Any:
    size, scale = (settings.sz_crop, settings.sz_crop), (settings.crop_scale, 1.0)
    return A.RandomResizedCrop(size=size, scale=scale, ratio=RATIO, area_for_downscale="image")


def _rotation() -> Any:
    # Replaces ShiftScaleRotate of the original's version of albumentations, which reflected the image at its borders.
    return A.Affine(rotate=(-45, 45), translate_percent=(-0.0625, 0.0625), border_mode=cv2.BORDER_REFLECT_101, p=0.5)


def _holes(size: int) -> Any:
    # albumentations silently ignores the parameter names of version 0.4 (max_holes, ...).
    side = hole_side(size)
    return A.CoarseDropout(
        num_holes_range=(1, 5), hole_height_range=(side, side), hole_width_range=(side, side), fill=0, p=0.5
    )


def _blur() -> Any:
    return A.Blur(blur_limit=(3, 7), p=0.5)
