"""Division: the files of each reclustering; and the measures of clusters and masks of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcml_tune.losses.functional import mask_overlap
from dcml_tune.utils import checkpoint

Indices = NDArray[np.int64]

STEM = "division"
"""Stem of the files of divisions; the number of epochs that were complete before the clustering follows it."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """A reclustering: the images of each learner, and the masks with which the learners start."""

    epoch: int
    """Number of epochs that were complete."""
    partition: Indices
    """Cluster of each training image; -1 for an image that is left out."""
    images: list[int]
    """Number of images of each cluster."""
    classes: list[int]
    """Number of classes of each cluster."""
    masks: Tensor
    """Learners x dimensions of the embedding, not rectified."""

    @classmethod
    def of(cls, epoch: int, partition: Indices, labels: Indices, masks: Tensor) -> Division:
        """Build the division of an epoch from the cluster and the class of each training image, and the masks."""
        images, classes = cluster_sizes(partition, labels, len(masks))
        copied = masks.detach().to("cpu", copy=True)
        return cls(epoch=epoch, partition=partition.copy(), images=images, classes=classes, masks=copied)

    @property
    def name(self) -> str:
        """Name of its files, without suffix."""
        return checkpoint.numbered(STEM, self.epoch)

    def files(self, directory: Path) -> list[Path]:
        """Return the files that `save` wrote to a directory."""
        return files(directory, self.name)

    def save(self, directory: Path) -> None:
        """Write `NAME.safetensors` and `NAME.json` to a directory, and remove the previous division."""
        # int32 halves the file: there is one every few epochs.
        tensors = {"partition": torch.from_numpy(self.partition).to(torch.int32), "masks": self.masks}
        facts = {"epoch": self.epoch, "nb_clusters": len(self.masks), "images": self.images, "classes": self.classes}
        checkpoint.write(directory, self.name, tensors, facts)
        checkpoint.keep_only(directory, STEM, self.epoch)


def files(directory: Path, name: str) -> list[Path]:
    """Return the files of a division in a directory."""
    return sorted(directory.glob(f"{name}.*"))


def cluster_sizes(partition: Indices, labels: Indices, clusters: int) -> tuple[list[int], list[int]]:
    """Return the numbers of images and of classes of each cluster."""
    kept = partition >= 0
    images = np.bincount(partition[kept], minlength=clusters)
    pairs = np.unique(np.stack([partition[kept], labels[kept]]), axis=1)
    return images.tolist(), np.bincount(pairs[0], minlength=clusters).tolist()


def cluster_measures(partition: Indices, labels: Indices, clusters: int) -> dict[str, float]:
    """Return the share of images without a cluster; the most and fewest images and classes of a cluster."""
    images, classes = cluster_sizes(partition, labels, clusters)
    return {
        "clusters/left_out": float(np.mean(partition < 0)),
        "clusters/largest": float(max(images)),
        "clusters/smallest": float(min(images)),
        "clusters/most_classes": float(max(classes)),
        "clusters/fewest_classes": float(min(classes)),
    }


def mask_measures(masks: Tensor) -> dict[str, float]:
    """Return overlap, mean, standard deviation, and the share of entries that the ReLU sets to 0, of masks (K, D)."""
    values = masks.detach()
    silent = (values <= 0).float().mean()
    found = torch.stack([mask_overlap(values), values.mean(), values.std(correction=0), silent]).tolist()
    return dict(zip(("masks/overlap", "masks/mean", "masks/std", "masks/silent"), found, strict=True))
