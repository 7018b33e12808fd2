"""The embedding layer that starts as a PCA of the pretrained features (`init_method=pca`).

Shapes: N images, F penultimate features, D embedding dimensions.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dcml_tune.data.image_list import fingerprint
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.embedding import penultimate_features
from dcml_tune.training.trial_data import TrialData
from dcml_tune.utils import checkpoint
from dcml_tune.utils.locks import SharedLock

_CHUNK = 4096
"""Images whose features are converted to float64 at once."""


def initialise_by_pca(model: MaskedEmbedder, data: TrialData) -> None:
    """Let the embedding layer project onto the principal directions of the features of the images that train.

    The layer subtracts the mean of the features, so that cosines are those of centred features, and does not whiten. No
    held-out image and no test image is read. No random number is drawn. The trials of a search have the same pretrained
    network and mostly the same images, so the projection is cached where all nodes find it.

    Args:
        model: with the pretrained weights of its backbone.
        data: images of the trial.
    """
    name, stores = f"pca-{_key(model, data)}", data.stores.make_common()
    with SharedLock(stores / f"{name}.lock"):
        try:
            found = checkpoint.read(stores, name)[0]
        except checkpoint.CheckpointError:
            features_NF = penultimate_features(model, data.views, data.train)
            weight_DF, bias_D = projection(features_NF, model.embedding.out_features)
            found = {"weight": weight_DF.float(), "bias": bias_D.float()}
            checkpoint.write(stores, name, found, {})
    with torch.no_grad():
        model.embedding.weight.copy_(found["weight"])
        model.embedding.bias.copy_(found["bias"])


def _key(model: MaskedEmbedder, data: TrialData) -> str:
    """Hash of all that the projection depends on, rounding included."""
    config, digest = model.config, hashlib.blake2b(data.train.tobytes(), digest_size=16)
    for name, values in model.backbone.state_dict().items():
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    network = (config.arch, config.features_pooling, config.bn_learnable, tuple(model.embedding.weight.shape))
    machine = (model.masks.device.type, torch.get_num_threads())
    return fingerprint(data.views.key, digest.hexdigest(), *network, *machine)


def projection(features_NF: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Weight D x F and bias D of a linear layer that projects centred features onto their principal directions.

    The rows of the weight are orthonormal, those of the largest variance first. The entry of the largest absolute value in
    each row is positive. With as many dimensions as features, the weight is the identity: a rotation changes no cosine.
    Where the images are too few to span D directions, the others are an orthonormal complement.

    Args:
        features_NF: features of the images.
        dimensions: D, at most F.

    Returns:
        Weight and bias, float64, on the CPU.

    Example:
        >>> line = torch.tensor([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [4.0, 1.0, 1.0]])
        >>> weight, bias = projection(line, 1)
        >>> weight.abs().argmax().item(), (weight @ weight.T).item() > 0.999
        (0, True)
    """
    mean_F = features_NF.mean(0, dtype=torch.float64).cpu()
    if dimensions == features_NF.shape[1]:
        weight_DF = torch.eye(dimensions, dtype=torch.float64)
    else:
        ascending_FF = torch.linalg.eigh(_scatter(features_NF, mean_F))[1]
        weight_DF = _with_fixed_signs(ascending_FF.flip(1)[:, :dimensions].T)
    return weight_DF, -weight_DF @ mean_F


def _scatter(features_NF: Tensor, mean_F: Tensor) -> Tensor:
    """Scatter matrix F x F of features, float64, on the CPU."""
    total_FF = torch.zeros(len(mean_F), len(mean_F), dtype=torch.float64)
    for part in features_NF.split(_CHUNK):
        centred = part.cpu().double() - mean_F
        total_FF += centred.T @ centred
    return total_FF


def _with_fixed_signs(rows_DF: Tensor) -> Tensor:
    """Rows whose entry of the largest absolute value is positive; an eigenvector's sign is arbitrary."""
    largest_D1 = rows_DF.gather(1, rows_DF.abs().argmax(1, keepdim=True))
    return rows_DF * largest_D1.sign()
