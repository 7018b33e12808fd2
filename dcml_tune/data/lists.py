"""Text files that list images: whatever editor or system wrote them, no line of them is lost."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from dcml_tune.config.errors import SettingError
from dcml_tune.data.decoding import open_regular

# The longer ones first: the mark of UTF-16 is the beginning of that of UTF-32.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_lines(path: Path, *, is_header: Callable[[str], bool] = lambda line: False) -> list[str]:
    """The lines of a list, but for empty ones and for those of a header at its beginning.

    Lines end in LF, CRLF or CR. A byte-order mark says the encoding; without one it is UTF-16 if every second byte is zero,
    else UTF-8. Bytes that are no UTF-8 stand for themselves, as in the names of files.

    Raises:
        SettingError: if it cannot be read as text.
    """
    try:
        with open_regular(path) as file:
            text = _decoded(file.read())
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: cannot be read ({error}); put the list of the data set there") from None
    if "\0" in text:
        raise SettingError(f"{path}: cannot be read (it is no text); put the list of the data set there")
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
    """What to say of a line that is not as the format has it."""
    return SettingError(f"{path}: the line {line!r} is not {rule}; put the list of the data set there")


def image_path(file: Path, line: str, text: str) -> str:
    r"""The path of an image as a list has it, with forward slashes: `.\a\1.jpg` is `a/1.jpg`.

    Raises:
        SettingError: for a path that leads out of the data set.
    """
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise bad_line(file, line, "of an image below the data set")
    return str(path)
