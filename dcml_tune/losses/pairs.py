"""Pairs of a batch: which images share a class, and how far apart their embeddings are.

What depends on the labels alone is computed with numpy on the CPU; what depends on the embeddings stays on their device.

Shapes: B images in the batch, D dimensions, P ordered positive pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indices = npt.NDArray[np.int64]


class PositivePairs(NamedTuple):
    """Ordered positive pairs of a batch, and numbers of positives and negatives, on the CPU."""

    anchors: Indices
    """P: index of the anchor of each pair, ascending."""
    positives: Indices
    """P: index of the positive of each pair, ascending for each anchor."""
    positives_of: Indices
    """B: number of other images of the anchor's class."""
    negatives_of: Indices
    """B: number of images of other classes."""

    @property
    def mean_positives(self) -> int:
        """Mean number of positives per image, rounded, and at least 1 if there is a positive pair.

        If it were 0, the few pairs of a batch of mostly single images would get no negative.
        """
        mean = float(self.positives_of.mean())
        return max(1, round(mean)) if mean > 0 else 0

    @property
    def whole_mean_positives(self) -> int:
        """Mean number of positives per image, rounded down, and at least 1 if there is a positive pair."""
        mean = float(self.positives_of.mean())
        return max(1, int(mean)) if mean > 0 else 0


def positive_pairs(labels: Tensor) -> PositivePairs:
    """The ordered pairs of different images of a class; none if all images have the same class.

    Args:
        labels: B integers. Labels on a GPU are copied to the CPU, which synchronises with the device.
    """
    classes = labels.detach().cpu().numpy()
    same_BB = classes[:, None] == classes[None, :]
    in_class = same_BB.sum(axis=1)
    if same_BB.all():
        empty = np.empty(0, dtype=np.int64)
        return PositivePairs(empty, empty, in_class - 1, np.zeros_like(in_class))
    np.fill_diagonal(same_BB, False)
    anchors, positives = np.nonzero(same_BB)
    return PositivePairs(anchors, positives, in_class - 1, len(classes) - in_class)


def same_class(labels: Tensor, device: torch.device) -> Tensor:
    """B x B booleans on a device: whether two images share a class; true on the diagonal."""
    classes = move(labels, device)
    return classes[:, None] == classes[None, :]


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all rows, with 1e-8 added under the root for finite gradients.

    They are computed with one matrix product, so squared distances have the absolute error of float32 (1e-7 for unit
    vectors).

    Args:
        embeddings: B x D.

    Returns:
        B x B, at least 1e-4, also on the diagonal.
    """
    products_BB = embeddings @ embeddings.T
    squares_B = embeddings.square().sum(dim=1)
    squared_BB = squares_B[:, None] + squares_B[None, :] - 2 * products_BB
    return (squared_BB.clamp(min=0) + 1e-8).sqrt()


def to_device(indices: list[Indices], device: torch.device) -> tuple[Tensor, ...]:
    """Copy index arrays of equal length to a device, in one copy that does not block the host."""
    return move(torch.from_numpy(np.stack(indices)), device).unbind(0)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without blocking the host; a copy to the CPU blocks.

    A non-blocking copy to the CPU can be read before it is complete. A copy from memory that is not page-locked may wait
    for all work of the device.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")
