"""The decoder: what a person sees of every kind of image, and what is not opened at all."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw_images as raw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, load
from dcml_tune.data.decoding import (
    DEPARTURES,
    FORMATS,
    MAX_BYTES,
    SUFFIXES,
    RefusedFileError,
    decode,
    departure_lines,
    identify,
    open_regular,
)
from dcml_tune.data.image_list import UnreadableImageError, why

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PHOTO = Image.fromarray(np.kron(COLOURS, np.ones((16, 16, 1), np.uint8)))
DEEP = np.array([[0, 257, 65535], [1000, 32768, 40000]], np.uint16)
DEEP_SEEN = [[0, 1, 255], [4, 128, 156]]
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/></rdf:RDF></x:xmpmeta>'
)


def seen(content: bytes, name: str = "x.png") -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels and departures of a file."""
    picture = decode(identify(io.BytesIO(content), name))
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image), picture.departures


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    return exif


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By the meaning of the eight numbers: where the first row and the first column of the file belong."""
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p.swapaxes(0, 1)[:, ::-1],
        7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
        8: lambda p: p.swapaxes(0, 1)[::-1],
    }
    return turns[orientation](pixels)


def grey(rows: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(rows, np.uint8)[:, :, None], 3, axis=2)


def deep_float(*values: float) -> bytes:
    return raw.tiff(np.array([values], np.float32))


def deep_int(*values: int, kind: str = "i4") -> bytes:
    return raw.tiff(np.array([values], kind))


def with_transparent_colour() -> bytes:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    return saved(image, "PNG", transparency=(1, 2, 3))


def with_palette() -> bytes:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    return saved(image, "PNG", transparency=b"\x80\xff")


SCALED, ALPHA, ROTATED, CONVERTED, FRAMES = ("scaled",), ("alpha",), ("rotated",), ("converted",), ("frames",)


@pytest.mark.parametrize(
    ("content", "pixels", "departures"),
    [
        pytest.param(raw.png(DEEP, 0), grey(DEEP_SEEN), SCALED, id="16-bit PNG"),
        pytest.param(raw.tiff(DEEP), grey(DEEP_SEEN), SCALED, id="16-bit TIFF, little endian"),
        pytest.param(raw.tiff(DEEP, order=">"), grey(DEEP_SEEN), SCALED, id="16-bit TIFF, big endian"),
        pytest.param(raw.tiff(DEEP, photometric=0), 255 - grey(DEEP_SEEN), SCALED, id="16-bit TIFF, white is zero"),
        pytest.param(raw.tiff(DEEP >> 4, bits=12), grey([[0, 1, 255], [4, 128, 156]]), SCALED, id="12-bit TIFF"),
        pytest.param(raw.tiff(np.array([[0, 9]], np.uint8), photometric=0), grey([[255, 246]]), (), id="8-bit, white is zero"),
        pytest.param(raw.png(np.stack([DEEP] * 3, 2), 2), grey([[0, 1, 255], [3, 128, 156]]), SCALED, id="16-bit colours, PNG"),
        pytest.param(raw.tiff(np.stack([DEEP] * 3, 2)), grey([[0, 1, 255], [3, 128, 156]]), SCALED, id="16-bit colours, TIFF"),
        pytest.param(b"P5 2 1 65535\n\x00\x00\x80\x00", grey([[0, 128]]), SCALED, id="16-bit PGM"),
        pytest.param(b"P5 2 1 1023\n\x00\x00\x03\xff", grey([[0, 255]]), SCALED, id="10-bit PGM"),
        pytest.param(deep_float(0, 0.5, 1), grey([[0, 128, 255]]), SCALED, id="floats to 1"),
        pytest.param(deep_float(0, 128, 255), grey([[0, 128, 255]]), SCALED, id="floats to 255"),
        pytest.param(deep_float(0, 257, 65535), grey([[0, 1, 255]]), SCALED, id="floats to 65535"),
        pytest.param(deep_float(-3, 2, 7), grey([[0, 128, 255]]), SCALED, id="floats beyond: stretched"),
        pytest.param(deep_float(0, np.nan, np.inf, -np.inf, 1), grey([[0, 0, 255, 0, 255]]), SCALED, id="no numbers"),
        pytest.param(deep_float(np.nan, np.nan), grey([[0, 0]]), SCALED, id="no number at all"),
        pytest.param(deep_float(1e30, 1e30), grey([[0, 0]]), SCALED, id="a single value beyond"),
        pytest.param(b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0, 1), grey([[0, 255]]), SCALED, id="PFM"),
        pytest.param(deep_int(0, 128, 255), grey([[0, 128, 255]]), SCALED, id="32-bit integers to 255"),
        pytest.param(deep_int(0, 257, 65535), grey([[0, 1, 255]]), SCALED, id="32-bit integers to 65535"),
        pytest.param(deep_int(-100_000, 100_000), grey([[0, 255]]), SCALED, id="32-bit integers beyond: stretched"),
        pytest.param(deep_int(0, 2**31, 2**32 - 1, kind="u4"), grey([[0, 128, 255]]), SCALED, id="32-bit without sign"),
        pytest.param(deep_int(-5, 5, kind="i2"), grey([[0, 255]]), SCALED, id="16-bit with sign: stretched"),
        pytest.param(raw.png(np.array([[[9, 255], [9, 0], [9, 128]]], np.uint8), 4), grey([[9, 255, 132]]), ALPHA, id="LA"),
        pytest.param(raw.png(np.array([[[9, 8, 7, 255]]], np.uint8), 6), np.array([[[9, 8, 7]]]), (), id="opaque alpha"),
        pytest.param(raw.png(np.array([[[9, 8, 7, 0]]], np.uint8), 6), grey([[255]]), ALPHA, id="RGBA"),
        pytest.param(with_transparent_colour(), np.array([[[255] * 3, [4, 5, 6]]]), ALPHA, id="a transparent colour"),
        pytest.param(with_palette(), np.array([[[132, 137, 142], [40, 50, 60]]]), ALPHA, id="a transparent palette"),
        pytest.param(raw.png(DEEP, 0, raw.chunk(b"tRNS", b"\1\1")), grey([[0, 255, 255], DEEP_SEEN[1]]), (*ALPHA, *SCALED),
                     id="a transparent 16-bit grey"),
        pytest.param(raw.png(COLOURS, 2, after=raw.chunk(b"eXIf", oriented(6).tobytes()[6:])), turned(COLOURS, 6), ROTATED,
                     id="EXIF behind the pixels of a PNG"),
        pytest.param(raw.png(COLOURS, 2, raw.chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), COLOURS, (), id="damaged EXIF"),
        pytest.param(raw.png(COLOURS, 2, raw.chunk(b"eXIf", oriented(9).tobytes()[6:])), COLOURS, (), id="orientation 9"),
        pytest.param(saved(PHOTO.convert("CMYK"), "TIFF"), np.asarray(PHOTO), CONVERTED, id="CMYK"),
    ],
)  # fmt: skip
def test_exact_pixels(content: bytes, pixels: np.ndarray, departures: tuple[str, ...]) -> None:
    """Files that lose nothing come out by the documented rules, to the value."""
    found, what = seen(content)
    assert found.tolist() == pixels.tolist()
    assert what == departures


def lab() -> Image.Image:
    made = ImageCms.profileToProfile(
        PHOTO, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert made is not None
    return made


def animated(form: str) -> bytes:
    others = [Image.new("RGB", PHOTO.size, "red"), Image.new("RGB", PHOTO.size, "blue")]
    return saved(PHOTO, form, save_all=True, append_images=others)


@pytest.mark.parametrize(
    ("content", "departures"),
    [
        pytest.param(saved(PHOTO, "JPEG", quality=95, subsampling=0), (), id="JPEG"),
        pytest.param(saved(PHOTO, "AVIF", quality=95, subsampling="4:4:4"), (), id="AVIF"),
        pytest.param(saved(PHOTO, "JPEG2000"), (), id="JPEG 2000"),
        pytest.param(saved(PHOTO, "WEBP", lossless=True), (), id="WebP"),
        pytest.param(saved(PHOTO, "QOI"), (), id="QOI"),
        pytest.param(saved(PHOTO.convert("CMYK"), "JPEG", quality=95), CONVERTED, id="CMYK JPEG"),
        pytest.param(saved(PHOTO.convert("YCbCr"), "TIFF"), CONVERTED, id="YCbCr TIFF"),
        pytest.param(saved(lab(), "TIFF"), CONVERTED, id="LAB TIFF"),
        *(pytest.param(animated(form), FRAMES, id=f"frames of {form}") for form in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO")),
    ],
)  # fmt: skip
def test_near_pixels(content: bytes, departures: tuple[str, ...]) -> None:
    """Of every format the first frame is seen, in its colours."""
    found, what = seen(content)
    assert what == departures
    assert np.abs(found.astype(int) - np.asarray(PHOTO)).mean() < 6


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int) -> None:
    """All eight orientations, in all formats that have EXIF; Pillow turns some of them itself, and none is turned twice."""
    options = {} if form in ("PNG", "TIFF") else {"quality": 95}
    found, what = seen(saved(PHOTO, form, exif=oriented(orientation), **options))
    wanted = turned(np.asarray(PHOTO), orientation)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 8
    assert what == (() if orientation == 1 else ROTATED)


def test_orientation_of_xmp() -> None:
    """Where there is no EXIF, XMP says it."""
    found, what = seen(saved(PHOTO, "WEBP", lossless=True, xmp=XMP))
    assert what == ROTATED
    assert (found == turned(np.asarray(PHOTO), 3)).all()


def plain(values: np.ndarray, mode: str) -> np.ndarray:
    """What a person sees of values of a mode, pixel by pixel."""

    def pixel(value: Any) -> list[int]:
        match mode:
            case "L":
                return [int(value)] * 3
            case "1":
                return [255 * int(value)] * 3
            case "I;16":
                return [round(int(value) / 257)] * 3
            case "RGB":
                return [int(each) for each in value]
        *colour, alpha = (int(each) for each in value)
        over = [each * alpha / 255 + 255 - alpha for each in colour]
        return [round(each) for each in (over * 3)[:3]]

    return np.array([[pixel(value) for value in row] for row in values])


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["PNG", "TIFF"]),
    mode=st.sampled_from(["L", "1", "I;16", "RGB", "RGBA", "LA"]),
    orientation=st.integers(1, 8),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_mode_and_orientation(form: str, mode: str, orientation: int, size: tuple[int, int], seed: int) -> None:
    """Decoded is what a plain reference says, to within the rounding of alpha."""
    bands = {"RGB": 3, "RGBA": 4, "LA": 2}.get(mode)
    shape = size if bands is None else (*size, bands)
    rng = np.random.default_rng(seed)
    values = rng.random(shape) < 0.5 if mode == "1" else rng.integers(0, 65536 if mode == "I;16" else 256, shape)
    kind = {"I;16": np.uint16, "1": np.bool_}.get(mode, np.uint8)
    image = Image.fromarray(values.astype(kind))
    assert image.mode == mode
    found, _ = seen(saved(image, form, exif=oriented(orientation)))
    wanted = turned(plain(values, mode), orientation)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= (1 if mode in ("RGBA", "LA") else 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG"]),
    head=st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*"]),
    rest=st.binary(max_size=60),
)
def test_no_exif_makes_an_image_unreadable(form: str, head: bytes, rest: bytes) -> None:
    """Whatever stands there; at most the image is turned."""
    if form == "PNG":
        content = raw.png(COLOURS, 2, raw.chunk(b"eXIf", head + rest))
    else:
        data = b"Exif\0\0" + head + rest
        plain_file = saved(PHOTO, "JPEG")
        content = plain_file[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + plain_file[2:]
    assert sorted(seen(content)[0].shape) == sorted(COLOURS.shape if form == "PNG" else np.asarray(PHOTO).shape)


def test_embedded_images_are_what_they_were() -> None:
    """Checksums of what Pillow's convert("RGB") gave."""
    emoji = load(TrialConfig())
    for images, known in (
        (emoji.train, {0: 3613608196, 1000: 1565194689, 3000: 1301772971}),
        (emoji.tests[0].queries, {0: 1351522069, 1000: 1467092336, 3000: 20981351}),
    ):
        assert {i: zlib.crc32(images.read(i).tobytes()) for i in known} == known


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(EPS, id="EPS, which starts Ghostscript"),
        pytest.param(b"%PDF-1.4\n", id="PDF"),
        pytest.param(b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4h", 0, 0, 9, 9) + b"\0" * 40, id="WMF"),
        pytest.param(b"\0\0\1\xb3\x01\x00\x10" + b"\0" * 20, id="MPEG"),
        pytest.param(b"GRIB" + b"\0" * 3 + b"\1" + b"\0" * 40, id="GRIB"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + b"\0" * 40, id="HDF5"),
        pytest.param(b"SIMPLE  =                    T" + b" " * 200, id="FITS"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"just text, line after line\n" * 40, id="text"),
        pytest.param(b"\0\5\26\7\0\2\0\0Mac OS X        " + b"\0" * 60, id="the other half of a Mac's file"),
        pytest.param(raw.png(COLOURS, 2)[:60], id="torn PNG"),
        pytest.param(saved(PHOTO, "JPEG")[:500], id="torn JPEG"),
        pytest.param(saved(PHOTO, "TGA"), id="TGA by another name"),
        pytest.param(raw.png(COLOURS, 2).replace(struct.pack(">II", 7, 5), struct.pack(">II", 30_000, 30_000), 1), id="bomb"),
    ],
)  # fmt: skip
def test_other_files_are_no_images(content: bytes) -> None:
    """Whatever their suffix: what may start a program, documents, data, damaged and far too large images."""
    for name in ("x.jpg", "x.png", "x.eps"):
        with pytest.raises(Exception) as error:  # noqa: PT011
            seen(content, name)
        assert "\n" not in why(error.value)


