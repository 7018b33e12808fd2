"""Measures of a clustering against classes: NMI, which `dcml_tune.clustering.agreement` implements, and AMI."""

from __future__ import annotations

from dcml_tune.clustering.agreement import as_integers, nmi
from dcml_tune.metrics.neighbours import Rows

__all__ = ["ami", "nmi"]


def ami(labels: Rows, clusters: Rows) -> float:
    """Adjusted mutual information of two partitions, normalised by the arithmetic mean of their entropies.

    The expected value for independent partitions is 0, and the value may be negative; 1 means equal partitions.

    Args:
        labels: (N,) Integers.
        clusters: (N,) Integers.

    Raises:
        ValueError: if the two partitions differ in length.

    Example:
        >>> round(ami([0, 0, 1, 1], [1, 1, 0, 0]), 6)
        1.0
    """
    # scikit-learn takes two seconds to import, and training does not need it.
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(as_integers(labels), as_integers(clusters)))
