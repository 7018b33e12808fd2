"""Losses of proxies: one trained vector for each training class, with which the embeddings are compared.

A learner compares its embeddings with masked proxies: both are multiplied with its mask, and then have unit length. The proxies
are shared by all learners. The losses need no positive pair in a batch.

As in `dcml_tune.losses.functional`, no value is read from the device.

Shapes: B images, D dimensions, C proxies.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dcml_tune.losses.pair_losses import log_one_plus_sum_exp
from dcml_tune.losses.pairs import move

__all__ = ["Proxies", "arcface_loss", "normalized_softmax_loss", "proxy_anchor_loss"]

# Added to the seed of the trial, which is below it, so that proxies and weights of the model are drawn from different numbers.
_STREAM = 2**32


class Proxies(nn.Module):
    """Proxies of the classes that train.

    Example:
        >>> proxies = Proxies(np.array([0, 2, 5]), dim=4, seed=1)
        >>> proxies().shape, proxies.of(torch.tensor([5, 0]))
        (torch.Size([3, 4]), tensor([2, 0]))
    """

    def __init__(self, classes: NDArray[np.int64], dim: int, seed: int) -> None:
        """Draw the proxies from a normal distribution with variance 2 / C, as the code of Proxy-Anchor does.

        Args:
            classes: C different labels, ascending.
            dim: number of dimensions of the embedding.
            seed: seed of the trial.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(_STREAM + seed)
        self.vectors = nn.Parameter(torch.randn(len(classes), dim, generator=generator) * math.sqrt(2 / len(classes)))
        index = torch.zeros(int(classes[-1]) + 1, dtype=torch.int64)
        index[torch.from_numpy(classes)] = torch.arange(len(classes))
        self.register_buffer("index", index, persistent=False)

    def forward(self, mask: Tensor | None = None) -> Tensor:
        """The proxies C x D, multiplied with a mask (D), of unit length."""
        return F.normalize(self.vectors if mask is None else self.vectors * mask, dim=1)

    def of(self, labels: Tensor) -> Tensor:
        """The index B of the proxy of each label, on the device of the proxies. Labels may be on the CPU."""
        return cast(Tensor, self.index)[move(labels, self.vectors.device).long()]


def proxy_anchor_loss(embeddings: Tensor, proxies: Tensor, targets: Tensor, *, alpha: float, delta: float) -> Tensor:
    """Proxy-Anchor loss: each proxy is an anchor that pulls images of its class and pushes all others.

    It is the mean of log(1 + sum exp(-alpha (s - delta))) over the images of a proxy's class, for the proxies that have
    images in the batch, plus the mean of log(1 + sum exp(alpha (s + delta))) over the other images, for all proxies.

    Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020.

    Args:
        embeddings: B x D, of unit length.
        proxies: C x D, of unit length.
        targets: B integers, the proxy of each image.
        alpha: scale of the cosine similarities.
        delta: margin, as a cosine similarity.

    Example:
        >>> x, proxies = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> round(proxy_anchor_loss(x, proxies, torch.tensor([0, 1]), alpha=4, delta=0.1).item(), 3)
        1.929
    """
    cosines_BC = embeddings @ proxies.T
    own_BC = targets[:, None] == torch.arange(len(proxies), device=targets.device)
    pull_C = log_one_plus_sum_exp(-alpha * (cosines_BC - delta), own_BC, dim=0)
    push_C = log_one_plus_sum_exp(alpha * (cosines_BC + delta), ~own_BC, dim=0)
    return pull_C.sum() / own_BC.any(dim=0).sum() + push_C.mean()


def normalized_softmax_loss(embeddings: Tensor, proxies: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of the cosine similarities to the proxies; mean over images.

    Source: Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019.

    Args:
        embeddings: B x D, of unit length.
        proxies: C x D, of unit length.
        targets: B integers, the proxy of each image.
        temperature: divisor of the similarities.

    Example:
        >>> x, proxies = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> round(normalized_softmax_loss(x, proxies, torch.tensor([0, 1]), temperature=0.5).item(), 2)
        0.28
    """
    return F.cross_entropy(embeddings @ proxies.T / temperature, targets)


def arcface_loss(embeddings: Tensor, proxies: Tensor, targets: Tensor, *, margin: float, scale: float) -> Tensor:
    """Cross-entropy of the similarities to the proxies, with a margin added to the angle to an image's own proxy.

    Where the angle plus the margin exceeds 180 degrees, m sin(m) is subtracted from the cosine instead, so that the loss
    grows with the angle. The sine has 1e-8 added under its root, for finite gradients.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    Args:
        embeddings: B x D, of unit length.
        proxies: C x D, of unit length.
        targets: B integers, the proxy of each image.
        margin: in degrees, 0 to 90.
        scale: factor of the similarities.

    Example:
        >>> x, proxies = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> round(arcface_loss(x, proxies, torch.tensor([0, 1]), margin=28.6, scale=4).item(), 3)
        0.229
    """
    added = math.radians(margin)
    cosines_BC = embeddings @ proxies.T
    own_B1 = cosines_BC.gather(1, targets[:, None])
    sines_B1 = ((1 - own_B1.square()).clamp(min=0) + 1e-8).sqrt()
    shifted_B1 = own_B1 * math.cos(added) - sines_B1 * math.sin(added)
    shifted_B1 = torch.where(own_B1 >= -math.cos(added), shifted_B1, own_B1 - added * math.sin(added))
    return F.cross_entropy(scale * cosines_BC.scatter(1, targets[:, None], shifted_B1), targets)
