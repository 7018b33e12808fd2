"""The only place that opens an image file. It gives 8-bit RGB pixels as a person sees them in a viewer.

Files are read by Pillow, in the raster formats of `FORMATS` only: none of them starts another program, as EPS and WMF may.
What is not plain 8-bit RGB becomes so by these rules, and `Picture.departures` says which of them acted:

    rotated    the EXIF orientation (XMP's, where there is no EXIF) is applied
    frames     of an animation or of several pages the first one is taken
    alpha      what is transparent in part is put on white
    scaled     more than 8 bits a channel are scaled to 8: 16-bit integers by their type's range (12-bit TIFF by 4095);
               32-bit integers by the smallest of the ranges 0..255 and 0..65535 that holds all values of the image;
               floats the same with 0..1 before these; values outside all of them from their own smallest to their own
               largest. Infinite values are clipped to these, and what is no number is black
    converted  CMYK and YCbCr by Pillow's formulas, LAB by a colour profile

Grey is repeated, a palette is looked up. Colour profiles that a file holds are not applied.
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
"""The formats that are read, by Pillow's names. The last one has no signature, and is read by its suffix alone."""

MAX_PIXELS = 178_956_970
"""Most pixels of an image; Pillow has the same limit."""

MAX_BYTES = 1 << 30
"""Most bytes of an image file."""

DEPARTURES = {
    "rotated": "turned by their EXIF orientation",
    "scaled": "more than 8 bits a channel, scaled to 8",
    "alpha": "transparent in part, put on white",
    "converted": "CMYK, YCbCr or LAB, converted to RGB",
    "frames": "several frames or pages, the first one is used",
}
"""What is done to images that are not plain 8-bit RGB, and how it is said."""

_PLUGINS = (
    "Avif", "Bmp", "Dds", "Gif", "Ico", "Jpeg", "Jpeg2K", "Mpo", "Pcx", "Png", "Ppm", "Qoi", "Sgi", "Sun", "Tga", "Tiff", "WebP",
)  # fmt: skip
for _plugin in _PLUGINS:
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")

# Pillow reads the frames of an MPO, which phones write, as JPEG.
SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO"))
"""Suffixes, in small letters, of the formats that are read."""

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

# Pillow warns of images with half as many pixels as its limit; they are read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class RefusedFileError(ValueError):
    """A file that is not read, whatever it holds: no regular file, or larger than the limits."""


class Picture(NamedTuple):
    """A decoded image."""

    image: Image.Image
    """Mode RGB."""
    departures: tuple[str, ...]
    """Keys of `DEPARTURES`: what was done to it."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read it. Opening a FIFO would wait for ever, and opening a device may do anything.

    Raises:
        RefusedFileError: for what is no regular file, or too large.
        OSError: if it cannot be opened.
    """
    _refuse_odd(os.stat(path))
    # What was put in its place since does not block, and is refused, too.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _refuse_odd(os.fstat(descriptor))
    except RefusedFileError:
        file.close()
        raise
    return file


def refuse_size(size: int) -> None:
    """Refuse more bytes than the limit.

    Raises:
        RefusedFileError: with both numbers.
    """
    if size > MAX_BYTES:
        raise RefusedFileError(f"has {size:,} bytes, and {MAX_BYTES:,} are the most that are read")


def identify(file: BinaryIO, name: str) -> ImageFile:
    """Read the header of an image; its `size` is that before it is turned.

    Args:
        file: stays open, and belongs to the caller.
        name: of the file; only its suffix counts.

    Raises:
        RefusedFileError: for too many pixels.
        Exception: whatever Pillow raises for a damaged file.
    """
    by_suffix = os.path.splitext(name)[1].lower() in _TGA_SUFFIXES
    try:
        image = Image.open(file, formats=FORMATS if by_suffix else FORMATS[:-1])
    except Image.DecompressionBombError:
        raise RefusedFileError(f"has more than {MAX_PIXELS:,} pixels, the most that are read") from None
    if image.width * image.height > MAX_PIXELS:
        raise RefusedFileError(f"has more than {MAX_PIXELS:,} pixels, the most that are read")
    return image


def decode(image: ImageFile) -> Picture:
    """The pixels of an identified image as a person sees them; see the head of this module.

    Raises:
        Exception: whatever Pillow raises for a damaged file.
    """
    departures = {"frames"} if _has_frames(image) else set()
    if any(";16" in str(tile.args) for tile in image.tile):
        departures.add("scaled")  # Pillow itself takes the upper bytes of 16-bit colours
    turned = image.format == "TIFF" and _orientation(image) in _TURNS  # by Pillow, when it loads the pixels
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turned or turn is not None:
        departures.add("rotated")
    rgb = _as_rgb(image, departures)
    return Picture(rgb if turn is None else rgb.transpose(turn), tuple(sorted(departures)))


def departure_lines(counts: Mapping[str, int], what: str = "images") -> list[str]:
    """A line for each kind of departure, with the number of images.

    Example:
        >>> departure_lines({"rotated": 1204})
        ['1,204 images: turned by their EXIF orientation']
    """
    return [f"{counts[key]:,} {what}: {said}" for key, said in DEPARTURES.items() if counts.get(key)]


def _refuse_odd(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise RefusedFileError(f"is {_kind(state.st_mode)}, and no file")
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
    """1 to 8; 1 where the file does not say, or is damaged there."""
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
    # Colours that are multiplied by alpha have no direct way to RGBA.
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
    """Grey values of more than 8 bits, H x W, as 8 bits."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and image.format == "TIFF":
        values = values.view(np.uint32)  # Pillow reads them as if they had a sign
    finite = values[np.isfinite(values)]
    low, high = _range(image, tags, finite) if finite.size else (0.0, 1.0)
    clipped = np.clip(np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low), low, high)
    grey = np.rint((clipped - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC, 1) == 0:
        grey = 255 - grey  # white is zero there, which Pillow heeds in 8-bit images only
    if isinstance(transparent := image.info.get("transparency"), int) and (values == transparent).any():
        departures.add("alpha")
        grey[values == transparent] = 255
    return grey


def _range(image: ImageFile, tags: Mapping[int, Any], finite: npt.NDArray[np.generic]) -> tuple[float, float]:
    """The values that become black and white."""
    if image.mode.startswith("I;16"):
        return 0.0, float(2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1)
    if image.format == "PPM" and image.mode == "I":
        return 0.0, 65535.0  # Pillow scales to that
    low, high = float(finite.min()), float(finite.max())
    ranges = _FLOAT_RANGES if image.mode == "F" else _INTEGER_RANGES
    return next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
