"""What an epoch says of clusters, masks and loss parameters, and what is kept of each reclustering."""

from dataclasses import replace

import naive_losses as naive
import numpy as np
import pytest
import torch

from dcml_tune.config.trial import TrialConfig
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.training.divisions import Division, cluster_measures, mask_measures
from dcml_tune.training.starting_model import trained_model
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError


@pytest.fixture
def config(folder):
    return TrialConfig(
        dataset="folder", dataset_dir=str(folder), train_classes=16, arch="test_resnet", weights="none", sz_resize=32,
        sz_crop=32, sz_embedding=8, batch_size=8, num_samples_per_class=2, batch_sampler="adaptbalanced", nb_epochs=4,
        nb_clusters=4, mod_epoch=1, force_full_embedding_epoch=3, masking_init="normal", mask_lr_mult=1e5, base_lr=1e-3,
        masking_lambda=0.25, lr_beta=0.1,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_those_of_a_loop(seed):
    """Images and classes of each cluster, an empty one included."""
    rng = np.random.default_rng(seed)
    partition, labels = rng.integers(-1, 3, size=50), rng.integers(0, 9, size=50) * 7
    images, classes = [0] * 4, [set() for _ in range(4)]
    for cluster, label in zip(partition.tolist(), labels.tolist(), strict=True):
        if cluster >= 0:
            images[cluster] += 1
            classes[cluster].add(label)
    division = Division.of(3, partition, labels, torch.ones(4, 2))
    assert (division.images, division.classes) == (images, [len(each) for each in classes])
    found = cluster_measures(partition, labels, 4)
    assert (found["clusters/largest"], found["clusters/smallest"]) == (max(images), 0)
    assert found["clusters/most_classes"] == max(len(each) for each in classes)
    assert found["clusters/fewest_classes"] == 0
    assert found["clusters/left_out"] == pytest.approx(sum(partition == -1) / 50)


def test_measures_of_masks_are_those_of_a_loop():
    """Overlap, mean, deviation, and the share of entries that the rectifier cuts off."""
    masks = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    entries = [value for row in masks.tolist() for value in row]
    mean = sum(entries) / 35
    expected = {
        "masks/overlap": naive.overlap(masks.tolist()),
        "masks/mean": mean,
        "masks/std": (sum((value - mean) ** 2 for value in entries) / 35) ** 0.5,
        "masks/silent": sum(value <= 0 for value in entries) / 35,
    }
    assert mask_measures(masks) == pytest.approx(expected, abs=1e-6)


def test_an_epoch_says_what_the_original_logs(config, tmp_path):
    """Lambda times the overlap, in the full-embedding phase, too; betas; the division of each reclustering as files."""
    trainer, kept = Trainer(config, stores=tmp_path / "store", device="cpu"), []
    for epoch in range(4):
        before = trainer.model.masks.detach().clone()
        found = trainer.run_epoch()
        masks, labels = trainer.model.masks.tolist(), trainer.data.labels[trainer.data.train]
        assert found["masks/overlap"] == pytest.approx(naive.overlap(masks), abs=1e-6)
        betas = trainer.criterion.beta.tolist()
        assert found["train/beta"] == pytest.approx(sum(betas) / len(betas))
        assert (found["train/beta_min"], found["train/beta_max"]) == (min(betas), max(betas))
        trainer.save(tmp_path / "trial")
        assert (trainer.division is not None) == (epoch in (1, 2, 3))
        if epoch == 0:
            assert found["train/loss_masks"] == 0
            continue
        # Masks move in the second and third epochs, so that the mean over the steps lies about the ends' values.
        ends = [naive.overlap(before.repeat_interleave(1 if epoch == 3 else 2, 0).tolist()), naive.overlap(masks)]
        low, high = 0.25 * min(ends) - 0.02, 0.25 * max(ends) + 0.02
        assert low < found["train/loss_masks"] < high
        if epoch == 3:
            assert found["train/loss_masks"] == pytest.approx(0.25 * naive.overlap(masks), abs=1e-6)
        division = trainer.division
        assert [file.name for file in division.files(tmp_path / "trial")] == [
            f"division-0000{epoch}.json", f"division-0000{epoch}.safetensors"
        ]  # fmt: skip
        tensors, facts = checkpoint.read(tmp_path / "trial", division.name)
        assert np.array_equal(tensors["partition"].numpy(), trainer.partition)
        learners = [2, 4, 4][epoch - 1]
        assert torch.equal(tensors["masks"], before if epoch == 3 else before.repeat_interleave(2, 0))
        assert (facts["epoch"], facts["nb_clusters"]) == (epoch, learners)
        sizes = [int((trainer.partition == k).sum()) for k in range(learners)]
        assert facts["images"] == sizes
        assert facts["classes"] == [len(set(labels[trainer.partition == k].tolist())) for k in range(learners)]
        kept.append(division.name)
    assert len(list((tmp_path / "trial").glob("division-*.json"))) == 1


def test_learners_keep_only_their_own_images(config, tmp_path):
    """A division is taken over where it is of the same images: by rows, data set and names, or rows alone without names."""
    config = config.changed(mod_epoch=2, nb_clusters=2, force_full_embedding_epoch=None)
    first = Trainer(config, stores=tmp_path / "store", device="cpu")
    for _ in range(3):
        first.run_epoch()
    first.partition = np.arange(len(first.partition)) % 2  # as k-means would never have it
    given = trained_model(first.save_epoch(tmp_path), config)
    assert given.epoch == 3
    rows, wrong = torch.arange(4), [{}, {"partition": torch.zeros(3)}, {"partition": torch.tensor([0, 1, 2, 0])}]
    for number, tensors in enumerate(wrong):
        place = tmp_path / f"wrong-{number}"
        first.model.save(place, epoch=3)
        checkpoint.write(place, "division", {"rows": rows, **tensors}, {})
        with pytest.raises(CheckpointError, match="its division does not fit its learners; use another checkpoint"):
            trained_model(place, config)
    for changed, kept in [
        ({}, True), ({"names": None}, True), ({"names": "of others"}, False), ({"division": None}, False)
    ]:  # fmt: skip
        second = Trainer(config, stores=tmp_path / "store", device="cpu")
        second.start_from(replace(given, **changed))
        assert np.array_equal(second.partition, first.partition) == kept
        assert set(second.partition.tolist()) >= {0, 1}
        assert torch.equal(second.model.masks, first.model.masks)
        assert second.optimizer.param_groups[-1]["params"][0] is second.model.masks


def test_what_a_loss_learns_is_said():
    """Alpha of N-pairs; nothing where nothing is learned."""
    npairs = MetricLoss(TrialConfig(criterion="npairs", alpha=2.5), 3)
    assert npairs.trained() == {"train/alpha": 2.5}
    assert MetricLoss(TrialConfig(), 3).trained() == {}
