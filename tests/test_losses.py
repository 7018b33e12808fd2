"""Losses agree with loops over images and with pytorch-metric-learning, and never wait for the device."""

import naive_losses as naive
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from torch.profiler import ProfilerActivity, profile

from dcml_tune.losses import functional
from dcml_tune.losses.miners import mine

# Images of each class in a batch: equal, unequal, with single images, two classes only, as published.
CLASS_SIZES = [[2, 2, 2], [4, 4], [1, 2, 5, 3], [1, 1, 1, 2], [7, 2], [1, 1, 1]]
ONE_CLASS = [[4], [1]]
ALL_BATCH_LOSSES = {
    "semihard": lambda x, y: functional.triplet_semihard_loss(x, y, margin=0.2),
    "semihard soft": lambda x, y: functional.triplet_semihard_loss(x, y, margin=0.2, soft=True),
    "all": lambda x, y: functional.triplet_all_loss(x, y, margin=0.2),
    "all soft": lambda x, y: functional.triplet_all_loss(x, y, margin=0.2, soft=True),
    "npairs": lambda x, y: functional.npairs_loss(x, y, alpha=5.0),
    "kantorov": functional.kantorov_margin_loss,
}
ORACLES = {
    "semihard": lambda x, y: naive.triplet_semihard(x, y, 0.2, False),
    "semihard soft": lambda x, y: naive.triplet_semihard(x, y, 0.2, True),
    "all": lambda x, y: naive.triplet_all(x, y, 0.2, False),
    "all soft": lambda x, y: naive.triplet_all(x, y, 0.2, True),
    "npairs": lambda x, y: naive.npairs(x, y, 5.0),
    "kantorov": naive.kantorov,
}


def batch(sizes, dim=3, seed=0):
    """Unit vectors near their class's direction, in double precision, and shuffled labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=generator)]
    centres = torch.randn(len(sizes), dim, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(len(y), dim, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=1), y


def some_triplets(y, count, seed=0):
    """Triplets drawn from all valid ones, some of them twice."""
    valid = [(a, p, n) for a, p in naive.pairs(y.tolist()) for n in naive.others(y.tolist(), a)]
    if not valid:
        return [], (torch.empty(0, dtype=torch.long),) * 3
    drawn = torch.randint(len(valid), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [valid[i] for i in drawn]
    return chosen, tuple(torch.tensor(column) for column in zip(*chosen, strict=True))


@pytest.mark.parametrize("sizes", CLASS_SIZES + ONE_CLASS, ids=str)
@pytest.mark.parametrize("name", ALL_BATCH_LOSSES)
@pytest.mark.parametrize("dim", [2, 5])
def test_whole_batch_loss_is_that_of_the_loops(name, sizes, dim):
    """A loss over a whole batch must be what its definition gives, with finite gradients."""
    for seed in range(3):
        x, y = batch(sizes, dim, seed)
        value = ALL_BATCH_LOSSES[name](x.requires_grad_(), y)
        value.backward()
        assert value.item() == pytest.approx(ORACLES[name](x.detach(), y.tolist()), abs=1e-9)
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL_BATCH_LOSSES)
def test_gradient_is_that_of_the_value(name):
    """The gradient of a loss must be the slope of its value, by finite differences."""
    x, y = batch([2, 3, 3], dim=4)
    assert torch.autograd.gradcheck(lambda z: ALL_BATCH_LOSSES[name](z, y), x.requires_grad_(), atol=1e-4)


@pytest.mark.parametrize("sizes", CLASS_SIZES, ids=str)
@pytest.mark.parametrize("nu", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["number", "tensor", "one a class"])
def test_margin_loss_is_that_of_the_loops(sizes, nu, kind):
    """Hinge terms are summed, divided by the non-zero ones; beta is that of the anchor's class."""
    x, y = batch(sizes)
    per_class = torch.linspace(0.7, 1.4, len(sizes), dtype=torch.float64)
    beta = {"number": 1.1, "tensor": torch.tensor(1.1, dtype=torch.float64), "one a class": per_class}[kind]
    chosen, triplets = some_triplets(y, 12)
    value = functional.margin_loss(x, y, triplets, beta=beta, margin=0.2, nu=nu)
    betas = per_class.tolist() if kind == "one a class" else [1.1] * len(sizes)
    # A beta that is a plain number is not trained, and nothing pulls it.
    expected = naive.margin(x, y.tolist(), chosen, betas, 0.2, nu if kind != "number" else 0.0)
    assert value.item() == pytest.approx(expected, abs=1e-9)


