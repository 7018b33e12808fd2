"""Opens and decodes image files to 8-bit RGB, as an image viewer shows them.

No other module opens an image file; checks and conversions therefore share this one, of slightly more than 250 lines.

Pillow reads the files, and only the raster formats in `FORMATS`: no decoder of these starts another program, as those of EPS
and WMF may. Images that are not plain 8-bit RGB are converted by these rules; `Picture.departures` lists the applied ones:

    rotated    the EXIF orientation is applied (that of XMP, if there is no EXIF)
    frames     of an animation or several pages, the first is used
    alpha      transparent pixels are blended with white
    scaled     more than 8 bits per channel are scaled to 8. 16-bit integers: by the range of the type (12-bit TIFF: 4095).
               32-bit integers: by the smaller of the ranges 0..255 and 0..65535 that contains all values of the image.
               Floats: the same, with 0..1 as the first range. Values outside all ranges: from their minimum to their
               maximum. Infinite values are clipped to the range; NaN is black
    converted  CMYK and YCbCr by Pillow's formulas, LAB by a colour profile

Grey values are copied to the three channels, palettes are applied. Embedded colour profiles are not applied.
"""

from __future__ import annotations

import importlib
import os
import stat
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms
from PIL.ImageFile import ImageFile

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "DDS", "SGI", "SUN", "PCX", "TGA",
)  # fmt: skip
"""Supported formats, by Pillow's names. The last one has no signature and is recognised by the file suffix only."""

MAX_PIXELS = 178_956_970
"""Largest number of pixels of an image; Pillow has the same limit."""

MAX_BYTES = 1 << 30
"""Largest size of an image file, in bytes."""

DEPARTURES = {
    "rotated": "rotated according to their EXIF orientation",
    "scaled": "more than 8 bits a channel, scaled to 8",
    "alpha": "with transparency, composited on white",
    "converted": "CMYK, YCbCr or LAB, converted to RGB",
    "frames": "several frames or pages, the first one is used",
}
"""Conversions of images that are not plain 8-bit RGB, with the text of messages."""

_PLUGINS = (
    "Avif", "Bmp", "Dds", "Gif", "Ico", "Jpeg", "Jpeg2K", "Mpo", "Pcx", "Png", "Ppm", "Qoi", "Sgi", "Sun", "Tga", "Tiff", "WebP",
)  # fmt: skip
for _plugin in _PLUGINS:
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")

# Pillow reads the frames of an MPO file, which phones write, as JPEG.
SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO"))
"""Suffixes of the supported formats, in lower case."""

_TGA_SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name == "TGA")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INTEGER_RANGES, _FLOAT_RANGES = (255.0, 65535.0), (1.0, 255.0, 65535.0)

# Pillow warns of images above half of its limit of pixels; these are supported.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class RefusedFileError(ValueError):
    """A file that is rejected without decoding: not a regular file, or above the size limits."""


class Picture(NamedTuple):
    """A decoded image."""

    image: Image.Image
    """Mode RGB."""
    departures: tuple[str, ...]
    """Conversions that were applied: keys of `DEPARTURES`."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Opening a FIFO would block, and opening a device may have side effects.

    Raises:
        RefusedFileError: if it is not a regular file, or too large.
        OSError: if it cannot be opened.
    """
    _refuse_odd(os.stat(path))
    # The file may have been replaced since: opening does not block, and the opened file is checked again.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _refuse_odd(os.fstat(descriptor))
    except RefusedFileError:
        file.close()
        raise
    return file


def refuse_size(size: int) -> None:
    """Check a size against the limit.

    Raises:
        RefusedFileError: if it is above `MAX_BYTES`.
    """
    if size > MAX_BYTES:
        raise RefusedFileError(f"has {size:,} bytes; the maximum is {MAX_BYTES:,}")


