"""Batch samplers, and the round-robin order of the batches of all clusters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.image_list import Indices

logger = logging.getLogger(__name__)

# First word of the seeds of all random choices in this module; augmentation (loader.py) uses another.
STREAM = 1


def round_robin(batches_per_cluster: Sequence[int]) -> list[tuple[int, int]]:
    """The order of the batches of an epoch: in each round, one batch per cluster.

    The number of rounds is the number of batches of the largest cluster; smaller clusters repeat theirs. Clusters without
    batches are skipped.

    Returns:
        (cluster, batch number) for each step.

    Example:
        >>> round_robin([2, 1])
        [(0, 0), (1, 0), (0, 1), (1, 0)]
    """
    rounds = range(max(batches_per_cluster, default=0))
    sizes = [(cluster, size) for cluster, size in enumerate(batches_per_cluster) if size > 0]
    return [(cluster, number % size) for number in rounds for cluster, size in sizes]


def epoch_batches(partition: Indices, labels: Indices, config: TrialConfig, epoch: int) -> list[tuple[int, Indices]]:
    """The batches of an epoch, in training order.

    A cluster of n images has max(1, n // size) batches of size = `config.images_per_batch` different images. When
    `round_robin` repeats a cluster, it draws as many new batches, as the original does: no batch is repeated. A cluster with
    too few classes or pairs for a batch is skipped, with a warning. Random choices are seeded by (config.seed, epoch,
    cluster): apart from their number, the batches of a cluster do not depend on other clusters.

    Args:
        partition: N, cluster of each image; images with -1 are in no batch.
        labels: N, class of each image.
        config: provides the batch sampler and the size of batches.
        epoch: number of the epoch, from 0.

    Returns:
        For each step the learner (the cluster) and the indices of its images, repeated `num_replicas` times.

    Raises:
        SettingError: if no cluster has a batch.
    """
    members = [np.flatnonzero(partition == cluster) for cluster in range(int(partition.max(initial=-1)) + 1)]
    sizes = [_batches_of(labels[rows], config) for rows in members]
    if skipped := [str(cluster) for cluster, rows in enumerate(members) if len(rows) and not sizes[cluster]]:
        logger.warning(
            "epoch %d: the clusters of %d learners (%s) have no batch of two classes and a pair of images, "
            "so they are skipped", epoch, len(skipped), ", ".join(skipped),
        )  # fmt: skip
    if not any(sizes):
        raise SettingError(
            f"batch_sampler={config.batch_sampler}: no cluster has two classes and a pair of images of one; "
            "lower nb_clusters, or use a data set with more images per class"
        )
    drawn = [
        _draw(rows, labels[rows], config, [STREAM, config.seed, epoch, cluster], size, rounds=max(sizes))
        for cluster, (rows, size) in enumerate(zip(members, sizes, strict=True))
    ]
    # The k-th step of a cluster uses its k-th batch, whatever batch number `round_robin` returns.
    turns = [iter(own) for own in drawn]
    return [(cluster, np.tile(next(turns[cluster]), config.num_replicas)) for cluster, _ in round_robin(sizes)]


def _batches_of(labels: Indices, config: TrialConfig) -> int:
    """Number of batches of a cluster per pass over its images; 0 if it has too few classes or pairs."""
    sizes = np.unique(labels, return_counts=True)[1]
    pairs = int((sizes > 1).sum())
    if len(sizes) < 2 or pairs < (2 if config.batch_sampler == "npairs" else 1):
        return 0
    return max(1, len(labels) // config.images_per_batch)


def _draw(
    rows: Indices, labels: Indices, config: TrialConfig, seed: list[int], size: int, *, rounds: int
) -> list[Indices]:
    """`rounds` batches of a cluster, as indices of all images; each group of `size` batches comes from a new shuffle."""
    if size == 0:
        return []
    batches: list[Indices] = []
    for again in range(-(-rounds // size)):
        rng = np.random.default_rng([*seed, again] if again else seed)
        batches += SAMPLERS[config.batch_sampler](_Classes.of(labels, rng), size, config, rng)
    return [rows[batch] for batch in batches[:rounds]]


@dataclass(frozen=True, eq=False)
class _Classes:
    """The images of a cluster, grouped by class and shuffled within each class."""

    images: Indices
    """n: indices within the cluster; those of class c are images[starts[c] : starts[c] + sizes[c]]."""
    starts: Indices
    sizes: Indices

    @classmethod
    def of(cls, labels: Indices, rng: np.random.Generator) -> _Classes:
        images = np.lexsort((rng.random(len(labels)), labels))
        _, starts, sizes = np.unique(labels[images], return_index=True, return_counts=True)
        return cls(images, starts.astype(np.int64), sizes.astype(np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    def draw(self, chosen: Indices, quota: Indices) -> list[Indices]:
        """Draw images of the chosen classes.

        The images of a class are used in turn: all are used before any is used again in the epoch. An image is repeated
        within a batch only if the quota exceeds the size of the class.

        Args:
            chosen: batches x P, classes of each batch.
            quota: batches x P, number of images of each class.
        """
        flat, takes = chosen.ravel(), quota.ravel()
        # Number of images of the same class that earlier choices use.
        order = np.argsort(flat, kind="stable")
        before = np.cumsum(takes[order]) - takes[order]
        firsts = np.r_[True, flat[order][1:] != flat[order][:-1]]
        offsets = np.empty_like(before)
        offsets[order] = before - np.maximum.accumulate(np.where(firsts, before, 0))
        step = np.arange(takes.sum()) - np.repeat(np.cumsum(takes) - takes, takes)
        at = (np.repeat(offsets, takes) + step) % np.repeat(self.sizes[flat], takes)
        images = self.images[np.repeat(self.starts[flat], takes) + at]
        return np.split(images, np.cumsum(quota.sum(axis=1))[:-1])


def _adaptbalanced(classes: _Classes, number: int, config: TrialConfig, rng: np.random.Generator) -> list[Indices]:
    """`num_samples_per_class` images per class; more if the cluster has few classes.

    If a class has fewer images than its quota, `duplicate` repeats images, `smaller_batch` makes the batch smaller, and
    `sample_other` fills the batch with other images of the cluster, as far as there are any.
    """
    per_batch = config.images_per_batch // config.num_samples_per_class
    chosen = _choose(len(classes), min(per_batch, len(classes)), number, rng)
    quota = np.full(chosen.shape, config.images_per_batch // chosen.shape[1])
    quota[:, : config.images_per_batch % chosen.shape[1]] += 1
    if config.small_class_action == "duplicate":
        return classes.draw(chosen, quota)
    batches = classes.draw(chosen, np.minimum(quota, classes.sizes[chosen]))
    if config.small_class_action == "smaller_batch":
        return batches
    return [_fill(batch, config.images_per_batch, len(classes.images), rng) for batch in batches]


def _balanced_old(classes: _Classes, number: int, config: TrialConfig, rng: np.random.Generator) -> list[Indices]:
    """`num_samples_per_class` images per class; if there are too few classes or images, they are repeated."""
    per_batch = config.images_per_batch // config.num_samples_per_class
    if per_batch <= len(classes):
        chosen = _choose(len(classes), per_batch, number, rng)
    else:
        chosen = rng.integers(len(classes), size=(number, per_batch))
        # Departure: the original may draw a single class, and the batch then has no negative.
        chosen[:, :2] = _choose(len(classes), 2, number, rng)
    return classes.draw(chosen, np.full(chosen.shape, config.num_samples_per_class))


def _npairs(classes: _Classes, number: int, config: TrialConfig, rng: np.random.Generator) -> list[Indices]:
    """`num_samples_per_class` images of classes that are drawn with replacement.

    Only classes with at least two images are drawn, and at least two different ones per batch.
    """
    paired = np.flatnonzero(classes.sizes > 1)
    chosen = rng.integers(len(paired), size=(number, config.images_per_batch // config.num_samples_per_class))
    different = min(2, chosen.shape[1])  # a batch of a loss of proxies may have a single class
    chosen[:, :different] = _choose(len(paired), different, number, rng)
    return classes.draw(paired[chosen], np.full(chosen.shape, config.num_samples_per_class))


def _randombatch(classes: _Classes, number: int, config: TrialConfig, rng: np.random.Generator) -> list[Indices]:
    """Random images; if all are of one class, the last one is replaced by an image of another class."""
    of = np.empty(len(classes.images), dtype=np.int64)
    of[classes.images] = np.repeat(np.arange(len(classes)), classes.sizes)
    shuffled = rng.permutation(len(of))
    batches = [
        shuffled[start : start + config.images_per_batch]
        for start in range(0, number * config.images_per_batch, config.images_per_batch)
    ]
    for batch in batches:
        if (of[batch] == of[batch[0]]).all():
            batch[-1] = rng.choice(np.flatnonzero(of != of[batch[0]]))
    return batches


Sampler = Callable[[_Classes, int, TrialConfig, np.random.Generator], list[Indices]]

SAMPLERS: dict[str, Sampler] = {
    "adaptbalanced": _adaptbalanced,
    "balanced_old": _balanced_old,
    "npairs": _npairs,
    "randombatch": _randombatch,
}


def _choose(classes: int, wanted: int, number: int, rng: np.random.Generator) -> Indices:
    """Choose classes for batches without repetition in a batch: number x wanted.

    Batches are consecutive parts of shuffled lists of all classes, so that each class is used before any is used again,
    except for the rest of a list that does not fill a batch.
    """
    lists = -(-number // (classes // wanted))
    shuffled = rng.permuted(np.tile(np.arange(classes), (lists, 1)), axis=1)
    return shuffled[:, : classes // wanted * wanted].reshape(-1, wanted)[:number]


def _fill(batch: Indices, size: int, images: int, rng: np.random.Generator) -> Indices:
    """Fill a batch up to `size` with random images of the cluster that are not in it, as far as there are any."""
    missing = min(size, images) - len(batch)
    if missing == 0:
        return batch
    # If the cluster is much larger than the batch, 2 * size candidates are enough; otherwise all images are candidates.
    candidates = rng.choice(images, min(images, 2 * size), replace=False, shuffle=True)
    others = candidates[~np.isin(candidates, batch)][:missing]
    return np.concatenate([batch, others])
