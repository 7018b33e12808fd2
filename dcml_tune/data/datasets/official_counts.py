"""Published counts of classes and images, and data sets assembled from listings and compared with them.

Counts are those of the publications of the data sets. VehicleID's lists are counted in vehicles, because copies with
different numbers of images exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.folders import Folders
from dcml_tune.data.image_list import DataSet, EvaluationSet, ImageList, Indices, named

Entries = Sequence[tuple[str, int]]
"""Path relative to the root, and label, of each image."""

COUNTS: dict[str, dict[str, int]] = {
    "cub": {"train classes": 100, "train images": 5_864, "test classes": 100, "test images": 5_924},
    "cars": {"train classes": 98, "train images": 8_054, "test classes": 98, "test images": 8_131},
    "sop": {"train classes": 11_318, "train images": 59_551, "test classes": 11_316, "test images": 60_502},
    "inshop": {
        "train classes": 3_997,
        "train images": 25_882,
        "test classes": 3_985,
        "test queries": 14_218,
        "test gallery": 12_612,
    },
    "vid": {"train classes": 13_164, "2400 classes": 2_400, "1600 classes": 1_600, "800 classes": 800},
}
"""Counts of a complete copy, under the names that `counts` uses."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images that the files of a data set list, whether they exist or not."""

    class_names: tuple[str, ...]
    """Names of all classes; labels are indices into them."""
    train: Entries
    tests: tuple[tuple[str, Entries, Entries | None], ...]
    """Name, queries and gallery (None if there is none) of each test set."""
    ks: tuple[int, ...]
    super_of: dict[str, int] | None = None
    """Super-class of each training image, by path."""


def assemble(config: TrialConfig, root: Path, listing: Listing, notes: Sequence[str] = ()) -> DataSet:
    """Assemble a data set from the images of a listing that exist.

    Args:
        config: says whether partial copies (`allow_partial`) and classes with a single image (`strict`) are accepted.
        root: directory to which the paths of the listing are relative.
        listing: the images; the case of names may differ on disk.
        notes: lines about the copy, which are shown first.

    Raises:
        SettingError: if images are missing or counts differ from the published ones and `allow_partial` is not set, or if
            fewer than two classes remain on a side.
    """
    spelled = _spelled(root, listing)
    missing = [path for path, found in spelled.items() if found is None]
    whole = listing if all(path == found for path, found in spelled.items()) else _with(listing, spelled)
    dataset = _dataset(config.dataset, root, whole)
    problems = [f"{what}: found {found:,}, published {known:,}" for what, found, known in differences(dataset)]
    if missing:
        problems.insert(0, f"{len(missing):,} listed images are missing ({named(missing, limit=3)})")
    if problems and not config.allow_partial:
        raise SettingError(
            f"{config.dataset} in {root}: {'; '.join(problems)}; complete the copy, or use what is there with "
            "--allow-partial"
        )
    _refuse_empty(dataset, root)
    partial = [f"partial copy: {'; '.join(problems)}"] if problems else []
    return DataSet(
        name=dataset.name,
        class_names=dataset.class_names,
        train=dataset.train,
        tests=dataset.tests,
        notes=(*notes, *partial, *_single(config, dataset)),
    )


def counts(dataset: DataSet) -> dict[str, int]:
    """Numbers of classes and images of a data set, by split."""
    found = {"train classes": dataset.train.nb_classes, "train images": len(dataset.train)}
    for test in dataset.tests:
        found[f"{test.name} classes"] = len(set().union(*(np.unique(images.labels).tolist() for images in test.lists)))
        if test.gallery is None:
            found[f"{test.name} images"] = len(test.queries)
        else:
            found |= {f"{test.name} queries": len(test.queries), f"{test.name} gallery": len(test.gallery)}
    return found


def differences(dataset: DataSet) -> list[tuple[str, int, int]]:
    """Counts that differ from the published ones: name, number found, published number."""
    found = counts(dataset)
    known = COUNTS.get(dataset.name, {})
    return [(what, found.get(what, 0), number) for what, number in known.items() if found.get(what, 0) != number]


def _paths(listing: Listing) -> Iterable[str]:
    """Paths of all images of a listing, without duplicates."""
    lists = [listing.train, *(part for _, queries, gallery in listing.tests for part in (queries, gallery or ()))]
    return dict.fromkeys(path for entries in lists for path, _ in entries)


def _spelled(root: Path, listing: Listing) -> dict[str, str | None]:
    """Spelling on disk of each listed path; None if it does not exist."""
    disk = Folders()
    return {path: disk.spelled(root, path) for path in _paths(listing)}


def _with(listing: Listing, spelled: Mapping[str, str | None]) -> Listing:
    """The listing of the existing images, with their spelling on disk."""

    def kept(entries: Entries) -> Entries:
        found = ((spelled[path], label) for path, label in entries)
        return [(path, label) for path, label in found if path is not None]

    tests = tuple((name, kept(q), None if g is None else kept(g)) for name, q, g in listing.tests)
    supers = None if listing.super_of is None else {spelled[path] or path: of for path, of in listing.super_of.items()}
    return replace(listing, train=kept(listing.train), tests=tests, super_of=supers)


def _dataset(name: str, root: Path, listing: Listing) -> DataSet:
    tests = tuple(
        EvaluationSet(test, _images(root, queries), None if gallery is None else _images(root, gallery), listing.ks)
        for test, queries, gallery in listing.tests
    )
    return DataSet(
        name=name, class_names=listing.class_names, train=_images(root, listing.train, listing.super_of), tests=tests
    )


def _images(root: Path, entries: Entries, super_of: dict[str, int] | None = None) -> ImageList:
    labels: Indices = np.array([label for _, label in entries], dtype=np.int64)
    supers = None if super_of is None else np.array([super_of[path] for path, _ in entries], dtype=np.int64)
    return ImageList(tuple(path for path, _ in entries), labels, root, supers)


def _refuse_empty(dataset: DataSet, root: Path) -> None:
    sides = {"train": (dataset.train,)} | {test.name: test.lists for test in dataset.tests}
    for side, lists in sides.items():
        if min(images.nb_classes for images in lists) < 2:
            raise SettingError(
                f"{dataset.name} in {root}: fewer than two classes of the split {side!r} exist, too few to "
                "train or measure; complete the copy"
            )


def _single(config: TrialConfig, dataset: DataSet) -> list[str]:
    """A note about training classes with a single image, which have no positive pair."""
    classes, sizes = np.unique(dataset.train.labels, return_counts=True)
    single = [dataset.class_names[label] for label in classes[sizes == 1].tolist()]
    if single and config.strict:
        raise SettingError(
            f"{dataset.name}: {len(single):,} training classes have a single image, so they have no pair "
            f"({named(single)}); complete the copy, or leave --strict out"
        )
    return [f"{len(single):,} training classes have a single image: {named(single)}"] if single else []