def identify(file: BinaryIO, name: str) -> ImageFile:
    """Read the header of an image. Its `size` is that before the EXIF orientation is applied.

    Args:
        file: the open file; the caller closes it.
        name: name of the file; only its suffix is used.

    Raises:
        RefusedFileError: for too many pixels.
        Exception: any error that Pillow raises for a damaged file.
    """
    by_suffix = os.path.splitext(name)[1].lower() in _TGA_SUFFIXES
    try:
        image = Image.open(file, formats=FORMATS if by_suffix else FORMATS[:-1])
    except Image.DecompressionBombError:
        raise RefusedFileError(f"has more than {MAX_PIXELS:,} pixels, the maximum") from None
    if image.width * image.height > MAX_PIXELS:
        raise RefusedFileError(f"has more than {MAX_PIXELS:,} pixels, the maximum")
    return image


def decode(image: ImageFile) -> Picture:
    """Decode an identified image by the rules in the docstring of this module.

    Raises:
        Exception: any error that Pillow raises for a damaged file.
    """
    departures = {"frames"} if _has_frames(image) else set()
    if any(";16" in str(tile.args) for tile in image.tile):
        departures.add("scaled")  # Pillow itself keeps the upper bytes of 16-bit colours
    turned = image.format == "TIFF" and _orientation(image) in _TURNS  # by Pillow, when it loads the pixels
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turned or turn is not None:
        departures.add("rotated")
    rgb = _as_rgb(image, departures)
    return Picture(rgb if turn is None else rgb.transpose(turn), tuple(sorted(departures)))


def departure_lines(counts: Mapping[str, int], what: str = "images") -> list[str]:
    """One line for each kind of conversion, with the number of images.

    Example:
        >>> departure_lines({"rotated": 1204})
        ['1,204 images: rotated according to their EXIF orientation']
    """
    return [f"{counts[key]:,} {what}: {said}" for key, said in DEPARTURES.items() if counts.get(key)]


def _refuse_odd(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise RefusedFileError(f"is {_kind(state.st_mode)}, not a regular file")
    refuse_size(state.st_size)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _has_frames(image: ImageFile) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame does not matter
        return False


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 to 8; 1 if it is missing or damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # nothing that Pillow finds wrong there makes the pixels unreadable
        return 1


def _as_rgb(image: ImageFile, departures: set[str]) -> Image.Image:
    """The loaded image in mode RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        departures.add("scaled")
        return Image.fromarray(_scaled(image, departures)).convert("RGB")
    if image.mode in ("CMYK", "YCbCr", "LAB"):
        departures.add("converted")
        return _from_lab(image) if image.mode == "LAB" else image.convert("RGB")
    return _on_white(image, departures) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image, departures: set[str]) -> Image.Image:
    # Pillow has no direct conversion from premultiplied alpha to RGBA.
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    if straight.getchannel("A").getextrema() == (255, 255):
        return straight.convert("RGB")
    departures.add("alpha")
    white = Image.new("RGBA", straight.size, "white")
    white.alpha_composite(straight)
    return white.convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None, "it is not converted in place"
    return converted


def _scaled(image: ImageFile, departures: set[str]) -> npt.NDArray[np.uint8]:
    """Grey values with more than 8 bits, H x W, scaled to 8 bits."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and image.format == "TIFF":
        values = values.view(np.uint32)  # Pillow reads them as signed integers
    finite = values[np.isfinite(values)]
    low, high = _range(image, tags, finite) if finite.size else (0.0, 1.0)
    clipped = np.clip(np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low), low, high)
    grey = np.rint((clipped - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC, 1) == 0:
        grey = 255 - grey  # zero is white, which Pillow handles in 8-bit images only
    if isinstance(transparent := image.info.get("transparency"), int) and (values == transparent).any():
        departures.add("alpha")
        grey[values == transparent] = 255
    return grey


def _range(image: ImageFile, tags: Mapping[int, Any], finite: npt.NDArray[np.generic]) -> tuple[float, float]:
    """The values that are mapped to black and to white."""
    if image.mode.startswith("I;16"):
        return 0.0, float(2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1)
    if image.format == "PPM" and image.mode == "I":
        return 0.0, 65535.0  # Pillow scales to that
    low, high = float(finite.min()), float(finite.max())
    ranges = _FLOAT_RANGES if image.mode == "F" else _INTEGER_RANGES
    return next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
