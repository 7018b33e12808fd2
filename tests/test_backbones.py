"""Backbones by name, with weights that lie on this machine or with none; nothing is ever downloaded."""

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.backbones import build
from dcml_tune.models.embedder import MaskedEmbedder

# Name, side of the images, channels of the features.
ORIGINAL = [
    ("alexnet", 63, 256), ("vgg11", 32, 512), ("vgg11bn", 32, 512), ("bn_inception", 64, 1024), ("resnet18", 32, 512),
    ("resnet34", 32, 512), ("resnet50", 32, 2048), ("resnet101", 32, 2048), ("resnet152", 32, 2048),
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


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
        ("swin_tiny_patch4_window7_224", 64, 768, True),
        ("vit_small_patch16_224.dino", 64, 384, True),
        ("vit_small_patch14_dinov2.lvd142m", 70, 384, True),
        ("mambaout_femto", 64, 1152, True),
        ("coat_tiny", 64, 152, True),
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


@pytest.mark.parametrize("bn_learnable", [False, True])
def test_a_vision_transformer_trains(bn_learnable):
    """Finite gradients reach every weight, position embeddings of the images' size among them."""
    config = TrialConfig(
        arch="test_vit", weights="none", sz_resize=64, sz_crop=64, sz_embedding=8, bn_learnable=bn_learnable
    )
    model = MaskedEmbedder(config).train()
    (model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), 0) @ torch.randn(8)).sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert model.backbone.network.pos_embed.shape[1] == 1 + 4 * 4


def test_pixels_that_fill_no_patch_are_not_dropped_in_silence(caplog):
    """Of 64 pixels a side, patches of 14 see 56."""
    with caplog.at_level("WARNING"):
        assert build("vit_small_patch14_dinov2", weights="none", sz_crop=70).dim == 384
    assert not caplog.records
    with caplog.at_level("WARNING"):
        build("vit_small_patch14_dinov2", weights="none", sz_crop=64)
    assert "sees 56 of sz_crop=64 pixels a side: its patches have 14" in caplog.text


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


def put_into_hub(caches, repository, state):
    """A file of weights as `hf download` leaves it."""
    folder = caches / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    save_file(state, folder / "snapshots" / "1" / "model.safetensors")
    return folder / "snapshots" / "1" / "model.safetensors"


