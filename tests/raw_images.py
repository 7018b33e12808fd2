"""Image files that Pillow reads and does not write: TIFF and PNG of any depth, written by hand."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.generic]


def tiff(values: Values, *, bits: int = 0, photometric: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF of one strip: H x W or H x W x 3, of the array's type; 12 bits are packed."""
    height, width, samples = (*values.shape, 1)[:3]
    depth = bits or 8 * values.dtype.itemsize
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = _packed_12(values) if depth == 12 else values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, depth), (259, 3, 1), (262, 3, 2 if samples == 3 else photometric),
            (273, 4, 8), (277, 3, samples), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format)]  # fmt: skip
    extra = b""
    start = 8 + len(data) + len(data) % 2
    entries = b""
    for tag, kind, value in tags:
        count = samples if tag in (258, 339) else 1
        if count == 3:
            place = struct.pack(order + "I", start + 6 + 12 * len(tags) + len(extra))
            extra += struct.pack(order + "3H", *[value] * 3)
        else:
            place = struct.pack(order + ("H2x" if kind == 3 else "I"), value)
        entries += struct.pack(order + "HHI", tag, kind, count) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    ifd = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    return head + data + b"\0" * (len(data) % 2) + ifd + extra


def _packed_12(values: Values) -> bytes:
    rows = [[bit for value in row for bit in f"{value:012b}"] for row in values.tolist()]
    return b"".join(
        int("".join(row).ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows
    )


def png(values: Values, colour_type: int, chunks: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits; `chunks` come before the pixels, `after` behind them."""
    height, width = values.shape[:2]
    depth = 8 * values.dtype.itemsize
    lines = b"".join(b"\0" + line.astype(values.dtype.newbyteorder(">")).tobytes() for line in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + pixels + after + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
