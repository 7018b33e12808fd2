"""The weights that are measured: mean over the last epochs, mixed with those at the start of training."""

import shutil

import numpy as np
import pytest
import torch

from dcml_tune import load_model
from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.disk import CheckpointSpace, most_copies
from dcml_tune.training.embedding import embed
from dcml_tune.training.starting_model import trained_model
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from search_spaces import load_space
from search_spaces.space import Choice, Float, SearchSpace

BOTH = {"average_epochs": 3, "pretrained_share": 0.3}


@pytest.fixture
def config(small):
    """1, 2 and 4 clusters, statistics that move, the full-embedding phase."""
    return TrialConfig(
        **small,
        batch_sampler="adaptbalanced",
        sampler="distanceweighted",
        bn_learnable=True,
        nb_epochs=5,
        nb_clusters=2,
        mod_epoch=2,
        force_full_embedding_epoch=4,
        mask_lr_mult=100,
    )


@pytest.fixture
def make(config, tmp_path):
    """Makes trainers of that configuration, with other values of some settings."""
    return lambda **settings: Trainer(config.changed(**settings), stores=tmp_path / "store", device="cpu")


def run(trainer, until):
    measures = {}
    while trainer.epoch < until:
        measures = trainer.run_epoch()
    return {name: value for name, value in measures.items() if not name.startswith("time/")}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_the_measured_weights_are_the_mean_of_the_last_epochs_mixed_with_the_start(make):
    """By a loop over the weights of each epoch, in float64; masks since the division at epoch 2, not mixed."""
    trainer = make(**BOTH, features_pooling="gem")
    states = [weights(trainer)]
    for epoch in range(1, 6):
        run(trainer, epoch)
        states.append(weights(trainer))
        found = trainer.measured.of(trainer.model)
        for name, now in states[-1].items():
            last = [s[name].double() for s in states[1:][-3:] if s[name].shape == now.shape]
            expected = sum(last) / len(last) if now.is_floating_point() else now
            if name.startswith(("backbone", "pooling", "embedding")) and now.is_floating_point():
                expected = 0.7 * expected + 0.3 * states[0][name].double()
            torch.testing.assert_close(found[name], expected.to(now.dtype), rtol=1e-6, atol=1e-7, msg=f"{epoch} {name}")
            assert found[name].dtype == now.dtype
    variances = [name for name in found if name.endswith("running_var")]
    assert variances
    assert not any(torch.equal(found[name], states[-1][name]) for name in variances)


def test_training_and_clustering_are_the_same_without(make):
    """To the last bit: losses, masks, partitions and weights; what is measured on the held-out classes is not."""
    plain, mixed = make(), make(**BOTH)
    for epoch in range(1, 6):
        first, second = run(plain, epoch), run(mixed, epoch)
        same = {name for name in first if not name.startswith(("val/", "epoch_best"))}
        assert {name: first[name] for name in same} == {name: second[name] for name in same}
        assert np.array_equal(plain.partition, mixed.partition)
        assert_equal(weights(plain), weights(mixed))
    assert plain.history != mixed.history


def test_nothing_is_copied_when_both_are_off(make):
    trainer = make()
    run(trainer, 3)
    assert (trainer.measured.start, trainer.measured.earlier, trainer.state().kept) == (None, [], {})


@pytest.mark.parametrize("settings", [{"average_epochs": 3}, {"pretrained_share": 0.3}, BOTH])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_resumed_is_identical_to_uninterrupted(settings, after, make, tmp_path):
    through, first, resumed = (make(**settings) for _ in range(3))
    expected = run(through, 5)
    run(first, after)
    first.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    assert_equal(first.measured.of(first.model), resumed.measured.of(resumed.model))
    assert run(resumed, 5) == expected
    assert resumed.history == through.history
    assert_equal(through.measured.of(through.model), resumed.measured.of(resumed.model))
    assert_equal(through.best.weights, resumed.best.weights)


