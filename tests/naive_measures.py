"""Measures and partitions by plain loops over images: the oracles of the vectorised ones."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np


def ranked_hits(embeddings, labels, gallery=None, gallery_labels=None):
    """For each query, whether each other image has its class, nearest first; ties in the order of images."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    itself = gallery is None
    gallery = embeddings if itself else np.asarray(gallery, dtype=np.float64)
    gallery_labels = labels if itself else gallery_labels
    lists = []
    for q in range(len(embeddings)):
        others = [g for g in range(len(gallery)) if not (itself and g == q)]
        others.sort(key=lambda g, q=q: (sum((embeddings[q] - gallery[g]) ** 2), g))
        lists.append([bool(gallery_labels[g] == labels[q]) for g in others])
    return lists


def recall(lists, k):
    return sum(any(hits[:k]) for hits in lists) / len(lists)


def retrieval(lists):
    """MAP@R, the original's mARP and R-precision of ranked hits."""
    map_at_r, marp, r_precision = [], [], []
    for hits in lists:
        r = sum(hits)
        if r == 0:
            continue
        total, found = 0.0, 0
        for rank in range(1, r + 1):
            if hits[rank - 1]:
                found += 1
                total += found / rank
        map_at_r.append(total / r)
        marp.append(total / found if found else 0.0)
        r_precision.append(found / r)
    return {"map_at_r": mean(map_at_r), "marp": mean(marp), "r_precision": mean(r_precision)}


def mean(values):
    return sum(values) / len(values) if values else 0.0


def drop_singles(partition, labels):
    dropped = []
    for i, cluster in enumerate(partition):
        alike = sum(partition[j] == cluster and labels[j] == labels[i] for j in range(len(labels)))
        dropped.append(cluster if alike >= 2 else -1)
    return dropped


def acceptable(partition, labels, k):
    for cluster in range(k):
        classes = Counter(label for own, label in zip(partition, labels, strict=True) if own == cluster)
        if sum(count >= 2 for count in classes.values()) < 2:
            return False
    return True


def best_overlap(previous, current, k):
    """The most images that any renumbering of k clusters can keep in their previous cluster."""
    return max(
        sum(p >= 0 and c >= 0 and p == renumbered[c] for p, c in zip(previous, current, strict=True))
        for renumbered in itertools.permutations(range(k))
    )


def lloyd(features, centroids, iterations):
    """K-means from given centroids, in float64; labels are the nearest of the final centroids."""
    features, centroids = np.asarray(features, dtype=np.float64), np.array(centroids, dtype=np.float64)
    for _ in range(iterations):
        labels = nearest(features, centroids)
        for j in range(len(centroids)):
            centroids[j] = np.mean([x for x, own in zip(features, labels, strict=True) if own == j], axis=0)
    return nearest(features, centroids), centroids


def nearest(features, centroids):
    return [min(range(len(centroids)), key=lambda j, x=x: sum((x - centroids[j]) ** 2)) for x in features]


def objective(features, labels, centroids):
    return sum(math.fsum((np.float64(x) - centroids[j]) ** 2) for x, j in zip(features, labels, strict=True))
