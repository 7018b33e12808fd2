"""CUB-200-2011: 200 birds; the first 100 in the order of their numbered folders train.

Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011; the split is that of Oh Song et al., CVPR 2016.
"""

from __future__ import annotations

import os
import re

from dcml_tune.config import TrialConfig
from dcml_tune.data.images import DataSet
from dcml_tune.data.published import Listing, assemble, find

NB_TRAIN_CLASSES = 100
_SUFFIXES = (".jpg", ".jpeg", ".png")


def read(config: TrialConfig) -> DataSet:
    """List the images of cub-200-2011/images. What starts with a dot, `._x.jpg` included, is no image.

    Folders are sorted by name. In a partial copy the number that a folder's name begins with says on which side its
    class lies; without numbers the first half of the folders trains.

    Raises:
        SettingError: as `published.find` and `published.assemble`.
    """
    root = find(config, "cub-200-2011", "images")
    with os.scandir(root) as entries:
        folders = sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    sides = _sides(folders)
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, folder in enumerate(folders):
        names = sorted(name for name in os.listdir(root / folder) if _is_image(name))
        (train if sides[label] else test).extend((f"{folder}/{name}", label) for name in names)
    listing = Listing(class_names=tuple(folders), train=train, tests=(("test", test, None),), ks=(1, 2, 4, 8))
    return assemble(config, root, listing)


def _sides(folders: list[str]) -> list[bool]:
    """Whether each folder's class trains."""
    if len(folders) == 2 * NB_TRAIN_CLASSES:
        return [place < NB_TRAIN_CLASSES for place in range(len(folders))]
    numbers = [re.match(r"\d+", folder) for folder in folders]
    if all(numbers):
        return [int(number.group()) <= NB_TRAIN_CLASSES for number in numbers if number]
    return [2 * place < len(folders) for place in range(len(folders))]


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")
