"""Updates: the updates of an epoch, of one process or of one of several ranks; and the loader of their batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dcml_tune import data
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import BatchLoader
from dcml_tune.training.overlap import Steps, finish
from dcml_tune.training.ranks.exchange import ALONE, Ranks
from dcml_tune.training.seeding import epoch_seed
from dcml_tune.training.state import LearnedTensors, under
from dcml_tune.training.step import TrainStep
from dcml_tune.training.trial_data import Indices, TrialData

TRAIN = "train"
"""Name of the order to train an epoch."""


class NonFiniteLossError(ArithmeticError):
    """Training has diverged: the loss of an epoch is not finite."""


@dataclass(frozen=True, kw_only=True)
class EpochLoss:
    """Means over the batches of an epoch, of all ranks."""

    loss: float
    overlap: float
    """Overlap of the masks where the loss includes it, else 0."""
    batches: int
    """Number of batches."""
    difference: float
    """Largest difference of a parameter between two ranks after the epoch."""


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Trains the epochs of one trial, as one of its ranks.

    Batches are the same with any number of ranks: their images, and how these are augmented. With N ranks an update has the
    mean of the gradients of N consecutive batches. The pairs of a batch are mined by its rank.
    """

    config: TrialConfig
    data: TrialData
    step: TrainStep
    loader: BatchLoader
    ranks: Ranks = ALONE

    def steps(self, plan: EpochPlan, partition: Indices) -> Steps[EpochLoss]:
        """Train on one pass of batches, round robin over the learners.

        Batch-norm statistics that are learned are averaged over the ranks at the end; batches are normalised by their own.

        Args:
            plan: of the epoch.
            partition: (N,) cluster of each training image.

        Yields:
            True after each update.

        Returns:
            The means over the batches.

        Raises:
            NonFiniteLossError: if the loss is not finite; on rank 0 alone, which then ends the others.
            RankError: if another rank has failed, or has other parameters.
        """
        step, ranks, seed = self.step, self.ranks, self.config.seed
        if ranks.leads:
            order = {"do": TRAIN, "epoch": plan.epoch, "lr_scale": step.lr_scale}
            ranks.tell(order, _to_send(step, partition), step.device)
        step.set_trainable(plan)
        labels = self.data.labels[self.data.train]
        batches = data.epoch_batches(partition, labels, self.config, plan.epoch)
        generator = torch.Generator(step.device).manual_seed(epoch_seed(seed, plan.epoch, ranks.rank))
        total = torch.zeros(2, device=step.device)
        turns = ranks.turns([(learner, self.data.train[indices]) for learner, indices in batches])
        own = [turn.batch for turn in turns if turn.batch is not None]
        numbers = [turn.number for turn in turns]
        prepared = self.loader.epoch(own, seed=seed, epoch=plan.epoch, numbers=numbers[: len(own)])
        for turn in turns:
            if turn.batch is None:
                step.optimizer.zero_grad()
            else:
                learner, images, indices = next(prepared)
                total += step.gradients(images, self.data.labels[indices], learner, plan, generator)
            ranks.average_gradients(step.parameters(), turn.batches)
            step.optimizer.step()
            yield True
        assert next(prepared, None) is None, "a batch was left"
        difference = self._agree()
        loss, overlap = (ranks.add(total) / max(1, len(batches))).tolist()
        if ranks.rank == 0 and not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of epoch {plan.epoch} is not finite (base_lr={self.config.base_lr}, "
                f"mask_lr_mult={self.config.mask_lr_mult}); lower the learning rates"
            )
        return EpochLoss(loss=loss, overlap=overlap, batches=len(batches), difference=difference)

    def _agree(self) -> float:
        """Average learned batch-norm statistics, and check that all ranks have the same parameters."""
        if self.ranks.size == 1:
            return 0.0
        if self.config.bn_learnable:
            self.ranks.average(statistics(self.step.model))
        return self.ranks.check_equal(list(self.step.parameters()), "the parameters")

    def follow(self, plan: EpochPlan, tensors: dict[str, Tensor]) -> None:
        """Train an epoch that rank 0 has ordered, from its state."""
        parts = {part: under(f"{part}/", tensors) for part in ("model", "criterion", "moments")}
        LearnedTensors(**parts).load_into(self.step)
        finish(self.steps(plan, cast(Indices, tensors["partition"].cpu().numpy())))


def _to_send(step: TrainStep, partition: Indices) -> dict[str, Tensor]:
    learned = LearnedTensors.of(step)
    parts = {"model": learned.model, "criterion": learned.criterion, "moments": learned.moments}
    tensors = {f"{part}/{name}": value for part, each in parts.items() for name, value in each.items()}
    return tensors | {"partition": torch.from_numpy(partition)}


def statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of the batch-norm layers."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    found = [values for layer in layers for values in (layer.running_mean, layer.running_var)]
    return [values for values in found if values is not None]
