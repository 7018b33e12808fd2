"""Embeddings of stored images, and of lists of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, ImageStore, open_store
from dcml_tune.data.loader import EVALUATION_BATCH, ToDevice, evaluation_batches
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.trial_data import Indices


def embed(model: MaskedEmbedder, views: ImageStore, rows: Indices, *, penultimate: bool = False) -> Tensor:
    """Full embeddings, or penultimate features, of rows of an evaluation store.

    Returns:
        Unit vectors, rows x D or rows x F, float32, on the model's device.
    """
    of_features = partial(torch.nn.functional.normalize, dim=1) if penultimate else model.embed
    return _in_batches(model, views, rows, of_features)


def penultimate_features(model: MaskedEmbedder, views: ImageStore, rows: Indices) -> Tensor:
    """Penultimate features of rows of an evaluation store, not normalised: rows x F, float32, on the model's device."""
    return _in_batches(model, views, rows, lambda features: features)


def _in_batches(
    model: MaskedEmbedder, views: ImageStore, rows: Indices, of_features: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply a function to the penultimate features of each batch, in evaluation mode."""
    device = model.masks.device
    to_device = ToDevice(device)
    model.eval()
    batches = evaluation_batches(views, rows, EVALUATION_BATCH.get(device.type, 64))
    with torch.inference_mode():
        return torch.cat([of_features(model.penultimate(to_device(images))) for images in batches])


def embed_images(
    model: MaskedEmbedder, images: ImageList, config: TrialConfig, stores: Path, *, penultimate: bool = False
) -> tuple[Tensor, Indices]:
    """Full embeddings, or penultimate features, of images, and their labels; their store is built if it is missing.

    Args:
        model: the model, on its device.
        images: N images.
        config: gives the sizes, and whether images that cannot be decoded are left out.
        stores: directory of the image stores.
        penultimate: as in `embed`.

    Returns:
        Unit vectors (N, D) or (N, F), and labels (N,).

    Raises:
        SettingError: for images that cannot be decoded, or a store that cannot be written.
    """
    store = open_store(config, images, stores)
    rows = np.arange(len(store.kept), dtype=np.int64)
    return embed(model, store, rows, penultimate=penultimate), images.labels[store.kept]
