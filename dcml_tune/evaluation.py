"""Retrieval and clustering measures as functions of arrays. Rows are images; measures are shares of 1.

Shapes: Q queries, G gallery images, D dimensions. Distances are Euclidean, of the rows as they are given.
Without a gallery the queries are searched in each other, and an image is left out of its own neighbours by
its index, also where duplicates tie with it. Of gallery images at the same distance the first comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Rows = ArrayLike | Tensor

# Entries of a block of distances (256 MiB), and of the results of a block of queries.
_DISTANCES = 1 << 26
_RESULTS = 1 << 22
# More queries than this in a block gain nothing, and fewer fit a processor's cache better.
_QUERIES = 1024
# Neighbouring columns of distances of which the least is looked for first.
_CHUNK = 32


def recall_at_k(
    embeddings: Rows,
    labels: Rows,
    ks: Sequence[int],
    *,
    gallery: Rows | None = None,
    gallery_labels: Rows | None = None,
) -> dict[int, float]:
    """Share of queries with an image of their class among the k nearest others.

    Queries without a relevant image are misses. Arguments and errors as `retrieval_measures`.

    Example:
        >>> recall_at_k([[0.0], [0.1], [1.0], [1.3]], [0, 0, 1, 0], [1, 3])
        {1: 0.5, 3: 0.75}
    """
    found = retrieval_measures(embeddings, labels, ks, gallery=gallery, gallery_labels=gallery_labels)
    return {k: found[f"recall_at_{k}"] for k in ks}


def map_at_r(
    embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None
) -> float:
    """Mean over queries of the precision summed at the hits among the first R results, divided by R.

    R is the number of other gallery images of the query's class; queries with R = 0 are left out. Arguments
    and errors as `retrieval_measures`.

    Source: Musgrave et al., "A Metric Learning Reality Check", 2020.
    """
    found = retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)
    return found["map_at_r"]


def marp(embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None) -> float:
    """As `map_at_r`, but divided by the number of hits among the first R; 0 for a query without hits.

    Never below `map_at_r`, and often far above it. Source: the original's mARP.
    """
    found = retrieval_measures(embeddings, labels, (), gallery=gallery, gallery_labels=gallery_labels)
    return found["marp"]


def r_precision(
    embeddings: Rows, labels: Rows, *, gallery: Rows | None = None, gallery_labels: Rows | None = None
) -> float:
    """Mean over queries of the share of hits among the first R results, R as in `map_at_r`."""
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

    Distances are computed in float32 on the device of the embeddings. Besides these it needs less than 1 GB.

    Args:
        embeddings: (Q, D) Arrays or tensors on any device.
        labels: (Q,) Classes.
        ks: At which to measure recall, at least 1; may be more than there are images.
        gallery: (G, D) None searches the queries in each other.
        gallery_labels: (G,) Classes.

    Returns:
        `recall_at_K` for each k, `map_at_r`, `marp`, `r_precision`; 0 where no query has a relevant image.

    Raises:
        ValueError: if numbers of rows do not agree, only one of gallery and its labels is given, a k is
            below 1, or rows are not finite: their neighbours would be those next in order, often of the
            same class, and would look like success.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels go together; give both or neither")
    if min(ks, default=1) < 1:
        raise ValueError(f"`k >= 1` must hold for each of ks, but got {list(ks)}")
    search = _search(embeddings, labels, gallery, gallery_labels)
    relevant = _count_relevant(search.targets, search.other_targets) - int(search.itself)
    sums = dict.fromkeys([*(f"recall_at_{k}" for k in ks), "map_at_r", "marp", "r_precision"], 0.0)
    for rows, hits in search.blocks(relevant, max(ks, default=1)):
        _add(sums, hits, relevant[rows], ks)
    asked, answerable = max(1, len(relevant)), max(1, int((relevant > 0).sum()))
    return {name: sums[name] / (asked if name.startswith("recall") else answerable) for name in sums}


def _search(embeddings: Rows, labels: Rows, gallery: Rows | None, gallery_labels: Rows | None) -> _Search:
    """The search that the arguments ask for."""
    queries, targets = _checked(embeddings, labels, "embeddings")
    if gallery is None or gallery_labels is None:
        return _Search(queries=queries, targets=targets, others=queries, other_targets=targets, itself=True)
    others, other_targets = _checked(gallery, gallery_labels, "gallery")
    return _Search(
        queries=queries,
        targets=targets,
        others=others.to(queries.device),
        other_targets=other_targets,
        itself=False,
    )


def _checked(rows: Rows, labels: Rows, name: str) -> tuple[Tensor, NDArray[np.int64]]:
    """Rows as a float32 tensor and their labels, refused unless they agree and are finite."""
    x = (rows if isinstance(rows, Tensor) else torch.as_tensor(np.asarray(rows))).detach().float()
    targets = _numbers(labels)
    if len(x) != len(targets):
        raise ValueError(f"one label a row must be given, but got {len(targets)} for {len(x)} rows of {name}")
    finite = torch.isfinite(x.square().sum(1))
    if not bool(finite.all()):
        raise ValueError(
            f"{int((~finite).sum())} of {len(x)} rows of {name} are not finite: they have no neighbours; "
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


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What is searched for, and where: the same for all blocks."""

    queries: Tensor
    targets: NDArray[np.int64]
    others: Tensor
    other_targets: NDArray[np.int64]
    itself: bool
    """The others are the queries."""

    def blocks(self, relevant: NDArray[np.int64], k: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Blocks of queries, and whether each of their nearest others has their class, nearest first."""
        norms = self.others.square().sum(1)
        columns = len(self.others)
        room = norms.new_empty(0, 0)
        with _full_precision(self.queries.device.type):
            for rows, width in _blocks(relevant, columns - int(self.itself), k):
                index = torch.from_numpy(rows).to(self.queries.device)
                if len(rows) > len(room):
                    # All blocks share one room, and only whole chunks: the columns that are too many stay at infinity.
                    room = norms.new_full((len(rows), -(-columns // _CHUNK) * _CHUNK), torch.inf)
                distances = room[: len(rows)]
                # |g|^2 - 2 q.g differs from the squared distance by a constant of the query.
                torch.addmm(norms, self.queries[index], self.others.T, alpha=-2, out=distances[:, :columns])
                if self.itself:
                    distances.scatter_(1, index[:, None], torch.inf)
                nearest = _nearest(distances, width).cpu().numpy()
                yield rows, self.other_targets[nearest] == self.targets[rows, None]


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep TF32 and autocast, which may be on for the backbone, out of distances."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _blocks(relevant: NDArray[np.int64], nb_others: int, k: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Queries that fit in memory together, and how many results each needs.

    Queries with as many relevant images share a block, so that a large class does not make every block
    wide. Those without any are in none: they are misses whatever they find.
    """
    order = np.argsort(relevant, kind="stable")[int((relevant == 0).sum()) :]
    size = max(1, min(_QUERIES, _DISTANCES // max(1, nb_others)))
    while len(order) > 0:
        widest = min(nb_others, max(k, int(relevant[order[:size][-1]])))
        rows = order[: min(size, max(1, _RESULTS // widest))]
        yield rows, min(nb_others, max(k, int(relevant[rows[-1]])))
        order = order[len(rows) :]


def _nearest(distances: Tensor, width: int) -> Tensor:
    """The columns of each row's least distances, nearest first, ties in the order of the columns."""
    if width * 16 > distances.shape[1]:  # among so many float32 some will tie in nearly every row
        return _nearest_by_column(distances, width)
    values, columns = _least(distances, width + 1)
    columns = columns[:, :width]
    # topk orders ties as it likes, and of those at the last place it keeps any: settle these rows again.
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if bool(tied.any()):
        columns[tied] = _nearest_by_column(distances[tied], width)
    return columns


def _least(distances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The least values of each row, ascending, and their columns; of ties any.

    On a CPU topk copies what it looks through, which takes as long as a fifth of the distances themselves. The chunks with
    the `count` least minima hold the `count` least values: a value of another chunk has all these minima before it.
    """
    rows, size = distances.shape
    if distances.device.type != "cpu" or size % _CHUNK or size // _CHUNK < count:
        least = distances.topk(count, largest=False, sorted=True)
        return least.values, least.indices
    chunks = distances.unflatten(1, (-1, _CHUNK))
    chosen = chunks.amin(2).topk(count, largest=False, sorted=False).indices
    first = torch.arange(rows)[:, None] * (size // _CHUNK)
    candidates = chunks.flatten(0, 1).index_select(0, (first + chosen).flatten()).view(rows, -1)
    values, at = candidates.topk(count, largest=False, sorted=True)
    return values, chosen.gather(1, at // _CHUNK) * _CHUNK + at % _CHUNK


def _nearest_by_column(distances: Tensor, width: int) -> Tensor:
    """As `_nearest`, by integers that no two columns share: the distance above, the column below."""
    # Read as integers, floats of the same sign are in order; the negative ones the other way round.
    bits = (distances + 0.0).view(torch.int32)  # 0.0 makes zeros of both signs one
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys <<= 32
    keys |= torch.arange(distances.shape[1], device=distances.device)
    return keys.topk(width, largest=False, sorted=True).indices


def _add(sums: dict[str, float], hits: NDArray[np.bool_], relevant: NDArray[np.int64], ks: Sequence[int]) -> None:
    """Add the measures of a block of queries, each with a relevant image."""
    for k in ks:
        sums[f"recall_at_{k}"] += float(hits[:, :k].any(1).sum())
    within = hits & (np.arange(hits.shape[1]) < relevant[:, None])
    count = within.sum(1)
    precision = within.cumsum(1, dtype=np.int32) / np.arange(1.0, hits.shape[1] + 1)
    total = (precision * within).sum(1)
    sums["map_at_r"] += float((total / relevant).sum())
    sums["marp"] += float((total / np.maximum(count, 1)).sum())
    sums["r_precision"] += float((count / relevant).sum())


def nmi(labels: Rows, clusters: Rows) -> float:
    """Normalised mutual information of two partitions in [0, 1], by the arithmetic mean of the entropies.

    Equal to scikit-learn's, at a fifth of the time and without its import. -1 is a cluster like any other.
    1 if both are a single cluster.

    Raises:
        ValueError: if the two are not equally long.
    """
    first, second = _positions(labels), _positions(clusters)
    if len(first) != len(second):
        raise ValueError(f"`len(labels) == len(clusters)` must hold, but got {len(first)} and {len(second)}")
    pairs = first * (int(second.max(initial=0)) + 1) + second
    entropies = _entropy(first) + _entropy(second)
    if entropies == 0:
        return 1.0
    return float(np.clip(2 * (entropies - _entropy(_positions(pairs))) / entropies, 0, 1))


def _positions(labels: Rows) -> NDArray[np.int64]:
    """Each label's place among the sorted distinct ones."""
    return np.unique(_numbers(labels), return_inverse=True)[1].astype(np.int64)


def _entropy(positions: NDArray[np.int64]) -> float:
    """Entropy in nats of how often each place occurs."""
    p = np.bincount(positions) / max(1, len(positions))
    return float(-(p * np.log(p)).sum())


def ami(labels: Rows, clusters: Rows) -> float:
    """Adjusted mutual information of two partitions, arithmetic mean normalisation; by chance it is 0."""
    # Two seconds of import that training does not need.
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(_numbers(labels), _numbers(clusters)))


def _numbers(labels: Rows) -> NDArray[np.int64]:
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels, dtype=np.int64)
