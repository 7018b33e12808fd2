"""Stanford Online Products: 22,634 products of 12 categories. The first 11,318 classes train.

Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.copies import Copy, find_copy
from dcml_tune.data.datasets.official_counts import Entries, Listing, assemble
from dcml_tune.data.image_folder import images_by_class
from dcml_tune.data.image_list import DataSet
from dcml_tune.data.lists import bad_line, image_path, read_lines

NB_TRAIN_CLASSES = 11_318


def read(config: TrialConfig) -> DataSet:
    """List the images of Ebay_train.txt and Ebay_test.txt: a header, then lines of image_id, class_id, super_class_id and path.

    Held-out classes are stratified by super-class; copies without the lists have no super-classes.

    Raises:
        SettingError: for a malformed line, and as in `copies.find_copy` and `official_counts.assemble`.
    """
    copy = find_copy(config)
    if copy.layout.key == "lists":
        (train, supers), (test, _) = (_entries(copy.parts[side]) for side in ("train", "test"))
        root, super_of, notes = _root(copy, train), supers, copy.notes
    else:
        root, (train, test), super_of = copy.base, _of_folders(copy), None
        notes = (
            *copy.notes,
            "without the lists the super-classes are not known: held-out classes are not stratified by them",
        )
    names = tuple(str(number) for number in range(1, max((label for _, label in [*train, *test]), default=0) + 2))
    listing = Listing(class_names=names, train=train, tests=(("test", test, None),), ks=(1, 10, 100), super_of=super_of)
    return assemble(config, root, listing, notes)


def _entries(file: Path) -> tuple[Entries, dict[str, int]]:
    """Path and label (class_id - 1) of each image, and the super-class of each path."""
    entries, supers = [], {}
    for line in read_lines(file, is_header=lambda line: line.lower().startswith("image_id")):
        words = line.split(maxsplit=3)  # the path may contain spaces
        if len(words) < 4 or not all(word.isdecimal() for word in words[:3]):
            raise bad_line(file, line, "`image_id class_id super_class_id path`")
        path = image_path(file, line, words[3])
        entries.append((path, int(words[1]) - 1))
        supers[path] = int(words[2])
    return entries, supers


def _root(copy: Copy, entries: Entries) -> Path:
    """Directory to which the paths of the lists are relative: the folder of the copy, or `images` in it."""
    images = copy.parts.get("images")
    folder = entries[0][0].split("/")[0] if entries else ""
    return copy.base if images is None or (copy.base / folder).exists() else images


def _of_folders(copy: Copy) -> tuple[Entries, Entries]:
    entries = [
        (path, number - 1)
        for number, paths in images_by_class("sop", copy.base, copy.parts.values()).items()
        for path in paths
    ]
    train = [entry for entry in entries if entry[1] < NB_TRAIN_CLASSES]
    return train, entries[len(train) :]
