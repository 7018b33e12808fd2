"""The nearest gallery images of each query, exact, by blocks of distances.

Shapes: Q queries, G gallery images, D dimensions. Distances are Euclidean. Of gallery images at the same distance the first
comes first.

Ours is kept beside Faiss's flat indices: it computes each distance of a search in itself once, orders ties, and was measured
faster at 60,500 images (docs/performance.md).
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


# Entries of a block of whole rows of distances (64 MiB), and of the results of a block of queries.
_DISTANCES = 1 << 24


_RESULTS = 1 << 22


# More queries than this in a block gain nothing.
_QUERIES = 1024


# Queries, and others (no fewer), of a block of distances that stays in a cache while its least ones are put into lists.
_TILE = 2048, 4096


# Most entries of all lists together (256 MiB).
_LISTED = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Search:
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
        with full_precision(self.queries.device.type):
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
