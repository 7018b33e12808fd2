"""Triplet miners: they select the triplets of a batch that the margin and triplet losses use.

What depends on the labels alone (positive pairs, numbers of negatives per anchor) is computed with numpy on the CPU; what
depends on the embeddings stays on their device. The sizes of all tensors are therefore known on the host, and mining does not
synchronise with the device if the labels are on the CPU.

Shapes: B images in the batch, P ordered positive pairs, K negatives of an anchor, T triplets.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from dcml_tune.config.errors import unknown_name
from dcml_tune.config.trial import Sampler
from dcml_tune.losses.pairs import (
    Indices,
    PositivePairs,
    move,
    pairwise_distances,
    positive_pairs,
    same_class,
    to_device,
)

Triplets = tuple[Tensor, Tensor, Tensor]

# Log-weight of a negative without loss. The log-weights of useful negatives are hundreds of units below the best of their
# row in 512 dimensions, and thousands in 2048, so this one is always lower. In float32 its resolution is 0.008, which still
# distinguishes the Gumbel noise that is added.
USELESS = -1e5


def mine(
    name: str,
    embeddings: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
) -> Triplets:
    """Sample triplets from a batch.

    - `distanceweighted` (Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017): each anchor with a
      positive gets as many triplets as the images of the batch have positives on average (rounded). Negatives are drawn
      without replacement, with the probabilities of `distance_weights`.
    - `easypeasy`: each anchor gets that average rounded down, and at most as many triplets as it has positives. Negatives
      are the closest ones beyond `cutoff`.
    - HPHN, EPHN, EPSHN, HPSHN, RPSHN, RPHN: one triplet per anchor with a positive. The positive is hard
      (the farthest), easy (the closest) or random; the negative is hard (the closest) or semi-hard (the closest one that
      is farther than the positive, else the farthest one).

    The first two use the positives of an anchor in turn, and begin with a random one if the anchor has more or fewer
    positives than triplets; positives and negatives are repeated when they run out. With classes of equal size this is
    one triplet per positive pair. A positive is never used as a negative, whatever the embeddings (equal, infinite, NaN).
    There are no triplets if no class has two images, or if there is a single class.

    Args:
        name: one of `config.Sampler`.
        embeddings: B x D, of unit length; mining computes no gradients.
        labels: B integers. Labels on a GPU are copied to the CPU, which synchronises with the device.
        generator: source of the random choices, on any device.
        cutoff: distance. Closer negatives get the weight of this distance (distanceweighted), or are used only when farther
            ones have run out, the farthest first (easypeasy).
        nonzero_loss_cutoff: distance from which on a negative has no loss (distanceweighted).

    Returns:
        Indices of anchors, positives and negatives: T integers each, ordered by anchor, on the embeddings'
        device.

    Raises:
        ValueError: if `name` is not a known miner.
    """
    if name not in get_args(Sampler):
        raise ValueError(unknown_name("sampler", name, list(get_args(Sampler))))
    pairs = positive_pairs(labels)
    with torch.no_grad():
        if not len(pairs.anchors):
            none = torch.empty(0, dtype=torch.long, device=embeddings.device)
            return none, none, none
        distances_BB = _finite(pairwise_distances(embeddings))
        same_BB = same_class(labels, embeddings.device)
        if name == "distanceweighted":
            weights_BB = distance_weights(
                distances_BB, same_BB, dim=embeddings.shape[1], cutoff=cutoff, nonzero_loss_cutoff=nonzero_loss_cutoff
            )
            scores_BB = weights_BB + _gumbel_like(weights_BB, generator)
            return _deal(pairs, scores_BB, np.where(pairs.positives_of > 0, pairs.mean_positives, 0), generator)
        if name == "easypeasy":
            scores_BB = beyond_cutoff_first(distances_BB, same_BB, cutoff)
            return _deal(pairs, scores_BB, np.minimum(pairs.positives_of, pairs.whole_mean_positives), generator)
        return _one_each(name, pairs, distances_BB, same_BB, generator)


def distance_weights(
    distances: Tensor, same_class: Tensor, *, dim: int, cutoff: float, nonzero_loss_cutoff: float
) -> Tensor:
    """Logarithm of the weight with which each image is drawn as a negative of each anchor.

    The weight of a useful negative, closer than `nonzero_loss_cutoff`, is the inverse density of its distance for points
    that are uniform on the sphere: log 1/q(d) = (2-n) log d - (n-3)/2 log(1 - d^2/4), with d clipped below at `cutoff`,
    shifted so that the largest one of a row is 0. Other negatives have the finite log-weight -1e5, so that they are drawn
    only when the useful ones have run out. (The original gives them the weight 1e-6, and can draw positives.)

    Source: Wu et al., ICCV 2017, section 4.

    Args:
        distances: B x B Euclidean distances of unit vectors, one row per anchor.
        same_class: B x B booleans, true for images of the anchor's class, including the anchor.
        dim: number n of dimensions of the embedding.
        cutoff: distance below which the weight is constant.
        nonzero_loss_cutoff: distance from which on a negative has no loss.

    Returns:
        B x B log-weights, -inf for images of the anchor's class, finite for all others.
    """
    clipped = distances.clamp(min=cutoff)
    # Without the limit, antipodes (d = 2) would have an infinite weight.
    cap = (1 - 0.25 * clipped.square()).clamp(min=1e-8)
    log_weights = (2 - dim) * clipped.log() - (dim - 3) / 2 * cap.log()
    useful = (distances < nonzero_loss_cutoff) & ~same_class
    best = log_weights.masked_fill(~useful, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(useful, log_weights - best, USELESS).masked_fill(same_class, -torch.inf)


def beyond_cutoff_first(distances: Tensor, same_class: Tensor, cutoff: float) -> Tensor:
    """Scores that rank negatives: those beyond the cutoff, closest first, then the rest, farthest first.

    If too few negatives are beyond the cutoff, those just below it are used.

    Args:
        distances: B x B, finite.
        same_class: B x B booleans.
        cutoff: a distance.

    Returns:
        B x B: higher scores rank first; -inf for images of the anchor's class.
    """
    below_all = -distances.amax() - 1
    scores = torch.where(distances > cutoff, -distances, distances - cutoff + below_all)
    return scores.masked_fill(same_class, -torch.inf)


def semihard(distances: Tensor, same_class: Tensor, positive_distances: Tensor) -> Tensor:
    """Semi-hard negatives: the closest negative that is farther than the positive, else the farthest negative.

    Args:
        distances: T x B finite distances from each triplet's anchor.
        same_class: T x B booleans; each row has at least one false entry.
        positive_distances: T.

    Returns:
        T indices into the batch.
    """
    farther = (distances > positive_distances[:, None]) & ~same_class
    closest, index = distances.masked_fill(~farther, torch.inf).min(dim=1)
    farthest = distances.masked_fill(same_class, -torch.inf).argmax(dim=1)
    return torch.where(closest < torch.inf, index, farthest)


def _finite(distances: Tensor) -> Tensor:
    """Distances with NaN replaced by 0 and infinite values limited, because masks use infinity."""
    largest = torch.finfo(distances.dtype).max / 4
    return distances.nan_to_num(nan=0.0).clamp(max=largest)


def _gumbel_like(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise. The K largest sums of log-weight and noise are K ordered draws without replacement.

    The distribution is that of torch.multinomial, which would synchronise with the device.
    """
    noise = torch.empty(weights.shape, dtype=weights.dtype, device=generator.device)
    noise = move(noise.exponential_(generator=generator), weights.device)
    # A draw of exactly 0 would give an infinite score.
    return -noise.clamp(min=torch.finfo(noise.dtype).tiny).log()


