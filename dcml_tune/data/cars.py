"""Cars196: 196 models of cars; the first 98 train. The split of the annotations (`test`) is another one, and not used.

Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013; the split is that of Oh Song et
al., CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dcml_tune.config import SettingError, TrialConfig
from dcml_tune.data.images import DataSet
from dcml_tune.data.published import Listing, assemble, find

NB_TRAIN_CLASSES = 98


def read(config: TrialConfig) -> DataSet:
    """List the images of cars196/cars_annos.mat. Classes are counted from 1 there; bounding boxes are not used.

    Raises:
        SettingError: if the annotations cannot be read, and as `published.find` and `published.assemble`.
    """
    annotations = find(config, "cars196", "cars_annos.mat")
    entries = _entries(annotations)
    train = [(path, number - 1) for path, number in entries if number <= NB_TRAIN_CLASSES]
    test = [(path, number - 1) for path, number in entries if number > NB_TRAIN_CLASSES]
    names = tuple(str(number) for number in range(1, max(number for _, number in entries) + 1))
    listing = Listing(class_names=names, train=train, tests=(("test", test, None),), ks=(1, 2, 4, 8))
    return assemble(config, annotations.parent, listing)


def _entries(file: Path) -> list[tuple[str, int]]:
    """Path and class number of each image, in the order of the annotations."""
    from scipy.io import loadmat  # only this data set needs it

    try:
        # A list of one annotation would be squeezed to a scalar.
        annotations = np.atleast_1d(loadmat(file, squeeze_me=True)["annotations"])
        return [(str(_scalar(path)), int(_scalar(number)))
                for path, number in zip(annotations["relative_im_path"], annotations["class"], strict=True)]  # fmt: skip
    except Exception as error:  # scipy raises what it likes for a damaged file
        raise SettingError(
            f"{file}: cannot be read as MATLAB annotations with relative_im_path and class ({error}); put the file of the data "
            "set there"
        ) from None


def _scalar(value: Any) -> Any:
    return np.asarray(value).reshape(-1)[0]
