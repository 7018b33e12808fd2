"""Retrieval and clustering measures as functions of arrays. Rows are images; shares are of 1.

Shapes: Q queries, G gallery images, D dimensions. Without a gallery the queries are searched in each other, and an
image is left out of its own neighbours by its index, also where duplicates tie with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

Rows = ArrayLike | Tensor

# Numbers in one block of distances, and in one block of ranks: 256 MB each.
_BLOCK = 1 << 26


def recall_at_k(
    embeddings: Rows,
    labels: Rows,
    ks: Sequence[int],
    *,
    gallery: Rows | None = None,
    gallery_labels: Rows | None = None,
) -> dict[int, float]:
    """Share of queries with an image of their class among the k nearest others (Euclidean distance).

    Queries without a relevant image are misses.

    Example:
        >>> recall_at_k([[0.0], [0.1], [1.0], [1.3]], [0, 0, 1, 0], [1, 3])
        {1: 0.5, 3: 0.75}
    """
    found = retrieval_measures(embeddings, labels, ks, gallery=gallery, gallery_labels=gallery_labels)
    return {k: found[f"recall_at_{k}"] for k in ks}


def map_at_r(
    embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None
) -> float:
    """MAP@R: precision summed at the hits among the first R results, divided by R (Musgrave et al. 2020).

    R is the number of other gallery images of the query's class; queries with R = 0 are left out.
    """
    return retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)["map_at_r"]


def marp(embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None) -> float:
    """The original's mARP: as MAP@R, but divided by the number of hits; 0 for a query without hits."""
    return retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)["marp"]


def nmi(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information of two partitions, arithmetic mean normalisation."""
    return float(normalized_mutual_info_score(labels, clusters))


def ami(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted mutual information of two partitions, arithmetic mean normalisation."""
    return float(adjusted_mutual_info_score(labels, clusters))


def retrieval_measures(
    embeddings: Rows,
    labels: Rows,
    ks: Sequence[int],
    *,
    gallery: Rows | None = None,
    gallery_labels: Rows | None = None,
) -> dict[str, float]:
    """Recall at each k, MAP@R, mARP and R-precision in one pass over blocks of queries.

    Args:
        embeddings: Q x D, arrays or tensors on any device.
        labels: Q classes.
        ks: at which to measure recall; may be more than there are images.
        gallery: G x D; None searches the queries in each other.
        gallery_labels: G classes.

    Returns:
        `recall_at_K` for each k, `map_at_r`, `marp`, `r_precision`; 0 where no query has a relevant image.

    Raises:
        ValueError: if numbers of rows do not agree, or only one of gallery and its labels is given.
    """
    queries = _tensor(embeddings)
    targets = _numbers(labels)
    itself = gallery is None
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together; give both or neither")
    others = queries if gallery is None else _tensor(gallery).to(queries)
    other_targets = targets if gallery_labels is None else _numbers(gallery_labels)
    if len(queries) != len(targets) or len(others) != len(other_targets):
        raise ValueError(
            f"one label for each row must be given, but got {len(targets)} for {len(queries)} rows "
            f"and {len(other_targets)} for {len(others)} of the gallery"
        )
    relevant = _count_relevant(targets, other_targets) - int(itself)
    sums = dict.fromkeys([*(f"recall_at_{k}" for k in ks), "map_at_r", "marp", "r_precision"], 0.0)
    # Queries with as many relevant images share a block, so that a few large classes do not make every block wide.
    order = np.argsort(relevant, kind="stable")
    start = 0
    largest = min(max(ks, default=1), len(others) - int(itself))
    while start < len(order):
        size = max(1, min(_BLOCK // max(1, len(others)), len(order) - start, 4096))
        rows = order[start : start + size]
        width = int(min(len(others) - int(itself), max(largest, relevant[rows].max(initial=0))))
        if width * size > _BLOCK:
            rows = rows[: max(1, _BLOCK // width)]
        start += len(rows)
        if width > 0:
            hits = _hits(queries, others, targets, other_targets, rows, width, itself)
            _add(sums, hits, relevant[rows], ks)
    counted = max(1, int((relevant > 0).sum()))
    return {name: total / (len(queries) or 1 if name.startswith("recall") else counted) for name, total in sums.items()}


def _hits(
    queries: Tensor,
    others: Tensor,
    targets: NDArray[np.int64],
    other_targets: NDArray[np.int64],
    rows: NDArray[np.int64],
    width: int,
    itself: bool,
) -> NDArray[np.bool_]:
    """Whether each of the `width` nearest images has the query's class, nearest first."""
    index = torch.from_numpy(rows).to(queries.device)
    block = queries[index]
    # Order by |g|^2 - 2 q.g, which differs from the squared distance by a constant of the query.
    scores = torch.addmm((others * others).sum(1), block, others.T, alpha=-2)
    if itself:
        scores[torch.arange(len(rows), device=queries.device), index] = torch.inf
    nearest = scores.topk(width, dim=1, largest=False, sorted=True).indices.cpu().numpy()
    return np.asarray(other_targets[nearest] == targets[rows, None])


def _add(sums: dict[str, float], hits: NDArray[np.bool_], relevant: NDArray[np.int64], ks: Sequence[int]) -> None:
    """Add the measures of a block of queries."""
    for k in ks:
        sums[f"recall_at_{k}"] += float(hits[:, :k].any(1).sum())
    within = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    count = within.sum(1)
    precision = within.cumsum(1, dtype=np.float64) / np.arange(1, hits.shape[1] + 1)
    total = np.where(within, precision, 0.0).sum(1)
    some = relevant > 0
    sums["map_at_r"] += float((total[some] / relevant[some]).sum())
    sums["r_precision"] += float((count[some] / relevant[some]).sum())
    sums["marp"] += float((total[count > 0] / count[count > 0]).sum())


def _count_relevant(targets: NDArray[np.int64], other_targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of gallery images of each query's class."""
    classes, counts = np.unique(other_targets, return_counts=True)
    if len(classes) == 0:
        return np.zeros(len(targets), dtype=np.int64)
    place = np.minimum(np.searchsorted(classes, targets), len(classes) - 1)
    return np.where(classes[place] == targets, counts[place], 0).astype(np.int64)


def _tensor(rows: Rows) -> Tensor:
    return (rows if isinstance(rows, Tensor) else torch.as_tensor(np.asarray(rows))).detach().float()


def _numbers(labels: Rows) -> NDArray[np.int64]:
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels, dtype=np.int64)
