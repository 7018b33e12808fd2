"""Data sets, splits, the image store, transforms and batches. A new data set is a module and a line here."""

from __future__ import annotations

from importlib import import_module

from dcml_tune.config import SettingError, TrialConfig, unknown_name
from dcml_tune.data.batches import epoch_batches, round_robin
from dcml_tune.data.images import DataSet, EvaluationSet, ImageList, fingerprint
from dcml_tune.data.loader import BatchLoader, evaluation_batches
from dcml_tune.data.splits import hold_out
from dcml_tune.data.store import ImageStore, open_or_build
from dcml_tune.data.transforms import TrainTransform

__all__ = [
    "DATASETS", "PLANNED", "BatchLoader", "DataSet", "EvaluationSet", "ImageList", "ImageStore", "TrainTransform",
    "check_name", "epoch_batches", "evaluation_batches", "fingerprint", "hold_out", "load", "open_or_build",
    "round_robin",
]  # fmt: skip

DATASETS = ("emoji", "folder")
PLANNED = ("cub", "cars", "sop", "inshop", "vid")


def check_name(name: str) -> None:
    """Refuse a data set that cannot be read.

    Raises:
        SettingError: with the names of those that can.
    """
    if name in PLANNED:
        raise SettingError(f"dataset={name}: cannot be read by this version yet; known are: {', '.join(DATASETS)}")
    if name not in DATASETS:
        raise SettingError(f"{unknown_name('data set', name, list(DATASETS))} (known are: {', '.join(DATASETS)})")


def load(config: TrialConfig) -> DataSet:
    """List the images of a configuration's data set; none is opened.

    Raises:
        SettingError: for an unknown data set, a directory that is missing or empty, or too few classes.
    """
    check_name(config.dataset)
    dataset: DataSet = import_module(f"dcml_tune.data.{config.dataset}").read(config)
    return dataset
