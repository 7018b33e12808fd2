"""Training views: random resized crop, flip, and the augmentations of `album`; uint8 in, uint8 out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcml_tune.data.images import Pixels

# torchvision's law of RandomResizedCrop.
_SCALE, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


class TrainTransform:
    """Makes a batch of training views, B x 3 x S x S uint8 in channels_last, from images of any size."""

    def __init__(self, sz_crop: int, album: str | None = None) -> None:
        self.sz_crop, self.album = sz_crop, album

    def __call__(self, images: list[Pixels], rng: np.random.Generator) -> Tensor:
        """Augment a batch; all chance comes from `rng`."""
        if self.album is not None:
            return self._album(images, rng)
        boxes = crop_boxes(np.array([image.shape[:2] for image in images]), rng)
        flips = rng.random(len(images)) < 0.5
        out = torch.empty(len(images), self.sz_crop, self.sz_crop, 3, dtype=torch.uint8)
        for number, (image, (top, left, height, width)) in enumerate(zip(images, boxes.tolist(), strict=True)):
            out[number] = self._resized(image[top : top + height, left : left + width], flips[number])
        return out.permute(0, 3, 1, 2)

    def _resized(self, crop: Pixels, flip: bool) -> Tensor:
        """Antialiased bilinear, as torchvision's resized_crop on uint8 tensors."""
        view = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
        size = (self.sz_crop, self.sz_crop)
        if view.shape[2:] != size:
            view = F.interpolate(view, size, mode="bilinear", antialias=True, align_corners=False)
        view = view[0].permute(1, 2, 0)
        return view.flip(1) if flip else view

    def _album(self, images: list[Pixels], rng: np.random.Generator) -> Tensor:
        """An image at a time, seeded from the batch's source, by albumentations or torchvision."""
        seeds = rng.integers(0, 2**31, len(images))
        if self.album == "ColorHeavy":
            views = [_colour_heavy(image, self.sz_crop, int(seed)) for image, seed in zip(images, seeds, strict=True)]
        else:
            pipeline = _albumentations(str(self.album), self.sz_crop)
            views = []
            for image, seed in zip(images, seeds, strict=True):
                pipeline.set_random_seed(int(seed))
                views.append(torch.from_numpy(pipeline(image=np.array(image))["image"]))
        return torch.stack(views).permute(0, 3, 1, 2)


def crop_boxes(sizes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Boxes (top, left, height, width) by torchvision's law of RandomResizedCrop, for all images at once.

    Ten tries each of an area in 0.08..1 and a log-uniform aspect ratio in 3/4..4/3; the first that fits is taken,
    else the largest central crop with an allowed ratio.
    """
    heights, widths = sizes[:, 0, None], sizes[:, 1, None]
    shape = (len(sizes), _TRIES)
    area = heights * widths * rng.uniform(*_SCALE, shape)
    ratio = np.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), shape))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    rows, first = np.arange(len(sizes)), fits.argmax(1)
    fallback_h, fallback_w = _central(sizes)
    found = fits.any(1)
    h, w = np.where(found, h[rows, first], fallback_h), np.where(found, w[rows, first], fallback_w)
    top = np.floor(rng.random(len(sizes)) * (sizes[:, 0] - h + 1)).astype(np.int64)
    left = np.floor(rng.random(len(sizes)) * (sizes[:, 1] - w + 1)).astype(np.int64)
    top, left = np.where(found, top, (sizes[:, 0] - h) // 2), np.where(found, left, (sizes[:, 1] - w) // 2)
    return np.stack([top, left, h, w], 1)


def _central(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    height, width = sizes[:, 0], sizes[:, 1]
    ratio = width / height
    h = np.where(ratio < _RATIO[0], np.rint(width / _RATIO[0]), height)
    w = np.where(ratio > _RATIO[1], np.rint(height * _RATIO[1]), width)
    return h.astype(np.int64), w.astype(np.int64)


def _albumentations(album: str, size: int) -> Any:
    """Geom and GeomColor, in the order and with the strengths that docs/algorithm.md gives."""
    import albumentations as A

    crop = A.RandomResizedCrop(size=(size, size), scale=_SCALE, ratio=_RATIO)
    flip = A.HorizontalFlip(p=0.5)
    turn = A.Affine(translate_percent=(-0.0625, 0.0625), rotate=(-45, 45), p=0.5)
    hole = min(40, size)
    holes = A.CoarseDropout(
        num_holes_range=(1, 5), hole_height_range=(1, hole), hole_width_range=(1, hole), fill=0, p=0.5
    )
    blur = A.Blur(blur_limit=(3, 7), p=0.5)
    if album == "Geom":
        return A.Compose([turn, crop, flip, holes, blur])
    colour = A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5)
    return A.Compose([crop, colour, flip, turn, holes, blur])


def _colour_heavy(image: Pixels, size: int, seed: int) -> Tensor:
    """Crop, flip, colour jitter (0.4, 0.4, 0.4, 0.1; p 0.8), greyscale (p 0.2), by torchvision."""
    from torchvision.transforms import v2

    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        view: Tensor = pipeline(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return view.permute(1, 2, 0)
