"""Any directory with one folder of images per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.class_folders import Entry, Labelled, is_image, label
from dcml_tune.data.image_list import DataSet, EvaluationSet, ImageList, named, why
from dcml_tune.data.tree import Tree, walk

# Least number of classes on each side: with a single class there is nothing to distinguish.
FEWEST = 2


def read(config: TrialConfig) -> DataSet:
    """List the images of a directory, in a layout that `class_folders` recognises. No image is opened.

    Folders below a class folder (front/, back/, ...) belong to the class. Classes are sorted by name; classes with a single
    image are excluded. If the directory has a split and no class of test/ also trains, that split is used. If there is no
    test/, val/ takes its place under the same condition. A split by image cannot be used, because test classes must not
    occur in training: its sides are merged. In this case, and without a split, the first `train_classes` classes train
    (by default the first half, rounded up), and the others test.

    Raises:
        SettingError: if the directory is not given, cannot be read or has too few classes, if `train_classes` leaves too few
            classes on a side or contradicts the split, or if `strict` is set and a class has a single image.
    """
    root = directory(config)
    tree = walk(root)
    if tree.closed and not config.skip_unreadable:
        raise SettingError(
            f"{root}: {len(tree.closed):,} folders cannot be read ({named(tree.closed)}); change their permissions, or leave "
            "them out with --skip-unreadable"
        )
    found = label(root, tree)
    sizes = Counter(entry.name for entry in found.entries)
    single = sorted(name for name, size in sizes.items() if size == 1)
    if single and config.strict:
        raise SettingError(
            f"{root}: {len(single):,} classes have a single image, so they have no pair "
            f"({named(single)}); add images, or leave --strict out to exclude these classes"
        )
    kept = [entry for entry in found.entries if sizes[entry.name] > 1]
    classes = sorted({entry.name for entry in kept})
    trains, line = _train_classes(root, kept, classes, found.sides, config.train_classes)
    number = {name: place for place, name in enumerate(classes)}
    images = ImageList(
        tuple(entry.path for entry in kept), np.array([number[entry.name] for entry in kept], dtype=np.int64), root
    )
    is_train = np.array([entry.name in trains for entry in kept])
    return DataSet(
        name="folder",
        class_names=tuple(classes),
        train=images.take(np.flatnonzero(is_train)),
        tests=(EvaluationSet("test", images.take(np.flatnonzero(~is_train)), None, (1, 2, 4, 8)),),
        notes=(*line, *found.notes, *_notes(tree, found, single)),
    )


def directory(config: TrialConfig) -> Path:
    """The directory that holds the data set.

    Raises:
        SettingError: if it is not given, is not a directory, cannot be read, or is empty.
    """
    if not config.dataset_dir:
        raise SettingError(
            f"dataset_dir is not given: data set {config.dataset!r} is read from a directory; "
            "say which with --dataset-dir DIRECTORY"
        )
    root, problem = Path(config.dataset_dir), None
    try:
        root = root.expanduser().resolve()
        if not root.is_dir():
            problem = "is no directory" if root.exists() else "does not exist"
        elif not any(root.iterdir()):
            problem = "is empty"
    except (OSError, RuntimeError, ValueError) as error:  # no permission, an unknown user's home, a link to itself
        problem = f"cannot be read ({why(error)})"
    if problem:
        raise SettingError(f"dataset_dir={config.dataset_dir}: {problem}; give the directory of the images")
    return root


def _train_classes(
    root: Path, entries: list[Entry], classes: list[str], sides: dict[str, str], wanted: int | None
) -> tuple[set[str], list[str]]:
    """The classes that train, and a note about the split of the directory, if it has one."""
    by_side: dict[str, set[str]] = {}
    for entry in entries:
        by_side.setdefault(entry.side, set()).add(entry.name)
    tested = "test" if "test" in by_side else "validation"
    folders = ", ".join(f"{name}/" for name in sides)
    tests = by_side.get(tested, set())
    trains = {name for side, names in by_side.items() if side != tested for name in names}
    if not sides or not tests or tests & trains:
        line = (
            [f"{folders}: a split by image is merged by class, because test classes must not occur in training"]
            if tests
            else []
        )
        return set(classes[: _nb_train_classes(root, len(classes), wanted)]), line
    own = ", ".join(f"{name}/" for name, side in sides.items() if side == tested)
    if wanted is not None:
        raise SettingError(
            f"train_classes={wanted}: {folders} in {root} say which classes train and which test; leave --train-classes out"
        )
    if min(len(trains), len(tests)) < FEWEST:
        raise SettingError(
            f"{root}: of the classes with two images or more {len(trains)} train and {len(tests)} test; at least two are needed on "
            "each side; add classes, or remove the folders of the split"
        )
    return trains, [f"the split of the directory is taken: the classes of {own} test, the others train"]


def _nb_train_classes(root: Path, classes: int, wanted: int | None) -> int:
    """Number of the sorted classes that train."""
    if classes < 2 * FEWEST:
        raise SettingError(
            f"dataset_dir={root}: {classes} folders in it hold two images or more; at least {2 * FEWEST} are needed "
            "(two to train, two to test); give the directory that holds one folder of images per class"
        )
    if wanted is not None and not FEWEST <= wanted <= classes - FEWEST:
        raise SettingError(
            f"train_classes={wanted}: must leave two classes or more on either side, and {classes} have two "
            f"images or more in {root}; give {FEWEST} to {classes - FEWEST}"
        )
    return (classes + 1) // 2 if wanted is None else wanted


def _notes(tree: Tree, found: Labelled, single: list[str]) -> Iterator[str]:
    """Yield one note for each kind of item that is excluded."""
    if single:
        few = "1 class" if len(single) == 1 else f"{len(single):,} classes"
        yield f"left out {few} with a single image: {named(single)}"
    filled = {path.split("/")[0] for path in (*tree.files, *tree.broken) if "/" in path and is_image(path)}
    if empty := [name for name in tree.folders if name not in filled]:
        yield f"left out {len(empty):,} folders without images: {named(empty)}"
    if tree.repeated:
        yield f"left out {len(tree.repeated):,} links to folders that are listed already: {named(tree.repeated)}"
    if broken := [path for path in tree.broken if not is_image(path)]:
        yield f"left out {len(broken):,} broken or circular links: {named(broken)}"
    if tree.closed:
        yield f"left out {len(tree.closed):,} folders that cannot be read: {named(tree.closed)}"
    others = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in tree.files if not is_image(path))
    if others:
        yield f"{others.total():,} files have no suffix of an image format: {named(sorted(others))}"
