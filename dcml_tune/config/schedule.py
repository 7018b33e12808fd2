"""EpochPlan: what happens in an epoch, as a pure function of the epoch and the settings.

Source: TPAMI 2021, algorithm 1 and section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dcml_tune.config.trial import TrialConfig


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """What happens in one epoch. It is computed for each epoch, so a checkpoint contains no schedule."""

    epoch: int
    """Number of the epoch, from 0."""
    nb_clusters: int
    """Number of clusters, and so of learners, that train in this epoch: after its division, if it has one."""
    recluster: bool
    """Recompute the partition before training. Always False while there is a single cluster."""
    divide: bool
    """Recluster into half of `nb_clusters`, then split every cluster in two."""
    merge: bool
    """Recluster into half of the previous number of clusters, and average the masks in pairs (`bot_top`)."""
    backbone_frozen: bool
    """The backbone is not trained."""
    full_embedding: bool
    """The full embedding is trained; the masks are not."""
    lr_factor: float
    """Factor of the decay, for every learning rate; above 0 in every epoch of a training."""

    @classmethod
    def at(cls, epoch: int, config: TrialConfig) -> EpochPlan:
        """The plan of an epoch.

        Example:
            >>> config = TrialConfig(nb_clusters=4, mod_epoch=2, nb_epochs=10)
            >>> [EpochPlan.at(e, config).nb_clusters for e in range(6)]
            [1, 1, 2, 2, 4, 4]

        Raises:
            ValueError: if `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"`epoch >= 0` must hold, but got epoch={epoch}")
        due = epoch % config.mod_epoch == 0
        clusters = _clusters(epoch, config)
        before = _clusters(epoch - 1, config) if epoch > 0 else clusters
        changes = clusters != before
        final = epoch > config.epoch_of_full_division
        phase = config.force_full_embedding_epoch
        freezes = config.nb_clusters > 1 or config.freeze_without_division
        # The backbone is frozen only after a reclustering; without one it trains in all epochs of the period.
        begun = epoch - epoch % config.mod_epoch
        stopped = config.stop_recluster and config.nb_clusters > 1 and begun > config.epoch_of_full_division
        return cls(
            epoch=epoch,
            nb_clusters=clusters,
            recluster=due and max(clusters, before) > 1 and not (config.stop_recluster and final),
            divide=changes and clusters > before,
            merge=changes and clusters < before,
            backbone_frozen=epoch < config.warmup_epochs
            or (freezes and not stopped and epoch % config.mod_epoch < config.mod_epoch_freeze),
            full_embedding=phase is not None and epoch >= phase,
            lr_factor=_lr_factor(epoch, config),
        )

    def measures(self) -> dict[str, float]:
        """Return what is logged of the plan, by the names that docs/mlflow.md lists."""
        return {
            "clusters/count": float(self.nb_clusters),
            "phase/full_embedding": float(self.full_embedding),
            "phase/backbone_frozen": float(self.backbone_frozen),
        }

    @property
    def phase(self) -> str:
        """Name of the phase for tables: `1 cluster`, `4 clusters` or `full embedding`."""
        if self.full_embedding:
            return "full embedding"
        return "1 cluster" if self.nb_clusters == 1 else f"{self.nb_clusters} clusters"


def _lr_factor(epoch: int, config: TrialConfig) -> float:
    """Factor of the learning rates in an epoch.

    Source of the cosine: Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, without restarts.
    """
    if config.lr_decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(epoch / config.nb_epochs, 1.0)))
    return 1.0 if config.lr_step is None else config.lr_gamma ** (epoch // config.lr_step)


def _clusters(epoch: int, config: TrialConfig) -> int:
    """Number of clusters that train in an epoch."""
    periods = epoch // config.mod_epoch
    if config.hierarchy_method == "none":
        return config.nb_clusters
    if config.hierarchy_method == "bot_top":
        return max(1, config.nb_clusters >> periods)
    # The shift is limited: a larger one would only build a huge integer.
    return min(config.nb_clusters, 1 << min(periods, config.nb_clusters.bit_length()))
