"""Losses of all pairs of a batch: multi-similarity, supervised contrastive and contrastive loss.

As in `dcml_tune.losses.functional`: no value is read from the device, and a batch without a term has the loss 0, which can be
backpropagated. Labels may be on the CPU while embeddings are on a GPU.

Shapes: B images, D dimensions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dcml_tune.losses.functional import npairs_loss
from dcml_tune.losses.pairs import pairwise_distances, same_class

__all__ = ["contrastive_loss", "log_one_plus_sum_exp", "multi_similarity_loss", "supcon_loss"]


def multi_similarity_loss(
    embeddings: Tensor, labels: Tensor, *, alpha: float, beta: float, base: float, epsilon: float
) -> Tensor:
    """Multi-similarity loss of the pairs that its miner keeps; mean over all images.

    The miner keeps a positive that is less similar than the anchor's most similar negative plus epsilon, and a negative
    that is more similar than the anchor's least similar positive minus epsilon. The loss of an anchor is
    log(1 + sum exp(-alpha (s_ap - base))) / alpha + log(1 + sum exp(beta (s_an - base))) / beta.

    Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers.
        alpha: scale of the similarities of positives.
        beta: scale of the similarities of negatives.
        base: cosine similarity that separates positives from negatives.
        epsilon: tolerance of the miner, in cosine similarity; above 2 it keeps all pairs of anchors that have both kinds.

    Example:
        >>> x = F.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]), dim=1)
        >>> loss = multi_similarity_loss(x, torch.tensor([0, 0, 1, 1]), alpha=2, beta=50, base=0.5, epsilon=0.1)
        >>> round(loss.item(), 3)
        0.339
    """
    positive_BB, negative_BB = _kinds(labels, embeddings.device)
    cosines_BB = embeddings @ embeddings.T
    kept_BB = cosines_BB.detach()
    least_B1 = kept_BB.masked_fill(~positive_BB, math.inf).amin(dim=1, keepdim=True)
    most_B1 = kept_BB.masked_fill(~negative_BB, -math.inf).amax(dim=1, keepdim=True)
    positive_BB = positive_BB & (kept_BB - epsilon < most_B1)
    negative_BB = negative_BB & (kept_BB + epsilon > least_B1)
    pull_B = log_one_plus_sum_exp(-alpha * (cosines_BB - base), positive_BB) / alpha
    push_B = log_one_plus_sum_exp(beta * (cosines_BB - base), negative_BB) / beta
    return (pull_B + push_B).mean()


def supcon_loss(embeddings: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss; mean over images with positives.

    It is the N-pairs loss of this package with the fixed scale 1 / temperature, and 0 if there is a single class.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers.
        temperature: divisor of the cosine similarities.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(supcon_loss(x, torch.tensor([0, 0, 1]), temperature=0.5).item(), 3)
        0.588
    """
    has_negatives = (~same_class(labels, embeddings.device)).any()
    return npairs_loss(embeddings, labels, alpha=1 / temperature) * has_negatives


def contrastive_loss(embeddings: Tensor, labels: Tensor, *, pos_margin: float, neg_margin: float) -> Tensor:
    """Contrastive loss: positives closer than `pos_margin`, negatives farther than `neg_margin`.

    It is the mean of the non-zero relu(d_ap - pos_margin) plus the mean of the non-zero relu(neg_margin - d_an).

    Source: Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, who square the terms.
        The linear form and the means are those of pytorch-metric-learning.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers.
        pos_margin: Euclidean distance up to which a positive pair has no loss.
        neg_margin: Euclidean distance from which on a negative pair has no loss.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(contrastive_loss(x, torch.tensor([0, 0, 1]), pos_margin=0, neg_margin=1).item(), 3)
        1.262
    """
    positive_BB, negative_BB = _kinds(labels, embeddings.device)
    distances_BB = pairwise_distances(embeddings)
    pull_BB = F.relu(distances_BB - pos_margin) * positive_BB
    push_BB = F.relu(neg_margin - distances_BB) * negative_BB
    return _mean_of_nonzero(pull_BB) + _mean_of_nonzero(push_BB)


def log_one_plus_sum_exp(exponents: Tensor, kept: Tensor, dim: int = 1) -> Tensor:
    """log(1 + sum exp(x)) over the entries of a matrix that are kept, along a dimension; 0 where none is kept."""
    lowest = torch.finfo(exponents.dtype).min
    sums = exponents.masked_fill(~kept, lowest).logsumexp(dim=dim)
    return F.softplus(sums, threshold=40)  # torch's own threshold of 20 has an error of 2e-9


def _kinds(labels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """B x B booleans: positive pairs without the diagonal, and negative pairs."""
    same_BB = same_class(labels, device)
    return same_BB & ~torch.eye(len(labels), dtype=torch.bool, device=device), ~same_BB


def _mean_of_nonzero(losses: Tensor) -> Tensor:
    return losses.sum() / (losses > 0).sum().clamp(min=1)
