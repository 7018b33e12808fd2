"""Updates: model, metric loss and optimiser of a trial, and one update of them from a batch. It needs no images on disk."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import ToDevice
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.losses.functional import mask_overlap
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.optimizer import build_optimizer


class TrainStep:
    """What is trained, and how.

    Attributes:
        config: every setting of the trial.
        device: where model and loss are.
    """

    def __init__(self, config: TrialConfig, nb_classes: int, device: torch.device) -> None:
        """Build model, loss and optimiser; labels will be 0 .. nb_classes - 1."""
        self.config, self.device = config, device
        self.model = MaskedEmbedder(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion = MetricLoss(config, nb_classes).to(device)
        self.optimizer = build_optimizer(self.model, self.criterion, config)
        self._to_device = ToDevice(device)

    def _step(
        self, images: Tensor, labels: NDArray[np.int64], learner: int, plan: EpochPlan, generator: torch.Generator
    ) -> Tensor:
        """One update from a batch; returns (loss, mask overlap) without waiting for the device."""
        z_BD = self.model(self._to_device(images), None if plan.full_embedding else learner)
        metric = self.criterion(z_BD, torch.from_numpy(labels), generator)
        overlap = self._overlap(plan)
        loss = metric + self.config.masking_lambda * overlap
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return torch.stack([loss.detach(), overlap.detach()])

    def _overlap(self, plan: EpochPlan) -> Tensor:
        """The overlap of the masks, where it is part of the loss."""
        return mask_overlap(self.model.masks) if self._trains_masks(plan) else torch.zeros((), device=self.device)

    def _trains_masks(self, plan: EpochPlan) -> bool:
        """Whether there are several masks, and they take gradients."""
        return not plan.full_embedding and plan.nb_clusters > 1 and self.model.masks.requires_grad

    def _set_trainable(self, plan: EpochPlan) -> None:
        """Freeze what the plan freezes.

        Parameters without gradient are passed over by the optimiser, so Adam's moments of a frozen backbone stay.
        """
        config = self.config
        self.model.train()
        self.model.backbone.requires_grad_(not plan.backbone_frozen)
        single = plan.nb_clusters == 1 and config.masks_freeze_one_cluster
        self.model.masks.requires_grad_(not (plan.full_embedding or config.fixed_mask or single))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * plan.lr_factor
