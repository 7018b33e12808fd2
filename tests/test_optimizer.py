"""Learning rates and weight decays of the optimiser's groups."""

from itertools import pairwise

import pytest
import torch

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.optimizer import build_optimizer

BASE = {
    "arch": "resnet18", "weights": "none", "sz_resize": 32, "sz_crop": 32, "base_lr": 1e-3, "weight_decay": 0.1,
    "emb_lr_mult": 10, "mask_lr_mult": 100, "mask_wd_mult": 0.5,
}  # fmt: skip


def built(**settings):
    config = TrialConfig(**{**BASE, **settings})
    model, criterion = MaskedEmbedder(config), MetricLoss(config, 7)
    return model, criterion, build_optimizer(model, criterion, config)


def test_groups_of_the_optimiser():
    """Backbone, embedding, loss and masks have the rates and decays of their settings; every parameter is in one."""
    model, criterion, optimizer = built(lr_beta=0.05)
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert groups == {
        "backbone": (1e-3, 0.1),
        "embedding": (pytest.approx(1e-2), 0.1),
        "loss": (0.05, 0.0),
        "masks": (pytest.approx(0.1), 0.05),
    }
    assert criterion.beta.shape == (7,)
    own = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(own) == sorted(id(each) for each in [*model.parameters(), *criterion.parameters()])


def test_alpha_has_its_own_rate():
    """As it is given, whatever base_lr and lr_beta are (the original's default is 1), without decay."""
    for given in ({}, {"lr_alpha": 3.0}, {"lr_alpha": 3.0, "lr_beta": 0.1}, {"base_lr": 1e-5}):
        _, criterion, optimizer = built(criterion="npairs", **given)
        (group,) = [group for group in optimizer.param_groups if group["name"] == "loss"]
        expected = (given.get("lr_alpha", 1.0), 0.0, [criterion.alpha])
        assert (group["lr"], group["weight_decay"], group["params"]) == expected


@pytest.mark.parametrize("rate", [1.0, 1e-5])
def test_alpha_moves_as_adam_moves_it(rate):
    """28 steps of Adam as a loop over numbers: at the rate of 1 alpha moves by units, at 1e-5 by nothing to speak of."""
    _, criterion, optimizer = built(criterion="npairs", alpha=1.0, lr_alpha=rate, base_lr=1e-5)
    alpha, mean, square = 1.0, 0.0, 0.0
    for step in range(1, 29):
        gradient = -1.0 - 0.1 * step
        criterion.alpha.grad = torch.tensor(gradient)
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        alpha -= rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
    assert criterion.alpha.item() == pytest.approx(alpha, rel=1e-5)
    assert (criterion.alpha.item() > 10) == (rate == 1.0)


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_steps_are_those_of_torch(name, reference):
    """Adam couples its weight decay, AdamW does not: three steps equal torch's own implementation, not fused."""
    model, _, optimizer = built(optimizer=name)
    group = next(group for group in optimizer.param_groups if group["name"] == "embedding")
    mine = model.embedding.weight
    theirs = torch.nn.Parameter(mine.detach().clone())
    other = reference([theirs], lr=group["lr"], weight_decay=group["weight_decay"], fused=False, foreach=False)
    for step in range(3):
        gradient = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(mine, theirs)


def test_learning_rates_decay_in_steps():
    """By lr_gamma every lr_step epochs; never, unless lr_step is given (the original's inf is never)."""
    config = TrialConfig(lr_step=3, lr_gamma=0.5, nb_epochs=20)
    assert [EpochPlan.at(epoch, config).lr_factor for epoch in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert EpochPlan.at(99, TrialConfig(lr_step="inf")).lr_factor == 1


def test_learning_rates_decay_by_a_cosine():
    """From 1 in the first epoch, one half in the middle, above 0 in the last; as torch's schedule."""
    config = TrialConfig(lr_decay="cosine", nb_epochs=8)
    found = [EpochPlan.at(epoch, config).lr_factor for epoch in range(8)]
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    for factor in found:
        assert factor == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert (found[0], found[4]) == (1, pytest.approx(0.5))
    assert all(before > after > 0 for before, after in pairwise(found))
