"""The embedded data set: 1,241 emoji, each drawn by up to six designers (see embedded/ATTRIBUTION.md)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.image_list import DataSet, EvaluationSet, ImageList

ARCHIVE = Path(__file__).parent.parent / "embedded" / "emoji64.zip"


def read(config: TrialConfig) -> DataSet:
    """List the emoji. The sorted classes alternate between training and test.

    Both sides then contain the same kinds of emoji; with halves, the flags and symbols, which are sorted last, would be on
    one side.
    """
    with zipfile.ZipFile(ARCHIVE) as archive:
        paths = tuple(sorted(name for name in archive.namelist() if name.endswith(".webp")))
    classes, labels = np.unique([path.split("/")[0] for path in paths], return_inverse=True)
    images = ImageList(paths, labels.astype(np.int64), ARCHIVE)
    train = np.flatnonzero(labels % 2 == 0)
    test = np.flatnonzero(labels % 2 == 1)
    return DataSet(
        name="emoji",
        class_names=tuple(classes.tolist()),
        train=images.take(train),
        tests=(EvaluationSet("test", images.take(test), None, (1, 2, 4, 8)),),
    )