def _deal(pairs: PositivePairs, scores: Tensor, wanted: Indices, generator: torch.Generator) -> Triplets:
    """Make the wanted number of triplets per anchor, from its positives in turn and its best negatives in turn.

    Args:
        pairs: of the batch.
        scores: B x B, -inf for images of the anchor's class, finite for the others.
        wanted: B, number of triplets of each anchor; 0 for an anchor without positives.
        generator: draws the first positive of each anchor, unless each positive is used exactly once.
    """
    device, sizes = scores.device, pairs.positives_of
    taken = np.minimum(wanted, pairs.negatives_of)
    best_BK = scores.topk(int(taken.max()), dim=1).indices
    each_once = np.array_equal(wanted, sizes)
    anchors = pairs.anchors if each_once else np.repeat(np.arange(len(wanted)), wanted)
    turns = np.arange(len(anchors)) - (np.cumsum(wanted) - wanted)[anchors]
    negative_turns = turns % taken[anchors]
    if each_once:
        anchors_T, positives_T, turns_T = to_device([anchors, pairs.positives, negative_turns], device)
        return anchors_T, positives_T, best_BK[anchors_T, turns_T]
    starts = (np.cumsum(sizes) - sizes)[anchors]
    anchors_T, negative_turns_T, turns_T, starts_T, sizes_T = to_device(
        [anchors, negative_turns, turns, starts, sizes[anchors]], device
    )
    first_B = move(torch.rand(len(wanted), generator=generator, device=generator.device), device)
    firsts_T = (first_B[anchors_T] * sizes_T).long()
    (positives_P,) = to_device([pairs.positives], device)
    positives_T = positives_P[starts_T + (turns_T + firsts_T) % sizes_T]
    return anchors_T, positives_T, best_BK[anchors_T, negative_turns_T]


def _one_each(
    name: str, pairs: PositivePairs, distances: Tensor, same_class: Tensor, generator: torch.Generator
) -> Triplets:
    """One triplet per anchor; `name` selects the positive (H, E, R) and the negative (HN, SHN)."""
    (anchors,) = to_device([np.unique(pairs.anchors)], distances.device)
    distances_TB, same_TB = distances[anchors], same_class[anchors]
    scores_TB = _positive_scores(name[0], distances_TB, generator)
    others_TB = ~same_TB.scatter(1, anchors[:, None], False)
    positives = scores_TB.masked_fill(others_TB, -torch.inf).argmax(dim=1)
    if name.endswith("SHN"):
        positive_distances = distances_TB.gather(1, positives[:, None]).squeeze(1)
        return anchors, positives, semihard(distances_TB, same_TB, positive_distances)
    return anchors, positives, distances_TB.masked_fill(same_TB, torch.inf).argmin(dim=1)


def _positive_scores(kind: str, distances: Tensor, generator: torch.Generator) -> Tensor:
    """Scores whose maximum selects the positive: hard (farthest), easy (closest) or random."""
    if kind == "R":
        return _gumbel_like(distances, generator)
    return distances if kind == "H" else -distances
