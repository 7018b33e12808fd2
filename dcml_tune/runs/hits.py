"""QueryHits: for each query of a run, its class and whether its nearest neighbour has this class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class QueryHits:
    """What one run retrieved, query by query. The mean of `hits` is recall@1.

    Example:
        >>> found = QueryHits(classes=np.array([3, 3, 7]), hits=np.array([True, False, True]))
        >>> len(found.hits)
        3

    Raises:
        ValueError: if the arrays are not of one shape (Q,).
    """

    classes: NDArray[np.int64]
    """(Q,) Class of each query."""
    hits: NDArray[np.bool_]
    """(Q,) Whether the nearest neighbour of each query has its class."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.classes.ndim != 1 or self.classes.shape != self.hits.shape:
            raise ValueError(f"one class per query must be given, but got {self.classes.shape} and {self.hits.shape}")
