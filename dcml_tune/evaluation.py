"""Retrieval and clustering measures as functions of arrays. Rows are images; measures are shares of 1.

Shapes: Q queries, G gallery images, D dimensions. Distances are Euclidean, of the rows as they are given.
Without a gallery the queries are searched in each other, and an image is left out of its own neighbours by
its index, also where duplicates tie with it. Of gallery images at the same distance the first comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Rows = ArrayLike | Tensor

# Entries of a block of whole rows of distances (64 MiB), and of the results of a block of queries.
_DISTANCES = 1 << 24
_RESULTS = 1 << 22
# More queries than this in a block gain nothing.
_QUERIES = 1024
# Queries, and others (no fewer), of a block of distances that stays in a cache while its least ones are put into lists.
_TILE = 2048, 4096
# Most entries of all lists together (256 MiB).
_LISTED = 1 << 25


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

    @cached_property
    def norms(self) -> Tensor:
        """(G,) The squared lengths of the others."""
        return self.others.square().sum(1)

    def blocks(self, relevant: NDArray[np.int64], k: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Blocks of queries, and whether each of their nearest others has their class, nearest first."""
        places = len(self.others) - int(self.itself)
        widest = min(places, max(k, int(relevant.max(initial=0))))
        with _full_precision(self.queries.device.type):
            listed = self._listed(widest) if self._lists_pay(widest) else None
            for rows, width in _blocks(relevant, places, k):
                if listed is None:
                    nearest = _nearest(self._distances(torch.from_numpy(rows)), width).cpu().numpy()
                else:
                    nearest = listed[rows, :width]
                yield rows, self.other_targets[nearest] == self.targets[rows, None]

    def _distances(self, rows: Tensor) -> Tensor:
        """(rows, G) Squared distances of some queries less a constant of each, |g|^2 - 2 q.g; infinite to themselves."""
        rows = rows.to(self.queries.device)
        distances = torch.addmm(self.norms, self.queries[rows], self.others.T, alpha=-2)
        return distances.scatter_(1, rows[:, None], torch.inf) if self.itself else distances

    def _lists_pay(self, width: int) -> bool:
        """Whether `_listed` is faster, and its lists not too large: on a CPU, where few of the others are looked for."""
        return (
            self.queries.device.type == "cpu"
            and _are_few(width, len(self.others))
            and 0 < width < _TILE[0]
            and len(self.queries) * (width + 1) <= _LISTED
        )

    def _listed(self, width: int) -> NDArray[np.int32]:
        """(Q, width) The others next to each query, nearest first, by one pass over tiles of distances.

        Where the queries are searched in each other a distance serves both, so that half of them are computed.
        """
        own = self.queries.square().sum(1)
        lists = _Lists(len(self.queries), width + 1)
        room = torch.empty(_TILE[0] * _TILE[1])  # of all tiles: memory that was used just before is nearer
        for start in range(0, len(self.queries), _TILE[0]):
            rows = slice(start, min(len(self.queries), start + _TILE[0]))
            for first in range(start if self.itself else 0, len(self.others), _TILE[1]):
                columns = slice(first, min(len(self.others), first + _TILE[1]))
                shape = rows.stop - start, columns.stop - first
                distances = room[: shape[0] * shape[1]].view(shape)
                torch.addmm(self.norms[columns], self.queries[rows], self.others[columns].T, alpha=-2, out=distances)
                distances += own[rows, None]
                if self.itself and first == start:
                    distances.fill_diagonal_(torch.inf)
                lists.add(rows, columns, distances)
                if self.itself and columns.stop > rows.stop:
                    beyond = slice(max(first, rows.stop), columns.stop)
                    lists.add(beyond, rows, distances[:, beyond.start - first :].T)
        nearest, tied = lists.ranked()
        for unsettled in tied.split(_at_once(len(self.others))):
            nearest[unsettled] = _nearest_by_column(self._distances(unsettled), width).int()
        return nearest.numpy()


class _Lists:
    """For each query the least distances so far, in no order, and their columns; of ties at the last place any."""

    def __init__(self, queries: int, length: int) -> None:
        self._distances = torch.full((queries, length), torch.inf)
        self._columns = torch.zeros(queries, length, dtype=torch.int32)

    def add(self, queries: slice, others: slice, distances: Tensor) -> None:
        """Take in the distances (queries, others). The first ones of a query are those from column 0 on."""
        known, columns = self._distances[queries], self._columns[queries]
        length = known.shape[1]
        if others.start == 0:
            known[:], at = distances.topk(length, largest=False, sorted=False)
            columns[:] = at.int()
            return
        less = (distances < known.amax(1, keepdim=True)).contiguous()
        found = torch.from_numpy(np.flatnonzero(less.numpy()))  # several times as fast as torch's
        row = found // less.shape[1]
        column = found - row * less.shape[1]
        counts = torch.bincount(row, minlength=len(less))
        most = int(counts.max())
        if most == 0:
            return
        place = length + torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        longer = torch.cat([known, known.new_full((len(known), most), torch.inf)], 1)
        longer[row, place] = distances[row, column]
        longer_columns = torch.cat([columns, columns.new_zeros(len(known), most)], 1)
        longer_columns[row, place] = (others.start + column).int()
        known[:], kept = longer.topk(length, largest=False, sorted=False)
        columns[:] = longer_columns.gather(1, kept)

    def ranked(self) -> tuple[Tensor, Tensor]:
        """The columns of each query but the last, nearest first, and the queries with ties, where the order is any."""
        distances, order = self._distances.sort(1)
        tied = (distances[:, 1:] == distances[:, :-1]).any(1)
        return self._columns.gather(1, order[:, :-1]), tied.nonzero()[:, 0]


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


def _at_once(nb_others: int) -> int:
    """Queries whose whole rows of distances fit in memory together."""
    return max(1, min(_QUERIES, _DISTANCES // max(1, nb_others)))


def _blocks(relevant: NDArray[np.int64], nb_others: int, k: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Queries that fit in memory together, and how many results each needs.

    Queries with as many relevant images share a block, so that a large class does not make every block
    wide. Those without any are in none: they are misses whatever they find.
    """
    order = np.argsort(relevant, kind="stable")[int((relevant == 0).sum()) :]
    size = _at_once(nb_others)
    while len(order) > 0:
        widest = min(nb_others, max(k, int(relevant[order[:size][-1]])))
        rows = order[: min(size, max(1, _RESULTS // widest))]
        yield rows, min(nb_others, max(k, int(relevant[rows[-1]])))
        order = order[len(rows) :]


def _are_few(width: int, columns: int) -> bool:
    """Whether so few of all columns are looked for that few of their float32 distances tie."""
    return width * 16 <= columns


def _nearest(distances: Tensor, width: int) -> Tensor:
    """The columns of each row's least distances, nearest first, ties in the order of the columns."""
    if not _are_few(width, distances.shape[1]):
        return _nearest_by_column(distances, width)
    values, columns = distances.topk(width + 1, largest=False, sorted=True)
    columns = columns[:, :width]
    # topk orders ties as it likes, and of those at the last place it keeps any: settle these rows again.
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if bool(tied.any()):
        columns[tied] = _nearest_by_column(distances[tied], width)
    return columns


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
