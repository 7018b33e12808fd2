"""Embeddings of stored images, and of lists of images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, ImageStore, open_store
from dcml_tune.data.loader import EVALUATION_BATCH, ToDevice, evaluation_batches
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.runs.stores import Stores
from dcml_tune.training.overlap import Steps, finish
from dcml_tune.training.ranks.exchange import ALONE, Ranks
from dcml_tune.training.trial_data import Indices

EMBED = "embed"
"""Name of the order to embed rows of a store."""


def embed(
    model: MaskedEmbedder, views: ImageStore, rows: Indices, *, penultimate: bool = False, ranks: Ranks = ALONE
) -> Tensor:
    """Full embeddings, or penultimate features, of rows of an evaluation store.

    Several ranks embed consecutive parts in the batches of a single process, and rank 0 returns all of them.

    Returns:
        Unit vectors, rows x D or rows x F, float32, on the model's device.
    """
    return finish(embedding_steps(model, views, rows, penultimate=penultimate, ranks=ranks))


def embedding_steps(
    model: MaskedEmbedder, views: ImageStore, rows: Indices, *, penultimate: bool = False, ranks: Ranks = ALONE
) -> Steps[Tensor]:
    """Do what `embed` does; yields True after each batch."""
    device = model.masks.device
    if ranks.leads:
        order = {"do": EMBED, "store": str(views.directory), "penultimate": penultimate}
        ranks.tell(order, {**model.state_dict(), "rows": torch.from_numpy(rows)}, device)
    of_features = partial(torch.nn.functional.normalize, dim=1) if penultimate else model.embed
    parts = _parts(rows, ranks.size, _batch(device))
    own = parts[ranks.rank]
    if len(own):
        found = yield from _in_batches(model, views, own, of_features)
    else:
        found = torch.empty(
            0, model.embedding.in_features if penultimate else model.embedding.out_features, device=device
        )
    with torch.inference_mode():
        return ranks.gather(found, [len(part) for part in parts])


def embed_part(model: MaskedEmbedder, tensors: dict[str, Tensor], order: dict[str, Any], ranks: Ranks) -> None:
    """Embed the part of a rank that is not rank 0, as rank 0 has ordered it, with the weights that it sent."""
    rows = cast(Indices, tensors.pop("rows").cpu().numpy())
    model.load_state_dict(tensors)
    embed(model, ImageStore(Path(order["store"])), rows, penultimate=order["penultimate"], ranks=ranks)


def _parts(rows: Indices, ranks: int, batch: int) -> list[Indices]:
    """Consecutive parts of rows, one for each rank, that consist of whole batches; only the last batch may be smaller."""
    batches = -(-len(rows) // batch)
    bounds = [min(len(rows), batch * (batches * rank // ranks)) for rank in range(ranks)] + [len(rows)]
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]


def penultimate_features(model: MaskedEmbedder, views: ImageStore, rows: Indices) -> Tensor:
    """Penultimate features of rows of an evaluation store, not normalised: rows x F, float32, on the model's device."""
    return finish(_in_batches(model, views, rows, lambda features: features))


def _batch(device: torch.device) -> int:
    return EVALUATION_BATCH.get(device.type, 64)


def _in_batches(
    model: MaskedEmbedder, views: ImageStore, rows: Indices, of_features: Callable[[Tensor], Tensor]
) -> Steps[Tensor]:
    """Apply a function to the penultimate features of each batch, in evaluation mode."""
    device = model.masks.device
    to_device = ToDevice(device)
    model.eval()
    found = []
    for images in evaluation_batches(views, rows, _batch(device)):
        with torch.inference_mode():
            found.append(of_features(model.penultimate(to_device(images))))
        yield True
    return torch.cat(found)


def embed_images(
    model: MaskedEmbedder, images: ImageList, config: TrialConfig, stores: Path | Stores, *, penultimate: bool = False
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
