"""Batches: the order over clusters, the four samplers, and the loader that prepares them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import epoch_batches, load, open_or_build, round_robin
from dcml_tune.data.image_list import Indices
from dcml_tune.data.image_store import ImageStore
from dcml_tune.data.loader import BatchLoader
from dcml_tune.data.transforms import TrainTransform

SAMPLERS = ["adaptbalanced", "balanced_old", "npairs", "randombatch"]


def config(sampler: str = "adaptbalanced", size: int = 16, per_class: int = 4, **settings: Any) -> TrialConfig:
    return TrialConfig(batch_sampler=sampler, batch_size=size, num_samples_per_class=per_class, **settings)


def repeated(sizes: list[int]) -> Indices:
    """Labels of classes of given sizes, in a shuffled order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def one_cluster(labels: Indices, settings: TrialConfig, epoch: int = 0) -> list[Indices]:
    return [batch for _, batch in epoch_batches(np.zeros(len(labels), np.int64), labels, settings, epoch)]


@pytest.mark.parametrize(
    ("counts", "order"),
    [
        ([3, 1, 2], [(0, 0), (1, 0), (2, 0), (0, 1), (1, 0), (2, 1), (0, 2), (1, 0), (2, 0)]),
        ([1], [(0, 0)]),
        ([0, 2], [(1, 0), (1, 1)]),
        ([], []),
    ],
)
def test_round_robin(counts: list[int], order: list[tuple[int, int]]) -> None:
    """One batch each cluster a round; smaller clusters start over; clusters without batches take no part."""
    assert round_robin(counts) == order


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_epoch_keeps_to_its_clusters(sampler: str) -> None:
    """A learner sees its own cluster, in n // batch_size batches, at least one; images of -1 are in none."""
    labels = repeated([42] * 10)
    partition = np.random.default_rng(1).choice([-1, 0, 1, 2], size=len(labels), p=[0.1, 0.6, 0.25, 0.05])
    batches = epoch_batches(partition, labels, config(sampler), 5)
    counts = [max(1, int((partition == k).sum()) // 16) for k in range(3)]
    assert [learner for learner, _ in batches] == [cluster for cluster, _ in round_robin(counts)]
    assert all((partition[batch] == learner).all() for learner, batch in batches)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_clusters_draw_new_batches(sampler: str) -> None:
    """A cluster that starts over draws anew, as in the original: with 1,500, 500 and 200 images no batch is repeated."""
    labels = repeated([44] * 50)
    partition = np.repeat([0, 1, 2], [1500, 500, 200])
    batches = epoch_batches(partition, labels, config(sampler, size=64), 0)
    for learner in range(3):
        own = [tuple(sorted(batch.tolist())) for cluster, batch in batches if cluster == learner]
        assert len(own) == 23
        assert len(set(own)) == 23
    # The largest one's batches are what they are without the others.
    alone = epoch_batches(np.where(partition == 0, 0, -1), labels, config(sampler, size=64), 0)
    assert [batch.tolist() for cluster, batch in batches if cluster == 0] == [batch.tolist() for _, batch in alone]


def test_each_pass_over_a_cluster_is_dealt_anew() -> None:
    """Within each pass of n // batch_size batches all images are seen before one comes twice, as a loop counts them."""
    labels = repeated([8] * 32)
    partition = (np.arange(256) >= 192).astype(np.int64)
    labels[192:] = np.repeat(np.arange(8), 8)
    own = [batch for learner, batch in epoch_batches(partition, labels, config(), 0) if learner == 1]
    assert len(own) == 12
    for start in range(0, 12, 4):
        assert sorted(np.concatenate(own[start : start + 4]).tolist()) == list(range(192, 256))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_epoch_is_a_function_of_seed_and_epoch(sampler: str) -> None:
    """The same seed and epoch give the same batches; another of either gives others."""
    labels = repeated([6] * 20)
    first, again = (one_cluster(labels, config(sampler), 3) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in (one_cluster(labels, config(sampler), 4), one_cluster(labels, config(sampler, seed=2), 3)):
        assert any(a.tolist() != b.tolist() for a, b in zip(first, other, strict=True))


def test_clusters_do_not_depend_on_each_other() -> None:
    """A cluster's batches stay when another cluster changes."""
    labels = repeated([6] * 20)
    partition = np.arange(len(labels)) % 2
    without = np.where(partition == 0, -1, partition)
    both = [batch.tolist() for learner, batch in epoch_batches(partition, labels, config(), 0) if learner == 1]
    assert both == [batch.tolist() for _, batch in epoch_batches(without, labels, config(), 0)]


@pytest.mark.parametrize("sampler", ["adaptbalanced", "balanced_old"])
def test_balanced_batches(sampler: str) -> None:
    """With enough classes and images a batch holds so many different images of so many classes."""
    labels = repeated([4, 9, 5, 30, 4, 12, 8])
    for batch in one_cluster(labels, config(sampler)):
        assert len(set(batch.tolist())) == 16
        assert sorted(Counter(labels[batch].tolist()).values()) == [4, 4, 4, 4]


def test_balanced_batches_see_all_images() -> None:
    """Equal classes come up equally often, and a class shows all its images before one twice."""
    labels = repeated([8] * 8)
    seen = Counter(np.concatenate(one_cluster(labels, config())).tolist())
    assert len(seen) == 64
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(
    ("action", "length", "repeats"),
    [("sample_other", 16, False), ("duplicate", 16, True), ("smaller_batch", 11, False)],
)
def test_small_class_action(action: str, length: int, repeats: bool) -> None:
    """Where classes have too few images a batch is filled with others, with repeats, or left short."""
    labels = repeated([3, 3, 3, 2])
    labels = np.concatenate([labels, np.full(5, 3)]) if action == "sample_other" else labels
    (batch,) = one_cluster(labels, config(small_class_action=action))
    assert len(batch) == length
    assert (len(set(batch.tolist())) < length) == repeats
    assert len(set(labels[batch].tolist())) == 4


def test_sample_other_fills_from_images_that_are_not_in_the_batch() -> None:
    """Filled batches of a large cluster hold their own classes, and random other images, none twice."""
    labels = repeated([2] * 300)
    batches = one_cluster(labels, config(small_class_action="sample_other"))
    assert len(batches) == 600 // 16
    assert all(len(set(batch.tolist())) == 16 for batch in batches)
    assert all(Counter(labels[batch].tolist()).most_common(4)[3][1] == 2 for batch in batches)


def test_few_classes_give_more_images_each() -> None:
    """Adaptbalanced with fewer classes than a batch asks for takes more images of each."""
    labels = repeated([30, 30, 30])
    for batch in one_cluster(labels, config()):
        assert sorted(Counter(labels[batch].tolist()).values()) == [5, 5, 6]
        assert len(set(batch.tolist())) == 16


def test_balanced_old_repeats_classes_and_images() -> None:
    """Classes are drawn again by balanced_old when it is short of them, yet never one alone."""
    labels = repeated([3, 2])
    for epoch in range(50):
        (batch,) = one_cluster(labels, config("balanced_old", size=8), epoch)
        assert Counter(labels[batch].tolist()) == {0: 4, 1: 4}
        (batch,) = one_cluster(labels, config("balanced_old", size=16), epoch)
        counts = Counter(labels[batch].tolist())
        assert len(batch) == 16
        assert set(counts) == {0, 1}
        assert all(count % 4 == 0 for count in counts.values())


@pytest.mark.parametrize("per_class", [2, 4])
def test_npairs_batches_are_full(per_class: int) -> None:
    """As in the original: so many images of each class, whole batches with few classes, too, as classes may repeat.

    There are two classes at least, and a class with one image is in none. A loop counts how often each class comes.
    """
    labels = repeated([1, 2, 5, 7, 2, 9, 4, 4, 6, 2, 30, 30])
    settings, seen = config("npairs", size=80, per_class=per_class), dict.fromkeys(range(12), 0)
    for epoch in range(300):
        for batch in one_cluster(labels, settings, epoch):
            counts = Counter(labels[batch].tolist())
            assert len(batch) == 80
            assert len(counts) >= 2
            assert all(count % per_class == 0 for count in counts.values())
            for label, count in counts.items():
                seen[label] += count
    total = sum(seen.values())
    assert seen[0] == 0
    # Every class with two images is equally likely: 5 standard deviations of a share of 1 / 11.
    spread = 5 * (10 / 121 / (total / per_class)) ** 0.5
    assert all(seen[label] / total == pytest.approx(1 / 11, abs=spread) for label in range(1, 12))


def test_a_class_may_come_twice_in_a_batch_of_npairs() -> None:
    """Also where there are more classes than a batch needs."""
    labels = repeated([8] * 12)
    batches = [batch for epoch in range(20) for batch in one_cluster(labels, config("npairs"), epoch)]
    assert any(max(Counter(labels[batch].tolist()).values()) > 4 for batch in batches)


def test_classes_over_an_epoch_are_dealt() -> None:
    """Each of 300 classes is seen in an epoch of adaptbalanced; drawn independently, as a loop does, 92 % would be."""
    labels = np.repeat(np.arange(300), 5)
    batches = one_cluster(labels, config("adaptbalanced", size=80, per_class=2))
    seen = {label for batch in batches for label in labels[batch].tolist()}
    rng, drawn = np.random.default_rng(0), set()
    for _ in batches:
        drawn |= set(rng.choice(300, 40, replace=False).tolist())
    assert len(batches) == 18
    assert seen == set(range(300))
    assert len(drawn) / 300 == pytest.approx(0.92, abs=0.03)


def test_randombatch_has_two_classes() -> None:
    """Random batches show each image at most once, and never one class alone."""
    labels = repeated([150, 2])
    seen: list[int] = []
    for epoch in range(20):
        batches = one_cluster(labels, config("randombatch"), epoch)
        assert len(batches) == 9
        assert all(len(set(batch.tolist())) == 16 for batch in batches)
        assert all(len(set(labels[batch].tolist())) == 2 for batch in batches)
        seen += np.concatenate(batches).tolist()
    assert set(seen) == set(range(152))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_cluster_takes_part(sampler: str) -> None:
    """A cluster no larger than a batch gives one batch a round."""
    labels = repeated([3, 2, 2])
    (batch,) = one_cluster(labels, config(sampler))
    assert 6 <= len(batch) <= 16
    assert len(set(labels[batch].tolist())) >= 2


@pytest.mark.parametrize(
    ("sampler", "sizes"),
    [(sampler, [9]) for sampler in SAMPLERS] + [(sampler, [1] * 9) for sampler in SAMPLERS] + [("npairs", [8, 1])],
)
def test_hopeless_cluster_is_skipped(sampler: str, sizes: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """A cluster of one class, or without a pair, is skipped and logged; nothing left is an error."""
    hopeless, fine = repeated(sizes), repeated([5, 5, 5]) + 100
    labels = np.concatenate([hopeless, fine])
    partition = np.repeat([0, 1], [len(hopeless), len(fine)])
    with caplog.at_level(logging.WARNING):
        assert {learner for learner, _ in epoch_batches(partition, labels, config(sampler), 7)} == {1}
    assert "epoch 7: the clusters of 1 learners (0) have no batch of two classes and a pair of images" in caplog.text
    with pytest.raises(SettingError, match="lower nb_clusters"):
        one_cluster(hopeless, config(sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replicas_share_a_batch(sampler: str) -> None:
    """A batch of 80 holds 40 different images twice, as in the original: those of a batch of 40."""
    labels = repeated([10] * 40)
    twice = one_cluster(labels, config(sampler, size=80, per_class=2, num_replicas=2))
    once = one_cluster(labels, config(sampler, size=40, per_class=2))
    assert len(twice) == len(once) == 10
    for batch, half in zip(twice, once, strict=True):
        assert len(batch) == 80
        assert batch.tolist() == half.tolist() * 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_random_clusters_hold_the_rules(sampler: str) -> None:
    """For random partitions of uneven classes every batch has two classes and a pair, and no stranger."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        labels = rng.integers(0, rng.integers(2, 12), size=rng.integers(6, 120))
        partition = rng.integers(-1, 3, size=len(labels))
        action = rng.choice(["sample_other", "duplicate", "smaller_batch"])
        try:
            batches = epoch_batches(partition, labels, config(sampler, small_class_action=action), 1)
        except SettingError:
            continue
        for learner, batch in batches:
            assert (partition[batch] == learner).all()
            assert 0 < len(batch) <= 16
            assert len(np.unique(labels[batch])) >= 2


def test_epoch_starts_quickly() -> None:
    """The batches of 60,000 images in 32 clusters are chosen within a second, on a busy machine too."""
    labels = np.repeat(np.arange(11318), 6)[:59551]
    partition = np.random.default_rng(0).integers(0, 32, size=len(labels))
    start = time.process_time()
    epoch_batches(partition, labels, config(size=80, per_class=2), 0)
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    images = load(TrialConfig()).train.take(range(80))
    directory: Path = tmp_path_factory.mktemp("stores")
    return open_or_build(images, directory, kind="full", sz_resize=64, sz_crop=64)


def test_workers_make_no_difference(store: ImageStore) -> None:
    """Batches are the same for 0, 1 and 2 workers, over epochs, and after an epoch that was broken off."""
    batches = [(k % 2, np.arange(k, k + 8)) for k in range(0, 70, 7)]
    found = []
    for workers in (0, 1, 2):
        loader = BatchLoader(store, TrainTransform(32), num_workers=workers)
        next(iter(loader.epoch(batches, seed=1, epoch=0)))
        found.append([list(loader.epoch(batches[: 10 - e], seed=1, epoch=e)) for e in range(3)])
        loader.close()
    assert [len(epoch) for epoch in found[0]] == [10, 9, 8]
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            for (a, images_a, rows_a), (b, images_b, rows_b) in zip(ours, theirs, strict=True):
                assert a == b
                assert (rows_a == rows_b).all()
                assert torch.equal(images_a, images_b)
                assert images_b.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_changes_with_seed_epoch_and_step(store: ImageStore) -> None:
    """The same images are augmented anew in each step, epoch and trial."""
    loader = BatchLoader(store, TrainTransform(32))
    twice = [(0, np.arange(4))] * 2
    first, second = (images for _, images, _ in loader.epoch(twice, 1, 0))
    others = [next(loader.epoch(twice, seed, epoch))[1] for seed, epoch in ((1, 1), (2, 0))]
    assert not any(torch.equal(first, other) for other in (second, *others))


def test_workers_live_on_between_epochs(store: ImageStore) -> None:
    """The second epoch starts no process."""
    loader = BatchLoader(store, TrainTransform(32), num_workers=2)
    batches = [(0, np.arange(8))] * 4

    def workers() -> set[int]:
        list(loader.epoch(batches, 1, 0))
        assert loader._loader is not None
        return {process.pid for process in loader._loader._iterator._workers}

    assert workers() == workers()
    loader.close()
