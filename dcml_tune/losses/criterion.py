"""MetricLoss: the metric loss of a trial, with its miner and its trained parameters."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dcml_tune.config.trial import SAMPLED_CRITERIA, TrialConfig
from dcml_tune.losses import functional, pair_losses
from dcml_tune.losses.miners import mine


class MetricLoss(nn.Module):
    """The `criterion` of a configuration as a module.

    Attributes:
        beta: boundary of the margin loss; a parameter with one value per class if `lr_beta` > 0.
        alpha: scale of the similarities in the N-pairs loss; a parameter.
    """

    def __init__(self, config: TrialConfig, nb_classes: int) -> None:
        """Create the parameters of the loss.

        Args:
            config: settings of the trial.
            nb_classes: number of training classes; labels are 0 .. nb_classes - 1.
        """
        super().__init__()
        self.config = config
        if config.criterion == "margin" and config.lr_beta > 0:
            self.beta: Tensor | float = nn.Parameter(torch.full((nb_classes,), config.beta))
        else:
            self.beta = config.beta
        if config.criterion == "npairs":
            self.alpha = nn.Parameter(torch.tensor(config.alpha))

    def trained(self) -> dict[str, float]:
        """Values of the trained parameters by name of measure: alpha, or mean, minimum and maximum of beta."""
        if self.config.criterion == "npairs":
            return {"train/alpha": self.alpha.item()}
        if not isinstance(self.beta, nn.Parameter):
            return {}
        beta = self.beta.detach()
        found = torch.stack([beta.mean(), beta.min(), beta.max()]).tolist()
        return dict(zip(("train/beta", "train/beta_min", "train/beta_max"), found, strict=True))

    def forward(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the loss of a batch.

        Args:
            embeddings: B x D, of unit length.
            labels: B integers, on the CPU.
            generator: source of the random choices of the miner.
        """
        config = self.config
        if config.criterion in SAMPLED_CRITERIA:
            return self._sampled(embeddings, labels, generator)
        match config.criterion:
            case "triplet_semihard":
                return functional.triplet_semihard_loss(embeddings, labels, margin=config.margin, soft=config.soft_loss)
            case "triplet_all":
                return functional.triplet_all_loss(embeddings, labels, margin=config.margin, soft=config.soft_loss)
            case "npairs":
                return functional.npairs_loss(embeddings, labels, alpha=self.alpha)
            case "multi_similarity":
                return pair_losses.multi_similarity_loss(
                    embeddings,
                    labels,
                    alpha=config.ms_alpha,
                    beta=config.ms_beta,
                    base=config.ms_base,
                    epsilon=config.ms_epsilon,
                )
            case "supcon":
                return pair_losses.supcon_loss(embeddings, labels, temperature=config.supcon_temperature)
            case "contrastive":
                margins = {"pos_margin": config.contrastive_pos_margin, "neg_margin": config.contrastive_neg_margin}
                return pair_losses.contrastive_loss(embeddings, labels, **margins)
            case _:
                return functional.kantorov_margin_loss(embeddings, labels)

    def _sampled(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        config = self.config
        triplets = mine(
            config.sampler,
            embeddings.detach(),
            labels,
            generator=generator,
            cutoff=config.cutoff,
            nonzero_loss_cutoff=config.nonzero_loss_cutoff,
        )
        if config.criterion == "triplet":
            return functional.triplet_loss(embeddings, labels, triplets, margin=config.margin, soft=config.soft_loss)
        beta = cast(Tensor, self.beta)
        return functional.margin_loss(embeddings, labels, triplets, beta=beta, margin=config.margin, nu=config.nu)
