"""Images by published class, in copies with class folders or tables of files and classes.

The class names that `class_folders` finds are mapped to the numbers of the published classes. Folders named train, validation
and test split each class by image. The published splits are by class, so these folders are merged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.data.class_folders import LISTS, Entry, label
from dcml_tune.data.classes import numbers
from dcml_tune.data.image_list import named
from dcml_tune.data.tree import Tree, is_folder, walk


def images_by_class(dataset: str, root: Path, folders: Iterable[Path]) -> dict[int, list[str]]:
    """Paths, relative to the root, of the images in some folders, by class number and sorted by name.

    Images of unknown classes are omitted.

    Raises:
        SettingError: if a folder or a table cannot be read.
    """
    found = [entry for folder in folders for entry in images_below(root, folder)]
    known = numbers(dataset, (entry.name for entry in found))
    by_class: dict[int, list[str]] = {number: [] for number in sorted(known.values())}
    for entry in sorted(found, key=lambda entry: (entry.path.rpartition("/")[2], entry.path)):
        if entry.name in known:
            by_class[known[entry.name]].append(entry.path)
    return by_class


def images_below(root: Path, folder: Path) -> list[Entry]:
    """The images of a folder, with class names and paths relative to the root.

    Raises:
        SettingError: if a folder or a table cannot be read.
    """
    tree, place = walk(folder), folder.relative_to(root)
    if tree.closed:
        raise SettingError(f"{folder}: folders cannot be read ({named(tree.closed)}); change their permissions")
    return [entry._replace(path=(place / entry.path).as_posix()) for entry in label(folder, tree).entries]


def holds_classes(dataset: str, folder: Path) -> bool:
    """Whether class folders or a table name at least two classes of a data set, and mostly such classes.

    Raises:
        OSError: if the folder cannot be read.
        SettingError: if a table cannot be read.
    """
    lists = [name for name in LISTS if (folder / name).is_file()]
    # Only the tables are read: missing images are detected later.
    texts = {entry.name for entry in label(folder, Tree(files=lists)).entries} or set(class_folders(folder))
    found = numbers(dataset, texts)
    return len(set(found.values())) >= 2 and 2 * len(found) > len(texts)


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones (names that begin with a dot)."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))


def names_in(folder: Path) -> list[str]:
    """Names of all entries of a folder, sorted.

    Raises:
        SettingError: if it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise SettingError(f"{folder}: cannot be read ({error.strerror}); change its permissions") from None