def test_nu_pulls_beta_down():
    """With nu, the gradient must draw the betas of the anchors, and no others, further down than without."""
    x, y = batch([2, 2, 2], dim=8)
    chosen, triplets = some_triplets(y[:], 6)
    grads = {}
    for nu in (0.0, 0.5):
        beta = torch.full((3,), 1.2, dtype=torch.float64, requires_grad=True)
        functional.margin_loss(x, y, triplets, beta=beta, margin=0.2, nu=nu).backward()
        grads[nu] = beta.grad
    anchors = {int(y[a]) for a, _, _ in chosen}
    for label in range(3):
        assert (grads[0.5][label] > grads[0.0][label]) == (label in anchors)


def test_margin_loss_without_active_terms_is_zero():
    """When every hinge is met, loss and gradients are 0, the pull of beta included (nothing to divide by)."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    beta = torch.tensor(1.0, requires_grad=True)
    triplets = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    value = functional.margin_loss(x, torch.tensor([0, 0, 1, 1]), triplets, beta=beta, margin=0.2, nu=1.0)
    value.backward()
    assert value.item() == 0
    assert beta.grad.item() == 0
    assert not x.grad.any()


@pytest.mark.parametrize("sizes", CLASS_SIZES, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_triplet_loss_is_that_of_the_loops(sizes, soft):
    """The mean over the triplets that cost something; the soft form's over all."""
    x, y = batch(sizes)
    chosen, triplets = some_triplets(y, 12)
    value = functional.triplet_loss(x, y, triplets, margin=0.2, soft=soft)
    assert value.item() == pytest.approx(naive.triplet(x, chosen, 0.2, soft), abs=1e-9)


@pytest.mark.parametrize("beta", [1.2, torch.tensor(1.2), torch.full((2,), 1.2)], ids=["number", "tensor", "classes"])
def test_no_triplets_cost_nothing(beta):
    """A batch without triplets has loss 0, and its backward pass must run."""
    x, y = batch([2, 2])
    none = (torch.empty(0, dtype=torch.long),) * 3
    x.requires_grad_()
    margin = functional.margin_loss(x, y, none, beta=beta, margin=0.2, nu=0.5)
    (margin + functional.triplet_loss(x, y, none, margin=0.2)).backward()
    assert margin.item() == 0
    assert not x.grad.any()


