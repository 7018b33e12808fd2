"""What the settings of embedding, masks and pooling make of the model."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dcml_tune.config.errors import SettingError
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder, load
from dcml_tune.training.step import TrainStep


def model(**settings):
    base = {"arch": "resnet18", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 64}
    return MaskedEmbedder(TrialConfig(**{**base, "nb_epochs": 20, **settings}))


FAN_IN, SLICE = 512, 64  # of ResNet-18, with an embedding of 512 for 8 clusters


@pytest.mark.parametrize(
    ("method", "deviation", "bound"),
    [
        (None, 1 / math.sqrt(3 * FAN_IN), 1 / math.sqrt(FAN_IN)),
        ("pt_default", 1 / math.sqrt(3 * FAN_IN), 1 / math.sqrt(FAN_IN)),
        ("pt_splitted", 1 / math.sqrt(3 * FAN_IN), 1 / math.sqrt(FAN_IN)),
        ("xavier_uniform_2", 2 * math.sqrt(2 / (FAN_IN + SLICE)), 2 * math.sqrt(6 / (FAN_IN + SLICE))),
        ("xavier_uniform_1", 0.059, math.inf),
        ("xavier_normal_0.5", 0.5 * math.sqrt(2 / (FAN_IN + SLICE)), math.inf),
        ("kaiming_normal_fan_in", 0.0442, math.inf),
        ("kaiming_normal_fan_out", 0.125, math.inf),
        ("trunc_normal", 0.088, 0.2),
    ],
)
def test_embedding_layer_is_initialised_by_its_law(method, deviation, bound):
    """Deviation and range of the weights are those of the law for a slice a cluster; biases are torch's own, or 0.1."""
    layer = model(init_method=method, nb_clusters=8, sz_embedding=512).embedding
    weights, bias = layer.weight.detach(), layer.bias.detach()
    for part in weights.split(SLICE):
        assert part.std().item() == pytest.approx(deviation, rel=0.02)
    assert weights.abs().max().item() <= bound
    if method == "trunc_normal":
        assert torch.equal(bias, torch.full((512,), 0.1))
    else:
        assert bias.std().item() == pytest.approx(1 / math.sqrt(3 * FAN_IN), rel=0.1)
        assert bias.abs().max().item() <= 1 / math.sqrt(FAN_IN)


def test_slices_of_unequal_size_cover_the_layer():
    """Where nb_clusters does not divide sz_embedding, each dimension is drawn all the same."""
    layer = model(init_method="kaiming_normal_fan_out", nb_clusters=3, hierarchy_method="none").embedding
    for size, part in zip((22, 21, 21), layer.weight.detach().split((22, 21, 21)), strict=True):
        assert part.std().item() == pytest.approx(1 / math.sqrt(size), rel=0.03)


@pytest.mark.parametrize("method", ["xavier_uniform", "xavier_uniform_", "xavier_normal_-1", "kaiming_normal", "ones"])
def test_other_initialisations_are_refused(method):
    """The message names the value and the choices."""
    with pytest.raises(SettingError, match=f"init_method={method}: must be one of"):
        TrialConfig(init_method=method)


@pytest.mark.parametrize(("count", "method"), [(1, "top_bot"), (4, "none"), (4, "bot_top")])
def test_masks_begin_as_ones_or_normal(count, method):
    """One mask with top_bot, else one a cluster; normal ones have mean 0.9 and deviation 0.7."""
    settings = {"nb_clusters": 4, "hierarchy_method": method, "sz_embedding": 4096}
    assert torch.equal(model(**settings).masks, torch.ones(count, 4096))
    drawn = model(**settings, masking_init="normal").masks.detach()
    assert drawn.shape == (count, 4096)
    assert drawn.mean().item() == pytest.approx(0.9, abs=0.05)
    assert drawn.std().item() == pytest.approx(0.7, abs=0.05)
    assert len({tuple(mask) for mask in drawn.tolist()}) == count


