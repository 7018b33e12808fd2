"""Selection of the training classes that are held out to compare trials. A search never reads test classes for this."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.data.image_list import DataSet, EvaluationSet, ImageList, Indices


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows of an image list that are held out."""

    queries: Indices
    gallery: Indices | None
    """Rows in which queries are searched; None: each query is searched in all others."""


def hold_out(dataset: DataSet, *, share: float, seed: int, fold: int = 0) -> tuple[ImageList, EvaluationSet | None]:
    """Hold out a share of the training classes; see `hold_out_rows`.

    If the test set has a gallery (In-Shop), the held-out images are also split into queries and gallery.

    Returns:
        The training images, with the labels of the data set, and the set to compare trials on (None for share 0).
    """
    has_gallery = dataset.tests[0].gallery is not None
    rows, held = hold_out_rows(dataset.train, share=share, seed=seed, fold=fold, gallery=has_gallery)
    if held is None:
        return dataset.train, None
    gallery = None if held.gallery is None else dataset.train.take(held.gallery)
    validation = EvaluationSet("validation", dataset.train.take(held.queries), gallery, dataset.tests[0].ks)
    return dataset.train.take(rows), validation


def hold_out_rows(
    images: ImageList, *, share: float, seed: int, fold: int = 0, gallery: bool = False
) -> tuple[Indices, HeldOut | None]:
    """Hold out a share of the classes, stratified by super-class.

    The choice depends on the classes and the seed only, not on the number of images per class. At least two classes are
    held out, and at least two train.

    Args:
        images: the images of the training classes.
        share: share of the classes, 0 to 1; 0 holds none out.
        seed: seed of the choice.
        fold: number of the fold. Folds of one seed are disjoint, and each is stratified; see `nb_folds`.
        gallery: whether to split the held-out images of each class in halves, queries and gallery.

    Returns:
        Rows of the training images, in order, and the held-out rows (None for share 0).

    Raises:
        SettingError: if there are too few classes, or no such fold.
    """
    if share == 0:
        return np.arange(len(images), dtype=np.int64), None
    rng = np.random.default_rng(seed)
    classes, first, dense = np.unique(images.labels, return_index=True, return_inverse=True)
    groups = np.zeros(len(classes), np.int64) if images.super_labels is None else images.super_labels[first]
    is_held = np.isin(dense, _choose(groups, _nb_held(len(classes), share), fold, rng))
    held = np.flatnonzero(is_held)
    if not gallery:
        return np.flatnonzero(~is_held), HeldOut(held, None)
    is_query = _every_second(dense[held], rng)
    return np.flatnonzero(~is_held), HeldOut(held[is_query], held[~is_query])


def nb_folds(classes: int, share: float) -> int:
    """Number of disjoint folds of held-out classes; see `hold_out_rows`."""
    return classes // _nb_held(classes, share)


def _nb_held(classes: int, share: float) -> int:
    """Number of classes that are held out: the share, rounded, with at least two classes on either side."""
    if classes < 4:
        raise SettingError(
            f"val_share={share}: {classes} training classes are too few to hold some out (at least two must "
            "train, and at least two must be held out); use a data set with more, or val_share=0"
        )
    return min(max(round(share * classes), 2), classes - 2)


def _choose(groups: Indices, number: int, fold: int, rng: np.random.Generator) -> Indices:
    """Choose classes so that each group contributes its share, to within one class (two if fold > 0).

    Classes are shuffled within their group. The groups are then interleaved by the relative rank of each class in its
    group, and each fold takes the next `number` classes. Ties between groups are broken at random.
    """
    folds = len(groups) // number
    if fold >= folds:
        raise SettingError(
            f"fold={fold}: {len(groups)} classes with {number} held out give folds 0 to {folds - 1}; take one of them, or lower val_share"
        )
    shuffled = rng.permutation(len(groups))
    ordered = shuffled[np.argsort(groups[shuffled], kind="stable")]
    _, starts, sizes = np.unique(groups[ordered], return_index=True, return_counts=True)
    rank = np.arange(len(groups)) - np.repeat(starts, sizes)
    progress = (rank + rng.random(len(starts)).repeat(sizes)) / np.repeat(sizes, sizes)
    return np.sort(ordered[np.argsort(progress, kind="stable")[fold * number : (fold + 1) * number]])


def _every_second(labels: Indices, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """N: a random half of each class, the smaller half of an odd number."""
    order = np.lexsort((rng.random(len(labels)), labels))
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)
    half = np.zeros(len(labels), dtype=np.bool_)
    half[order] = rank < np.repeat(sizes // 2, sizes)
    return half
