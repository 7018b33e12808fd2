"""Metric losses and the overlap of masks: pure functions of tensors.

The losses do not synchronise with the device: they read no value from it, and do not index with booleans. Sizes follow from
shapes and, where pairs are listed, from labels on the CPU. Labels may be on the CPU while embeddings are on a GPU; the losses
that list pairs (triplet_semihard_loss, triplet_all_loss, kantorov_margin_loss) copy labels from a GPU to the CPU.

A batch without a term (no triplets, one class, no positives) has the loss 0, which can be backpropagated.

Distances are selected from the B x B matrix by integer indices. The backward pass of this indexing is deterministic on a GPU,
unlike that of index_select or gather with repeated indices.

Shapes: B images, D dimensions, T triplets, P ordered positive pairs, K learners.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dcml_tune.losses.miners import Triplets, beyond_cutoff_first, semihard
from dcml_tune.losses.pairs import move, pairwise_distances, positive_pairs, same_class, to_device

__all__ = [
    "kantorov_margin_loss",
    "margin_loss",
    "mask_overlap",
    "npairs_loss",
    "triplet_all_loss",
    "triplet_loss",
    "triplet_semihard_loss",
]

# The Kantorov margin loss has no settings.
KANTOROV_MARGIN, KANTOROV_BETA, KANTOROV_CUTOFF = 0.2, 1.2, 0.5


def margin_loss(
    embeddings: Tensor, labels: Tensor, triplets: Triplets, *, beta: float | Tensor, margin: float, nu: float
) -> Tensor:
    """Margin loss: positives should be closer than beta - margin, negatives farther than beta + margin.

    It is the sum of relu(d_ap - beta + margin) + relu(beta - d_an + margin) over triplets, divided by the number of
    non-zero terms; beta is that of the anchor's class.

    A beta that is a tensor is regularised: nu times the sum of the triplets' betas is added before the division.
    Without the regulariser beta converges to the value where equally many terms increase and decrease it. If no term is
    non-zero, the regulariser is 0, too. A beta that is a number is not trained and not regularised.

    Source: Wu et al., ICCV 2017, section 4, and their published code for the normalisation.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers; used only with one beta per class.
        triplets: indices of anchors, positives and negatives, T each.
        beta: the boundary: a number, a zero-dimensional tensor, or a tensor with one value per class, indexed by label (on
            the device of the embeddings).
        margin: half the width of the band between positives and negatives.
        nu: weight of the regulariser of beta.
    """
    anchors, positives, negatives = triplets
    distances_BB = pairwise_distances(embeddings)
    boundary = _of_anchors(beta, labels, anchors)
    pull_T = F.relu(distances_BB[anchors, positives] - boundary + margin)
    push_T = F.relu(boundary - distances_BB[anchors, negatives] + margin)
    total, count = _total_and_count(pull_T, push_T)
    if isinstance(boundary, Tensor) and nu > 0:
        total = total + nu * boundary.expand(len(anchors)).sum() * (count > 0)
    return total / count.clamp(min=1)


def triplet_loss(
    embeddings: Tensor, labels: Tensor, triplets: Triplets, *, margin: float, soft: bool = False
) -> Tensor:
    """Triplet loss: the positive should be closer than the negative by a margin; mean over triplets with non-zero loss.

    The original averages in the same way, and so does AvgNonZeroReducer of pytorch-metric-learning. In the soft form the
    loss of each triplet is non-zero.

    Args:
        embeddings: B x D, of unit length.
        labels: not used; present so that all losses of mined triplets have the same signature.
        triplets: indices of anchors, positives and negatives, T each.
        margin: required difference of the distances; not used by the soft form.
        soft: log(1 + exp(d_ap - d_an)) instead of relu(d_ap - d_an + margin).
    """
    del labels
    anchors, positives, negatives = triplets
    distances_BB = pairwise_distances(embeddings)
    gap_T = distances_BB[anchors, positives] - distances_BB[anchors, negatives]
    losses_T = _hinge(gap_T, margin=margin, soft=soft)
    return losses_T.sum() / (losses_T > 0).sum().clamp(min=1)


def triplet_semihard_loss(embeddings: Tensor, labels: Tensor, *, margin: float, soft: bool = False) -> Tensor:
    """Triplet loss of each ordered positive pair with its semi-hard negative; mean over the pairs.

    The semi-hard negative is the closest negative that is farther than the positive, else the farthest negative. The loss
    is 0 if there is a single class, because there is no negative.

    Source: Schroff et al., "FaceNet", CVPR 2015, section 3.2.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers.
        margin: as in `triplet_loss`.
        soft: as in `triplet_loss`.
    """
    pairs = positive_pairs(labels)
    distances_BB = pairwise_distances(embeddings)
    if not len(pairs.anchors):
        return distances_BB.sum() * 0
    anchors, positives = to_device([pairs.anchors, pairs.positives], embeddings.device)
    chosen = distances_BB.detach()
    same_BB = same_class(labels, embeddings.device)
    negatives = semihard(chosen[anchors], same_BB[anchors], chosen[anchors, positives])
    gap_P = distances_BB[anchors, positives] - distances_BB[anchors, negatives]
    return _hinge(gap_P, margin=margin, soft=soft).mean()


def triplet_all_loss(embeddings: Tensor, labels: Tensor, *, margin: float, soft: bool = False) -> Tensor:
    """Triplet loss of all triplets of a batch; mean over all of them, including those without loss.

    (The original counts the anchor among its own negatives.) It needs memory for P x B numbers, which is B times less
    than for all triples in a batch with few images per class.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers.
        margin: as in `triplet_loss`.
        soft: as in `triplet_loss`.
    """
    pairs = positive_pairs(labels)
    distances_BB = pairwise_distances(embeddings)
    anchors, positives = to_device([pairs.anchors, pairs.positives], embeddings.device)
    gap_PB = distances_BB[anchors, positives][:, None] - distances_BB[anchors]
    others_PB = ~same_class(labels, embeddings.device)[anchors]
    losses_PB = _hinge(gap_PB, margin=margin, soft=soft) * others_PB
    return losses_PB.sum() / max(1, int(pairs.negatives_of[pairs.anchors].sum()))


def npairs_loss(embeddings: Tensor, labels: Tensor, *, alpha: float | Tensor) -> Tensor:
    """N-pairs loss: cross-entropy of the similarities to all other images, with the positives as equally likely targets.

    The image itself is excluded. The mean is over images with positives.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, in the
        form for any number of images per class.

    Args:
        embeddings: B x D; similarities are inner products.
        labels: B integers.
        alpha: scale of the similarities; a zero-dimensional tensor if it is trained.
    """
    self_BB = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    positive_BB = same_class(labels, embeddings.device) & ~self_BB
    similarity_BB = alpha * (embeddings @ embeddings.T)
    # The lowest finite number: with -inf the softmax would be NaN for a batch of one image.
    logits_BB = similarity_BB.masked_fill(self_BB, torch.finfo(similarity_BB.dtype).min)
    log_p_BB = logits_BB.log_softmax(dim=1)
    positives_B = positive_BB.sum(dim=1)
    losses_B = -(log_p_BB.masked_fill(~positive_BB, 0)).sum(dim=1) / positives_B.clamp(min=1)
    return losses_B.sum() / (positives_B > 0).sum().clamp(min=1)


def kantorov_margin_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Margin loss of all positive pairs and of each anchor's closest negatives beyond a distance of 0.5.

    The terms are relu(0.2 + (d - 1.2)) for the ordered positive pairs and relu(0.2 - (d - 1.2)) for the negatives, of
    which each anchor has as many as images have positives on average (rounded). The loss is the mean over non-zero terms.
    If too few negatives are beyond 0.5, the farthest of the others are used; otherwise collapsed embeddings would never
    separate.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers.
    """
    pairs = positive_pairs(labels)
    distances_BB = pairwise_distances(embeddings)
    same_BB = same_class(labels, embeddings.device)
    self_BB = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    pull_BB = F.relu(distances_BB - KANTOROV_BETA + KANTOROV_MARGIN) * (same_BB & ~self_BB)
    scores_BB = beyond_cutoff_first(distances_BB.detach(), same_BB, KANTOROV_CUTOFF)
    nearest_BK = scores_BB.topk(pairs.mean_positives, dim=1).indices
    push_BK = F.relu(KANTOROV_BETA - distances_BB.gather(1, nearest_BK) + KANTOROV_MARGIN)
    # If an anchor has fewer than K negatives, the K selected images include some of its own class.
    total, count = _total_and_count(pull_BB, push_BK * ~same_BB.gather(1, nearest_BK))
    return total / count.clamp(min=1)