# A convolutional network; weights in the hub that timm once had as arrays of JAX, which it reads in another way;
# DINO's, which have no classifier.
@pytest.mark.parametrize(
    "arch", ["mobilenetv3_small_050", "vit_tiny_patch16_224.augreg_in21k", "vit_small_patch16_224.dino"]
)
def test_timms_weights_are_taken_from_the_hubs_cache(arch, caches):
    """Where nothing is, repository, file and place are said; else the features are those of the weights."""
    import timm

    repository = timm.get_pretrained_cfg(arch).hf_hub_id
    with pytest.raises(SettingError) as refused:
        build(arch)
    assert f"put model.safetensors of {repository} into the Hugging Face cache ({caches / 'hub'})" in str(refused.value)
    assert "--weights FILE" in str(refused.value)
    network = timm.create_model(arch, pretrained=False).eval()
    put_into_hub(caches, repository, network.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, expected = build(arch).eval()(images), features_of(network, images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_position_embeddings_of_the_hub_are_fitted(caches):
    """DINO's weights of images of 224 pixels serve images of 64, interpolated; all else is as published."""
    import timm

    arch = "vit_small_patch16_224.dino"
    network = timm.create_model(arch, pretrained=False)
    with torch.no_grad():  # a constant slope stays one wherever it is interpolated
        network.pos_embed[0, 1:] = torch.arange(14).repeat(14)[:, None].float()
    put_into_hub(caches, timm.get_pretrained_cfg(arch).hf_hub_id, network.state_dict())
    state = build(arch, sz_crop=64).network.state_dict()
    grid = state.pop("pos_embed")[0, 1:, 0].view(4, 4)
    torch.testing.assert_close(grid, grid[:1].expand(4, 4))
    torch.testing.assert_close(grid[0], torch.tensor([1.25, 4.75, 8.25, 11.75]), atol=0.3, rtol=0)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


def test_a_damaged_file_of_the_hub_is_refused(caches):
    """Also where weights are missing, which timm lets pass when the classifier is left out."""
    import timm

    arch = "mobilenetv3_small_050"
    state = timm.create_model(arch, pretrained=False).state_dict()
    del state["conv_stem.weight"]
    path = put_into_hub(caches, timm.get_pretrained_cfg(arch).hf_hub_id, state)
    for missing in ("conv_stem.weight", "SafetensorError"):
        with pytest.raises(SettingError, match="put a whole copy of the file there") as refused:
            build(arch, sz_crop=64)
        assert str(path) in str(refused.value)
        assert missing in str(refused.value)
        assert "\n" not in str(refused.value)
        path.write_bytes(path.read_bytes()[:1000])


def test_weights_that_timm_does_not_have(caches):
    """Are said to be none; a wrong name behind the dot is met with the right ones."""
    with pytest.raises(SettingError, match="arch=convnext_atto_rms: timm has no weights of it; give --weights FILE"):
        build("convnext_atto_rms", sz_crop=64)
    with pytest.raises(SettingError, match=r"did you mean 'vit_small_patch16_224\.dino'"):
        build("vit_small_patch16_224.dyno", sz_crop=64)


def test_inception_without_weights_says_which_file(caches):
    """The name and place that pytorchcv gives to it."""
    place = caches / ".torch" / "models"
    with pytest.raises(SettingError, match=rf"put bninception-\d+-\w{{8}}\.pth into {place}"):
        build("bn_inception", sz_crop=64)


def wrapped(state, around):
    """A state dict as training scripts save it."""
    if around == "module.":
        return {f"module.{name}": value for name, value in state.items()}
    return state if around is None else {around: state, "epoch": 3}


def features_of(network, images):
    """Of a network of timm, torchvision or pytorchcv, before its classifier."""
    with torch.no_grad():
        if hasattr(network, "forward_head"):
            features = network.forward_features(images)
            return network.forward_head(features, pre_logits=True) if features.ndim == 3 else features
        layers = list(network.children())[:-2] if hasattr(network, "fc") else network.features[:-1]
        return torch.nn.Sequential(*layers)(images)


@pytest.mark.parametrize("arch", ["resnet18", "test_resnet", "test_vit", "bn_inception"])
def test_weights_of_a_file(arch, tmp_path):
    """With another classifier; the features are those of the weights."""
    import timm
    from pytorchcv.models.bninception import bninception
    from torchvision import models

    made = {
        "resnet18": lambda: models.resnet18(num_classes=5),
        "bn_inception": lambda: bninception(num_classes=5),
    }
    network = made.get(arch, lambda: timm.create_model(arch, num_classes=5))().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build(arch, weights=str(tmp_path / "weights.pth"), sz_crop=160).eval()
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(backbone(images), features_of(network, images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "around"),
    [("weights.pth", None), ("weights.pth", "state_dict"), ("weights.pth", "model"), ("weights.pt", "module."),
     ("weights.safetensors", None), ("weights.safetensors", "module.")],
)  # fmt: skip
def test_weights_wrapped_and_without_a_classifier(name, around, tmp_path):
    """As training scripts save them; nor are there the counts of batches, which files of the first years lack."""
    import timm

    network = timm.create_model("test_resnet").eval()
    state = {
        key: value
        for key, value in network.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    if around == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    elif around is not None:
        state = {around: state, "epoch": 3}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    backbone = build("test_resnet", weights=str(tmp_path / name), sz_crop=32).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), features_of(network, images), rtol=1e-3, atol=1e-4)


def test_position_embeddings_of_a_file_are_fitted(tmp_path):
    """Weights of images of 160 pixels serve images of 64."""
    import timm

    network = timm.create_model("test_vit")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    backbone = build("test_vit", weights=str(tmp_path / "weights.safetensors"), sz_crop=64)
    assert backbone.network.pos_embed.shape[1] == 1 + 4 * 4
    assert torch.equal(backbone.network.cls_token, network.cls_token)


def test_a_file_of_something_else_is_refused(tmp_path):
    """One line with the first names that are missing and that are too many, or what the file is."""
    from torchvision import models

    torch.save(models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "few.pth")
    for arch, file, said in [
        ("resnet50", "resnet18.pth", "not of arch resnet50, it lacks layer1.0.conv3.weight"),
        ("vgg11", "resnet18.pth", "it lacks features.0.weight (16 in all), it has besides conv1.weight (122 in all)"),
        ("test_vit", "resnet18.pth", "it lacks cls_token"),
        ("test_resnet", "resnet18.pth", "not of arch test_resnet, it lacks"),
        ("resnet18", "few.pth", "it lacks"),
        ("resnet18", "numbers.pth", "holds no state dict (but a)"),
        ("resnet18", "text.pth", "cannot be read as weights"),
        ("resnet18", "text.safetensors", "cannot be read as weights"),
        ("resnet18", "none.pth", "no such file"),
    ]:
        with pytest.raises(SettingError) as refused:
            build(arch, weights=str(tmp_path / file), sz_crop=64)
        assert said in str(refused.value)
        assert str(tmp_path / file) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("arch", "size"), [("alexnet", 62), ("vgg11", 16), ("test_vit", 8)])
def test_images_of_a_wrong_size_are_refused(arch, size):
    """In one line, with the remedy, instead of an error of the tenth layer."""
    with pytest.raises(
        SettingError, match=f"sz_crop={size}: arch {arch} cannot take images of this size .* fitting --sz-crop"
    ):
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
