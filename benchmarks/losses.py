"""Speed of the loss of a batch, forward and backward, compared with pytorch-metric-learning and loops over masks.

    python benchmarks/losses.py [--repeats 20] [--calls 5]

One thread, float32, embeddings of 512 dimensions that both sides first normalise to unit length.

Ours is `MetricLoss` with the sampler distanceweighted and the margin loss, and `mask_overlap`. The references are
DistanceWeightedMiner and MarginLoss of pytorch-metric-learning, and the overlap of the masks computed pair by pair: the
mean of the scalar products of two rectified masks, each divided by its norm. The speed of such a loop depends on how it
is written, so there are three: one over ordered pairs, as the formula is written; one over each pair once; and one that
normalises each mask only once. All of them compute the value of `mask_overlap`.

Both miners draw negatives from the same distribution. The reference draws one more for each anchor, and with
replacement. The values of the two losses are therefore compared on the same triplets (`differences`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

import torch
import torch.nn.functional as F
from measure import Row, alternate, middle_line, ratio_line, show
from pytorch_metric_learning.losses import MarginLoss
from pytorch_metric_learning.miners import DistanceWeightedMiner
from torch import Tensor

from dcml_tune.config.trial import TrialConfig
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.losses.functional import margin_loss, mask_overlap

DIMENSIONS, LATENT = 512, 32


@dataclass(frozen=True)
class Batch:
    """Leaves of a graph, and the classes of the images."""

    embeddings: Tensor
    labels: Tensor
    masks: Tensor

    @classmethod
    def drawn(cls, size: int, images_a_class: int, masks: int) -> Batch:
        """Embeddings in which classes stand apart, but not all by more than the miners look at; masks around 1."""
        generator = torch.Generator().manual_seed(size + images_a_class)
        labels = torch.arange(size) // images_a_class
        centres = torch.randn(int(labels[-1]) + 1, LATENT, generator=generator)
        latent = centres[labels] + 0.7 * torch.randn(size, LATENT, generator=generator) + 0.5
        spread = torch.randn(LATENT, DIMENSIONS, generator=generator)
        return cls(
            embeddings=(latent @ spread).requires_grad_(),
            labels=labels,
            masks=(1 + torch.randn(masks, DIMENSIONS, generator=generator)).requires_grad_(),
        )

    def backward(self, loss: Tensor) -> None:
        """Gradients of the leaves, which are forgotten."""
        loss.backward()
        self.embeddings.grad = self.masks.grad = None


class Ours:
    """The trainer's loss of a batch."""

    def __init__(self) -> None:
        self.config = TrialConfig(dataset="folder", sampler="distanceweighted")
        self.loss = MetricLoss(self.config, nb_classes=1)
        self.generator = torch.Generator().manual_seed(0)

    def metric(self, batch: Batch) -> Tensor:
        """The loss without the masks."""
        return self.loss(F.normalize(batch.embeddings, dim=1), batch.labels, self.generator)


class Reference:
    """The same loss of another library."""

    def __init__(self, config: TrialConfig) -> None:
        self.miner = DistanceWeightedMiner(cutoff=config.cutoff, nonzero_loss_cutoff=config.nonzero_loss_cutoff)
        self.loss = MarginLoss(margin=config.margin, nu=config.nu, beta=config.beta)

    def metric(self, batch: Batch) -> Tensor:
        """The loss without the masks."""
        return self.loss(batch.embeddings, batch.labels, self.miner(batch.embeddings, batch.labels))


def ordered_pairs(masks: Tensor) -> Tensor:
    """The mean over ordered pairs of different masks."""
    pairs = ((one, other) for one, other in product(range(len(masks)), repeat=2) if one != other)
    return torch.stack([_cosine(masks[one], masks[other]) for one, other in pairs]).mean()


def pairs_once(masks: Tensor) -> Tensor:
    """The same value: the scalar product is symmetric."""
    return torch.stack([_cosine(one, other) for one, other in combinations(masks, 2)]).mean()


def masks_once(masks: Tensor) -> Tensor:
    """The same value; each mask is normalised once, too."""
    unit = [_unit(mask) for mask in masks]
    return torch.stack([torch.dot(one, other) for one, other in combinations(unit, 2)]).mean()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.dot(_unit(one), _unit(other))


def _unit(mask: Tensor) -> Tensor:
    return F.normalize(F.relu(mask), dim=0)


# What the loops are called, the loops, and the goals that ours has against them.
LOOPS = {
    "ordered pairs": (ordered_pairs, "40"),
    "each pair once": (pairs_once, "40"),
    "each pair once, each mask normalised once": (masks_once, ""),
}


def differences(size: int, images_a_class: int, masks: int) -> dict[str, float]:
    """By what share of it ours differs from a reference where it must not, on the same triplets and masks."""
    batch, ours = Batch.drawn(size, images_a_class, masks), Ours()
    config, theirs = ours.config, Reference(ours.config)
    triplets = theirs.miner(batch.embeddings, batch.labels)
    expected = theirs.loss(batch.embeddings, batch.labels, triplets)
    unit = F.normalize(batch.embeddings, dim=1)
    found = margin_loss(unit, batch.labels, triplets, beta=config.beta, margin=config.margin, nu=config.nu)
    overlap = mask_overlap(batch.masks)
    pairs = {"margin loss": (found, expected)}
    pairs |= {name: (overlap, loop(batch.masks)) for name, (loop, _) in LOOPS.items()}
    return {name: abs(float((own / reference).detach()) - 1) for name, (own, reference) in pairs.items()}


def measured(options: argparse.Namespace) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    ours = Ours()
    theirs = Reference(ours.config)

    def compare(part: str, own: Callable[[], None], reference: Callable[[], None], goal: str) -> Row:
        works = {
            "ours": lambda: [own() for _ in range(options.calls)],
            "reference": lambda: [reference() for _ in range(options.calls)],
        }
        alternate(works, 1)
        taken = alternate(works, options.repeats)
        return ratio_line(part, taken["ours"], taken["reference"], goal=goal, calls=options.calls)

    rows = []
    batch = Batch.drawn(options.batch, 2, options.masks)
    for name, (loop, goal) in LOOPS.items():
        rows.append(
            compare(
                f"batch {options.batch}, 2 a class; {options.masks} masks, {name}",
                lambda: batch.backward(ours.metric(batch) + mask_overlap(batch.masks)),
                lambda loop=loop: batch.backward(theirs.metric(batch) + loop(batch.masks)),
                goal,
            )
        )
    alone = []
    for size, images in product((options.batch, options.large_batch), (2, 4)):
        own = Batch.drawn(size, images, masks=1)
        alone.append(
            compare(
                f"batch {size}, {images} a class; no masks",
                lambda own=own: own.backward(ours.metric(own)),
                lambda own=own: own.backward(theirs.metric(own)),
                "3",
            )
        )
    return [*rows, *alone, middle_line("middle of those without masks", alone, goal="5")]


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=80)
    parser.add_argument("--large-batch", type=int, default=512)
    parser.add_argument("--masks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5, help="calls in each repeat; the table has the time of one call")
    options = parser.parse_args(argv)
    rows = measured(options)
    show("mining and margin loss, with and without the overlap of masks: forward and backward, one thread", rows)
    return rows


if __name__ == "__main__":
    main()