@pytest.mark.parametrize("normalize", [None, "l1"])
@pytest.mark.parametrize("relu", [True, False])
def test_full_embedding_by_the_sum_of_the_masks(normalize, relu):
    """Each mask rectified, then normalised when asked, summed, and multiplied into the embedding; a loop says the same."""
    settings = {"nb_clusters": 4, "hierarchy_method": "none", "masking_init": "normal", "mask_relu": relu}
    made = model(**settings, masks_sum_for_full_emb=True, masks_normalize_before_sum=normalize).eval()
    features = torch.randn(3, FAN_IN)
    total = torch.zeros(64)
    for mask in made.masks.detach():
        own = mask.clamp(min=0) if relu else mask
        total = total + (own / own.abs().sum() if normalize else own)
    expected = F.normalize(made.embedding(features) * total, dim=1)
    torch.testing.assert_close(made.embed(features), expected)
    plain = model(**settings).eval()
    torch.testing.assert_close(plain.embed(features), F.normalize(plain.embedding(features), dim=1))


def test_max_pooling_is_the_largest_of_the_map():
    """And average pooling the mean."""
    images = torch.rand(2, 3, 64, 64)
    for pooling, of in [("max", torch.amax), ("avg", torch.mean)]:
        made = model(features_pooling=pooling).eval()
        features = made.backbone(images)
        assert features.shape[2:] == (2, 2)
        torch.testing.assert_close(made.penultimate(images), of(features, dim=(2, 3)))


def test_sum_of_mean_and_largest_and_generalised_mean():
    """avg+max adds both; gem is the mean of powers, and the mean itself at an exponent of 1."""
    images = torch.rand(2, 3, 64, 64)
    summed, gem = (model(features_pooling=pooling).eval() for pooling in ("avg+max", "gem"))
    maps = gem.backbone(images)
    torch.testing.assert_close(summed.penultimate(images), maps.mean((2, 3)) + maps.amax((2, 3)))
    assert gem.pooling.p.tolist() == [3.0]
    clamped = maps.clamp(min=1e-6).double()
    expected = torch.stack([sum(v**3 for v in row.flatten()) / 4 for row in clamped.flatten(0, 1)]).view(2, -1) ** (
        1 / 3
    )
    torch.testing.assert_close(gem.penultimate(images), expected.float())
    with torch.no_grad():
        gem.pooling.p.fill_(1.0)
    torch.testing.assert_close(gem.penultimate(images), clamped.mean((2, 3)).float())


def test_the_exponent_is_trained_with_the_backbone_and_saved(tmp_path):
    """At its rate, without weight decay; where the backbone is frozen it stays; a loaded model has it."""
    settings = {"arch": "test_resnet", "weights": "none", "sz_resize": 64, "sz_crop": 64, "sz_embedding": 8}
    config = TrialConfig(
        **settings, features_pooling="gem", sampler="HPHN", base_lr=0.01, weight_decay=0.1, nb_epochs=4, warmup_epochs=1
    )
    step = TrainStep(config, 4, torch.device("cpu"))
    group = next(group for group in step.optimizer.param_groups if group["name"] == "pooling")
    assert (group["lr"], group["weight_decay"], group["param_names"]) == (0.01, 0.0, ["pooling.p"])
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for epoch, moves in ((0, False), (1, True)):
        plan = EpochPlan.at(epoch, config)
        step.set_trainable(plan)
        step.gradients(images, np.arange(8) // 2, 0, plan, torch.Generator().manual_seed(0))
        step.optimizer.step()
        assert (step.model.pooling.p.item() != 3.0) == moves
    step.model.save(tmp_path)
    assert torch.equal(load(tmp_path).pooling.p, step.model.pooling.p)


@pytest.mark.parametrize("pooling", ["max", "avg+max", "gem"])
def test_a_network_that_pools_by_itself_takes_no_other_pooling(pooling):
    """The message names both."""
    with pytest.raises(SettingError, match=rf"features_pooling={re.escape(pooling)}: test_vit pools by itself"):
        model(arch="test_vit", features_pooling=pooling)


def test_merged_masks_are_means_of_pairs():
    """Mask k is the mean of masks 2k and 2k + 1; fixed ones are united."""
    made = model(nb_clusters=4, hierarchy_method="bot_top", masking_init="normal")
    before = made.masks.detach().clone()
    made.merge_masks()
    torch.testing.assert_close(made.masks.detach(), torch.stack([before[:2].mean(0), before[2:].mean(0)]))
    fixed = model(nb_clusters=4, hierarchy_method="bot_top", fixed_mask=True)
    fixed.merge_masks()
    assert torch.equal(fixed.masks.sum(1), torch.tensor([32.0, 32.0]))
    assert torch.equal(fixed.masks.sum(0), torch.ones(64))
