"""Copies in the form of Hugging Face's `imagefolder`: folders of classes, or a table of files and their classes.

Folders called train, validation and test split each class by image. The published splits are by class, so the folders are
put together again.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dcml_tune.config import SettingError
from dcml_tune.data.classes import numbers
from dcml_tune.data.lists import bad_line, image_path, read_lines

TABLES = ("metadata.jsonl", "metadata.csv")
"""Names of the tables; `file_name` is relative to the table."""

# Columns that hold the class of an image, in the order in which they are looked for.
_COLUMNS = ("class_name", "label_name", "class_id", "label", "class", "target", "category")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def images_by_class(dataset: str, root: Path, folders: Iterable[Path]) -> dict[int, list[str]]:
    """Paths below the root of the images of each class in some folders, by number and then by name.

    Folders of classes and labels that mean no class of the data set are left out.

    Raises:
        SettingError: for a table that cannot be read.
    """
    text_of: dict[str, str] = {}
    for folder in folders:
        text_of |= _labelled(dataset, root, folder)
    known = numbers(dataset, text_of.values())
    found: dict[int, list[str]] = {number: [] for number in sorted(known.values())}
    for path in sorted(text_of, key=lambda path: (path.rpartition("/")[2], path)):
        if text_of[path] in known:
            found[known[text_of[path]]].append(path)
    return found


def _labelled(dataset: str, root: Path, folder: Path) -> dict[str, str]:
    """Path below the root of each image of a folder, and what says its class: the folder it is in, or the table."""
    table, below = table_of(folder), folder.relative_to(root)
    if table is None:
        paths = [(below / name, name) for name in class_folders(folder)]
        return {
            (path / image).as_posix(): name
            for path, name in paths
            for image in names_in(root / path)
            if is_image(image)
        }
    rows = read_table(table)
    column = class_column(dataset, rows)
    return {(below / row["file_name"]).as_posix(): str(row.get(column or "")) for row in rows}


def holds_classes(dataset: str, folder: Path) -> bool:
    """Whether a folder holds class folders, or a table, of a data set: two or more, and most of what is there."""
    table = table_of(folder)
    if table is None:
        return _means_classes(dataset, set(class_folders(folder)))
    rows = read_table(table, strict=False)
    column = class_column(dataset, rows)
    return column is not None and _means_classes(dataset, {str(row.get(column)) for row in rows})


def class_column(dataset: str, rows: list[dict[str, Any]]) -> str | None:
    """The column of a table that says the class, or None."""
    for column in _COLUMNS:
        if _means_classes(dataset, {str(row.get(column)) for row in rows}):
            return column
    return None


def table_of(folder: Path) -> Path | None:
    """The table of a folder, or None."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_table(file: Path, *, strict: bool = True) -> list[dict[str, Any]]:
    """The rows of a table, each with a `file_name` below the table's folder.

    Args:
        file: JSON Lines or CSV, by its suffix.
        strict: refuse a row of another form; else it is left out.

    Raises:
        SettingError: for a row of another form.
    """
    rows = []
    for line, row in _rows(file):
        try:
            rows.append({**row, "file_name": image_path(file, line, row["file_name"])})
        except (SettingError, KeyError, TypeError, AttributeError):
            if strict:
                raise bad_line(file, line[:80], "a row with the file_name of an image below this folder") from None
    return rows


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Each line of a table, and what it says."""
    lines = read_lines(file)
    if file.suffix == ".csv":
        for row in csv.DictReader(lines):
            yield str(row), row
        return
    for line in lines:
        try:
            yield line, json.loads(line)
        except (ValueError, RecursionError):
            yield line, None


def _means_classes(dataset: str, texts: set[str]) -> bool:
    found = numbers(dataset, texts)
    return len(set(found.values())) >= 2 and 2 * len(found) > len(texts)


def class_folders(folder: Path) -> list[str]:
    """Names of the folders of a folder, sorted; what starts with a dot is left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def names_in(folder: Path) -> list[str]:
    """Names of all that is in a folder, sorted.

    Raises:
        SettingError: if it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise SettingError(f"{folder}: cannot be read ({error.strerror}); make it a folder that can be read") from None


def is_image(name: str) -> bool:
    """Whether a file is an image by its name; what starts with a dot, `._x.jpg` included, is none."""
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")
