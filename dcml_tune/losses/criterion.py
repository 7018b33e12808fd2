"""MetricLoss: the metric loss of a trial, with its miner and its trained parameters."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcml_tune.config.trial import PROXY_CRITERIA, SAMPLED_CRITERIA, TrialConfig
from dcml_tune.losses import functional, pair_losses, proxies
from dcml_tune.losses.miners import mine


class MetricLoss(nn.Module):
    """The `criterion` of a configuration as a module.

    Attributes:
        beta: boundary of the margin loss; a parameter with one value per class if `lr_beta` > 0.
        alpha: scale of the similarities in the N-pairs loss; a parameter.
        proxies: proxies of the classes that train; None if the loss has none.
    """

    def __init__(self, config: TrialConfig, nb_classes: int, trained: NDArray[np.int64] | None = None) -> None:
        """Create the parameters of the loss.

        Args:
            config: settings of the trial.
            nb_classes: number of classes, held out or not; labels are 0 .. nb_classes - 1.
            trained: labels of the classes that train, ascending; None: all.
        """
        super().__init__()
        self.config = config
        if config.criterion == "margin" and config.lr_beta > 0:
            self.beta: Tensor | float = nn.Parameter(torch.full((nb_classes,), config.beta))
        else:
            self.beta = config.beta
        if config.criterion == "npairs":
            self.alpha = nn.Parameter(torch.tensor(config.alpha))
        self.proxies: proxies.Proxies | None = None
        if config.criterion in PROXY_CRITERIA:
            classes = np.arange(nb_classes) if trained is None else trained
            self.proxies = proxies.Proxies(classes, config.sz_embedding, config.seed)

    def trained(self) -> dict[str, float]:
        """Values of the trained parameters by name of measure: alpha, or mean, minimum and maximum of beta."""
        if self.config.criterion == "npairs":
            return {"train/alpha": self.alpha.item()}
        if not isinstance(self.beta, nn.Parameter):
            return {}
        beta = self.beta.detach()
        found = torch.stack([beta.mean(), beta.min(), beta.max()]).tolist()
        return dict(zip(("train/beta", "train/beta_min", "train/beta_max"), found, strict=True))

    def forward(
        self, embeddings: Tensor, labels: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            embeddings: B x D, of unit length.
            labels: B integers, on the CPU.
            generator: source of the random choices of the miner.
            mask: the factors D that the embeddings were multiplied with; None: none. Proxies are multiplied with them, too.
        """
        config = self.config
        if self.proxies is not None:
            return self._of_proxies(embeddings, self.proxies(mask), self.proxies.of(labels))
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

    def _of_proxies(self, embeddings: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        match config.criterion:
            case "proxy_anchor":
                margins = {"alpha": config.pa_alpha, "delta": config.pa_delta}
                return proxies.proxy_anchor_loss(embeddings, vectors, targets, **margins)
            case "normalized_softmax":
                temperature = config.softmax_temperature
                return proxies.normalized_softmax_loss(embeddings, vectors, targets, temperature=temperature)
            case _:
                margins = {"margin": config.arcface_margin, "scale": config.arcface_scale}
                return proxies.arcface_loss(embeddings, vectors, targets, **margins)

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