def mask_overlap(masks: Tensor) -> Tensor:
    """Mean cosine similarity between the rectified masks of different learners; 0 for a single mask.

    The overlap of a mask without a positive entry is 0.

    Source: the regulariser of the masks in TPAMI 2021; the original computes it pair by pair.

    Args:
        masks: K x D, not rectified.
    """
    unit_KD = F.normalize(F.relu(masks), dim=1)
    cosines_KK = unit_KD @ unit_KD.T
    learners = len(masks)
    others_KK = 1 - torch.eye(learners, dtype=masks.dtype, device=masks.device)
    return (cosines_KK * others_KK).sum() / max(1, learners * (learners - 1))


def _of_anchors(beta: float | Tensor, labels: Tensor, anchors: Tensor) -> float | Tensor:
    """Beta of each triplet: T numbers if there is one beta per class, else the single one."""
    if not isinstance(beta, Tensor) or beta.dim() == 0:
        return beta
    # Convert to int64: torch rejects smaller integers as indices, or reads them (uint8) as a mask.
    return beta[move(labels, beta.device).long()[anchors]]


def _total_and_count(pull: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of two sets of hinge terms, and the number of non-zero terms."""
    return pull.sum() + push.sum(), (pull > 0).sum() + (push > 0).sum()


def _hinge(gap: Tensor, *, margin: float, soft: bool) -> Tensor:
    """Loss of triplets whose positive is farther than their negative by `gap`."""
    return F.softplus(gap) if soft else F.relu(gap + margin)