def test_limits_are_said(tmp_path: Path) -> None:
    """Of pixels and of bytes."""
    header = raw.chunk(b"IHDR", struct.pack(">IIBBBBB", 13_378, 13_378, 8, 2, 0, 0, 0))
    header += raw.chunk(b"IDAT", b"")
    with pytest.raises(RefusedFileError, match=r"has more than 178,956,970 pixels, the maximum"):
        seen(b"\x89PNG\r\n\x1a\n" + header)
    with (tmp_path / "x.tif").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RefusedFileError, match=r"has 1,073,741,825 bytes; the maximum is 1,073,741,824"):
        open_regular(tmp_path / "x.tif")


def test_suffixes_are_those_of_the_formats() -> None:
    """Of every format that is read, and of no other."""
    assert {".jpg", ".jfif", ".png", ".avif", ".webp", ".tif", ".mpo", ".jp2", ".pfm", ".tga"} <= SUFFIXES
    assert not {".eps", ".ps", ".wmf", ".mpg", ".pdf", ".psd", ".svg", ".h5", ".fits"} & SUFFIXES
    assert {"EPS", "WMF", "MPEG", "IPTC", "PSD"}.isdisjoint(FORMATS)
    seen(saved(PHOTO, "TGA"), "x.TGA")


def odd(path: Path, kind: str) -> None:
    """Something that is no regular file."""
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case "a directory":
            path.mkdir()
        case "a device":
            path.symlink_to("/dev/zero")
        case "a link to itself":
            path.symlink_to(path)
        case "a link to nothing":
            path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("a FIFO", "is a FIFO, not a regular file"),
        ("a socket", "is a socket, not a regular file"),
        ("a directory", "is a directory, not a regular file"),
        ("a device", "is a device, not a regular file"),
        ("a link to itself", "Too many levels of symbolic links"),
        ("a link to nothing", "No such file or directory"),
    ],
)
@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(kind: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else is refused in words, and nothing waits."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    odd(Path("x.jpg"), kind)
    with pytest.raises(UnreadableImageError, match=rf"x\.jpg: cannot be decoded \({reason}\)"):
        ImageList(("x.jpg",), np.zeros(1, np.int64), Path()).read(0)


@pytest.mark.timeout(20)
def test_a_fifo_in_the_place_of_a_file_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a file and its opening it may have become anything."""
    path = tmp_path / "x.jpg"
    os.mkfifo(path)
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    with pytest.raises(RefusedFileError, match="is a FIFO"):
        open_regular(path)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """Through any number of links."""
    (tmp_path / "photo").write_bytes(raw.png(COLOURS, 2))
    (tmp_path / "one.png").symlink_to("photo")
    (tmp_path / "two.png").symlink_to("one.png")
    assert (ImageList(("two.png",), np.zeros(1, np.int64), tmp_path).read(0) == COLOURS).all()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Neither of good nor of bad files."""
    (tmp_path / "good.png").write_bytes(raw.png(COLOURS, 2))
    (tmp_path / "torn.png").write_bytes(raw.png(COLOURS, 2)[:60])
    images = ImageList(("good.png", "torn.png"), np.zeros(2, np.int64), tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        images.read(0)
        with pytest.raises(UnreadableImageError):
            images.read(1)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() < 50


def test_each_departure_is_a_line() -> None:
    """With its number; what did not happen is not said."""
    lines = departure_lines(dict.fromkeys(DEPARTURES, 1000))
    assert len(lines) == len(DEPARTURES)
    assert departure_lines({"frames": 1, "alpha": 0}) == ["1 images: several frames or pages, the first one is used"]
