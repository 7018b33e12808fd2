"""Backbones by name, with weights that lie on this machine or with none; nothing is ever downloaded."""

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcml_tune.backbones import build
from dcml_tune.config import SettingError, TrialConfig
from dcml_tune.model import MaskedEmbedder

# Name, side of the images, channels of the features.
ORIGINAL = [
    ("alexnet", 64, 256), ("vgg11", 32, 512), ("vgg11bn", 32, 512), ("bn_inception", 64, 1024), ("resnet18", 32, 512),
    ("resnet34", 32, 512), ("resnet50", 32, 2048), ("resnet101", 32, 2048), ("resnet152", 32, 2048),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails the test."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of torch and of the Hugging Face hub."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("arch", "size", "dim"), ORIGINAL)
def test_the_originals_backbones_train(arch, size, dim):
    """A forward and backward pass gives finite gradients to every weight; batch-norm statistics stay."""
    config = TrialConfig(arch=arch, weights="none", sz_resize=size, sz_crop=size, sz_embedding=8)
    model = MaskedEmbedder(config).train()
    assert model.backbone.dim == dim
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    embeddings = model(images, 0)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    (embeddings @ torch.randn(8)).sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("arch", "size", "dim", "pooled"),
    [
        ("test_vit", 64, 64, True),
        ("vit_tiny_patch16_224", 64, 192, True),
        ("test_resnet", 32, 96, False),
        ("test_convnext", 64, 64, False),
        ("mobilenetv3_small_050", 64, 288, False),
    ],
)
def test_timms_models_by_name(arch, size, dim, pooled):
    """Networks with position embeddings are built for the size of the images; those that pool by themselves say so."""
    backbone = build(arch, weights="none", sz_crop=size)
    assert (backbone.dim, backbone.pooled) == (dim, pooled)
    shape = backbone(torch.zeros(1, 3, size, size)).shape
    assert shape[:2] == (1, dim)
    assert len(shape) == (2 if pooled else 4)


def test_a_vit_pools_by_itself():
    """So it cannot pool by the largest."""
    with pytest.raises(SettingError, match="features_pooling=max: vit_tiny_patch16_224 pools by itself"):
        MaskedEmbedder(
            TrialConfig(arch="vit_tiny_patch16_224", weights="none", sz_resize=64, sz_crop=64, features_pooling="max")
        )


def test_torchvisions_weights_are_taken_from_torchs_cache(caches):
    """Of the name that torchvision gives to its first weights; where they are not, that name and place are said."""
    from torchvision import models

    place = caches / "torch" / "hub" / "checkpoints"
    name = Path(models.get_model_weights("resnet18").IMAGENET1K_V1.url).name
    with pytest.raises(SettingError, match=f"put {name} into {place}, or give --weights FILE, or --weights none"):
        build("resnet18", sz_crop=32)
    network = models.resnet18(weights=None).eval()
    place.mkdir(parents=True)
    torch.save(network.state_dict(), place / name)
    images = torch.randn(2, 3, 32, 32)
    found = build("resnet18", sz_crop=32).eval()(images)
    expected = torch.nn.Sequential(*list(network.children())[:-2])(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_timms_weights_are_taken_from_the_hubs_cache(arch, caches):
    """Position embeddings are fitted to the size of the images; where nothing is, repository and place are said."""
    import timm

    repository = timm.get_pretrained_cfg(arch).hf_hub_id
    with pytest.raises(SettingError, match=f"put model.safetensors of {repository} into .*hub"):
        build(arch, sz_crop=64)
    network = timm.create_model(arch, pretrained=False)
    folder = caches / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    save_file(network.state_dict(), folder / "snapshots" / "1" / "model.safetensors")
    found = build(arch, sz_crop=64).network.state_dict()
    same = [name for name, value in network.state_dict().items() if name in found and torch.equal(value, found[name])]
    assert len(same) >= 0.5 * len(found)
    assert found.get("pos_embed", torch.zeros(1, 17, 1)).shape[1] == 17


def test_inception_without_weights_says_which_file(caches):
    """The name and place that pytorchcv gives to it."""
    place = caches / ".torch" / "models"
    with pytest.raises(SettingError, match=rf"put bninception-\d+-\w{{8}}\.pth into {place}"):
        build("bn_inception", sz_crop=64)


@pytest.mark.parametrize("around", [None, "state_dict", "model", "module."])
@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny_patch16_224", "bn_inception"])
def test_weights_of_a_file(arch, around, tmp_path):
    """With another classifier or none, wrapped as training scripts do; the features are those of the weights."""
    import timm
    from pytorchcv.models.bninception import bninception
    from torchvision import models

    size = 64
    made = {
        "resnet18": lambda: models.resnet18(num_classes=5),
        "vit_tiny_patch16_224": lambda: timm.create_model(arch, num_classes=5, img_size=size),
        "bn_inception": lambda: bninception(num_classes=5),
    }
    network = made[arch]().eval()
    state = network.state_dict()
    if around == "module.":
        state = {f"module.{name}": value for name, value in state.items()}
    elif around is not None:
        state = {around: state, "epoch": 3}
    torch.save(state, tmp_path / "weights.pth")
    backbone = build(arch, weights=str(tmp_path / "weights.pth"), sz_crop=size).eval()
    images = torch.randn(1, 3, size, size)
    if arch == "resnet18":
        expected = torch.nn.Sequential(*list(network.children())[:-2])(images)
    elif arch == "bn_inception":
        expected = network.features[:-1](images)
    else:
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-3, atol=1e-4)


