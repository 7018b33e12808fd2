"""Global pooling of a feature map, as `features_pooling` names it.

Shapes: B images, F channels, h x w pixels of the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST = 1e-6
"""Smaller values of the map count as this one in `GeneralisedMean`."""


class Mean(nn.Module):
    """Mean over the map: B x F."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps B x F x h x w."""
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)


class Largest(nn.Module):
    """Largest value of the map: B x F."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps B x F x h x w."""
        return _largest(maps)


class MeanAndLargest(nn.Module):
    """Sum of the mean and of the largest value of the map: B x F."""

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps B x F x h x w."""
        return F.adaptive_avg_pool2d(maps, 1).flatten(1) + _largest(maps)


class GeneralisedMean(nn.Module):
    """Generalised mean (mean of x^p)^(1/p) of the map, B x F, with one trained exponent p for all channels.

    p = 1 is the mean, and large p approaches the largest value. Values below 1e-6 count as 1e-6.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.

    Example:
        >>> pooled = GeneralisedMean()(torch.tensor([[[[0.0, 2.0]]]]))
        >>> round(pooled.item(), 4)  # (8 / 2) ** (1 / 3)
        1.5874
    """

    def __init__(self) -> None:
        """Begin with p = 3."""
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps B x F x h x w."""
        return maps.clamp(min=_LEAST).pow(self.p).mean((2, 3)).pow(1 / self.p)


def _largest(maps: Tensor) -> Tensor:
    """The largest value of each map. The backward pass of adaptive_max_pool2d is not deterministic on a GPU."""
    return maps.flatten(2).max(dim=2).values


_KINDS: dict[str, type[nn.Module]] = {
    "avg": Mean,
    "max": Largest,
    "avg+max": MeanAndLargest,
    "gem": GeneralisedMean,
}


def pooling(name: str) -> nn.Module:
    """The module of a value of `features_pooling`."""
    return _KINDS[name]()
