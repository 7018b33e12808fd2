"""Reading of text files that list images, in the encodings and line ends of all systems."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from dcml_tune.config.errors import SettingError
from dcml_tune.data.decoding import open_regular

# Longer marks first: the mark of UTF-16 is a prefix of that of UTF-32.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_lines(path: Path, *, is_header: Callable[[str], bool] = lambda line: False) -> list[str]:
    """The lines of a list, without empty lines and without the header.

    Lines end in LF, CRLF or CR. A byte-order mark defines the encoding. Without one the encoding is UTF-16 if one of the
    first two bytes is zero, else UTF-8. Bytes that are not UTF-8 are kept as surrogate escapes, as in file names.

    Raises:
        SettingError: if it cannot be read as text.
    """
    try:
        with open_regular(path) as file:
            text = _decoded(file.read())
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: cannot be read ({error}); put the list of the data set there") from None
    if "\0" in text:
        raise SettingError(f"{path}: cannot be read (it is not text); put the list of the data set there")
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    lines = [line for line in lines if line]
    start = next((place for place, line in enumerate(lines) if not is_header(line)), len(lines))
    return lines[start:]


def _decoded(data: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    if data[1:2] == b"\0" or data[:1] == b"\0":
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    return data.decode("utf-8", errors="surrogateescape")


def bad_line(path: Path, line: str, rule: str) -> SettingError:
    """The error for a line that does not have the expected format."""
    return SettingError(f"{path}: the line {line!r} is not {rule}; put the list of the data set there")


def image_path(file: Path, line: str, text: str) -> str:
    r"""The path of an image from a list, with forward slashes: `.\a\1.jpg` is `a/1.jpg`.

    Raises:
        SettingError: if the path leads out of the data set.
    """
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise bad_line(file, line, "of an image below the data set")
    return str(path)
