"""Which images make up the batches of an epoch: seeded from (seed, epoch), and decided before it begins."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from dcml_tune.config import TrialConfig

log = logging.getLogger(__name__)

Indices = NDArray[np.int64]


def round_robin(batches_per_cluster: list[int]) -> list[tuple[int, int]]:
    """The order of an epoch: (cluster, batch number), one batch of each cluster a round.

    There are as many rounds as the largest cluster has batches; smaller clusters start over, empty ones are left out.

    Example:
        >>> round_robin([1, 2])
        [(0, 0), (1, 0), (0, 0), (1, 1)]
    """
    rounds = max(batches_per_cluster, default=0)
    return [(c, r % count) for r in range(rounds) for c, count in enumerate(batches_per_cluster) if count > 0]


def epoch_batches(
    partition: NDArray[np.int64], labels: Indices, config: TrialConfig, epoch: int
) -> list[tuple[int, Indices]]:
    """The batches of an epoch: (learner, indices of images), as docs/algorithm.md says under Batch samplers.

    Args:
        partition: cluster of each image, -1 for none.
        labels: class of each image.
        config: the batch sampler and its settings, and the seed.
        epoch: counted from 0.
    """
    rng = np.random.default_rng([config.seed, epoch])
    clusters = int(partition.max(initial=-1)) + 1
    batches = [_cluster_batches(np.flatnonzero(partition == c), labels, config, rng, c) for c in range(clusters)]
    order = round_robin([len(each) for each in batches])
    return [(cluster, np.tile(batches[cluster][number], config.num_replicas)) for cluster, number in order]


def _cluster_batches(
    images: Indices, labels: Indices, config: TrialConfig, rng: np.random.Generator, cluster: int
) -> list[Indices]:
    """The batches of one cluster; none if no batch of it could teach anything."""
    _, counts = np.unique(labels[images], return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        log.warning(
            "cluster %d takes no part: it has %d classes, none or one of them with a pair", cluster, len(counts)
        )
        return []
    number = max(1, len(images) // config.batch_size)
    sample = {
        "adaptbalanced": _adaptbalanced,
        "balanced_old": _balanced_old,
        "npairs": _npairs,
        "randombatch": _randombatch,
    }[config.batch_sampler]
    groups = _by_class(images, labels, rng)
    return [sample(groups, config, rng) for _ in range(number)]


class _Classes:
    """The images of a cluster by class, handed out so that all are seen before one is seen again."""

    def __init__(self, images: list[Indices], rng: np.random.Generator) -> None:
        self.images, self.rng = images, rng
        self.everything = np.concatenate(images)
        self.class_of = {int(i): c for c, group in enumerate(images) for i in group}
        self.queue: list[int] = []
        self.position = [0] * len(images)

    def draw_classes(self, count: int) -> list[int]:
        """Different classes; each takes its turn before one has a second."""
        count = min(count, len(self.images))
        drawn: list[int] = []
        while len(drawn) < count:
            if not self.queue:
                self.queue = self.rng.permutation(len(self.images)).tolist()
            nxt = next((c for c in self.queue if c not in drawn), None)
            if nxt is None:
                self.queue += [c for c in self.rng.permutation(len(self.images)).tolist() if c not in self.queue]
                continue
            self.queue.remove(nxt)
            drawn.append(nxt)
        return drawn

    def draw_images(self, cls: int, count: int) -> Indices:
        """At most `count` different images of a class, in turns."""
        group = self.images[cls]
        count = min(count, len(group))
        start = self.position[cls]
        if start + count > len(group):
            self.images[cls] = group = self.rng.permutation(group)
            start = 0
        self.position[cls] = start + count
        return group[start : start + count]


def _by_class(images: Indices, labels: Indices, rng: np.random.Generator) -> _Classes:
    shuffled = rng.permutation(images)
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    cuts = np.flatnonzero(np.diff(labels[ordered])) + 1
    return _Classes(np.split(ordered, cuts), rng)


def _adaptbalanced(classes: _Classes, config: TrialConfig, rng: np.random.Generator) -> Indices:
    """`num_samples_per_class` images of each class; more where the cluster has fewer classes than a batch."""
    wanted = config.batch_size // config.num_samples_per_class
    drawn = classes.draw_classes(wanted)
    shares = np.full(len(drawn), config.batch_size // len(drawn))
    shares[: config.batch_size % len(drawn)] += 1
    parts = [classes.draw_images(cls, int(share)) for cls, share in zip(drawn, shares, strict=True)]
    batch = np.concatenate(parts)
    if len(batch) == config.batch_size or config.small_class_action == "smaller_batch":
        return batch
    if config.small_class_action == "duplicate":
        return np.concatenate([np.resize(part, int(share)) for part, share in zip(parts, shares, strict=True)])
    others = np.setdiff1d(classes.everything, batch)
    missing = min(len(others), config.batch_size - len(batch))
    return np.concatenate([batch, rng.choice(others, missing, replace=False)])


def _balanced_old(classes: _Classes, config: TrialConfig, rng: np.random.Generator) -> Indices:
    """Classes drawn at random, with repetition when there are too few; images with repetition where too few."""
    wanted = config.batch_size // config.num_samples_per_class
    drawn = rng.choice(len(classes.images), wanted, replace=wanted > len(classes.images))
    return np.concatenate([_choice(classes.images[cls], config.num_samples_per_class, rng) for cls in drawn])


def _npairs(classes: _Classes, config: TrialConfig, rng: np.random.Generator) -> Indices:
    """Two images of each of batch_size / 2 classes that have two."""
    able = [cls for cls, group in enumerate(classes.images) if len(group) >= 2]
    drawn = rng.permutation(able)[: config.batch_size // 2]
    return np.concatenate([_choice(classes.images[cls], 2, rng) for cls in drawn])


def _randombatch(classes: _Classes, config: TrialConfig, rng: np.random.Generator) -> Indices:
    """Any images, of at least two classes."""
    batch = rng.permutation(classes.everything)[: config.batch_size]
    if len({classes.class_of[int(i)] for i in batch}) < 2:
        first = classes.class_of[int(batch[0])]
        others = np.concatenate([group for cls, group in enumerate(classes.images) if cls != first])
        batch[-1] = rng.choice(others)
    return batch


def _choice(group: Indices, count: int, rng: np.random.Generator) -> Indices:
    return rng.choice(group, count, replace=count > len(group))