def test_what_is_measured_is_what_is_kept(make, tmp_path):
    """The best model, the model of an epoch and the test are of the measured weights; afterwards the trained ones are back."""
    trainer = make(**BOTH, val_share=0.0)  # the last epoch is the best
    run(trainer, 3)
    before, pointers = weights(trainer), {name: p.data_ptr() for name, p in trainer.model.named_parameters()}
    trainer.save(tmp_path / "trial")
    scores = trainer.test()
    assert_equal(before, weights(trainer))
    assert pointers == {name: p.data_ptr() for name, p in trainer.model.named_parameters()}
    expected = trainer.measured.of(trainer.model)
    for place in (tmp_path / "trial", trainer.save_epoch(tmp_path / "trial")):
        assert_equal(load_model(place).state_dict(), expected)
    trainer.model.load_state_dict(expected)
    trainer.measured.start, trainer.measured.earlier = None, []
    assert trainer.test() == scores
    rows = trainer.data.train[:8]
    views = trainer.data.views
    assert torch.equal(embed(load_model(tmp_path / "trial"), views, rows), embed(trainer.model, views, rows))


def test_an_error_in_the_evaluation_leaves_the_trained_weights(make):
    trainer = make(**BOTH)
    run(trainer, 2)
    before = weights(trainer)

    def fail():
        with trainer.measured.swapped_into(trainer.model):
            assert not torch.equal(before["embedding.weight"], trainer.model.embedding.weight)
            raise KeyError("an image")

    with pytest.raises(KeyError, match="an image"):
        fail()
    assert_equal(before, weights(trainer))


def test_weights_that_did_not_move_are_measured_as_they_are(make):
    """A mean and a mix of equal numbers are those numbers, so a frozen backbone is measured exactly."""
    trainer = make(average_epochs=3, pretrained_share=0.37, warmup_epochs=3, bn_learnable=False)
    start = weights(trainer)
    run(trainer, 3)
    found = trainer.measured.of(trainer.model)
    assert all(torch.equal(found[name], value) for name, value in start.items() if name.startswith("backbone"))
    assert not torch.equal(found["embedding.weight"], trainer.model.embedding.weight)


def test_a_checkpoint_is_the_start(make, config, tmp_path):
    """`--checkpoint`: its weights are mixed in, and no epoch before it is averaged; also after a resume."""
    begun = make()
    run(begun, 1)
    begun.save_epoch(tmp_path)
    given = trained_model(tmp_path / "epoch-00001", config)
    first, through, resumed = (make(**BOTH) for _ in range(3))
    for trainer in (first, through):
        trainer.start_from(given)
        run(trainer, 2)
    assert torch.equal(first.measured.start["embedding.weight"], given.model.embedding.weight)
    assert first.measured.earlier == []
    first.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    assert run(resumed, 4) == run(through, 4)
    assert len(resumed.measured.earlier) == 2


@pytest.mark.parametrize("fault", ["no start", "start without a tensor", "earlier of another shape"])
def test_a_state_without_valid_copies_is_refused(fault, make, tmp_path):
    trainer = make(**BOTH)
    run(trainer, 2)
    trainer.save(tmp_path / "checkpoint")
    tensors, facts = checkpoint.read(tmp_path / "checkpoint", "trainer-00002")
    starts = [name for name in tensors if name.startswith("kept/start/")]
    assert starts
    for name in {"no start": starts, "start without a tensor": starts[:1]}.get(fault, []):
        del tensors[name]
    if fault == "earlier of another shape":
        tensors["kept/earlier/0/embedding.bias"] = torch.zeros(3)
    said = {name: value for name, value in facts.items() if name not in ("format", "sha256", "checksum")}
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "other")
    checkpoint.write(tmp_path / "other", "trainer-00002", tensors, said)
    with pytest.raises(CheckpointError, match=r"is missing|has the shape"):
        make(**BOTH).load(tmp_path / "other")


def test_the_disk_has_room_for_the_copies():
    """For the largest values of the space, or those that are given."""
    domains = {"average_epochs": Choice([1, 5]), "pretrained_share": Float(0.0, 0.5)}
    space = SearchSpace(name="emoji", published={"nb_epochs": 8}, domains=domains)
    assert most_copies(space, {}) == 5
    assert most_copies(space, {"average_epochs": 2, "pretrained_share": 0.0}) == 1
    assert most_copies(load_space("emoji"), {}) == 0
    small, large = (CheckpointSpace(model_bytes=100, concurrent=2, planned=3, scored=0, copies=n) for n in (0, 5))
    assert large.save_bytes() - small.save_bytes() == 2 * 5 * 100
