"""What a wide search space varies of the backbone, and with a backbone that is given by `--arch`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dcml_tune.config.errors import SettingError
from search_spaces.domains import Choice, Domain, Float
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from dcml_tune.models.backbones import Backbone

BACKBONES = ("resnet50", "tf_efficientnet_lite0", "convnext_tiny.fb_in1k", "efficientnet_b0.ra_in1k")
"""Convolutional networks, which share the range of base_lr."""

_RATES_OF_VITS = Float(3e-6, 1e-4, log=True)
"""Range of base_lr of published recipes that train vision transformers."""


def with_fitting_start(space: SearchSpace, arch: str | None, sz_embedding: int | None) -> SearchSpace:
    """A space whose embedding layer starts as a PCA only where the backbone has as many features as that needs.

    Args:
        space: a space of the package.
        arch: the backbone, if it is given by a flag.
        sz_embedding: dimensions of the embedding, if they are given by a flag.

    Raises:
        SettingError: if the given backbone is unknown or cannot take the images.
    """
    if space.unvaried("init_method") != "pca" or (arch is None and sz_embedding is None):
        return space
    from dcml_tune.models.backbones import build

    varied = space.domains.get("sz_embedding")
    dimensions = sz_embedding or (min(varied.ends()) if varied else space.unvaried("sz_embedding"))
    backbone = build(arch or space.unvaried("arch"), weights="none", sz_crop=space.unvaried("sz_crop"))
    if dimensions <= backbone.dim:
        return space
    published, domains = dict(space.published), dict(space.domains)
    for settings in (published, domains):
        settings.pop("init_method", None)
    return replace(space, published=published, domains=domains)


def fitted_to_backbones(space: SearchSpace, arch: str | None) -> SearchSpace:
    """A wide space, fitted to the backbone that was given, or with the backbones of this machine.

    - `arch` is given: what this network does not have does not vary, and a vision transformer has its own rates.
    - `arch` is None, and there is a GPU: the backbone is the first setting, if the weights of several are here.

    Raises:
        SettingError: if the given backbone is unknown or cannot take the images.
    """
    if arch is not None:
        return space if arch == space.unvaried("arch") else _for_backbone(space, arch)
    import torch  # here: the list of data sets is wanted without it

    from dcml_tune.models.backbones import build

    if not torch.cuda.is_available():
        return space
    published = space.unvaried("arch")
    found = [published]
    for name in dict.fromkeys(BACKBONES):
        with suppress(SettingError):  # its weights are not on this machine
            if name != published:
                build(name, sz_crop=space.unvaried("sz_crop"))
                found.append(name)
    return space if len(found) < 2 else replace(space, domains={"arch": Choice(found), **space.domains})


def _for_backbone(space: SearchSpace, arch: str) -> SearchSpace:
    """A space without what a backbone does not have: a choice of pooling, batch-norm, or enough features for a PCA."""
    from dcml_tune.models.backbones import build

    backbone = build(arch, weights="none", sz_crop=space.unvaried("sz_crop"), frozen_statistics=False)
    domains: dict[str, Domain] = dict(space.domains)
    if not _has_batch_norm(backbone):
        domains.pop("bn_learnable", None)
    if backbone.pooled:
        domains.pop("features_pooling", None)
        domains["base_lr"] = _RATES_OF_VITS
    if (sizes := domains.get("sz_embedding")) is not None:
        fitting = [size for size in sizes.ends() if size <= backbone.dim]
        domains["sz_embedding"] = Choice(fitting or [min(sizes.ends())])
    return replace(space, domains=domains)


def _has_batch_norm(backbone: Backbone) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) for module in backbone.modules())
