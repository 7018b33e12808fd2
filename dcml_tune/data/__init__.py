"""Data sets: classes and splits, and the store of decoded images. Importing this package does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.contents import Identity
from dcml_tune.data.datasets import cars, cub, emoji, folder, inshop, sop, vid
from dcml_tune.data.image_list import DataSet, EvaluationSet, ImageList, UnreadableImageError, fingerprint
from dcml_tune.data.image_store import ImageStore, Inspection, Kind, inspect, needed_bytes, open_or_build, open_store
from dcml_tune.data.samplers import epoch_batches, round_robin
from dcml_tune.data.splits import HeldOut, hold_out, hold_out_rows

__all__ = [
    "READERS",
    "DataSet",
    "EvaluationSet",
    "HeldOut",
    "Identity",
    "ImageList",
    "ImageStore",
    "Inspection",
    "Kind",
    "UnreadableImageError",
    "epoch_batches",
    "fingerprint",
    "hold_out",
    "hold_out_rows",
    "inspect",
    "load",
    "needed_bytes",
    "open_or_build",
    "open_store",
    "round_robin",
]

# Reader of each data set. A reader lists files and splits classes; it opens no image.
READERS: dict[str, Callable[[TrialConfig], DataSet]] = {
    "cub": cub.read,
    "cars": cars.read,
    "sop": sop.read,
    "inshop": inshop.read,
    "vid": vid.read,
    "emoji": emoji.read,
    "folder": folder.read,
}


def load(config: TrialConfig) -> DataSet:
    """List the images of the data set that the configuration selects.

    Raises:
        SettingError: if the data set is unknown, does not exist on disk, is incomplete, or is too small.
    """
    if config.dataset not in READERS:
        raise SettingError(unknown_name("dataset", config.dataset, list(READERS)))
    dataset = READERS[config.dataset](config)
    return dataset if config.ratio_classes == 1 else _share_of_classes(dataset, config.ratio_classes)


def _share_of_classes(dataset: DataSet, share: float) -> DataSet:
    """The data set with only the first share of its training classes."""
    classes = np.unique(dataset.train.labels)
    kept = classes[: round(share * len(classes))]
    if len(kept) < 2:
        raise SettingError(
            f"ratio_classes={share}: leaves {len(kept)} of {len(classes)} training classes; at least two are needed, so raise it"
        )
    train = dataset.train.take(np.flatnonzero(np.isin(dataset.train.labels, kept)))
    note = f"ratio_classes={share}: {len(kept):,} of {len(classes):,} training classes are used"
    return replace(dataset, train=train, notes=(*dataset.notes, note))
