"""Class, and side of the split, of each image of a directory.

Three layouts are recognised:

    CLASS/...                         each folder is a class
    train/CLASS/..., test/CLASS/...   folders of a split, optionally with val/; each folder below them is a class
    metadata.csv, metadata.jsonl      as Hugging Face exports an `imagefolder`: `file_name`, relative to the file, and
                                      `label`, the class; at the top, or in each folder of a split

A list without `label` is not used.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dcml_tune.config.errors import SettingError
from dcml_tune.data.decoding import SUFFIXES, open_regular
from dcml_tune.data.image_list import named
from dcml_tune.data.tree import Tree

SIDES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Side of each folder name of a split; case is ignored."""

LISTS = ("metadata.csv", "metadata.jsonl")
"""Names of the lists of files and their classes."""
_REMEDY = "put the images of each class into a folder of its own, or name file_name and label of each in metadata.csv"


class Entry(NamedTuple):
    """An image."""

    name: str
    """Name of its class."""
    path: str
    """Relative to the root."""
    side: str
    """train, validation or test; empty if there is no split."""


@dataclass(frozen=True)
class Labelled:
    """The images of a directory."""

    entries: list[Entry]
    """Sorted."""
    sides: dict[str, str]
    """Side of each folder of the split; empty if there is no split."""
    notes: list[str]
    """Lines about excluded images and the recognised layout."""


def label(root: Path, tree: Tree) -> Labelled:
    """Determine the class of each image of a directory.

    Raises:
        SettingError: if the folders of a split have no class folders, or a list cannot be read.
    """
    images = [path for path in (*tree.files, *tree.broken) if is_image(path)]
    sides = _sides(tree, images)
    lists = [path for path in tree.files if posixpath.basename(path) in LISTS and _is_at_top(path, sides)]
    notes = []
    for path in lists:
        if rows := _rows(root, path):
            return _by_list(dict(rows), images, sides, path, [other for other in lists if other != path], root)
        notes.append(f"{path} has no column `label` and is not used: folders are classes")
    entries, loose = [], []
    for path in images:
        *folders, _ = path.split("/")
        side = sides.get(folders[0], "") if folders else ""
        classes = folders[1:] if side else folders
        if classes:
            entries.append(Entry(classes[0], path, side))
        else:
            loose.append(path)
    if sides and not entries:
        raise SettingError(f"{root}: {_named_folders(sides)} hold images and no class folders; {_REMEDY}")
    if loose:
        notes.append(f"left out {len(loose):,} images that lie in no class folder: {named(loose, limit=3)}")
    return Labelled(sorted(entries), sides, notes)


def is_image(path: str) -> bool:
    """Whether the suffix of a file is that of a supported image format."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _sides(tree: Tree, images: list[str]) -> dict[str, str]:
    """The folders of a split, if all folders with images have such names and one of them is train; else empty."""
    filled = {path.split("/")[0] for path in images if "/" in path}
    found = {name: SIDES[name.lower()] for name in tree.folders if name in filled and name.lower() in SIDES}
    return found if found.keys() == filled and "train" in found.values() else {}


def _is_at_top(path: str, sides: dict[str, str]) -> bool:
    return posixpath.dirname(path) in ("", *sides)


def _named_folders(sides: dict[str, str]) -> str:
    return ", ".join(f"{name}/" for name in sides)


def _by_list(
    rows: dict[str, str], images: list[str], sides: dict[str, str], path: str, others: list[str], root: Path
) -> Labelled:
    """The images that lists name. A listed file that does not exist is handled later, as one that cannot be decoded."""
    for other in others:
        rows |= dict(_rows(root, other))
    entries = [Entry(name, image, sides.get(image.split("/")[0], "")) for image, name in rows.items()]
    notes = [f"classes are those of {named([path, *others])}"]
    if unnamed := sorted(set(images) - rows.keys()):
        notes.append(f"left out {len(unnamed):,} images that no list names: {named(unnamed, limit=3)}")
    return Labelled(sorted(entries), sides, notes)


def _rows(root: Path, path: str) -> list[tuple[str, str]]:
    """Path relative to the root and class of each line of a list; empty if the list has no classes.

    Raises:
        SettingError: if the list cannot be read; the message names file and line.
    """
    try:
        with open_regular(root / path) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise SettingError(f"{root / path}: cannot be read ({error}); {_REMEDY}") from None
    lines = list(_csv(text) if path.endswith(".csv") else _jsonl(root / path, text))
    if not any("label" in line for _, line in lines):
        return []
    found: dict[str, str] = {}
    for number, line in lines:
        name, image = line.get("label"), line.get("file_name")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), str(image or "")))
        if name in (None, "") or not image or place.startswith(("/", "../")) or isinstance(name, list | dict | float):
            raise SettingError(
                f"{root / path}, line {number}: must name an image below the list by `file_name`, and its class by `label`; "
                "mend the line or remove it"
            )
        if found.setdefault(place, str(name)) != str(name):
            raise SettingError(f"{root / path}, line {number}: gives {image} a second class; keep one of them")
    return list(found.items())


def _csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for line in reader:
        yield reader.line_num, line


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise SettingError(f"{path}, line {number}: is not a JSON object; correct the line or remove it")
        yield number, found
