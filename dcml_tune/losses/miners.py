"""Triplet samplers: which triplets of a batch the margin and triplet losses see.

What depends on the labels alone (which pairs there are, how many negatives each anchor gets) is worked out
with numpy on the CPU; what depends on the embeddings stays on their device. So the sizes of all tensors are
known without asking the device, and nothing here makes the host wait for it while the labels lie on the CPU.

Shapes: B images in the batch, P ordered positive pairs, K negatives of an anchor, T triplets.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcml_tune.config.errors import unknown_name
from dcml_tune.config.trial import Sampler

Triplets = tuple[Tensor, Tensor, Tensor]
Indices = npt.NDArray[np.int64]

# Log-weight of a negative that gives no loss. Useful ones lie hundreds of units below their row's best in 512
# dimensions, thousands in 2048, so this never competes with them; and it is small enough that single
# precision still tells the Gumbel noise added to it apart (steps of 0.008).
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
      positive has as many triplets as the images of the batch have positives on average (rounded). Negatives are drawn
      without replacement, with the probabilities of `distance_weights`.
    - `easypeasy`: that average rounded down, and no more than the anchor has positives. Negatives are the closest
      beyond `cutoff`.
    - HPHN, EPHN, EPSHN, HPSHN, RPSHN, RPHN: one triplet an anchor that has a positive. The positive is hard
      (the farthest), easy (the closest) or random; the negative hard (the closest), or semi-hard (the closest
      that is farther than the positive, or else the farthest).

    The first two take an anchor's positives in turn, from one that is drawn at random where it has more or fewer than
    triplets; positives and negatives start over where they run out. With equal classes that is one triplet a positive
    pair. A positive is never taken as a negative, whatever the embeddings (equal, infinite, NaN). Without two images of
    a class, or with one class alone, there are no triplets.

    Args:
        name: one of `config.Sampler`.
        embeddings: B x D, of unit length; no gradient flows through the sampling.
        labels: B integers. On the CPU, else they are copied there, for which the host waits.
        generator: source of the random choices, on any device.
        cutoff: distance below which negatives count as this far (distanceweighted) or are taken only when
            those beyond have run out, the farthest first (easypeasy).
        nonzero_loss_cutoff: distance from which a negative gives no loss (distanceweighted).

    Returns:
        Indices of anchors, positives and negatives: T integers each, ordered by anchor, on the embeddings'
        device.

    Raises:
        ValueError: if there is no sampler called `name`.
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
                distances_BB,
                same_BB,
                dim=embeddings.shape[1],
                cutoff=cutoff,
                nonzero_loss_cutoff=nonzero_loss_cutoff,
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

    A useful negative, nearer than `nonzero_loss_cutoff`, weighs as much as its distance is rare among points
    spread evenly over the sphere: log 1/q(d) = (2-n) log d - (n-3)/2 log(1 - d^2/4), with d clipped below at
    `cutoff`; shifted so that the best useful negative of a row has 0. The others have a finite weight (-1e5)
    that is so small that they are drawn only when the useful ones have run out. (The original gives them
    1e-6, and can draw positives.)

    Source: Wu et al., ICCV 2017, section 4.

    Args:
        distances: B x B Euclidean distances of unit vectors, a row an anchor.
        same_class: B x B booleans, true for images of the anchor's class, itself included.
        dim: number n of dimensions of the embedding.
        cutoff: distance below which the weight does not grow any more.
        nonzero_loss_cutoff: distance from which a negative gives no loss.

    Returns:
        B x B log-weights, -inf for images of the anchor's class, finite for all others.
    """
    clipped = distances.clamp(min=cutoff)
    # Antipodes (d = 2) would give an infinite weight.
    cap = (1 - 0.25 * clipped.square()).clamp(min=1e-8)
    log_weights = (2 - dim) * clipped.log() - (dim - 3) / 2 * cap.log()
    useful = (distances < nonzero_loss_cutoff) & ~same_class
    best = log_weights.masked_fill(~useful, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(useful, log_weights - best, USELESS).masked_fill(same_class, -torch.inf)


class PositivePairs(NamedTuple):
    """What the labels of a batch say, on the CPU: its ordered positive pairs and numbers of negatives."""

    anchors: Indices
    """P, ascending."""
    positives: Indices
    """P, ascending within an anchor."""
    positives_of: Indices
    """B: how many images share the anchor's class, itself left out."""
    negatives_of: Indices
    """B: how many images have other classes."""

    @property
    def mean_positives(self) -> int:
        """How many positives an image has on average, rounded, but not to 0 while there are any.

        (Rounded to 0, the few pairs of a batch of mostly single images would find no negative.)
        """
        mean = float(self.positives_of.mean())
        return max(1, round(mean)) if mean > 0 else 0

    @property
    def whole_mean_positives(self) -> int:
        """The same average, rounded down, but not to 0 while there are any."""
        mean = float(self.positives_of.mean())
        return max(1, int(mean)) if mean > 0 else 0


def positive_pairs(labels: Tensor) -> PositivePairs:
    """The ordered pairs of different images of a class; none where no image has another class.

    Args:
        labels: B integers; on the CPU, else the host waits for the copy.
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
    """B x B booleans on a device: which images share a class. Each shares its own."""
    classes = move(labels, device)
    return classes[:, None] == classes[None, :]


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all rows, with 1e-8 under the root, for finite gradients.

    By one matrix product, so the square of a distance has the absolute error of a float (1e-7 for unit
    vectors).

    Args:
        embeddings: B x D.

    Returns:
        B x B, at least 1e-4, on the diagonal, too.
    """
    products_BB = embeddings @ embeddings.T
    squares_B = embeddings.square().sum(dim=1)
    squared_BB = squares_B[:, None] + squares_B[None, :] - 2 * products_BB
    return (squared_BB.clamp(min=0) + 1e-8).sqrt()


def beyond_cutoff_first(distances: Tensor, same_class: Tensor, cutoff: float) -> Tensor:
    """Scores that rank negatives: those beyond the cutoff, closest first; then the rest, farthest first.

    So where too few negatives lie beyond the cutoff, those nearest to it from below fill up.

    Args:
        distances: B x B, finite.
        same_class: B x B booleans.
        cutoff: a distance.

    Returns:
        B x B: the higher, the sooner to be taken; -inf for images of the anchor's class.
    """
    below_all = -distances.amax() - 1
    scores = torch.where(distances > cutoff, -distances, distances - cutoff + below_all)
    return scores.masked_fill(same_class, -torch.inf)


def semihard(distances: Tensor, same_class: Tensor, positive_distances: Tensor) -> Tensor:
    """The closest negative that is farther than the positive, or else the farthest negative.

    Args:
        distances: T x B finite distances from each triplet's anchor.
        same_class: T x B booleans; each row has a false.
        positive_distances: T.

    Returns:
        T indices into the batch.
    """
    farther = (distances > positive_distances[:, None]) & ~same_class
    closest, index = distances.masked_fill(~farther, torch.inf).min(dim=1)
    farthest = distances.masked_fill(same_class, -torch.inf).argmax(dim=1)
    return torch.where(closest < torch.inf, index, farthest)


def to_device(indices: list[Indices], device: torch.device) -> tuple[Tensor, ...]:
    """Index arrays of equal length as tensors on a device, by one copy for which the host does not wait."""
    return move(torch.from_numpy(np.stack(indices)), device).unbind(0)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, for which the host does not wait, unless the device is the host itself.

    (A copy to the CPU that is not waited for can be read before it is complete. From memory that is not page-locked the
    driver may wait for all work before it copies.)
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def _finite(distances: Tensor) -> Tensor:
    """Distances that can be ranked: NaN counts as 0, and nothing is infinite, as masks are."""
    largest = torch.finfo(distances.dtype).max / 4
    return distances.nan_to_num(nan=0.0).clamp(max=largest)


def _gumbel_like(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise. The K largest of log-weights plus noise are K draws without replacement, in their order.

    Same law as torch.multinomial's, for which the host would wait.
    """
    noise = torch.empty(weights.shape, dtype=weights.dtype, device=generator.device)
    noise = move(noise.exponential_(generator=generator), weights.device)
    # A draw of exactly 0 would make an infinite score.
    return -noise.clamp(min=torch.finfo(noise.dtype).tiny).log()


def _deal(pairs: PositivePairs, scores: Tensor, wanted: Indices, generator: torch.Generator) -> Triplets:
    """So many triplets an anchor: its positives in turn, and its negatives with the highest scores in turn.

    Args:
        pairs: of the batch.
        scores: B x B, -inf for images of the anchor's class and finite for the others.
        wanted: B, how many triplets each anchor has; 0 for one without positives.
        generator: says with which of its positives an anchor begins that does not take each of them once.
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
    """One triplet an anchor; `name` says which positive (H, E, R) and which negative (HN, SHN)."""
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
    """Scores of which the highest names the positive: hard (far), easy (close) or random."""
    if kind == "R":
        return _gumbel_like(distances, generator)
    return distances if kind == "H" else -distances
