"""Size and content of stored images, by kind of store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from dcml_tune.data.image_list import Pixels

Kind = Literal["full", "small", "evaluation"]


# Increased when the layout, the decoding or the resizing changes, so that images are decoded again. Stores of version 1
# contain the result of Pillow's convert("RGB").
VERSION = 2


@dataclass(frozen=True)
class Layout:
    """The size of stored images."""

    kind: Kind
    sz_resize: int
    sz_crop: int

    @property
    def sizes(self) -> dict[str, int]:
        """The settings that affect this kind of store."""
        names = {"full": (), "small": ("sz_resize",), "evaluation": ("sz_resize", "sz_crop")}[self.kind]
        return {name: getattr(self, name) for name in names}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Stored width and height of an image."""
        if self.kind == "evaluation":
            return self.sz_crop, self.sz_crop
        if self.kind == "full" or min(width, height) <= self.sz_resize:
            return width, height
        return self._resized(width, height)

    def apply(self, image: Image.Image) -> Pixels:
        """Stored pixels of a decoded image."""
        if self.kind != "evaluation":
            return np.asarray(_resize(image, self.size(*image.size)))
        resized = _resize(image, self._resized(*image.size))
        # Rounded to the even number if the margins differ by one, as in torchvision's CenterCrop.
        left, top = (round((side - self.sz_crop) / 2) for side in resized.size)
        return np.asarray(resized.crop((left, top, left + self.sz_crop, top + self.sz_crop)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image whose shorter side is `sz_resize`."""
        longer = int(self.sz_resize * max(width, height) / min(width, height))
        return (longer, self.sz_resize) if height <= width else (self.sz_resize, longer)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image with Pillow's bilinear filter, which is antialiased."""
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
