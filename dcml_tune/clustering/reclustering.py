"""The reclustering of an epoch: k-means, matching with the previous clusters, division in two.

A partition is an integer array with one entry per image: the number of its cluster, or -1 if it has none.

Shapes: N images, D feature dimensions, K clusters.

Source: TPAMI 2021, section 3 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from dcml_tune.clustering.agreement import nmi
from dcml_tune.clustering.kmeans import Features, as_tensor
from dcml_tune.clustering.lloyd import FloatArray, IntArray, cluster_sums
from dcml_tune.clustering.partition import cluster, divide, drop_singles, match
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig

ADAPTIVE = "kmeans_adaptive_centroids"


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """The result of a reclustering."""

    partition: IntArray
    """(N,) The clusters to train on; -1 for an image that is the only one of its class in its cluster."""
    assignment: IntArray
    """(N,) The clusters of all images: the `previous` of the next reclustering."""
    nmi_previous: float | None
    """NMI with the previous assignment in [0, 1], before a division; None if there is no previous assignment, or if either
    has a single cluster."""


def recluster(
    features: Features,
    labels: npt.ArrayLike,
    plan: EpochPlan,
    previous: IntArray | None,
    *,
    config: TrialConfig,
) -> Clustering:
    """Compute the partition of an epoch: run k-means, match, divide, and remove single images.

    The caller decides by `plan.recluster` whether to call this function. If the plan has one cluster, it contains all
    images but those that are the only ones of their class, and the features are not used.

    Args:
        features: (N, D) Penultimate features or embeddings, computed in evaluation mode.
        labels: (N,) Classes.
        plan: The epoch. With `divide` k-means finds half of its clusters, which are then divided in two. With `merge` the
            new clusters are not matched with the previous ones and keep the order of k-means.
        previous: (N,) The `assignment` of the previous reclustering; None for the first one.
        config: Provides `seed`, `clustering_random_state`, `clustering_method`, `reassign_random` and `backend`.

    Raises:
        ValueError: as `kmeans`.

    Source: TPAMI 2021, algorithm 1. The original matches with the inverse permutation, which undoes the matching if there are
    more than two clusters.
    """
    if plan.nb_clusters == 1:
        everything = np.zeros(len(features), dtype=np.int64)
        # `drop_singles` returns a new array: a checkpoint cannot store one array under two names.
        return Clustering(partition=drop_singles(everything, labels), assignment=everything, nmi_previous=None)
    nb_found = plan.nb_clusters // 2 if plan.divide else plan.nb_clusters
    seed = _seed(config, plan.epoch)
    assignment = _found(features, labels, nb_found, previous, config=config, seed=seed)
    if previous is not None and not plan.merge and not config.reassign_random:
        assignment = match(previous, assignment)
    nmi_previous = None if previous is None else _agreement(previous, assignment)
    if plan.divide:
        spread = config.clustering_method == ADAPTIVE
        assignment = divide(features, assignment, labels, seed=seed, backend=config.backend, spread=spread)
    return Clustering(partition=drop_singles(assignment, labels), assignment=assignment, nmi_previous=nmi_previous)


def _seed(config: TrialConfig, epoch: int) -> int:
    """Seed of k-means in an epoch: the trial's seed, or one derived from `clustering_random_state` and the epoch."""
    if config.clustering_random_state is None:
        return config.seed
    return int(np.random.SeedSequence([config.clustering_random_state, epoch]).generate_state(1)[0]) >> 1


def _found(
    features: Features,
    labels: npt.ArrayLike,
    k: int,
    previous: IntArray | None,
    *,
    config: TrialConfig,
    seed: int,
) -> IntArray:
    """The clusters that k-means finds, in the order of k-means."""
    if k == 1:
        return np.zeros(len(features), dtype=np.int64)
    adaptive = config.clustering_method == ADAPTIVE
    init = _means_of(previous, features, k) if adaptive and previous is not None else None
    return cluster(features, labels, k, seed=seed, backend=config.backend, init=init, spread=adaptive)[0]


def _means_of(previous: IntArray, features: Features, k: int) -> FloatArray | None:
    """Means of the new features in the previous clusters; None unless there are k clusters, each with images."""
    if previous.max(initial=-1) + 1 != k:
        return None
    x, kept = as_tensor(features), np.flatnonzero(previous >= 0)
    sums, counts = cluster_sums(x[torch.from_numpy(kept)], torch.from_numpy(previous[kept]).to(x.device), k)
    if not bool((counts > 0).all()):
        return None
    return cast(FloatArray, (sums / counts[:, None]).cpu().numpy())


def _agreement(previous: IntArray, current: IntArray) -> float | None:
    """NMI of two assignments, over the images that have a cluster in both; None if either has a single cluster there."""
    both = (previous >= 0) & (current >= 0)
    previous, current = previous[both], current[both]
    if min(np.ptp(each) if len(each) else 0 for each in (previous, current)) == 0:
        return None
    return nmi(previous, current)
