"""Retrieval measures as functions of arrays. Rows are images; measures are shares of 1.

Shapes: Q queries, G gallery images, D dimensions. Distances are Euclidean; rows are not
normalised. Without a gallery each query is searched in all other queries: an image is excluded from its own neighbours by
its index, also if duplicates tie with it. Ties between gallery images are broken by their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcml_tune.clustering.agreement import as_integers
from dcml_tune.metrics.neighbours import Rows, Search


def recall_at_k(
    embeddings: Rows,
    labels: Rows,
    ks: Sequence[int],
    *,
    gallery: Rows | None = None,
    gallery_labels: Rows | None = None,
) -> dict[int, float]:
    """Share of queries that have an image of their class among the k nearest images.

    Queries without a relevant image are misses. For arguments and errors see `retrieval_measures`.

    Example:
        >>> recall_at_k([[0.0], [0.1], [1.0], [1.3]], [0, 0, 1, 0], [1, 3])
        {1: 0.5, 3: 0.75}
    """
    found = retrieval_measures(embeddings, labels, ks, gallery=gallery, gallery_labels=gallery_labels)
    return {k: found[f"recall_at_{k}"] for k in ks}


def map_at_r(
    embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None
) -> float:
    """Mean average precision at R: the precision at each hit among the first R results, summed and divided by R.

    R is the number of other gallery images of the query's class; queries with R = 0 are excluded. For arguments and
    errors see `retrieval_measures`.

    Source: Musgrave et al., "A Metric Learning Reality Check", 2020.
    """
    found = retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)
    return found["map_at_r"]


def marp(embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None) -> float:
    """As `map_at_r`, but divided by the number of hits among the first R results; 0 for a query without hits.

    It is never below `map_at_r`, and often far above it. Source: mARP of the original.
    """
    found = retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)
    return found["marp"]


def r_precision(
    embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None
) -> float:
    """Mean over queries of the share of hits among the first R results; R as in `map_at_r`."""
    found = retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)
    return found["r_precision"]


def retrieval_measures(
    embeddings: Rows,
    labels: Rows,
    ks: Sequence[int],
    *,
    gallery: Rows | None = None,
    gallery_labels: Rows | None = None,
) -> dict[str, float]:
    """Recall at each k, MAP@R, mARP and R-precision in one pass over blocks of queries.

    Distances are computed in float32 on the device of the embeddings, in less than 1 GB of additional memory.

    Args:
        embeddings: (Q, D) Arrays or tensors on any device.
        labels: (Q,) Classes.
        ks: Ranks of the recall, at least 1; a rank may exceed the number of images.
        gallery: (G, D) Images that are searched; None: each query is searched in all others.
        gallery_labels: (G,) Classes.

    Returns:
        `recall_at_K` for each k, `map_at_r`, `marp`, `r_precision`; 0 if no query has a relevant image.

    Raises:
        ValueError: if numbers of rows and labels differ, only one of gallery and its labels is given, a k is below 1, or
            rows are not finite. The neighbours of such rows would be the next ones in order, often of the same class,
            and the measures would look good.

    Example:
        >>> from dcml_tune import retrieval_measures
        >>> found = retrieval_measures([[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1], ks=(1, 2))
        >>> found["recall_at_1"], found["map_at_r"]
        (1.0, 1.0)
    """
    return retrieve(embeddings, labels, ks, gallery=gallery, gallery_labels=gallery_labels).measures


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """What a search for nearest neighbours found."""

    measures: dict[str, float]
    """As `retrieval_measures` returns them."""
    hits: NDArray[np.bool_]
    """(Q,) Whether the nearest gallery image of each query has its class; false for a query without a relevant image."""


def retrieve(
    embeddings: Rows,
    labels: Rows,
    ks: Sequence[int],
    *,
    gallery: Rows | None = None,
    gallery_labels: Rows | None = None,
) -> Retrieval:
    """Return the measures, and the hits of each query, in one pass. For arguments and errors see `retrieval_measures`."""
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels must be given together; give both or neither")
    if min(ks, default=1) < 1:
        raise ValueError(f"`k >= 1` must hold for each of ks, but got {list(ks)}")
    search = _search(embeddings, labels, gallery, gallery_labels)
    relevant = _count_relevant(search.targets, search.other_targets) - int(search.itself)
    sums = dict.fromkeys([*(f"recall_at_{k}" for k in ks), "map_at_r", "marp", "r_precision"], 0.0)
    nearest = np.zeros(len(relevant), dtype=np.bool_)
    for rows, hits in search.blocks(relevant, max(ks, default=1)):
        _add(sums, hits, relevant[rows], ks)
        nearest[rows] = hits[:, 0]
    asked, answerable = max(1, len(relevant)), max(1, int((relevant > 0).sum()))
    measures = {name: sums[name] / (asked if name.startswith("recall") else answerable) for name in sums}
    return Retrieval(measures=measures, hits=nearest)


def _search(embeddings: Rows, labels: Rows, gallery: Rows | None, gallery_labels: Rows | None) -> Search:
    """The search that the arguments describe."""
    queries, targets = _checked(embeddings, labels, "embeddings")
    if gallery is None or gallery_labels is None:
        return Search(queries=queries, targets=targets, others=queries, other_targets=targets, itself=True)
    others, other_targets = _checked(gallery, gallery_labels, "gallery")
    return Search(
        queries=queries,
        targets=targets,
        others=others.to(queries.device),
        other_targets=other_targets,
        itself=False,
    )


def _checked(rows: Rows, labels: Rows, name: str) -> tuple[Tensor, NDArray[np.int64]]:
    """Rows as a float32 tensor, and their labels.

    Raises:
        ValueError: if their numbers differ or rows are not finite.
    """
    x = (rows if isinstance(rows, Tensor) else torch.as_tensor(np.asarray(rows))).detach().float()
    targets = as_integers(labels)
    if len(x) != len(targets):
        raise ValueError(f"one label per row must be given, but got {len(targets)} for {len(x)} rows of {name}")
    finite = torch.isfinite(x.square().sum(1))
    if not bool(finite.all()):
        raise ValueError(
            f"{int((~finite).sum())} of {len(x)} rows of {name} are not finite and have no neighbours; "
            "training has diverged, lower the learning rates"
        )
    return x, targets


def _count_relevant(targets: NDArray[np.int64], other_targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of gallery images of each query's class."""
    classes, counts = np.unique(other_targets, return_counts=True)
    if len(classes) == 0:
        return np.zeros(len(targets), dtype=np.int64)
    place = np.minimum(np.searchsorted(classes, targets), len(classes) - 1)
    return np.where(classes[place] == targets, counts[place], 0).astype(np.int64)


def _add(sums: dict[str, float], hits: NDArray[np.bool_], relevant: NDArray[np.int64], ks: Sequence[int]) -> None:
    """Add the measures of a block of queries, each of which has a relevant image, to the sums."""
    for k in ks:
        sums[f"recall_at_{k}"] += float(hits[:, :k].any(1).sum())
    within = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    count = within.sum(1)
    precision = within.cumsum(1, dtype=np.int32) / np.arange(1.0, hits.shape[1] + 1)
    total = (precision * within).sum(1)
    sums["map_at_r"] += float((total / relevant).sum())
    sums["marp"] += float((total / np.maximum(count, 1)).sum())
    sums["r_precision"] += float((count / relevant).sum())
