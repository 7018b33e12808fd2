"""The interval for new classes: how a difference on the test classes varies over seeds and over classes.

Seeds are random, classes are random, and both are crossed: each seed is measured on all classes. The variance of the mean
difference is that over seeds, divided by their number, plus the covariance that two seeds' differences share because they
were measured on the same classes. The latter does not shrink with more seeds. A bootstrap over classes alone would leave
out the former.

Sources: Obuchowski and Rockette, "Hypothesis Testing of Diagnostic Accuracy for Multiple Readers and Multiple Tests",
Communications in Statistics - Simulation 24, 1995: readers are our seeds, modalities our settings, cases our classes; Hillis,
"A Comparison of Denominator Degrees of Freedom Methods for Multiple Observer ROC Analysis", Statistics in Medicine 26, 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dcml_tune.runs.hits import QueryHits
from dcml_tune.search.intervals import ALPHA, Difference, t_bound

Hits = Mapping[str, Mapping[str, QueryHits]]
"""Setting -> seed -> what its run retrieved."""


@dataclass(frozen=True, kw_only=True)
class SharedByClasses:
    """What two seeds' differences have in common because they were measured on the same classes."""

    covariance: float
    """At least 0; of shares of 1."""
    classes: int


def shared_by_classes(ones: Sequence[QueryHits], others: Sequence[QueryHits]) -> SharedByClasses:
    """Estimate the covariance between seeds of the difference of two settings, over samples of classes.

    It is Cov2 - Cov3 of Obuchowski and Rockette, times two, by the linearised jackknife over classes: a class is kept or
    left out as a whole.

    Args:
        ones: one setting, a run for each seed; at least two.
        others: the other setting, in the same order of seeds.

    Raises:
        ValueError: if the runs did not measure the same queries, in the same order, of at least two classes.
    """
    _, places, sizes = np.unique(ones[0].classes, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("one class tells nothing about others")
    queries = int(sizes.sum())
    if not all(np.array_equal(ones[0].classes, run.classes) for run in (*ones, *others)):
        raise ValueError("the runs were not measured on the same queries")
    right = [
        np.bincount(places, weights=one.hits.astype(np.float64) - other.hits.astype(np.float64))
        for one, other in zip(ones, others, strict=True)
    ]
    differences = np.array(right)
    influence = (differences - np.outer(differences.sum(1) / queries, sizes)) / queries
    seeds = len(influence)
    products = float(np.sum(influence.sum(0) ** 2) - np.sum(influence**2))
    covariance = products / (seeds * (seeds - 1)) * len(sizes) / (len(sizes) - 1)
    return SharedByClasses(covariance=max(0.0, covariance), classes=len(sizes))


def for_new_classes(found: Difference, shared: SharedByClasses) -> Difference:
    """Return a difference on the test classes with the interval for new classes of the same kind.

    The degrees of freedom are Hillis's, with a term for the number of classes: Satterthwaite's rule over both parts of the
    variance. With two or three seeds they grow more than the variance does; the interval is then as wide as that for these
    classes, never narrower.

    Args:
        found: with the standard error over seeds.
        shared: by the classes.
    """
    if found.error is None or found.freedom is None:
        return found
    over_seeds, total = found.error**2, found.error**2 + shared.covariance
    freedom = total**2 / (over_seeds**2 / found.freedom + shared.covariance**2 / (shared.classes - 1))
    quantile = t_bound(freedom, ALPHA / 2)
    half = max(quantile * total**0.5, t_bound(found.freedom, ALPHA / 2) * found.error)
    return replace(found, low=found.mean - half, high=found.mean + half, error=half / quantile, freedom=freedom)
