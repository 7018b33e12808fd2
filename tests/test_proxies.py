"""Losses of proxies agree with pytorch-metric-learning; proxies are masked, trained, saved and restored."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from test_losses import CLASS_SIZES, ONE_CLASS, batch
from test_trainer import config, run  # noqa: F401 (a fixture)
from torch.profiler import ProfilerActivity, profile

from dcml_tune.config.errors import SettingError
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import PROXY_CRITERIA, TrialConfig
from dcml_tune.data.samplers import epoch_batches
from dcml_tune.losses import proxies as proxy_losses
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.optimizer import build_optimizer
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils.checkpoint import CheckpointError

NETWORK = {"arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 8}


def proxy_anchor(**numbers):
    return lambda x, w, y: proxy_losses.proxy_anchor_loss(F.normalize(x, dim=1), F.normalize(w, dim=1), y, **numbers)


def softmax(**numbers):
    return lambda x, w, y: proxy_losses.normalized_softmax_loss(
        F.normalize(x, dim=1), F.normalize(w, dim=1), y, **numbers
    )


def arcface(**numbers):
    return lambda x, w, y: proxy_losses.arcface_loss(F.normalize(x, dim=1), F.normalize(w, dim=1), y, **numbers)


def theirs(kind, **numbers):
    """Their loss as a function of embeddings, proxies and labels."""

    def value(x, w, y):
        loss = kind(num_classes=len(w), embedding_size=w.shape[1], **numbers)
        name = "proxies" if kind is pml.ProxyAnchorLoss else "W"
        # Their parameter, as a function of our leaf.
        del loss._parameters[name]
        setattr(loss, name, w if name == "proxies" else w.T)
        loss.cast_types = lambda dtype, device: None
        return loss(x, y)

    return value


LOSSES = {
    "proxy anchor": (proxy_anchor(alpha=32, delta=0.1), theirs(pml.ProxyAnchorLoss)),
    "proxy anchor 2": (proxy_anchor(alpha=16, delta=0.2), theirs(pml.ProxyAnchorLoss, alpha=16, margin=0.2)),
    "softmax": (softmax(temperature=0.05), theirs(pml.NormalizedSoftmaxLoss)),
    "softmax 2": (softmax(temperature=0.3), theirs(pml.NormalizedSoftmaxLoss, temperature=0.3)),
    "arcface": (arcface(margin=28.6, scale=64), theirs(pml.ArcFaceLoss)),
    "arcface 2": (arcface(margin=60, scale=16), theirs(pml.ArcFaceLoss, margin=60, scale=16)),
}


def with_gradients(loss, x, w, y):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    value = loss(x, w, y)
    value.backward()
    return value.detach(), x.grad, w.grad


def some_proxies(classes, dim, seed=0):
    return torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [*CLASS_SIZES, *ONE_CLASS, [4] * 8], ids=str)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dim", [3, 8])
def test_proxy_losses_are_those_of_pytorch_metric_learning(name, sizes, dim):
    """Values, and gradients of embeddings and proxies; two proxies have no image in the batch."""
    for seed in range(10):
        x, y = batch(sizes, dim, seed)
        w = some_proxies(len(sizes) + 2, dim, seed)
        for mine, other in zip(*(with_gradients(loss, x, w, y) for loss in LOSSES[name]), strict=True):
            # Ours adds 1e-8 under the root of the sine, which bends the slope near an angle of 0.
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name):
    """By finite differences, for embeddings and proxies."""
    x, y = batch([2, 3, 3], dim=4)
    w = some_proxies(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name][0](a, b, y), (x.requires_grad_(), w), atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("opposite", [1, -1])
def test_collapsed_embeddings_have_finite_gradients(name, opposite):
    """Embeddings and proxies all equal, or opposite: no NaN, also where the angle is 0 or 180 degrees."""
    x, w, y = torch.ones(8, 16), opposite * torch.ones(4, 16), torch.arange(8) // 2
    value, *gradients = with_gradients(LOSSES[name][0], x, w, y)
    assert value.isfinite()
    assert all(each.isfinite().all() for each in gradients)


def test_arcface_grows_with_the_angle():
    """Also where angle and margin together exceed 180 degrees."""
    angles = torch.linspace(0, math.pi, 181, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=1)
    w = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)  # the second is at 90 degrees of all
    y = torch.zeros(1, dtype=torch.int64)
    values = [proxy_losses.arcface_loss(each[None], w, y, margin=28.6, scale=16).item() for each in x]
    assert values == sorted(values)


@pytest.mark.parametrize("name", LOSSES)
def test_no_value_is_read_back_from_the_device(name):
    """Neither by an operator that the profiler names, nor by a size that depends on a value (device meta)."""
    x, y = batch([4] * 5, dim=16)
    w = some_proxies(7, 16).float().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        LOSSES[name][0](x.float().requires_grad_(), w, y).backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::mm" in names, "the profiler saw nothing"
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select"}
    x, w = (torch.empty(*shape, device="meta", requires_grad=True) for shape in [(20, 16), (7, 16)])
    LOSSES[name][0](x, w, torch.empty(20, dtype=torch.int64, device="meta")).backward()
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)


@pytest.mark.parametrize("name", LOSSES)
def test_operators_do_not_grow_with_batch_and_classes(name):
    """No loop over either."""
    counts = []
    for classes in (4, 16):
        x, y = batch([4] * classes, dim=8)
        w = some_proxies(classes, 8).requires_grad_()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            LOSSES[name][0](x.requires_grad_(), w, y).backward()
        counts.append(sum(event.count for event in seen.key_averages()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"criterion": "proxy_anchor", "pa_alpha": 20, "pa_delta": 0.3}, proxy_anchor(alpha=20, delta=0.3)),
        ({"criterion": "normalized_softmax", "softmax_temperature": 0.2}, softmax(temperature=0.2)),
        ({"criterion": "arcface", "arcface_margin": 15, "arcface_scale": 30}, arcface(margin=15, scale=30)),
    ],
    ids=lambda value: value["criterion"] if isinstance(value, dict) else "",
)
def test_each_number_is_that_of_its_setting(settings, expected):
    """A loss of a trial takes its own settings, and the proxy of each label that trains."""
    x, y = batch([3, 3, 4], dim=8)
    x = x.float()
    labels = torch.tensor([1, 4, 6])[y]
    loss = MetricLoss(TrialConfig(**NETWORK, **settings), nb_classes=9, trained=np.array([1, 4, 6]))
    assert loss.proxies.vectors.shape == (3, 8)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        torch.testing.assert_close(
            loss(x, labels.to(dtype), torch.Generator()), expected(x, loss.proxies.vectors, y), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("criterion", sorted(PROXY_CRITERIA))
def test_proxies_are_masked_as_embeddings_are(criterion):
    """The loss of a learner is that of the masked vectors; what its mask hides of the proxies has no gradient."""
    x, y = batch([2, 2], dim=8)
    loss = MetricLoss(TrialConfig(**NETWORK, criterion=criterion), nb_classes=2)
    mask = torch.tensor([1.0, 0.5, 2.0, 0, 0, 0, 0, 0])
    masked = F.normalize(x.float() * mask, dim=1)
    value = loss(masked, y, torch.Generator(), mask)
    value.backward()
    hidden = loss.proxies.vectors.grad[:, 3:]
    assert not hidden.any()
    assert loss.proxies.vectors.grad[:, :3].any()
    with torch.no_grad():
        loss.proxies.vectors.mul_(mask)
    torch.testing.assert_close(loss(masked, y, torch.Generator()), value.detach())


def test_a_mask_of_zeros_hides_all_and_breaks_nothing():
    """Loss and gradients stay finite."""
    loss, y = MetricLoss(TrialConfig(**NETWORK, criterion="arcface"), nb_classes=2), torch.tensor([0, 1])
    mask = torch.zeros(8, requires_grad=True)
    value = loss(torch.zeros(2, 8, requires_grad=True), y, torch.Generator(), mask)
    value.backward()
    assert value.isfinite()
    assert loss.proxies.vectors.grad.isfinite().all()


def test_proxies_have_their_own_rate():
    """A multiple of base_lr in a group of its own, without weight decay; every parameter is in one group."""
    made = TrialConfig(**NETWORK, criterion="proxy_anchor", base_lr=1e-3, proxy_lr_mult=7, weight_decay=0.1, lr_beta=3)
    model, criterion = MaskedEmbedder(made), MetricLoss(made, 5)
    optimizer = build_optimizer(model, criterion, made)
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert set(groups) == {"backbone", "embedding", "proxies", "masks"}
    assert groups["proxies"] == (pytest.approx(7e-3), 0.0)
    own = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(own) == sorted(id(each) for each in [*model.parameters(), *criterion.parameters()])


def test_proxies_are_drawn_by_the_seed():
    """The same for a seed, others for another; the variance is 2 / C."""
    made = TrialConfig(**{**NETWORK, "sz_embedding": 512}, criterion="arcface")
    first, again, other = (MetricLoss(c, 200).proxies.vectors for c in (made, made, made.changed(seed=2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.var().item() == pytest.approx(2 / 200, rel=0.02)


# -- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", sorted(PROXY_CRITERIA))
def test_resumed_is_identical_to_uninterrupted(criterion, config, tmp_path):  # noqa: F811
    """With the proxies and their moments: saved after epoch 2 and loaded, a trial ends as one that ran through."""
    config = config.changed(arch="test_resnet", criterion=criterion, num_samples_per_class=1)
    through = Trainer(config, stores=tmp_path / "store")
    assert len(through.criterion.proxies.vectors) == len(np.unique(through.data.labels[through.data.train])) < 16
    before = through.criterion.proxies.vectors.detach().clone()
    expected = run(through, 4)
    first = Trainer(config, stores=tmp_path / "store")
    run(first, 2)
    first.save(tmp_path / "checkpoint")
    resumed = Trainer(config, stores=tmp_path / "store")
    resumed.load(tmp_path / "checkpoint")
    assert run(resumed, 4) == expected
    for mine, other in zip(through.criterion.parameters(), resumed.criterion.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert not torch.equal(mine, before)
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_proxies_of_other_classes_are_refused(config, tmp_path):  # noqa: F811
    """A state with another number of proxies is no state of this trial."""
    config = config.changed(arch="test_resnet", criterion="arcface", nb_epochs=1, nb_clusters=1)
    config = config.changed(force_full_embedding_epoch=None)
    trainer = Trainer(config, stores=tmp_path / "store")
    run(trainer, 1)
    vectors = trainer.criterion.proxies.vectors
    trainer.criterion.proxies.vectors = torch.nn.Parameter(vectors.detach()[1:])
    trainer.save(tmp_path / "checkpoint")
    other = Trainer(config, stores=tmp_path / "store")
    with pytest.raises(CheckpointError, match=r"proxies\.vectors has the shape"):
        other.load(tmp_path / "checkpoint")


def test_the_loss_of_a_step_is_that_of_the_masked_vectors(config, tmp_path):  # noqa: F811
    """For each learner, in the full-embedding phase, and with the sum of the masks."""
    for summed in (False, True):
        tried = config.changed(
            arch="test_resnet", criterion="proxy_anchor", masks_sum_for_full_emb=summed, base_lr=1e-9
        )
        tried = tried.changed(masking_init="normal", masking_lambda=0, hierarchy_method="none", features_dropout_prob=0)
        step = Trainer(tried, stores=tmp_path / "store").train_step
        images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        masks = F.relu(step.model.masks.detach())
        full = masks.sum(dim=0) if summed else torch.ones(16)
        for epoch, mask in [(0, masks[2]), (3, full)]:
            plan = EpochPlan.at(epoch, tried)
            step.set_trainable(plan)
            found = step.gradients(images, np.array([0, 0, 1, 1]), 2, plan, torch.Generator())[0]
            step.optimizer.step()
            with torch.no_grad():
                z = step.model.embedding(step.model.penultimate(images)) * mask
                loss = proxy_anchor(alpha=32, delta=0.1)
                targets = step.criterion.proxies.of(torch.tensor([0, 0, 1, 1]))
                expected = loss(z, step.criterion.proxies.vectors * mask, targets)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["adaptbalanced", "balanced_old", "npairs"])
@pytest.mark.parametrize(("batch_size", "samples"), [(4, 1), (4, 4), (4, 2)])
def test_batches_of_one_image_a_class_and_of_one_class(sampler, batch_size, samples):
    """Both are allowed for losses of proxies, and refused for losses of pairs."""
    settings = {"batch_sampler": sampler, "batch_size": batch_size, "num_samples_per_class": samples}
    made = TrialConfig(**settings, criterion="arcface")
    labels = np.repeat(np.arange(6), 5)
    batches = epoch_batches(np.zeros(30, dtype=np.int64), labels, made, 0)
    for _, rows in batches:
        assert len(rows) == batch_size
        if sampler != "npairs":  # whose classes may repeat
            assert len(np.unique(labels[rows])) == batch_size // samples
    if samples != 2:
        with pytest.raises(SettingError, match=r"positive pair in a batch|must hold at least two classes"):
            TrialConfig(**settings)
