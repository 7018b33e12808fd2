"""TrainStep: the model, metric loss and optimiser of a trial, and one update of them. It reads no images from disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import ToDevice
from dcml_tune.losses.criterion import MetricLoss
from dcml_tune.losses.functional import mask_overlap
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.training.optimizer import build_optimizer


class TrainStep:
    """Everything that has trainable parameters, and the update of them.

    Attributes:
        config: settings of the trial.
        device: device of the model and of the loss.
        model: the embedder with its masks.
        criterion: the metric loss; some losses have parameters of their own.
        optimizer: Adam or AdamW over the parameters of both.
        lr_scale: factor of all learning rates; 1 unless several ranks train.
    """

    def __init__(
        self,
        config: TrialConfig,
        nb_classes: int,
        device: torch.device,
        trained: NDArray[np.int64] | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        """Build the model, the loss and the optimiser for labels 0 .. nb_classes - 1, or for those that train.

        Args:
            config: settings of the trial.
            nb_classes: number of classes.
            device: of the model and of the loss.
            trained: labels that train; None: all.
            compiled: whether `torch.compile` compiles the training of the backbone.
        """
        self.lr_scale = 1.0
        self.config, self.device = config, device
        self.model = MaskedEmbedder(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled:
            self.model.compile_backbone()
        self.criterion = MetricLoss(config, nb_classes, trained).to(device)
        self.optimizer = build_optimizer(self.model, self.criterion, config)
        self._to_device = ToDevice(device)

    def gradients(
        self, images: Tensor, labels: NDArray[np.int64], learner: int, plan: EpochPlan, generator: torch.Generator
    ) -> Tensor:
        """Compute the gradients of one batch, without synchronising with the device.

        Args:
            images: (B, 3, H, W) uint8, in host memory.
            labels: (B,) classes.
            learner: index of the mask to train; ignored in the full-embedding phase.
            plan: plan of the epoch.
            generator: random numbers of the sampler of pairs, on the device.

        Returns:
            (2,) loss and mask overlap, detached, on the device.
        """
        own = None if plan.full_embedding else learner
        self.optimizer.zero_grad()  # before the forward pass: CUDA graphs use the memory of the gradients again
        z_BD = self.model(self._to_device(images), own)
        metric = self.criterion(z_BD, torch.from_numpy(labels), generator, self.model.factors(own))
        overlap = self._overlap(plan)
        loss = metric + self.config.masking_lambda * overlap
        loss.backward()
        return torch.stack([loss.detach(), overlap.detach()])

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters of model and loss, frozen or not, in the order of the optimiser."""
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _overlap(self, plan: EpochPlan) -> Tensor:
        """Return the overlap of the masks where the loss includes it, else 0."""
        return mask_overlap(self.model.masks) if self.trains_masks(plan) else torch.zeros((), device=self.device)

    def trains_masks(self, plan: EpochPlan) -> bool:
        """Return whether there are several masks and they take gradients."""
        return not plan.full_embedding and plan.nb_clusters > 1 and self.model.masks.requires_grad

    def set_trainable(self, plan: EpochPlan) -> None:
        """Freeze the parameters that the plan freezes, and set the learning rates.

        The optimiser skips parameters without gradient, so Adam keeps the moments of a frozen backbone.
        """
        config = self.config
        self.model.train()
        self.model.backbone.requires_grad_(not plan.backbone_frozen)
        self.model.pooling.requires_grad_(not plan.backbone_frozen)
        single = plan.nb_clusters == 1 and config.masks_freeze_one_cluster
        self.model.masks.requires_grad_(not (plan.full_embedding or config.fixed_mask or single))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * plan.lr_factor * self.lr_scale
