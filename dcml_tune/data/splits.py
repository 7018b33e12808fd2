"""Which training classes are held out to compare trials. The search never reads test classes."""

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
    """The rows that queries are searched in; None: each other."""


def hold_out(dataset: DataSet, *, share: float, seed: int, fold: int = 0) -> tuple[ImageList, EvaluationSet | None]:
    """Hold out a share of the training classes; see `hold_out_rows`.

    Where the test set has a gallery (In-Shop), the held-out images are split into queries and gallery, too.

    Returns:
        The images that train, with the data set's labels, and the set to compare trials on (None for share
        0).
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
    """Hold out a share of the classes: class-disjoint, and within each super-class the same share.

    The choice depends on the classes and the seed alone, not on how many images a class has. At least two
    classes are held out and at least two train.

    Args:
        images: the images of the training classes.
        share: of the classes, 0 to 1; 0 holds none out.
        seed: of the choice.
        fold: folds of one seed have no class in common, and each is stratified; see `nb_folds`.
        gallery: split the held-out images of each class into queries and gallery, half and half.

    Returns:
        Rows that train, in order, and the held-out rows (None for share 0).

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
    """How many sets of held-out classes there are of which no two have a class in common; see `hold_out_rows`."""
    return classes // _nb_held(classes, share)


def _nb_held(classes: int, share: float) -> int:
    """How many classes are held out: the share, rounded, and two or more on either side."""
    if classes < 4:
        raise SettingError(
            f"val_share={share}: {classes} training classes are too few to hold some out (two have to "
            "train, and two to compare trials on); take a data set with more, or val_share=0"
        )
    return min(max(round(share * classes), 2), classes - 2)


def _choose(groups: Indices, number: int, fold: int, rng: np.random.Generator) -> Indices:
    """Choose some of the classes so that each group gives its share, to within one class (two where fold > 0).

    Classes are put in a random order within their group; the groups are then interleaved by how far each
    class is within its own, and fold after fold takes `number` of them. Ties between groups are broken at random.
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