def test_margin_loss_agrees_with_pytorch_metric_learning():
    """Same triplets, same loss, same gradients, with one beta a class and the pull of beta, too."""
    x, y = batch([3, 3, 4], dim=6)
    _, triplets = some_triplets(y, 30)
    theirs = pml.MarginLoss(margin=0.2, nu=0.3, beta=1.1, learn_beta=True, num_classes=3)
    x_theirs = x.float().requires_grad_()
    value_theirs = theirs(x_theirs, y, triplets)
    value_theirs.backward()
    beta = torch.full((3,), 1.1, requires_grad=True)
    x_ours = x.float().requires_grad_()
    value = functional.margin_loss(x_ours, y, triplets, beta=beta, margin=0.2, nu=0.3)
    value.backward()
    torch.testing.assert_close(value, value_theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(beta.grad, theirs.beta.grad, atol=1e-5, rtol=1e-5)
    # Theirs normalises inside: compare the gradients along the sphere.
    along = x_ours.grad - (x_ours.grad * x_ours).sum(dim=1, keepdim=True) * x_ours
    torch.testing.assert_close(along.detach(), x_theirs.grad, atol=1e-5, rtol=1e-4)


def test_triplet_loss_agrees_with_pytorch_metric_learning():
    """Same triplets, same mean over those that cost something."""
    x, y = batch([3, 3, 4], dim=6)
    _, triplets = some_triplets(y, 30)
    theirs = pml.TripletMarginLoss(margin=0.2)(x.float(), y, triplets)
    ours = functional.triplet_loss(x.float(), y, triplets, margin=0.2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("learners", "dim"), [(1, 4), (2, 3), (5, 7), (32, 16)])
def test_overlap_is_that_of_the_loops(learners, dim):
    """The mean cosine over ordered pairs of rectified masks; 0 for one mask."""
    masks = torch.randn(learners, dim, generator=torch.Generator().manual_seed(learners), dtype=torch.float64)
    masks[0] = -1.0  # a mask that the rectifier silences
    masks.requires_grad_()
    value = functional.mask_overlap(masks)
    value.backward()
    assert value.item() == pytest.approx(naive.overlap(masks.tolist()), abs=1e-12)
    assert masks.grad.isfinite().all()


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([[1, 1, 0, 0], [0, 0, 1, 1]], 0.0),
        ([[1, 1], [2, 2]], 1.0),
        ([[1, -5], [-5, 1]], 0.0),
        ([[1, 0]], 0.0),
    ],
    ids=["disjoint", "parallel", "disjoint when rectified", "single"],
)
def test_overlap_of_known_masks(masks, expected):
    """Slices do not overlap, equal directions do entirely, and what the rectifier cuts off does not count."""
    assert functional.mask_overlap(torch.tensor(masks, dtype=torch.float32)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", [*ALL_BATCH_LOSSES, "margin", "triplet"])
def test_collapsed_embeddings_have_finite_gradients(name):
    """When all embeddings are equal, the root of the distance must not give infinite or NaN gradients."""
    x = F.normalize(torch.ones(8, 16), dim=1).requires_grad_()
    y = torch.arange(8) // 2
    triplets = mine("distanceweighted", x, y, generator=torch.Generator().manual_seed(0))
    sampled = {
        "margin": lambda x, y: functional.margin_loss(x, y, triplets, beta=1.2, margin=0.2, nu=0.0),
        "triplet": lambda x, y: functional.triplet_loss(x, y, triplets, margin=0.2),
    }
    value = {**ALL_BATCH_LOSSES, **sampled}[name](x, y)
    value.backward()
    assert value.item() > 0
    assert x.grad.isfinite().all()


def test_distances_are_those_of_the_loops():
    """Every distance with 1e-8 under the root: 1e-4 from an image to itself."""
    x, _ = batch([3, 4], dim=5)
    expected = [[naive.distance(x, i, j) for j in range(7)] for i in range(7)]
    torch.testing.assert_close(functional.pairwise_distances(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", [*ALL_BATCH_LOSSES, "margin", "triplet", "overlap"])
def test_no_value_is_read_back_from_the_device(name):
    """Forward and backward must not make the host wait: no scalar reads, no indices of unknown number."""
    x, y = batch([4] * 5, dim=16)
    x = x.float().requires_grad_()
    beta = torch.full((5,), 1.2, requires_grad=True)
    _, triplets = some_triplets(y, 30)
    sampled = {
        "margin": lambda x, y: functional.margin_loss(x, y, triplets, beta=beta, margin=0.2, nu=0.1),
        "triplet": lambda x, y: functional.triplet_loss(x, y, triplets, margin=0.2),
        "overlap": lambda x, y: functional.mask_overlap(x),
    }
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        {**ALL_BATCH_LOSSES, **sampled}[name](x, y).backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::mm" in names, "the profiler saw nothing"
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select"}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_type(dtype):
    """Small integers must index the betas like large ones; uint8 must not be taken for a mask."""
    x, y = batch([4, 4, 4], dim=5)
    # As many triplets as classes: a mask over the betas would fit, and give another loss in silence.
    _, triplets = some_triplets(y, 3)
    beta = torch.tensor([0.8, 1.0, 1.3], dtype=torch.float64)
    value = functional.margin_loss(x, y.to(dtype), triplets, beta=beta, margin=0.2, nu=0.1)
    assert value == functional.margin_loss(x, y, triplets, beta=beta, margin=0.2, nu=0.1)
    for loss in ALL_BATCH_LOSSES.values():
        assert loss(x, y.to(dtype)) == loss(x, y)


@pytest.mark.parametrize("name", [*ALL_BATCH_LOSSES, "margin", "triplet"])
def test_no_size_depends_on_a_value(name):
    """Embeddings without values (device meta), labels on the CPU: forward and backward must know all sizes.

    Whatever reads a value of the embeddings cannot run here, also what the profiler has no name for.
    """
    x = torch.empty(20, 16, device="meta", requires_grad=True)
    y = torch.arange(20) // 4
    beta = torch.empty(5, device="meta", requires_grad=True)
    triplets = mine("distanceweighted", x, y, generator=torch.Generator())
    sampled = {
        "margin": lambda x, y: functional.margin_loss(x, y, triplets, beta=beta, margin=0.2, nu=0.1),
        "triplet": lambda x, y: functional.triplet_loss(x, y, triplets, margin=0.2),
    }
    value = {**ALL_BATCH_LOSSES, **sampled}[name](x, y)
    value.backward()
    assert (value.shape, x.grad.shape) == ((), x.shape)


@pytest.mark.parametrize("name", ["semihard", "all", "npairs", "kantorov"])
def test_operators_do_not_grow_with_the_batch(name):
    """No loop over images: a batch four times as large must take the same operators."""
    counts = []
    for classes in (4, 16):
        x, y = batch([4] * classes, dim=8)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            ALL_BATCH_LOSSES[name](x.requires_grad_(), y).backward()
        counts.append(sum(event.count for event in seen.key_averages()))
    assert counts[0] == counts[1]
