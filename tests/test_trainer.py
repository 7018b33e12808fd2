import numpy as np
import pytest
import torch
from torch.profiler import profile

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.overlap import finish
from dcml_tune.training.trainer import Trainer


@pytest.fixture
def config(folder):
    return TrialConfig(
        dataset="folder",
        dataset_dir=str(folder),
        train_classes=16,
        weights="none",
        sz_resize=32,
        sz_crop=32,
        sz_embedding=16,
        batch_size=8,
        num_samples_per_class=2,
        batch_sampler="adaptbalanced",
        sampler="distanceweighted",
        nb_epochs=4,
        nb_clusters=4,
        mod_epoch=1,
        force_full_embedding_epoch=3,
        mask_lr_mult=100,
        base_lr=1e-3,
    )


def run(trainer, until):
    measures = {}
    while trainer.epoch < until:
        measures = trainer.run_epoch()
    return {name: value for name, value in measures.items() if not name.startswith("time/")}


def test_resumed_is_identical_to_uninterrupted(config, tmp_path):
    """Saved after epoch 2 and loaded, a trial ends with the metrics, weights and clusters of one that ran through."""
    through = Trainer(config, stores=tmp_path / "store")
    expected = run(through, 4)
    first = Trainer(config, stores=tmp_path / "store")
    run(first, 2)
    first.save(tmp_path / "checkpoint")
    resumed = Trainer(config, stores=tmp_path / "store")
    resumed.load(tmp_path / "checkpoint")
    assert run(resumed, 4) == expected
    assert through.partition.max() == 3
    assert np.array_equal(through.partition, resumed.partition)
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("method", ["top_bot", "none", "bot_top"])
def test_each_hierarchy_is_saved_in_each_epoch(method, config, tmp_path):
    """Up to the end, epochs of one cluster included; a trainer that goes on in the middle ends as the other does."""
    config = config.changed(arch="test_resnet", hierarchy_method=method, force_full_embedding_epoch=None)
    through = Trainer(config, stores=tmp_path / "store")
    for epoch in range(1, 5):
        expected = run(through, epoch)
        through.save(tmp_path / f"after {epoch}")
    resumed = Trainer(config, stores=tmp_path / "store")
    resumed.load(tmp_path / "after 2")
    assert run(resumed, 4) == expected
    assert np.array_equal(through.partition, resumed.partition)


def test_two_runs_are_identical(config, tmp_path):
    """Two runs of one setting and seed give the same metrics; another seed gives others."""
    found = [run(Trainer(config, stores=tmp_path / "store"), 3) for _ in range(2)]
    assert found[0] == found[1]
    assert run(Trainer(config.changed(seed=2), stores=tmp_path / "store"), 3) != found[0]


def test_a_step_waits_for_nothing(config, tmp_path):
    """A training step reads no scalar from the device and counts no non-zeros."""
    trainer = Trainer(config, stores=tmp_path / "store")
    run(trainer, 2)
    plan = EpochPlan.at(2, config)
    finish(trainer._recluster(plan))
    trainer.train_step.set_trainable(plan)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = np.repeat(np.arange(4), 2)
    generator = torch.Generator().manual_seed(0)
    trainer.train_step.gradients(images, labels, 1, plan, generator)
    trainer.train_step.optimizer.step()
    with profile() as profiled:
        trainer.train_step.gradients(images, labels, 1, plan, generator)
        trainer.train_step.optimizer.step()
    # On the CPU torch's fused Adam reads its step counts, which lie on the host already; on a GPU it does not.
    waits = [event for event in profiled.events() if event.name in ("aten::_local_scalar_dense", "aten::nonzero")]
    names = {event.name for event in profiled.events()}
    assert "aten::convolution" in names
    assert [each for each in waits if "aten::_fused_adam_" not in parents(each)] == []


def parents(event):
    found = []
    while event is not None:
        found.append(event.name)
        event = event.cpu_parent
    return found


def test_frozen_backbone_and_masks_stay(config, tmp_path):
    """A frozen backbone does not move while the rest does; a single mask stays as it is."""
    trainer = Trainer(
        config.changed(mod_epoch=2, mod_epoch_freeze=1, nb_clusters=2, force_full_embedding_epoch=None),
        stores=tmp_path / "store",
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    run(trainer, 1)
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("backbone"))
    assert not torch.equal(before["embedding.weight"], after["embedding.weight"])
    assert torch.equal(after["masks"], torch.ones(1, 16))


def test_only_the_backbone_is_frozen_in_the_warm_up(config, tmp_path):
    """Embedding layer, masks and beta train, also after a division; then the backbone trains, too."""
    settings = {"warmup_epochs": 2, "nb_clusters": 2, "lr_beta": 0.1, "force_full_embedding_epoch": None}
    trainer = Trainer(config.changed(arch="test_resnet", **settings), stores=tmp_path / "store")

    def tensors():
        found = {**trainer.model.state_dict(), "beta": trainer.criterion.state_dict()["beta"]}
        return {name: value.clone() for name, value in found.items()}

    start = tensors()
    assert run(trainer, 2)["phase/backbone_frozen"] == 1.0
    warm = tensors()
    assert all(torch.equal(start[name], warm[name]) for name in start if name.startswith("backbone"))
    assert warm["masks"].shape == (2, 16)
    assert not torch.equal(warm["masks"], torch.ones(2, 16))
    assert not any(torch.equal(start[name], warm[name]) for name in ("embedding.weight", "embedding.bias", "beta"))
    assert run(trainer, 3)["phase/backbone_frozen"] == 0.0
    trained = tensors()
    assert not any(torch.equal(warm[name], trained[name]) for name in dict(trainer.model.named_parameters()))


def test_training_learns(config, tmp_path):
    """A few epochs raise the recall on training-like data above that of the first epoch's network."""
    trainer = Trainer(
        config.changed(
            weights="pretrained",
            base_lr=1e-4,
            emb_lr_mult=10,
            nb_clusters=1,
            nb_epochs=6,
            force_full_embedding_epoch=None,
        ),
        stores=tmp_path / "store",
    )
    first = trainer.run_epoch()["train/loss"]
    assert run(trainer, 4)["train/loss"] < first


def test_a_measure_that_is_no_number_is_not_the_best(config, tmp_path):
    """Whatever epoch it stands in; of equal epochs the first is kept."""

    class Measured(Trainer):
        def evaluate(self):
            return {"val/map_at_r": values[self.epoch]}

    values = [float("nan"), 0.1, float("nan"), 0.1]
    trainer = Measured(config, stores=tmp_path / "store")
    found = run(trainer, 4)
    assert (trainer.best.epoch, found["val/map_at_r_best"], found["epoch_best"]) == (2, 0.1, 2.0)
