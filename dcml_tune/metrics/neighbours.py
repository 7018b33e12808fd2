"""Exact search for the nearest gallery images of each query, in blocks of distances.

Shapes: Q queries, G gallery images, D dimensions. Distances are Euclidean. Ties between gallery images
are broken by their order.

This implementation is kept instead of Faiss's flat indices: it computes each distance once when the queries are their own
gallery, breaks ties deterministically, and was measured to be faster at 60,500 images (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dcml_tune.utils.precision import full_precision

Rows = ArrayLike | Tensor


# Largest numbers of entries: of a block of complete rows of distances (64 MiB), and of the results of a block of queries.
_DISTANCES = 1 << 24


_RESULTS = 1 << 22


# More queries than this in a block are not faster.
_QUERIES = 1024


# Queries, and gallery images (at least as many), of a block of distances that stays in the cache while its smallest
# entries are added to the lists.
_TILE = 2048, 4096


# Largest number of entries of all lists together (256 MiB).
_LISTED = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Search:
    """Queries and gallery of a search, common to all blocks."""

    queries: Tensor
    targets: NDArray[np.int64]
    others: Tensor
    other_targets: NDArray[np.int64]
    itself: bool
    """Whether the queries are their own gallery; `others` are then the queries."""

    @cached_property
    def norms(self) -> Tensor:
        """(G,) Squared norms of the gallery rows."""
        return self.others.square().sum(1)

    def blocks(self, relevant: NDArray[np.int64], k: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Yield blocks of queries, and whether each of their nearest gallery images has their class, nearest first."""
        places = len(self.others) - int(self.itself)
        widest = min(places, max(k, int(relevant.max(initial=0))))
        with full_precision(self.queries.device.type):
            listed = self._listed(widest) if self._lists_pay(widest) else None
            for rows, width in _blocks(relevant, places, k):
                if listed is None:
                    nearest = _nearest(self._distances(torch.from_numpy(rows)), width).cpu().numpy()
                else:
                    nearest = listed[rows, :width]
                yield rows, self.other_targets[nearest] == self.targets[rows, None]

    def _distances(self, rows: Tensor) -> Tensor:
        """(rows, G) Squared distances of some queries without the term |q|^2, |g|^2 - 2 q.g; infinite to themselves."""
        rows = rows.to(self.queries.device)
        distances = torch.addmm(self.norms, self.queries[rows], self.others.T, alpha=-2)
        return distances.scatter_(1, rows[:, None], torch.inf) if self.itself else distances

    def _lists_pay(self, width: int) -> bool:
        """Whether `_listed` is faster and its lists are not too large: on a CPU, if few neighbours are wanted."""
        return (
            self.queries.device.type == "cpu"
            and _are_few(width, len(self.others))
            and 0 < width < _TILE[0]
            and len(self.queries) * (width + 1) <= _LISTED
        )

    def _listed(self, width: int) -> NDArray[np.int32]:
        """(Q, width) Nearest gallery images of each query, nearest first, in one pass over tiles of distances.

        If the queries are their own gallery, each distance is computed once for both images.
        """
        own = self.queries.square().sum(1)
        lists = _Lists(len(self.queries), width + 1)
        room = torch.empty(_TILE[0] * _TILE[1])  # all tiles share it: memory that was used recently is in the cache
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
    """The smallest distances so far of each query, and their columns: unordered, ties at the last rank broken arbitrarily."""

    def __init__(self, queries: int, length: int) -> None:
        self._distances = torch.full((queries, length), torch.inf)
        self._columns = torch.zeros(queries, length, dtype=torch.int32)

    def add(self, queries: slice, others: slice, distances: Tensor) -> None:
        """Add the distances (queries, others). The first block of a query must begin at column 0."""
        known, columns = self._distances[queries], self._columns[queries]
        length = known.shape[1]
        if others.start == 0:
            known[:], at = distances.topk(length, largest=False, sorted=False)
            columns[:] = at.int()
            return
        less = (distances < known.amax(1, keepdim=True)).contiguous()
        found = torch.from_numpy(np.flatnonzero(less.numpy()))  # several times as fast as torch.nonzero
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
        """All columns of each query but the last, nearest first, and the queries with ties, whose order is arbitrary."""
        distances, order = self._distances.sort(1)
        tied = (distances[:, 1:] == distances[:, :-1]).any(1)
        return self._columns.gather(1, order[:, :-1]), tied.nonzero()[:, 0]


def _at_once(nb_others: int) -> int:
    """Number of queries whose complete rows of distances fit in memory together."""
    return max(1, min(_QUERIES, _DISTANCES // max(1, nb_others)))


def _blocks(relevant: NDArray[np.int64], nb_others: int, k: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield queries that fit in memory together, and the number of results that each needs.

    Queries are grouped by their number of relevant images, so that one large class does not make each block wide.
    Queries without a relevant image are in no block: they are misses.
    """
    order = np.argsort(relevant, kind="stable")[int((relevant == 0).sum()) :]
    size = _at_once(nb_others)
    while len(order) > 0:
        widest = min(nb_others, max(k, int(relevant[order[:size][-1]])))
        rows = order[: min(size, max(1, _RESULTS // widest))]
        yield rows, min(nb_others, max(k, int(relevant[rows[-1]])))
        order = order[len(rows) :]


def _are_few(width: int, columns: int) -> bool:
    """Whether so few of all columns are wanted that few of their float32 distances tie."""
    return width * 16 <= columns


def _nearest(distances: Tensor, width: int) -> Tensor:
    """Columns of the smallest distances of each row, nearest first; ties are broken by the order of the columns."""
    if not _are_few(width, distances.shape[1]):
        return _nearest_by_column(distances, width)
    values, columns = distances.topk(width + 1, largest=False, sorted=True)
    columns = columns[:, :width]
    # topk breaks ties arbitrarily, also at the last rank: compute these rows again.
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if bool(tied.any()):
        columns[tied] = _nearest_by_column(distances[tied], width)
    return columns


def _nearest_by_column(distances: Tensor, width: int) -> Tensor:
    """As `_nearest`, by unique integer keys: the distance in the upper 32 bits, the column in the lower 32."""
    # The bits of floats, read as integers, are ordered for positive numbers and in reverse order for negative ones.
    bits = (distances + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys <<= 32
    keys |= torch.arange(distances.shape[1], device=distances.device)
    return keys.topk(width, largest=False, sorted=True).indices
