"""Feature extractors by name: torchvision's networks that the original supports, its BN-Inception, and all timm models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.models import depthwise, relu6
from dcml_tune.models.frozen_batchnorm import fold
from dcml_tune.models.pretrained import (
    first_line,
    in_pytorchcv_cache,
    in_timm_cache,
    in_torch_cache,
    lite0_state,
    load_into,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = (
    "alexnet", "vgg11", "vgg11bn", "vgg11_bn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
)  # fmt: skip
BN_INCEPTION = "bn_inception"

_LITE0 = "tf_efficientnet_lite0"
log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A network without its classifier, and the normalisation that its weights require.

    Attributes:
        dim: number of channels of the features.
        mean, std: of the three channels, for values in 0..1, as in the training of the weights.
        pooled: whether the network has its own pooling (vision transformers); features are then B x dim.
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
        """Compute the feature map B x dim x h x w, or features B x dim if `pooled`, of normalised images B x 3 x H x W."""
        features = cast(Any, self.network).forward_features(images)
        if self.pooled:
            features = cast(Any, self.network).forward_head(features, pre_logits=True)
        return cast(Tensor, features)


def build(arch: str, *, weights: str = "pretrained", sz_crop: int = 224, frozen_statistics: bool = True) -> Backbone:
    """Build a backbone by name.

    - alexnet, vgg11, vgg11bn (torchvision's vgg11_bn), resnet18 to resnet152: torchvision's, with its first ImageNet
      weights (`IMAGENET1K_V1`), which the original used. The features of AlexNet and VGG are those of their
      convolutions, so that they are pooled as in other networks; their fully connected layers are removed.
    - bn_inception: pytorchcv's (`pip install 'dcml-tune[bn-inception]'`).
    - any other name: timm's, such as `vit_small_patch16_224.dino`; the part after the dot is the name of the weights.

    Args:
        arch: name of the architecture.
        weights: `pretrained` (found on this machine), `none` (random), or a file with a state dict of the network.
        sz_crop: side of the images in pixels; networks with position embeddings are built for it.
        frozen_statistics: whether batch-norm statistics are never updated, so that batch-norm can be folded into
            convolutions (`frozen_batchnorm`).

    Raises:
        SettingError: if the name is unknown, the weights are not on this machine (the message names the file and its
            place) or belong to another network, or the network does not accept images of this size.
    """
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise SettingError(f"weights={weights}: no such file; give a file, `pretrained` or `none`")
    if arch in TORCHVISION:
        backbone = _torchvision(arch, weights, sz_crop)
    else:
        backbone = _bn_inception(weights, sz_crop) if arch == BN_INCEPTION else _timm(arch, weights, sz_crop)
    if frozen_statistics and not backbone.pooled:
        fold(backbone.network, torch.linspace(-2, 2, 3 * sz_crop * sz_crop).view(1, 3, sz_crop, sz_crop))
    for rewrite in (depthwise, relu6):
        rewrite.speed_up(backbone.network)
    return backbone.to(memory_format=torch.channels_last)


@contextmanager
def _refusing_size(arch: str, sz_crop: int) -> Iterator[None]:
    """Turn errors of inner layers into a SettingError about the size of the images."""
    try:
        yield
    except SettingError:
        raise
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        raise SettingError(
            f"sz_crop={sz_crop}: arch {arch} cannot take images of this size ({first_line(error)}); take a larger or "
            "fitting --sz-crop (and --sz-resize), or another arch"
        ) from None


def _first_features(network: Any, sz_crop: int) -> Any:
    """Features of one black image: a tensor, or a list of tensors if timm pools several resolutions."""
    with torch.no_grad():
        return network.eval().forward_features(torch.zeros(1, 3, sz_crop, sz_crop))


class _Convolutions(nn.Module):
    """The layers of a network up to its last feature map."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward_features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.layers(images))


def _torchvision(arch: str, weights: str, sz_crop: int) -> Backbone:
    from torchvision import models

    name = "vgg11_bn" if arch == "vgg11bn" else arch
    network = models.get_model(name, weights=None)
    resnet = arch.startswith("resnet")
    if weights != "none":
        url = models.get_model_weights(name).IMAGENET1K_V1.url
        path = in_torch_cache(arch, url) if weights == "pretrained" else Path(weights)
        load_into(network, path, arch, ["fc" if resnet else "classifier"])
    layers = nn.Sequential(*list(network.children())[:-2]) if resnet else network.features
    return _of_convolutions(layers, arch, sz_crop)


def _bn_inception(weights: str, sz_crop: int) -> Backbone:
    """BN-Inception of pytorchcv; all its weights require ImageNet's mean and standard deviation."""
    try:
        from pytorchcv.models.bninception import bninception
    except ImportError:
        raise SettingError(
            f"arch={BN_INCEPTION}: of the kept libraries pytorchcv has it, which is not installed; "
            "pip install 'dcml-tune[bn-inception]', or take another arch"
        ) from None
    network = bninception(pretrained=False)
    if weights != "none":
        path = in_pytorchcv_cache(BN_INCEPTION, "bninception") if weights == "pretrained" else Path(weights)
        load_into(network, path, BN_INCEPTION, ["output"])
    del network.features.final_pool
    return _of_convolutions(network.features, BN_INCEPTION, sz_crop)


def _of_convolutions(layers: nn.Module, arch: str, sz_crop: int) -> Backbone:
    network = _Convolutions(layers)
    with _refusing_size(arch, sz_crop):
        dim = _first_features(network, sz_crop).shape[1]
    return Backbone(network, dim, IMAGENET_MEAN, IMAGENET_STD)


def _timm(arch: str, weights: str, sz_crop: int) -> Backbone:
    published = _published(arch)
    size = {"img_size": sz_crop} if published.fixed_input_size else {}
    with _refusing_size(arch, sz_crop):
        network = _timm_network(arch, weights, published, size)
        features = _first_features(network, sz_crop)
    _warn_of_lost_pixels(network, arch, sz_crop)
    is_map = isinstance(features, Tensor) and features.ndim == 4 and features.shape[1] == network.num_features
    with torch.no_grad():
        pooled = features if is_map else network.forward_head(features, pre_logits=True)
    return Backbone(network, pooled.shape[1], published.mean, published.std, pooled=not is_map)


def _warn_of_lost_pixels(network: Any, arch: str, sz_crop: int) -> None:
    from timm.layers import PatchEmbed

    patches = getattr(network, "patch_embed", None)
    if isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad:
        side = patches.patch_size[0]
        lost = sz_crop % side
        if lost:
            log.warning(
                "%s sees %d of sz_crop=%d pixels a side: its patches have %d", arch, sz_crop - lost, sz_crop, side
            )


def _published(arch: str) -> Any:
    """Description of a model and its weights by timm."""
    import timm

    if timm.is_model(arch):
        try:
            return timm.get_pretrained_cfg(arch, allow_unregistered=False)
        except RuntimeError:  # the part after the dot does not name its weights
            known = timm.list_pretrained(f"{arch.partition('.')[0]}.*")
    else:
        known = [*TORCHVISION, BN_INCEPTION, *timm.list_models()]
    raise SettingError(unknown_name("arch", arch, known))


def _timm_network(arch: str, weights: str, published: Any, size: dict[str, int]) -> Any:
    """A timm network without its classifier."""
    import timm

    if weights == "pretrained" and arch != _LITE0:
        network = _timm_from_cache(arch, in_timm_cache(arch, published), size)
    else:
        network = timm.create_model(arch, pretrained=False, **size)
        if weights == "pretrained":
            network.load_state_dict(lite0_state())
        elif weights != "none":
            names = published.classifier or ()
            load_into(network, Path(weights), arch, [names] if isinstance(names, str) else list(names))
    if not hasattr(network, "reset_classifier"):
        raise SettingError(
            f"arch={arch}: an encoder without a classifier, whose features timm does not pool; take another"
        )
    network.reset_classifier(0)
    return network


def _timm_from_cache(arch: str, path: Path, size: dict[str, int]) -> Any:
    """A timm network with published weights, which timm adapts to the size of the images.

    The network keeps its classifier for this: if the number of classes differs, timm accepts any missing weights.
    """
    import timm

    try:
        return timm.create_model(
            arch, pretrained=True, pretrained_cfg_overlay={"file": str(path), "custom_load": False}, **size
        )
    except Exception as error:  # each model has its own code to read and adapt weights
        at = f" for sz_crop={size['img_size']}" if size else ""
        raise SettingError(
            f"arch={arch}: cannot be built{at} with the weights {path} ({first_line(error)}); "
            f"{'take another --sz-crop, or ' if size else ''}put a whole copy of the file there"
        ) from None
