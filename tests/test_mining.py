"""Samplers give the triplets that their definitions name, and never a positive as a negative."""

from itertools import pairwise
from typing import get_args

import naive_losses as naive
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.miners import BatchEasyHardMiner
from test_losses import CLASS_SIZES, ONE_CLASS, batch
from torch.profiler import ProfilerActivity, profile

from dcml_tune.config.trial import Sampler
from dcml_tune.losses.miners import distance_weights, mine
from dcml_tune.losses.pairs import pairwise_distances

SAMPLERS = get_args(Sampler)
ONE_EACH = [name for name in SAMPLERS if name not in ("distanceweighted", "easypeasy")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(triplets):
    """Triplets as a list of (anchor, positive, negative)."""
    return list(zip(*(column.tolist() for column in triplets), strict=True))


def collapsed(y):
    return F.normalize(torch.ones(len(y), 4), dim=1)


def broken(y):
    x = collapsed(y)
    x[0], x[-1] = torch.nan, torch.inf
    return x


def duplicated(y):
    """Pairs of equal images, of different classes wherever classes alternate."""
    return F.normalize(torch.randn((len(y) + 1) // 2, 4, generator=seeded()).repeat_interleave(2, 0)[: len(y)], dim=1)


INPUTS = {
    "spread": lambda y: F.normalize(torch.randn(len(y), 8, generator=seeded()), dim=1),
    "collapsed": collapsed,
    "duplicated": duplicated,
    "not finite": broken,
    "all NaN": lambda y: torch.full((len(y), 4), torch.nan),
    "huge": lambda y: torch.full((len(y), 4), 1e30) * torch.arange(len(y))[:, None],
    "antipodes": lambda y: F.normalize(torch.ones(len(y), 4), dim=1) * (-1.0) ** torch.arange(len(y))[:, None],
}


def expected_anchors(name, y):
    """The anchors of the triplets of a batch, in order."""
    if name in ONE_EACH:
        return [a for a in range(len(y)) if naive.positives(y, a) and naive.others(y, a)]
    return [a for a, count in enumerate(naive.triplets_an_anchor(name, y)) for _ in range(count)]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_negatives_are_of_other_classes(name, kind):
    """Whatever the embeddings, positives are other images of the class, negatives images of other classes."""
    for sizes in CLASS_SIZES:
        _, y = batch(sizes)
        triplets = mine(name, INPUTS[kind](y), y, generator=seeded())
        for a, p, n in rows(triplets):
            assert a != p
            assert y[a] == y[p]
            assert y[a] != y[n]
        assert triplets[0].tolist() == expected_anchors(name, y.tolist())


@pytest.mark.parametrize("sizes", [*ONE_CLASS, [1, 1, 1], []], ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_triplets_where_there_are_none(name, sizes):
    """One class, single images alone, or no images: empty index tensors."""
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    triplets = mine(name, torch.randn(len(y), 4), y, generator=seeded())
    assert [(column.dtype, len(column)) for column in triplets] == [(torch.long, 0)] * 3


def test_unknown_sampler():
    """A misspelled sampler is refused with the one that was meant."""
    x, y = batch([2, 2])
    with pytest.raises(ValueError, match=r"sampler 'distanceweigthed' is not known.*'distanceweighted'"):
        mine("distanceweigthed", x, y, generator=seeded())


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_same_triplets(name):
    """All chance comes from the generator; no gradient is kept."""
    x, y = batch([4] * 5, dim=8)
    x.requires_grad_()
    torch.manual_seed(1)
    first = mine(name, x, y, generator=seeded(3))
    torch.manual_seed(2)
    assert rows(first) == rows(mine(name, x, y, generator=seeded(3)))
    if name.startswith("R") or name == "distanceweighted":
        assert any(rows(first) != rows(mine(name, x, y, generator=seeded(seed))) for seed in range(4, 8))


@pytest.mark.parametrize("sizes", CLASS_SIZES, ids=str)
@pytest.mark.parametrize("dim", [2, 3, 6])
def test_easypeasy_is_that_of_the_loops(sizes, dim):
    """The closest negatives beyond the cutoff, as many as positives, dealt out in turn; then those within."""
    for cutoff in (0.5, 1.2, 3.0):
        x, y = batch(sizes, dim)
        triplets = rows(mine("easypeasy", x, y, generator=seeded(), cutoff=cutoff))
        chosen = {a: [p for own, p, _ in triplets if own == a] for a in range(len(y))}
        assert triplets == naive.easypeasy(x, y.tolist(), cutoff, chosen)


@pytest.mark.parametrize("sizes", [[10, 2, 2, 2], [7, 2], [1, 2, 5, 3], [3, 3, 3], [4, 4, 1]], ids=str)
@pytest.mark.parametrize("name", ["distanceweighted", "easypeasy"])
def test_no_class_dominates_by_its_size(name, sizes):
    """Every anchor has as many triplets as another (easypeasy: as far as it has positives).

    Their positives are different before one comes twice, and each is equally likely.
    """
    x, y = batch(sizes, dim=8)
    classes, generator = y.tolist(), seeded(5)
    counts = naive.triplets_an_anchor(name, classes)
    seen = torch.zeros(len(classes), len(classes))
    for _ in range(300):
        triplets = rows(mine(name, x, y, generator=generator))
        for a, count in enumerate(counts):
            drawn = [p for own, p, _ in triplets if own == a]
            assert len(drawn) == count
            assert len(set(drawn)) == min(count, len(naive.positives(classes, a)))
            for p in drawn:
                seen[a, p] += 1 / 300
    for a, count in enumerate(counts):
        for p in naive.positives(classes, a):
            # Four standard deviations of a share of 1/2, the widest.
            assert seen[a, p] == pytest.approx(count / len(naive.positives(classes, a)), abs=0.12)


def test_equal_classes_give_each_pair_once():
    """As many triplets as positive pairs, whatever the sampler's rounding, where all classes of a batch are equal."""
    for name in ("distanceweighted", "easypeasy"):
        x, y = batch([4] * 5, dim=8)
        assert [(a, p) for a, p, _ in rows(mine(name, x, y, generator=seeded()))] == naive.pairs(y.tolist())


@pytest.mark.parametrize("sizes", CLASS_SIZES, ids=str)
@pytest.mark.parametrize("name", ONE_EACH)
def test_positive_and_negative_are_those_of_the_loops(name, sizes):
    """Hard is the farthest positive and the closest negative; semi-hard the closest beyond the positive."""
    for seed in range(4):
        x, y = batch(sizes, 3, seed)
        triplets = rows(mine(name, x, y, generator=seeded(seed)))
        assert triplets == naive.one_each(name, x, y.tolist(), {a: p for a, p, _ in triplets})


@pytest.mark.parametrize("sizes", [[2, 2, 2], [4, 4, 4], [5, 2, 3]], ids=str)
@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("HPHN", "hard", "hard"),
        ("EPHN", "easy", "hard"),
        ("HPSHN", "hard", "semihard"),
        ("EPSHN", "easy", "semihard"),
    ],
)
def test_hard_and_easy_agree_with_pytorch_metric_learning(name, positive, negative, sizes):
    """Same positives and negatives; theirs drops anchors without a semi-hard negative, ours falls back."""
    kept = 0
    for seed in range(4):
        x, y = batch(sizes, 6, seed)
        a, p, _, n = BatchEasyHardMiner(positive, negative)(x, y)
        theirs = set(zip(a.tolist(), p.tolist(), n.tolist(), strict=True))
        ours = rows(mine(name, x, y, generator=seeded()))
        kept += len(theirs)
        assert {triplet for triplet in ours if triplet[0] in a.tolist()} == theirs
    assert kept, "nothing was compared"


@pytest.mark.parametrize("name", ["RPHN", "RPSHN"])
def test_random_positive_is_uniform(name):
    """Each of an anchor's positives is drawn equally often."""
    x, y = batch([4] * 10)
    there = [naive.positives(y.tolist(), a) for a in range(len(y))]
    generator, seen = seeded(), torch.zeros(3)
    for _ in range(100):
        for a, p, _ in rows(mine(name, x, y, generator=generator)):
            seen[there[a].index(p)] += 1
    draws = 100 * len(y)
    assert seen.sum() == draws
    # Four standard deviations of a share of 1/3.
    assert (seen / draws - 1 / 3).abs().max() < 4 * (2 / 9 / draws) ** 0.5


@pytest.mark.parametrize("sizes", CLASS_SIZES + ONE_CLASS, ids=str)
@pytest.mark.parametrize("dim", [2, 3, 512])
def test_weights_are_those_of_the_loops(sizes, dim):
    """-inf in the class, log-inverse density (row best 0) for useful negatives, about -1e5 for others."""
    x, y = batch(sizes)
    distances = pairwise_distances(x)
    weights = distance_weights(distances, y[:, None] == y, dim=dim, cutoff=0.5, nonzero_loss_cutoff=1.4)
    expected = naive.log_weights(distances.tolist(), y.tolist(), dim, 0.5, 1.4)
    for i, row in enumerate(weights.tolist()):
        for k, weight in enumerate(row):
            if expected[i][k] is None:
                assert weight == -torch.inf
            elif expected[i][k] == "useless":
                assert weight == pytest.approx(-1e5)
            else:
                assert weight == pytest.approx(expected[i][k], abs=1e-8, rel=1e-10)


def test_negatives_are_drawn_by_weight_without_replacement():
    """First and second draw must follow the law of successive draws in proportion to the weights."""
    # A class of 3 equal images, and 4 images of other classes at set distances from them.
    wanted = torch.tensor([0.6, 0.7, 0.8, 1.0])
    angles = 2 * torch.asin(wanted / 2)
    others = torch.stack([angles.cos(), angles.sin(), torch.zeros(4)], dim=1)
    # In 3 dimensions the weight is 1 / d: no negative is too rare to be seen.
    x = torch.cat([torch.tensor([[1.0, 0, 0]] * 3), others])
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    p = (1 / wanted) / (1 / wanted).sum()
    law = p[:, None] * p[None, :] / (1 - p[:, None])
    law.fill_diagonal_(0)
    generator, calls, seen = seeded(), 2000, torch.zeros(4, 4)
    for _ in range(calls):
        # Triplets are ordered by anchor: the first six are those of the three equal images, two each.
        _, _, negatives = mine("distanceweighted", x, y, generator=generator)
        for first, second in negatives[:6].view(3, 2).tolist():
            seen[first - 3, second - 3] += 1
    draws = 3 * calls
    # Mean positives of the batch: (3 * 2 + 3 * 2 + 0) / 7, rounded 2.
    assert law.sum().item() == pytest.approx(1.0)
    assert not seen.diagonal().any()
    # Chi-square with 11 degrees of freedom: 31.3 is passed by chance once in a thousand seeds.
    off = ~torch.eye(4, dtype=torch.bool)
    chi_square = ((seen - draws * law)[off] ** 2 / (draws * law)[off]).sum().item()
    assert chi_square < 31.3


@pytest.mark.parametrize("useful", [0, 1, 3, 5])
def test_useless_negatives_only_when_the_useful_have_run_out(useful):
    """Negatives that give no loss are drawn after all that do, at random among themselves."""
    angles = torch.cat([torch.zeros(5), torch.linspace(0.9, 1.2, useful), torch.linspace(2.0, 2.5, 5 - useful)])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    y = torch.tensor([0] * 5 + [1] * 5)
    last = set()
    for seed in range(40):
        anchors, _, negatives = mine("distanceweighted", x, y, generator=seeded(seed))
        drawn = negatives[anchors == 0].tolist()
        # Four positives on average: four different negatives.
        assert len(set(drawn)) == 4
        assert set(drawn[:useful]) <= set(range(5, 5 + useful))
        last.update(drawn[useful:])
    if useful < 4:
        assert last == set(range(5 + useful, 10))


@pytest.mark.parametrize(
    ("sizes", "negatives"),
    [([4, 4, 4], 3), ([2] * 6, 1), ([5, 1], 1), ([3, 2, 1, 1], 1), ([6, 6, 2], 4)],
    ids=str,
)
def test_number_of_different_negatives(sizes, negatives):
    """As many negatives an anchor as images have positives on average, rounded; never more than there are."""
    x, y = batch(sizes, dim=16)
    anchors, _, drawn = mine("distanceweighted", x, y, generator=seeded())
    for a in set(anchors.tolist()):
        own = drawn[anchors == a].tolist()
        there = min(negatives, len(naive.others(y.tolist(), a)), len(own))
        assert len(set(own)) == there
        # Dealt out in turn: after each round of all of them the same order again.
        assert all(x == y for x, y in zip(own, own[there:], strict=False))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_value_is_read_back_from_the_device(name):
    """Sampling must not make the host wait, and must not loop over images."""
    counts = []
    for classes in (5, 20):
        x, y = batch([4] * classes, dim=16)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            mine(name, x, y, generator=seeded())
        counts.append({event.key: event.count for event in seen.key_averages()})
    assert "aten::mm" in counts[0], "the profiler saw nothing"
    forbidden = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::multinomial"}
    assert not forbidden & set(counts[0])
    assert all(small == large for small, large in pairwise(counts))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_size_depends_on_a_value(name):
    """Embeddings without values (device meta), labels on the CPU: the number of triplets must be known."""
    _, y = batch([1, 2, 5, 3])
    triplets = mine(name, torch.empty(len(y), 16, device="meta"), y, generator=seeded())
    count = len(expected_anchors(name, y.tolist()))
    assert [(column.device.type, column.shape) for column in triplets] == [("meta", (count,))] * 3