def test_position_embeddings_of_a_file_are_fitted(tmp_path):
    """Weights of images of 224 pixels serve images of 64."""
    import timm

    network = timm.create_model("vit_tiny_patch16_224")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    backbone = build("vit_tiny_patch16_224", weights=str(tmp_path / "weights.safetensors"), sz_crop=64)
    assert backbone.network.pos_embed.shape[1] == 1 + 4 * 4
    assert torch.equal(backbone.network.cls_token, network.cls_token)


def test_a_file_of_something_else_is_refused(tmp_path):
    """One line with the first name that does not fit, or what the file is."""
    from torchvision import models

    torch.save(models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "few.pth")
    for arch, file, said in [
        ("resnet50", "resnet18.pth", "not of arch resnet50, it lacks layer1.0.conv3.weight"),
        ("vgg11", "resnet18.pth", "not of arch vgg11, it lacks features.0.weight"),
        ("vit_tiny_patch16_224", "resnet18.pth", "not of "),
        ("resnet18", "few.pth", "it lacks"),
        ("resnet18", "numbers.pth", "holds no state dict"),
        ("resnet18", "text.pth", "cannot be read as weights"),
        ("resnet18", "text.safetensors", "cannot be read as weights"),
        ("resnet18", "none.pth", "no such file"),
    ]:
        with pytest.raises(SettingError) as refused:
            build(arch, weights=str(tmp_path / file), sz_crop=64)
        assert said in str(refused.value)
        assert str(tmp_path / file) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("arch", "size"), [("alexnet", 32), ("vgg11", 16), ("vit_tiny_patch16_224", 8)])
def test_images_that_are_too_small_are_refused(arch, size):
    """In one line, with the remedy, instead of an error of the tenth layer."""
    with pytest.raises(SettingError, match=f"sz_crop={size}: arch {arch} cannot take images of this size .* raise"):
        build(arch, weights="none", sz_crop=size)


def test_an_unknown_name_is_refused_with_the_nearest():
    """Of all that are known."""
    with pytest.raises(SettingError, match="did you mean 'resnet50'"):
        build("resnet50x", weights="none")
    with pytest.raises(SettingError, match="did you mean 'bn_inception'"):
        build("bninception", weights="none")


def test_inception_without_its_library_says_which_extra(monkeypatch):
    """The extra is named."""
    import sys

    monkeypatch.setitem(sys.modules, "pytorchcv.models.bninception", None)
    with pytest.raises(SettingError, match=r"pip install 'dcml-tune\[bn-inception\]'"):
        build("bn_inception", weights="none")
