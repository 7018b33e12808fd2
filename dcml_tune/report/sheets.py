"""Sheets of photographs: thumbnails with coloured borders, labels and a heading."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dcml_tune.report.figures import Pixels

Colour = tuple[int, int, int]
GREEN: Colour = (46, 160, 67)
RED: Colour = (218, 54, 51)
GREY: Colour = (140, 149, 159)
_WHITE, _INK = (255, 255, 255), (31, 35, 40)
_SIDE, _BORDER, _HEAD, _LABEL = 96, 5, 26, 170  # pixels
CELL = _SIDE + 2 * _BORDER
"""Width and height of a thumbnail with its border in pixels."""


def thumbnail(image: Pixels, colour: Colour, cornered: bool = False) -> Pixels:
    """An image in a coloured border; a filled corner repeats the meaning for readers who cannot tell red from green."""
    small = np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    framed = np.full((_SIDE + 2 * _BORDER, _SIDE + 2 * _BORDER, 3), colour, np.uint8)
    framed[_BORDER:-_BORDER, _BORDER:-_BORDER] = small
    if cornered:
        framed[:16, -16:] = colour
    return np.pad(framed[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)), constant_values=255)


def blank(beside: Pixels, width: int) -> Pixels:
    """White pixels of the height of another picture."""
    return np.full((len(beside), width, 3), _WHITE, np.uint8)


def with_head(sheet: Pixels, texts: dict[int, str]) -> Pixels:
    """Put a line of texts above a sheet, each at its distance from the left in pixels."""
    head = Image.new("RGB", (sheet.shape[1], _HEAD), _WHITE)
    for left, text in texts.items():
        ImageDraw.Draw(head).text((left + 4, 4), text, fill=_INK, font=ImageFont.load_default(15))
    return np.concatenate([np.asarray(head), sheet])


def label(text: str, height: int) -> Pixels:
    """A line of text, vertically centred on white."""
    made = Image.new("RGB", (_LABEL, height), _WHITE)
    ImageDraw.Draw(made).text((4, height // 2 - 9), text, fill=_INK, font=ImageFont.load_default(15))
    return np.asarray(made)
