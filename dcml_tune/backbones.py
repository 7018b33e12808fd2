"""Named feature extractors: torchvision's networks that the original knows, its BN-Inception, and every timm model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dcml_tune.config import SettingError, unknown_name
from dcml_tune.folding import fold
from dcml_tune.pretrained import in_pytorchcv_cache, in_timm_cache, in_torch_cache, lite0_state, load_into, read

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = (
    "alexnet", "vgg11", "vgg11bn", "vgg11_bn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
)  # fmt: skip
BN_INCEPTION = "bn_inception"

_LITE0 = "tf_efficientnet_lite0"


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
    """A backbone by name.

    - alexnet, vgg11, vgg11bn (torchvision's vgg11_bn), resnet18 to resnet152: torchvision's, with its first ImageNet
      weights (`IMAGENET1K_V1`), which the original used. The features of AlexNet and VGG are those of their
      convolutions, so that they are pooled as those of the others; their fully connected layers are left out.
    - bn_inception: pytorchcv's (`pip install 'dcml-tune[bn-inception]'`).
    - any other name: timm's.

    Args:
        arch: name of the architecture.
        weights: `pretrained` (found on this machine), `none` (random), or a file with a state dict of the network.
        sz_crop: side of the images in pixels; networks with position embeddings are built for it.
        frozen_statistics: batch-norm statistics never move, so that batch-norm can be folded (`folding`).

    Raises:
        SettingError: for an unknown name, weights that are not on this machine (the message says which file to put
            where) or of another network, or images that are too small for the network.
    """
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise SettingError(f"weights={weights}: no such file; give a file, `pretrained` or `none`")
    if arch in TORCHVISION:
        backbone = _torchvision(arch, weights)
    else:
        backbone = _bn_inception(weights) if arch == BN_INCEPTION else _timm(arch, weights, sz_crop)
    _check_size(backbone, arch, sz_crop)
    if frozen_statistics and not backbone.pooled:
        fold(backbone.network, torch.linspace(-2, 2, 3 * sz_crop * sz_crop).view(1, 3, sz_crop, sz_crop))
    return backbone.to(memory_format=torch.channels_last)


def _check_size(backbone: Backbone, arch: str, sz_crop: int) -> None:
    """Refuse images of which nothing is left before the last layer."""
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, sz_crop, sz_crop))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _wrong_size(arch, sz_crop, error) from None


def _wrong_size(arch: str, sz_crop: int, error: Exception) -> SettingError:
    short = " ".join(str(error).split())[:150]
    return SettingError(
        f"sz_crop={sz_crop}: arch {arch} cannot take images of this size ({short}); raise --sz-crop (and --sz-resize), "
        "or take another arch"
    )


class _Convolutions(nn.Module):
    """The layers of a network up to its last feature map."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward_features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.layers(images))


def _torchvision(arch: str, weights: str) -> Backbone:
    from torchvision import models

    name = "vgg11_bn" if arch == "vgg11bn" else arch
    network = models.get_model(name, weights=None)
    resnet = arch.startswith("resnet")
    if weights == "pretrained":
        url = models.get_model_weights(name).IMAGENET1K_V1.url
        network.load_state_dict(read(in_torch_cache(arch, url)))
    elif weights != "none":
        load_into(network, Path(weights), arch, ["fc" if resnet else "classifier"])
    if resnet:
        dim, layers = network.fc.in_features, nn.Sequential(*list(network.children())[:-2])
    else:
        dim, layers = 256 if arch == "alexnet" else 512, network.features
    return Backbone(_Convolutions(layers), dim, IMAGENET_MEAN, IMAGENET_STD)


def _bn_inception(weights: str) -> Backbone:
    try:
        from pytorchcv.models.bninception import bninception
    except ImportError:
        raise SettingError(
            f"arch={BN_INCEPTION}: of the kept libraries pytorchcv has it, which is not installed; "
            "pip install 'dcml-tune[bn-inception]', or take another arch"
        ) from None
    network = bninception(pretrained=False)
    if weights == "pretrained":
        network.load_state_dict(read(in_pytorchcv_cache(BN_INCEPTION, "bninception")))
    elif weights != "none":
        load_into(network, Path(weights), BN_INCEPTION, ["output"])
    del network.features.final_pool
    return Backbone(_Convolutions(network.features), 1024, IMAGENET_MEAN, IMAGENET_STD)


def _timm(arch: str, weights: str, sz_crop: int) -> Backbone:
    import timm

    if not timm.is_model(arch):
        raise SettingError(unknown_name("arch", arch, [*TORCHVISION, BN_INCEPTION, *timm.list_models()]))
    published = timm.get_pretrained_cfg(arch)
    if published is None:
        raise SettingError(f"arch={arch}: timm has no settings for its weights; take another, or one of {TORCHVISION}")
    size = {"img_size": sz_crop} if published.fixed_input_size else {}
    try:
        network = _timm_network(arch, weights, published, size)
        with torch.no_grad():
            channels = network.eval().forward_features(torch.zeros(1, 3, sz_crop, sz_crop)).shape
    except SettingError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _wrong_size(arch, sz_crop, error) from None
    is_map = len(channels) == 4 and channels[1] == network.num_features
    return Backbone(network, network.num_features, published.mean, published.std, pooled=not is_map)


def _timm_network(arch: str, weights: str, published: Any, size: dict[str, int]) -> Any:
    """A timm network without its classifier."""
    import timm

    if weights == "pretrained" and arch != _LITE0:
        source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(in_timm_cache(arch, published))}}
        return timm.create_model(arch, num_classes=0, **source, **size)
    network = timm.create_model(arch, pretrained=False, **size)
    if weights == "pretrained":
        network.load_state_dict(lite0_state())
    elif weights != "none":
        names = published.classifier or ()
        load_into(network, Path(weights), arch, [names] if isinstance(names, str) else list(names))
    network.reset_classifier(0)
    return network
