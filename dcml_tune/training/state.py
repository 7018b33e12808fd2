"""TrainerState: everything that a trainer needs to continue after its last completed epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcml_tune.training.optimizer import load_moments, moments, replace_masks
from dcml_tune.training.step import TrainStep
from dcml_tune.training.trial_data import Indices
from dcml_tune.utils.stored import Scalar

Weights = dict[str, Tensor]
"""Tensors of a state dict by name, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class BestEpoch:
    """The best epoch of a trial so far."""

    epoch: int
    """Number of epochs that were complete when it was reached."""
    value: float | None
    """Value of the metric; None when no classes are held out, and the last epoch counts as the best."""
    weights: Weights
    """State dict of the model that was measured, on the CPU."""
    partition: Indices
    """Cluster of each training image; -1 for an image that is left out."""

    def is_beaten_by(self, value: float) -> bool:
        """Return whether a value is better. NaN is worse than any number; of equal values the first is kept."""
        return self.value is None or math.isnan(self.value) or value > self.value


@dataclass(frozen=True, kw_only=True)
class LearnedTensors:
    """What training has changed, as tensors by name."""

    model: Mapping[str, Tensor]
    criterion: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """State of the optimiser, named PARAMETER:FIELD."""

    @classmethod
    def of(cls, step: TrainStep) -> LearnedTensors:
        """Return the tensors of a train step; they share its memory."""
        return cls(
            model=step.model.state_dict(), criterion=step.criterion.state_dict(), moments=moments(step.optimizer)
        )

    def load_into(self, step: TrainStep) -> None:
        """Copy the tensors into a train step of the same configuration; it may have another number of masks."""
        step.model.load_state_dict(dict(self.model))
        step.criterion.load_state_dict(dict(self.criterion))
        replace_masks(step.optimizer, step.model.masks)
        load_moments(step.optimizer, dict(self.moments))


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """The state of a trainer between two epochs."""

    config: dict[str, Scalar]
    """Settings of the trial."""
    epoch: int
    """Number of epochs completed."""
    history: list[float]
    """Value of the metric after each epoch."""
    best: BestEpoch | None
    partition: Indices
    """Cluster of each training image; -1 for an image that is left out."""
    assignment: Indices | None
    """Cluster of each training image as k-means found it, which the next reclustering is matched with."""
    learned: LearnedTensors
    kept: Weights = field(default_factory=dict)
    """Copies of earlier weights, as `MeasuredWeights.tensors` returns them."""


def copied_to_cpu(tensors: Mapping[str, Tensor]) -> Weights:
    """Return copies that do not change when training continues."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def to_array(tensor: Tensor) -> Indices:
    """Return a copy of a tensor of indices."""
    array: Indices = tensor.cpu().numpy().copy()
    assert tensor.dtype == torch.int64
    return array


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
