"""Metric losses and the overlap of masks: pure functions of tensors.

Nothing here reads a value back from the device, loops over images, or indexes with booleans (whose number the
host would have to wait for): sizes follow from shapes and, where pairs are listed, from labels on the CPU.
Labels may lie on the CPU while embeddings are on a GPU; the losses that list pairs (triplet_semihard_loss,
triplet_all_loss, kantorov_margin_loss) copy labels that lie on a GPU back.

A batch that gives no term (no triplets, one class, no positives) has loss 0, which can be backpropagated.

Distances are picked from the B x B matrix by integer indices; the backward pass of that is deterministic on a
GPU, unlike that of index_select or gather with repeated indices.

Shapes: B images, D dimensions, T triplets, P ordered positive pairs, K learners.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dcml_tune.losses.miners import (
    Triplets,
    beyond_cutoff_first,
    move,
    pairwise_distances,
    positive_pairs,
    same_class,
    semihard,
    to_device,
)

__all__ = [
    "kantorov_margin_loss",
    "margin_loss",
    "mask_overlap",
    "npairs_loss",
    "pairwise_distances",
    "triplet_all_loss",
    "triplet_loss",
    "triplet_semihard_loss",
]

# The Kantorov margin loss has no settings.
KANTOROV_MARGIN, KANTOROV_BETA, KANTOROV_CUTOFF = 0.2, 1.2, 0.5


def margin_loss(
    embeddings: Tensor, labels: Tensor, triplets: Triplets, *, beta: float | Tensor, margin: float, nu: float
) -> Tensor:
    """Positives should lie nearer than beta - margin, negatives farther than beta + margin.

    The sum of relu(d_ap - beta + margin) + relu(beta - d_an + margin) over triplets, divided by the number of
    these terms that are not zero; beta is that of the anchor's class.

    A beta that is a tensor is also pulled towards zero: nu times the sum of the triplets' betas joins the sum
    before it is divided. Without the pull beta only finds the value where as many terms draw it up as down.
    As there is nothing to divide by where no term is left, the pull ends there, too. A beta that is a plain
    number is not trained and not pulled.

    Source: Wu et al., ICCV 2017, section 4, and their published code for the normalisation.

    Args:
        embeddings: B x D, of unit length.
        labels: B integers; needed only for one beta a class.
        triplets: indices of anchors, positives and negatives, T each.
        beta: the boundary; a number, a tensor of no dimensions, or one for each class, indexed by label (on the
            embeddings' device).
        margin: half the width of the band between positives and negatives.
        nu: weight of the pull of beta towards zero.
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
    """The positive should lie nearer than the negative, by a margin; mean over the triplets that cost something.

    (As in the original, and as pytorch-metric-learning's AvgNonZeroReducer.) In the soft form every triplet does.

    Args:
        embeddings: B x D, of unit length.
        labels: not used; here so that the losses over sampled triplets are called alike.
        triplets: indices of anchors, positives and negatives, T each.
        margin: by how much nearer; without effect on the soft form.
        soft: log(1 + exp(d_ap - d_an)) instead of relu(d_ap - d_an + margin).
    """
    del labels
    anchors, positives, negatives = triplets
    distances_BB = pairwise_distances(embeddings)
    gap_T = distances_BB[anchors, positives] - distances_BB[anchors, negatives]
    losses_T = _hinge(gap_T, margin=margin, soft=soft)
    return losses_T.sum() / (losses_T > 0).sum().clamp(min=1)


def triplet_semihard_loss(embeddings: Tensor, labels: Tensor, *, margin: float, soft: bool = False) -> Tensor:
    """The triplet loss with, for each ordered positive pair, its semi-hard negative; mean over the pairs.

    That is the nearest negative farther than the positive, or else the farthest negative. With one class
    alone there is no negative, and the loss is 0.

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
    """The triplet loss over all triplets of a batch; mean over all of them, those without loss included.

    (The original counts the anchor among its own negatives.) Takes P x B numbers of memory: B times less than
    all triples in a batch with few images a class.

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
    """Cross-entropy of an image's similarities to the others, its positives being equally probable targets.

    The image itself is left out. Images without positives give no row; the mean is over the others.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, in the
        form for any number of images a class.

    Args:
        embeddings: B x D; similarities are inner products.
        labels: B integers.
        alpha: scale of the similarities; a tensor of no dimensions when it is trained.
    """
    self_BB = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    positive_BB = same_class(labels, embeddings.device) & ~self_BB
    similarity_BB = alpha * (embeddings @ embeddings.T)
    # The lowest number, not -inf, of which the softmax is NaN where an image is alone in its batch.
    logits_BB = similarity_BB.masked_fill(self_BB, torch.finfo(similarity_BB.dtype).min)
    log_p_BB = logits_BB.log_softmax(dim=1)
    positives_B = positive_BB.sum(dim=1)
    losses_B = -(log_p_BB.masked_fill(~positive_BB, 0)).sum(dim=1) / positives_B.clamp(min=1)
    return losses_B.sum() / (positives_B > 0).sum().clamp(min=1)


def kantorov_margin_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The margin loss over all positive pairs and each anchor's nearest negatives beyond 0.5.

    relu(0.2 + (d - 1.2)) over the ordered positive pairs, relu(0.2 - (d - 1.2)) over the negatives: as many
    for each anchor as images have positives on average (rounded). Mean over the terms that are not zero.
    Where too few negatives lie beyond 0.5, the farthest of the others fill up; else collapsed embeddings
    would never part.

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
    # An anchor with fewer images of other classes than K has images of its own among its nearest.
    total, count = _total_and_count(pull_BB, push_BK * ~same_BB.gather(1, nearest_BK))
    return total / count.clamp(min=1)


def mask_overlap(masks: Tensor) -> Tensor:
    """Mean cosine similarity of the rectified masks of two different learners; 0 with a single mask.

    A mask without a positive entry overlaps with none.

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
    """Beta for each triplet: T numbers where there is one a class, else the one that there is."""
    if not isinstance(beta, Tensor) or beta.dim() == 0:
        return beta
    # As int64: smaller integers are refused as indices, or (uint8) read as a mask.
    return beta[move(labels, beta.device).long()[anchors]]


def _total_and_count(pull: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two sets of hinge terms, and how many of them are not zero."""
    return pull.sum() + push.sum(), (pull > 0).sum() + (push > 0).sum()


def _hinge(gap: Tensor, *, margin: float, soft: bool) -> Tensor:
    """What a triplet costs whose positive is `gap` farther away than its negative."""
    return F.softplus(gap) if soft else F.relu(gap + margin)
