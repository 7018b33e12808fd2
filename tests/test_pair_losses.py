"""Losses of all pairs of a batch agree with pytorch-metric-learning, in value and gradient, and never wait for the device."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.reducers import MeanReducer
from test_losses import CLASS_SIZES, ONE_CLASS, batch
from torch.profiler import ProfilerActivity, profile

from dcml_tune.config.trial import TrialConfig
from dcml_tune.losses import pair_losses
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.losses.functional import npairs_loss

MS = {"alpha": 2.0, "beta": 50.0, "base": 0.5}
OTHER_MS = {"alpha": 0.7, "beta": 12.0, "base": 0.3}


def mined(epsilon, **numbers):
    """Their loss of the pairs of their miner. Called as a whole, their loss is 0 if one pair of each kind is left."""

    def value(x, y):
        loss, pairs = pml.MultiSimilarityLoss(**numbers), pml_miners.MultiSimilarityMiner(epsilon=epsilon)(x, y)
        return loss.mat_based_loss(loss.distance(x), pairs)["loss"]["losses"].mean()

    return value


def supcon(temperature):
    """Theirs, as the mean over anchors with positives. Their own mean leaves out losses that underflow to 0."""
    loss = pml.SupConLoss(temperature=temperature, reducer=MeanReducer())

    def value(x, y):
        paired = ((y[:, None] == y).sum(dim=1) > 1).sum()
        return loss(x, y) * len(y) / max(1, int(paired))

    return value


def ours(function, **numbers):
    return lambda x, y: function(x, y, **numbers)


PAIRS = {
    "multi-similarity": (ours(pair_losses.multi_similarity_loss, epsilon=0.1, **MS), mined(0.1, **MS)),
    "multi-similarity, other numbers": (
        ours(pair_losses.multi_similarity_loss, epsilon=0.4, **OTHER_MS),
        mined(0.4, **OTHER_MS),
    ),
    "supcon": (ours(pair_losses.supcon_loss, temperature=0.1), supcon(0.1)),
    "supcon, colder": (ours(pair_losses.supcon_loss, temperature=0.01), supcon(0.01)),
    "contrastive": (ours(pair_losses.contrastive_loss, pos_margin=0.0, neg_margin=1.0), pml.ContrastiveLoss()),
    "contrastive, other margins": (
        ours(pair_losses.contrastive_loss, pos_margin=0.3, neg_margin=0.7),
        pml.ContrastiveLoss(pos_margin=0.3, neg_margin=0.7),
    ),
}


def with_gradient(loss, x, y):
    """The loss of normalised embeddings and its gradient by the embeddings before that."""
    x = x.clone().requires_grad_()
    value = loss(F.normalize(x, dim=1), y)
    value.backward()
    return value.detach(), torch.zeros_like(x) if x.grad is None else x.grad


@pytest.mark.parametrize("sizes", [*CLASS_SIZES, *ONE_CLASS, [4] * 8], ids=str)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dim", [2, 8])
def test_pair_losses_are_those_of_pytorch_metric_learning(name, sizes, dim):
    """Values and gradients, of random batches: also single images, no positives, a single class."""
    mine, theirs = PAIRS[name]
    for seed in range(10):
        x, y = batch(sizes, dim, seed)
        value, gradient = with_gradient(mine, x, y)
        expected, slope = with_gradient(theirs, x, y)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
        # Ours adds 1e-8 under the root of distances, which bends the slope between images on one spot of a circle.
        atol = 5e-3 if name.startswith("contrastive") and dim == 2 else 2e-5
        torch.testing.assert_close(gradient, slope, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_gradient_is_that_of_the_value(name):
    """By finite differences."""
    x, y = batch([2, 3, 3], dim=4)
    assert torch.autograd.gradcheck(lambda z: PAIRS[name][0](z, y), x.requires_grad_(), atol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_collapsed_embeddings_have_finite_gradients(name):
    """All embeddings equal: the value of the other library, and no NaN."""
    mine, theirs = PAIRS[name]
    x, y = F.normalize(torch.ones(8, 16), dim=1), torch.arange(8) // 2
    value, gradient = with_gradient(mine, x, y)
    assert value.item() == pytest.approx(theirs(x, y).item(), abs=2e-3)
    assert value > 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_to_improve_costs_nothing(name):
    """Classes that are orthogonal and tight: nothing is mined, no margin is violated; the backward pass must run."""
    if name.startswith("supcon"):
        pytest.skip("a cross-entropy is never 0")
    y = torch.arange(8) // 2
    value, gradient = with_gradient(PAIRS[name][0], F.one_hot(y).double(), y)
    assert value.item() == pytest.approx(0, abs=2e-4)  # the contrastive loss has the 1e-8 under the root
    assert gradient.isfinite().all()
    if name.startswith("multi"):
        assert value.item() == 0
        assert not gradient.any()


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [4]], ids=str)
@pytest.mark.parametrize("name", ["multi-similarity", "supcon"])
def test_no_positives_or_no_negatives_cost_nothing(name, sizes):
    """Exactly 0, with a gradient of 0."""
    x, y = batch(sizes)
    value, gradient = with_gradient(PAIRS[name][0], x, y)
    assert value.item() == 0
    assert not gradient.any()


def test_a_large_tolerance_mines_all_pairs():
    """With epsilon above 2 the loss is that of the other library without a miner."""
    x, y = batch([2, 3, 4], dim=4)
    value = pair_losses.multi_similarity_loss(x, y, epsilon=2.5, **MS)
    torch.testing.assert_close(value, pml.MultiSimilarityLoss(**MS)(x, y))


def test_supcon_is_the_npairs_loss_of_a_fixed_scale():
    """So that criterion=npairs trains its temperature."""
    x, y = batch([2, 3, 4], dim=4)
    assert pair_losses.supcon_loss(x, y, temperature=0.25) == npairs_loss(x, y, alpha=4.0)


def test_large_exponents_do_not_overflow():
    """Numbers at the ends of the ranges that are searched, in float32."""
    x, y = batch([4] * 8, dim=8)
    for alpha, beta, base in [(20, 160, 0.9), (0.01, 160, 0.4), (1e4, 1e4, 0)]:
        value, gradient = with_gradient(
            ours(pair_losses.multi_similarity_loss, alpha=alpha, beta=beta, base=base, epsilon=0.1), x.float(), y
        )
        assert math.isfinite(value)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PAIRS)
def test_no_value_is_read_back_from_the_device(name):
    """Neither by an operator that the profiler names, nor by a size that depends on a value (device meta)."""
    x, y = batch([4] * 5, dim=16)
    x = x.float().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        PAIRS[name][0](x, y).backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::mm" in names, "the profiler saw nothing"
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select"}
    meta = torch.empty(20, 16, device="meta", requires_grad=True)
    value = PAIRS[name][0](meta, torch.arange(20) // 4)
    value.backward()
    assert (value.shape, meta.grad.shape) == ((), meta.shape)


@pytest.mark.parametrize("name", PAIRS)
def test_operators_do_not_grow_with_the_batch(name):
    """No loop over pairs or classes."""
    counts = []
    for classes in (4, 16):
        x, y = batch([4] * classes, dim=8)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            PAIRS[name][0](x.requires_grad_(), y).backward()
        counts.append(sum(event.count for event in seen.key_averages()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_labels_of_any_integer_type(name, dtype):
    """The same value."""
    x, y = batch([4, 4, 4], dim=5)
    assert PAIRS[name][0](x, y.to(dtype)) == PAIRS[name][0](x, y)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"criterion": "multi_similarity", "ms_alpha": 3, "ms_beta": 20, "ms_base": 0.2, "ms_epsilon": 0.3},
            ours(pair_losses.multi_similarity_loss, alpha=3, beta=20, base=0.2, epsilon=0.3),
        ),
        ({"criterion": "supcon", "supcon_temperature": 0.3}, ours(pair_losses.supcon_loss, temperature=0.3)),
        (
            {"criterion": "contrastive", "contrastive_pos_margin": 0.1, "contrastive_neg_margin": 1.3},
            ours(pair_losses.contrastive_loss, pos_margin=0.1, neg_margin=1.3),
        ),
    ],
    ids=lambda value: value["criterion"] if isinstance(value, dict) else "",
)
def test_each_number_is_that_of_its_setting(settings, expected):
    """A loss of a trial takes its own settings."""
    x, y = batch([3, 3, 4], dim=6)
    loss = MetricLoss(TrialConfig(**settings), nb_classes=3)
    assert loss(x, y, torch.Generator()) == expected(x, y)
