"""Cars196: 196 car models. The first 98 classes train. The split of the annotations (`test`) differs and is not used.

Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013; the split is that of Oh Song et
al., CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.copies import Copy, find_copy
from dcml_tune.data.datasets.official_counts import Entries, Listing, assemble
from dcml_tune.data.decoding import open_regular
from dcml_tune.data.image_folder import images_by_class
from dcml_tune.data.image_list import DataSet

NB_TRAIN_CLASSES = 98


def read(config: TrialConfig) -> DataSet:
    """List the images from the annotations or from class folders. Bounding boxes are not used.

    Class names are the numbers of the classes, which begin at 1.

    Raises:
        SettingError: if the annotations cannot be read, and as in `copies.find_copy` and `official_counts.assemble`.
    """
    copy = find_copy(config)
    root, entries = _READERS.get(copy.layout.key, _of_folders)(copy)
    train = [(path, number - 1) for path, number in entries if number <= NB_TRAIN_CLASSES]
    test = [(path, number - 1) for path, number in entries if number > NB_TRAIN_CLASSES]
    names = tuple(str(number) for number in range(1, max((number for _, number in entries), default=0) + 1))
    listing = Listing(class_names=names, train=train, tests=(("test", test, None),), ks=(1, 2, 4, 8))
    return assemble(config, root, listing, copy.notes)


def _of_annotations(copy: Copy) -> tuple[Path, Entries]:
    """Images of a copy with all images in one folder, as in the original code, in the order of the annotations."""
    images = copy.parts["images"]
    found = _annotations(copy.parts["annotations"], "relative_im_path")
    return images.parent, [(f"{images.name}/{path.rpartition('/')[2]}", number) for path, number in found]


def _of_devkit(copy: Copy) -> tuple[Path, Entries]:
    """Images of a copy with one folder per side of the data set's own split, by class and then in the order of the annotations."""
    entries = []
    for side in ("train", "test"):
        place = copy.parts[side].relative_to(copy.base).as_posix()
        found = _annotations(copy.parts[f"{side} annotations"], "fname")
        entries += [(f"{place}/{path.rpartition('/')[2]}", number) for path, number in found]
    return copy.base, sorted(entries, key=lambda entry: entry[1])


def _of_folders(copy: Copy) -> tuple[Path, Entries]:
    by_class = images_by_class("cars", copy.base, copy.parts.values())
    return copy.base, [(path, number) for number, paths in by_class.items() for path in paths]


_READERS = {"annotations": _of_annotations, "devkit": _of_devkit}


def _annotations(file: Path, path_field: str) -> list[tuple[str, int]]:
    """Path and class number of each image, in the order of the annotations."""
    from scipy.io import loadmat  # scipy takes long to import, and only this data set needs it

    try:
        # squeeze_me turns a list of one annotation into a scalar.
        with open_regular(file) as opened:
            annotations = np.atleast_1d(loadmat(opened, squeeze_me=True)["annotations"])
        return [(str(_scalar(path)).replace("\\", "/"), int(_scalar(number)))
                for path, number in zip(annotations[path_field], annotations["class"], strict=True)]  # fmt: skip
    except Exception as error:  # scipy raises errors of many types for a damaged file
        raise SettingError(
            f"{file}: cannot be read as MATLAB annotations with {path_field} and class ({error}); put the file of the data "
            "set there"
        ) from None


def _scalar(value: Any) -> Any:
    return np.asarray(value).reshape(-1)[0]
