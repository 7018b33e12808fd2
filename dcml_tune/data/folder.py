"""Data set `folder`: any directory with a folder of images a class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dcml_tune.config import SettingError, TrialConfig
from dcml_tune.data.images import DataSet, EvaluationSet, ImageList

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
KS = (1, 2, 4, 8)


def read(config: TrialConfig) -> DataSet:
    """List the images; the first half of the sorted classes trains, or `train_classes` of them."""
    root = _directory(config)
    images = {entry.name: _images(entry) for entry in sorted(root.iterdir()) if _is_class(entry)}
    images = {name: files for name, files in images.items() if files}
    return split(config, root, images, config.train_classes)


def _directory(config: TrialConfig) -> Path:
    if config.dataset_dir is None:
        raise SettingError(f"dataset_dir: data set {config.dataset!r} needs a directory; give --dataset-dir DIRECTORY")
    root = Path(config.dataset_dir).expanduser()
    if not root.is_dir():
        raise SettingError(f"dataset_dir={root}: no such directory; give one with a folder of images a class")
    return root


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images(directory: Path) -> list[str]:
    """Image files directly in a class folder; names that start with a dot (`._x.jpg`, too) are not images."""
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and Path(e.name).suffix.lower() in SUFFIXES]
    return [f"{directory.name}/{name}" for name in sorted(names)]


def split(
    config: TrialConfig, root: Path, images: dict[str, list[str]], count: int | None, *, alternate: bool = False
) -> DataSet:
    """A data set from the files of each class.

    Args:
        config: `strict` refuses classes with a single image, which are else left out.
        root: what the files are relative to.
        images: the files of each class, in the order of the classes.
        count: how many classes train; None: half of them.
        alternate: every other class trains, instead of the first ones.
    """
    if not images:
        raise SettingError(f"dataset_dir={root}: holds no images; it must hold a folder of images a class")
    single = [name for name, files in images.items() if len(files) == 1]
    notes = []
    if single:
        listed = ", ".join(single[:10]) + (f" and {len(single) - 10} more" if len(single) > 10 else "")
        if config.strict:
            raise SettingError(
                f"dataset_dir={root}: {len(single)} classes have a single image ({listed}) and --strict refuses "
                "them; add images or leave --strict out"
            )
        notes.append(f"left out {len(single)} classes with a single image: {listed}")
    names = [name for name in images if name not in set(single)]
    count = (len(names) + 1) // 2 if count is None else count
    if len(names) < 4 or not 2 <= count <= len(names) - 2:
        raise SettingError(
            f"dataset_dir={root}: {len(names)} classes with two images or more, {count} of them to train; at least 2 "
            "must train and 2 test; add classes or change --train-classes"
        )
    trains = np.arange(len(names)) % 2 == 0 if alternate else np.arange(len(names)) < count
    train, test = (_list(root, names, images, np.flatnonzero(chosen)) for chosen in (trains, ~trains))
    tests = (EvaluationSet("test", test, None, KS),)
    return DataSet(config.dataset, tuple(names), train, tests, tuple(notes))


def _list(root: Path, names: list[str], images: dict[str, list[str]], classes: np.ndarray) -> ImageList:
    paths = tuple(path for index in classes for path in images[names[index]])
    labels = np.repeat(classes, [len(images[names[index]]) for index in classes]).astype(np.int64)
    return ImageList(paths, labels, root)
