"""Exclusion of images that cannot be decoded, by one rule for search, train, evaluate and data.

A class of several images of which only one can be decoded is excluded: its query could only be a miss. A query whose class
has lost its whole gallery is excluded, too. Classes with a single image in the complete copy are the concern of the reader of
the data set: published protocols keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.decoding import departure_lines
from dcml_tune.data.image_list import DataSet, EvaluationSet, ImageList, Indices, named
from dcml_tune.data.image_store import open_store
from dcml_tune.runs.stores import Stores

Mask = npt.NDArray[np.bool_]


class Seen(Protocol):
    """Result of decoding a list of images: an image store or an inspection."""

    @property
    def kept(self) -> Indices:
        """Positions of the images that can be decoded."""

    @property
    def departures(self) -> Mapping[str, int]:
        """Number of images by applied conversion."""


@dataclass(frozen=True)
class Remains:
    """Messages about one side of a data set."""

    lines: list[str]
    problem: str | None
    """The reason why it cannot be used; None if it can."""

    def checked(self) -> list[str]:
        """The lines.

        Raises:
            SettingError: if it cannot be used.
        """
        if self.problem is not None:
            raise SettingError(self.problem)
        return self.lines


def matched(before: Indices, after: Indices, *, gallery: tuple[Indices, Indices] | None = None) -> Mask:
    """Whether each decodable image still has a relevant image to retrieve, or had none from the beginning.

    Args:
        before: labels of all images.
        after: labels of the decodable images.
        gallery: the same two arrays for the gallery; None: each image is searched in all others.

    Example:
        >>> matched(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 2])).tolist()
        [False, True, True, True]
    """
    least = 2 if gallery is None else 1
    had, has = (_frequent(labels, least) for labels in gallery or (before, after))
    return ~np.isin(after, np.setdiff1d(had, has))


def matched_queries(test: EvaluationSet, labels: Indices, gallery_labels: Indices | None) -> Mask:
    """As `matched`, for the queries of a test set."""
    gallery = None
    if test.gallery is not None and gallery_labels is not None:
        gallery = (test.gallery.labels, gallery_labels)
    return matched(test.queries.labels, labels, gallery=gallery)


def of_train(config: TrialConfig, dataset: DataSet, seen: Seen) -> Remains:
    """Messages about the training images."""
    images = dataset.train
    after = images.labels[seen.kept]
    kept = matched(images.labels, after)
    lines = _lines("training images", [(images, seen)])
    return _side(config, dataset, "training classes", lines, after, kept)


def of_tests(config: TrialConfig, dataset: DataSet, seen_of: Callable[[ImageList], Seen]) -> Remains:
    """Messages about the test images of all test sets."""
    found = {images: seen_of(images) for images in dataset.test_lists}
    lines = _lines("test images", list(found.items()))
    for test in dataset.tests:
        if not all(images in found for images in test.lists):
            continue  # a part of another set
        labels, *gallery = (images.labels[found[images].kept] for images in test.lists)
        kept = matched_queries(test, labels, gallery[0] if gallery else None)
        side = _side(config, dataset, "test classes", lines, labels, kept)
        lines = side.lines
        if side.problem is not None:
            return side
    return Remains(lines, None)


def store_tests(config: TrialConfig, dataset: DataSet, stores: Path | Stores, *, verify: bool = False) -> list[str]:
    """Decode the test images into their stores, so that damaged ones are found before hours of training.

    No model is applied to the images, so that this does not count as scoring them.

    Returns:
        Messages about the images.

    Raises:
        SettingError: if images cannot be decoded and `skip_unreadable` is not set, or too few classes remain.
    """
    return of_tests(config, dataset, lambda images: open_store(config, images, stores, verify=verify)).checked()


def _frequent(labels: Indices, least: int) -> Indices:
    classes, sizes = np.unique(labels, return_counts=True)
    frequent: Indices = classes[sizes >= least]
    return frequent


def _lines(what: str, lists: Sequence[tuple[ImageList, Seen]]) -> list[str]:
    total = sum(len(images) for images, _ in lists)
    missing = total - sum(len(seen.kept) for _, seen in lists)
    counts = {
        key: sum(seen.departures.get(key, 0) for _, seen in lists) for _, each in lists for key in each.departures
    }
    return [*([f"left out {missing:,} of {total:,} {what}: not decodable"] if missing else []),
            *departure_lines(counts, what)]  # fmt: skip


def _side(config: TrialConfig, dataset: DataSet, what: str, lines: list[str], after: Indices, kept: Mask) -> Remains:
    lost = [dataset.class_names[label] for label in np.unique(after[~kept]).tolist()]
    if lost:
        text = f"{len(lost):,} {what} have fewer than two images that can be decoded: {named(lost)}"
        if config.strict:
            return Remains(lines, f"{dataset.name}: {text}; repair the images, or leave --strict out")
        lines = [*lines, f"left out {text}"]
    left = len(np.unique(after[kept]))
    problem = (
        f"{dataset.name}: {left} {what} are left; at least two are needed, so repair the images" if left < 2 else None
    )
    return Remains(lines, problem)
