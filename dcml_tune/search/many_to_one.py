"""Dunnett's comparison of several settings with one: the distribution of the largest of correlated t statistics.

Source: Dunnett, "A Multiple Comparison Procedure for Comparing Several Treatments with a Control", JASA 50, 1955. All
settings are measured on the same blocks, so the differences from the control have a correlation of 1/2 for any design in
which they have the same number of blocks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr

_NODES = 64  # of each quadrature; the probabilities are exact to five digits


def exceedance(value: float, settings: int, freedom: float) -> float:
    """Return the probability that the largest of several t statistics with correlation 1/2 is at least a value.

    Given the control's error z and the estimated over the true standard deviation s, the statistics are independent:
    P(all < value) = E[Phi(sqrt(2) value s + z) ** settings].

    Args:
        value: of the largest statistic.
        settings: number of settings that are compared with the control, 1 or more.
        freedom: degrees of freedom of the estimated standard deviation, above 0.

    Example:
        >>> round(exceedance(1.812, settings=1, freedom=10), 3)  # one setting: Student's t
        0.05
    """
    scales, shares, errors, weights = _quadrature(round(freedom, 3))
    below = ndtr(math.sqrt(2) * value * scales[:, None] + errors) ** settings
    return float(1 - shares @ below @ weights)


@lru_cache(maxsize=4096)
def bound(settings: int, freedom: float, level: float) -> float:
    """Return the value that the largest of several t statistics exceeds with the probability `level`.

    Args:
        settings: number of settings that are compared with the control, 1 or more.
        freedom: degrees of freedom of the estimated standard deviation, above 0.
        level: between 0 and 1/2.

    Example:
        >>> round(bound(4, 10, 0.05), 2)  # Dunnett's table 1a
        2.47
    """
    return float(brentq(lambda value: exceedance(value, settings, freedom) - level, 0.0, 1e6, xtol=1e-6))


@lru_cache(maxsize=256)
def _quadrature(freedom: float) -> tuple[NDArray[np.float64], ...]:
    """Quantiles of s (n,) with their weights, and quantiles of z (m,) with theirs."""
    places, lengths = np.polynomial.legendre.leggauss(_NODES)
    scales = np.sqrt(chdtri(freedom, (1 - places) / 2) / freedom)
    errors, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return scales, lengths / 2, errors, weights / weights.sum()
