"""Normalised mutual information of two partitions: the one implementation, for training and for evaluation.

Ours is kept beside scikit-learn's: it gives the same numbers in a fifth of the time and spares a trial the import of
scikit-learn, which takes two seconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Partition = ArrayLike | Tensor


def nmi(labels: Partition, clusters: Partition) -> float:
    """Normalised mutual information of two partitions, normalised by the arithmetic mean of their entropies.

    The number -1 is a cluster like any other. The value is 1 if both partitions have a single cluster, and 0 if only
    one of them has.

    Args:
        labels: (N,) Integers.
        clusters: (N,) Integers.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: if the two partitions differ in length.

    Example:
        >>> nmi([0, 0, 1, 1], [1, 1, 0, 0]), nmi([0, 0, 1, 1], [0, 1, 0, 1])
        (1.0, 0.0)
    """
    first, second = _positions(labels), _positions(clusters)
    if len(first) != len(second):
        raise ValueError(f"`len(labels) == len(clusters)` must hold, but got {len(first)} and {len(second)}")
    pairs = first * (int(second.max(initial=0)) + 1) + second
    entropies = _entropy(first) + _entropy(second)
    if entropies == 0:
        return 1.0
    return float(np.clip(2 * (entropies - _entropy(_positions(pairs))) / entropies, 0, 1))


def as_integers(labels: Partition) -> NDArray[np.int64]:
    """Labels as an int64 array on the CPU."""
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels, dtype=np.int64)


def _positions(labels: Partition) -> NDArray[np.int64]:
    """The position of each label among the sorted distinct labels."""
    return np.unique(as_integers(labels), return_inverse=True)[1].astype(np.int64)


def _entropy(positions: NDArray[np.int64]) -> float:
    """Entropy in nats of the frequencies of the positions."""
    p = np.bincount(positions) / max(1, len(positions))
    return float(-(p * np.log(p)).sum())
