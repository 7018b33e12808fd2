"""CUB-200-2011: 200 bird species. The first 100 classes train.

Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011; the split is that of Oh Song et al., CVPR 2016.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.classes import names, numbers
from dcml_tune.data.copies import Copy, find_copy
from dcml_tune.data.datasets.official_counts import Listing, assemble
from dcml_tune.data.image_folder import class_folders, images_by_class, names_in
from dcml_tune.data.image_list import DataSet
from dcml_tune.data.lists import bad_line, image_path, read_lines

NB_TRAIN_CLASSES = 100
_SUFFIXES = (".jpg", ".jpeg", ".png")


def read(config: TrialConfig) -> DataSet:
    """List the images, sorted by class number and then by name.

    The split follows from the number at the beginning of a folder's name, or from the published number of the class name.
    If a partial copy in the original code's folder has neither, the first half of the sorted folders trains.

    Raises:
        SettingError: as in `copies.find_copy` and `official_counts.assemble`.
    """
    copy = find_copy(config)
    if copy.layout.key == "images":
        root, images = copy.parts["images"], _images(copy)
        if len(known := numbers("cub", images)) == len(images):
            images = _named({known[folder]: images[folder] for folder in images})
    else:
        root, images = copy.base, _named(images_by_class("cub", copy.base, copy.parts.values()))
    sides = _sides(list(images))
    entries = [(path, label) for label, paths in enumerate(images.values()) for path in paths]
    train, test = ([entry for entry in entries if sides[entry[1]] == trains] for trains in (True, False))
    listing = Listing(class_names=tuple(images), train=train, tests=(("test", test, None),), ks=(1, 2, 4, 8))
    return assemble(config, root, listing, copy.notes)


def _named(by_number: Mapping[int, list[str]]) -> dict[str, list[str]]:
    """The images of each class by the class name of the archive, in the order of the class numbers."""
    return {f"{number:03d}.{names('cub')[number - 1]}": by_number[number] for number in sorted(by_number)}


def _images(copy: Copy) -> dict[str, list[str]]:
    """The images of each class folder, both sorted. If images.txt exists it lists them, so that a missing one is noticed."""
    if "list" not in copy.parts:
        places = {folder: names_in(copy.parts["images"] / folder) for folder in class_folders(copy.parts["images"])}
        return {folder: [f"{folder}/{name}" for name in found if _is_image(name)] for folder, found in places.items()}
    by_folder: dict[str, list[str]] = {}
    for path in _listed(copy.parts["list"]):
        by_folder.setdefault(path.split("/")[0], []).append(path)
    return {folder: sorted(by_folder[folder]) for folder in sorted(by_folder)}


def _listed(file: Path) -> list[str]:
    """The paths in images.txt, whose lines hold a number, a class folder and a file name."""
    paths = []
    for line in read_lines(file):
        number, _, path = line.partition(" ")
        if not number.isdecimal() or "/" not in path:
            raise bad_line(file, line, "`image_id CLASS/NAME.jpg`")
        paths.append(image_path(file, line, path))
    return paths


def _sides(folders: Sequence[str]) -> list[bool]:
    """Whether the class of each folder trains."""
    if len(folders) == 2 * NB_TRAIN_CLASSES:
        return [place < NB_TRAIN_CLASSES for place in range(len(folders))]
    found = [re.match(r"\d+", folder) for folder in folders]
    if all(found):
        return [int(number.group()) <= NB_TRAIN_CLASSES for number in found if number]
    return [2 * place < len(folders) for place in range(len(folders))]


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")
