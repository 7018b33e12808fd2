"""Any directory that holds a folder of images a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dcml_tune.config import SettingError, TrialConfig
from dcml_tune.data.images import DataSet, EvaluationSet, ImageList, named

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
    }
)

# Two classes have to train, else there is nothing to tell apart, and two have to test.
FEWEST = 2


def read(config: TrialConfig) -> DataSet:
    """List the images of a directory: a folder in it is a class, the image files below it are its images.

    Folders below a class folder (front/, back/, ...) belong to the class. What starts with a dot, `._x.jpg`
    included, is not looked at. Classes are sorted by name; of those with two images or more the first half
    trains (the larger half of an odd number), or as many as `train_classes` says, and the others test. No
    image is opened.

    Raises:
        SettingError: for a directory that is not given or holds too few classes, for `train_classes` that
            leaves
            too few on a side, and for classes with a single image when `strict`.
    """
    root = directory(config)
    files = list(_files(root))
    found = sorted((folder, path) for folder, path in files if folder and _is_image(path))
    sizes = Counter(folder for folder, _ in found)
    single = sorted(folder for folder, size in sizes.items() if size == 1)
    if single and config.strict:
        raise SettingError(
            f"{root}: {len(single):,} classes have a single image, so no pair to learn from or to find "
            f"({named(single)}); add images, or leave --strict out to go on without these classes"
        )
    classes = sorted(folder for folder, size in sizes.items() if size > 1)
    nb_train = _nb_train_classes(root, len(classes), config.train_classes)
    number = {folder: label for label, folder in enumerate(classes)}
    kept = [(path, number[folder]) for folder, path in found if folder in number]
    labels = np.array([label for _, label in kept], dtype=np.int64)
    images = ImageList(tuple(path for path, _ in kept), labels, root)
    return DataSet(
        name="folder",
        class_names=tuple(classes),
        train=images.take(np.flatnonzero(labels < nb_train)),
        tests=(EvaluationSet("test", images.take(np.flatnonzero(labels >= nb_train)), None, (1, 2, 4, 8)),),
        notes=tuple(_notes(root, files, sizes, single)),
    )


def directory(config: TrialConfig) -> Path:
    """The directory that holds the data set.

    Raises:
        SettingError: if it is not given, is none, or is empty.
    """
    if not config.dataset_dir:
        raise SettingError(
            f"dataset_dir is not given: data set {config.dataset!r} is read from a directory; "
            "say which with --dataset-dir DIRECTORY"
        )
    root = Path(config.dataset_dir).expanduser().resolve()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise SettingError(f"dataset_dir={config.dataset_dir}: {problem}; give the directory of the images")
    if not any(root.iterdir()):
        raise SettingError(f"dataset_dir={config.dataset_dir}: is empty; give the directory of the images")
    return root


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Class folder ("" for none) and path relative to the root, of every file that is not hidden."""
    with os.scandir(root) as entries:
        top = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in top:
        if not entry.is_dir():
            yield "", entry.name
            continue
        # A class folder may be a link; links below it are not followed, since they may lead in circles.
        for below, folders, names in os.walk(entry.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(below).relative_to(root).as_posix()
            yield from ((entry.name, f"{inside}/{name}") for name in names if not name.startswith("."))


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _nb_train_classes(root: Path, classes: int, wanted: int | None) -> int:
    """How many of the sorted classes train."""
    if classes < 2 * FEWEST:
        raise SettingError(
            f"dataset_dir={root}: {classes} folders in it hold two images or more, {2 * FEWEST} are the "
            "least (two train, two test); give the directory that holds a folder of images a class"
        )
    if wanted is not None and not FEWEST <= wanted <= classes - FEWEST:
        raise SettingError(
            f"train_classes={wanted}: must leave two classes or more on either side, and {classes} have two "
            f"images or more in {root}; take {FEWEST} to {classes - FEWEST}"
        )
    return (classes + 1) // 2 if wanted is None else wanted


def _notes(root: Path, files: list[tuple[str, str]], sizes: Counter[str], single: list[str]) -> Iterator[str]:
    """One line for each kind of thing that was left out."""
    if single:
        few = "1 class" if len(single) == 1 else f"{len(single):,} classes"
        yield f"left out {few} with a single image: {named(single)}"
    empty = sorted({entry.name for entry in os.scandir(root) if entry.is_dir()} - set(sizes))
    if empty := [name for name in empty if not name.startswith(".")]:
        yield f"left out {len(empty):,} folders without images: {named(empty)}"
    if loose := [path for folder, path in files if not folder and _is_image(path)]:
        yield f"left out {len(loose):,} images that lie in no class folder: {named(loose, limit=3)}"
    if others := Counter(os.path.splitext(path)[1].lower() or "no suffix" for _, path in files if not _is_image(path)):
        yield f"{others.total():,} files are no images by their suffix: {named(sorted(others))}"
