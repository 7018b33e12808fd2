"""What is kept of each reclustering, and what an epoch's measures say of clusters and masks."""

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
"""Files of divisions are called by this and the number of epochs that were complete when the images were clustered."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """A reclustering: which learner has which images, and the masks with which the learners begin."""

    epoch: int
    """Epochs that were complete."""
    partition: Indices
    """Cluster of each image that trains; -1 for one that is left out."""
    images: list[int]
    """Of each cluster."""
    classes: list[int]
    """Of each cluster, that have images in it."""
    masks: Tensor
    """Learners x dimensions of the embedding, not rectified."""

    @classmethod
    def of(cls, epoch: int, partition: Indices, labels: Indices, masks: Tensor) -> Division:
        """The division of an epoch: the cluster and the class of each image that trains, and the masks."""
        images, classes = cluster_sizes(partition, labels, len(masks))
        copied = masks.detach().to("cpu", copy=True)
        return cls(epoch=epoch, partition=partition.copy(), images=images, classes=classes, masks=copied)

    @property
    def name(self) -> str:
        """Of its files, without what says of which kind they are."""
        return checkpoint.numbered(STEM, self.epoch)

    def files(self, directory: Path) -> list[Path]:
        """Those that `save` wrote into a directory."""
        return files(directory, self.name)

    def save(self, directory: Path) -> None:
        """Write it into a directory, in the place of the one before: `NAME.safetensors` and `NAME.json`."""
        # Small numbers: there is one of these every few epochs.
        tensors = {"partition": torch.from_numpy(self.partition).to(torch.int32), "masks": self.masks}
        facts = {"epoch": self.epoch, "nb_clusters": len(self.masks), "images": self.images, "classes": self.classes}
        checkpoint.write(directory, self.name, tensors, facts)
        checkpoint.keep_only(directory, STEM, self.epoch)


def files(directory: Path, name: str) -> list[Path]:
    """The files of a division that was saved into a directory."""
    return sorted(directory.glob(f"{name}.*"))


def cluster_sizes(partition: Indices, labels: Indices, clusters: int) -> tuple[list[int], list[int]]:
    """How many images, and how many classes, each cluster has."""
    kept = partition >= 0
    images = np.bincount(partition[kept], minlength=clusters)
    pairs = np.unique(np.stack([partition[kept], labels[kept]]), axis=1)
    return images.tolist(), np.bincount(pairs[0], minlength=clusters).tolist()


def cluster_measures(partition: Indices, labels: Indices, clusters: int) -> dict[str, float]:
    """The share of images without a cluster; most and fewest images and classes of a cluster."""
    images, classes = cluster_sizes(partition, labels, clusters)
    return {
        "clusters/left_out": float(np.mean(partition < 0)),
        "clusters/largest": float(max(images)),
        "clusters/smallest": float(min(images)),
        "clusters/most_classes": float(max(classes)),
        "clusters/fewest_classes": float(min(classes)),
    }


def mask_measures(masks: Tensor) -> dict[str, float]:
    """Overlap, mean, standard deviation, and share of entries that the rectifier cuts off, of masks K x D."""
    values = masks.detach()
    silent = (values <= 0).float().mean()
    found = torch.stack([mask_overlap(values), values.mean(), values.std(correction=0), silent]).tolist()
    return dict(zip(("masks/overlap", "masks/mean", "masks/std", "masks/silent"), found, strict=True))
