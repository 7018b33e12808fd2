"""Partitions of the training images: acceptance, matching and division of clusters, removal of single images.

A partition is an integer array with one entry per image: the number of its cluster, or -1 if it has none.

Shapes: N images, D feature dimensions.
"""

from __future__ import annotations

import logging
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from dcml_tune.clustering.kmeans import Features, as_tensor, checked_features, kmeans
from dcml_tune.clustering.lloyd import FloatArray, IntArray

logger = logging.getLogger(__name__)


# Number of seeds that are tried until a clustering is acceptable.
TRIES = 30


def _spread(features: Features, k: int, seed: int) -> FloatArray:
    """Initial centroids (k, D) by k-means++."""
    from sklearn.cluster import kmeans_plusplus  # importing it takes a second, and most trials do not use it

    return cast(FloatArray, kmeans_plusplus(as_tensor(features).cpu().numpy(), k, random_state=seed % 2**32)[0])


def cluster(
    features: Features,
    labels: npt.ArrayLike,
    k: int,
    *,
    seed: int,
    backend: str = "auto",
    init: FloatArray | None = None,
    spread: bool = False,
) -> tuple[IntArray, FloatArray]:
    """Run k-means with the seeds `seed`, `seed + 1`, ... until the clusters are acceptable.

    After `TRIES` seeds the last clustering is returned, with a warning. Only the first try uses `init`: a second one would
    give the same result. Other tries start from random images, or with `spread` from those of k-means++.

    Returns:
        The partition (N,) and the centroids (k, D).

    Raises:
        ValueError: as `kmeans`.
    """
    for attempt in range(TRIES):
        start = init if attempt == 0 else None
        if start is None and spread:
            start = _spread(features, k, seed + attempt)
        partition, centroids = kmeans(features, k, seed=seed + attempt, backend=backend, init=start)
        if acceptable(partition, labels, k):
            return partition, centroids
    logger.warning(
        "k-means of %d images into %d clusters: for none of %d seeds from %d does each cluster have 2 classes "
        "with 2 images each; using the last clustering",
        len(partition), k, TRIES, seed,
    )  # fmt: skip
    return partition, centroids


def acceptable(partition: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> bool:
    """Whether each of the clusters 0 to k - 1 has at least 2 classes with at least 2 images each."""
    partition = np.asarray(partition, dtype=np.int64)
    inside = partition >= 0
    key, nb_classes = _class_in_cluster(partition[inside], np.asarray(labels)[inside])
    pairs, counts = np.unique(key, return_counts=True)
    classes = np.bincount(pairs[counts >= 2] // nb_classes, minlength=k)
    return bool((classes[:k] >= 2).all())


def drop_singles(partition: npt.ArrayLike, labels: npt.ArrayLike) -> IntArray:
    """The partition with -1 for each image that is the only one of its class in its cluster."""
    partition = np.asarray(partition, dtype=np.int64)
    key, _ = _class_in_cluster(partition, np.asarray(labels))
    _, position, counts = np.unique(key, return_inverse=True, return_counts=True)
    return np.where(counts[position] >= 2, partition, -1)


def _class_in_cluster(partition: IntArray, labels: npt.NDArray[np.generic]) -> tuple[IntArray, int]:
    """A key for each image, equal for images of the same class and cluster, and the number of classes."""
    classes, position = np.unique(labels, return_inverse=True)
    return partition * len(classes) + position, max(1, len(classes))


def divide(
    features: Features,
    partition: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    seed: int,
    backend: str = "auto",
    spread: bool = False,
) -> IntArray:
    """Divide each cluster in two by k-means of its own images: the children of cluster k are 2k and 2k + 1.

    Seeds are tried as in `cluster` until both children are acceptable. Each image keeps a cluster; -1 stays -1. A cluster
    of a single image cannot be divided: its image goes to child 2k, with a warning.

    Raises:
        ValueError: as `kmeans`.
    """
    x, classes = checked_features(features), np.asarray(labels)
    partition = np.asarray(partition, dtype=np.int64)
    children = np.where(partition >= 0, 2 * partition, -1)
    for parent in range(int(partition.max(initial=-1)) + 1):
        members = np.flatnonzero(partition == parent)
        if len(members) < 2:
            logger.warning("cluster %d has %d images and cannot be divided", parent, len(members))
            continue
        own = x[torch.from_numpy(members).to(x.device)]
        children[members] += cluster(own, classes[members], 2, seed=seed, backend=backend, spread=spread)[0]
    return children


def match(previous: npt.ArrayLike, current: npt.ArrayLike) -> IntArray:
    """Renumber the current clusters so that as many images as possible keep the number of their previous cluster.

    Images that are -1 in either partition are ignored, and -1 stays -1. If there are more current clusters than previous
    ones, the unmatched ones get the numbers after the previous ones, in their order. If there are fewer, each gets the
    number of the previous cluster that it matches, and some numbers remain unused.

    Example:
        >>> match([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, -1]).tolist()
        [0, 0, 1, 1, 2, -1]

    Raises:
        ValueError: if the two partitions differ in length.

    Source: the assignment problem of TPAMI 2021, section 3. This function applies the permutation that solves it; the
    original applies its inverse.
    """
    from scipy.optimize import linear_sum_assignment  # scipy takes long to import

    previous, current = np.asarray(previous, dtype=np.int64), np.asarray(current, dtype=np.int64)
    overlap = _shared_images(previous, current)
    nb_previous, nb_current = overlap.shape
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    number = np.full(nb_current, -1, dtype=np.int64)
    number[columns] = rows
    left_over = number < 0
    number[left_over] = nb_previous + np.arange(left_over.sum())
    # The appended last entry is the number of an image without a cluster: the index -1 selects it.
    renumbered: IntArray = np.append(number, -1)[current]
    return renumbered


def _shared_images(previous: IntArray, current: IntArray) -> IntArray:
    """Contingency table: the number of images in each previous (row) and each current cluster (column)."""
    if previous.shape != current.shape:
        raise ValueError(f"`len(previous) == len(current)` must hold, but got {len(previous)} and {len(current)}")
    shape = int(previous.max(initial=-1)) + 1, int(current.max(initial=-1)) + 1
    both = (previous >= 0) & (current >= 0)
    pairs = previous[both] * shape[1] + current[both]
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
