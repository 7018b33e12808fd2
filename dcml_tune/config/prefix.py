"""Shared prefixes: which settings acted in the first epochs of a trial.

Two trials whose acting settings are equal after e epochs have, with the same data and code, the same state after e epochs.
So the epochs need to be computed once.

A setting counts from the first epoch on unless this module knows when it acts. A new setting is therefore never left out
by mistake; the price is that fewer epochs are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig

SCHEDULED = frozenset(
    {
        "nb_epochs",
        "nb_clusters",
        "mod_epoch",
        "mod_epoch_freeze",
        "freeze_without_division",
        "force_full_embedding_epoch",
        "hierarchy_method",
        "stop_recluster",
        "warmup_epochs",
        "lr_decay",
        "lr_step",
        "lr_gamma",
    }
)
"""Settings that act through the plans of the epochs alone (`EpochPlan.at`).

The number of masks of a new model is the number of clusters in the plan of epoch 0. A test checks that no other code of a
training reads them, apart from `nb_clusters` (`_initialises_by_cluster`).
"""

MASKS = frozenset({"mask_lr_mult", "mask_wd_mult"})
"""Settings that act in epochs that train masks. The optimiser skips masks without gradient."""

SEVERAL_CLUSTERS = frozenset({"masking_lambda"})
"""Settings that act in epochs with several clusters: in the loss, or in the measure `train/loss_masks`."""

RECLUSTERING = frozenset(
    {"reassign_random", "clustering_method", "clustering_random_state", "penultimate_for_clusters", "backend"}
)
"""Settings that act in epochs that recompute the partition."""

AVERAGING = frozenset({"average_epochs"})
"""Settings that act through the number of epochs over which the measured weights are averaged so far."""

CONDITIONAL = SCHEDULED | MASKS | SEVERAL_CLUSTERS | RECLUSTERING | AVERAGING
"""Settings whose value may not have acted yet after some epochs."""


def acting_settings(config: TrialConfig, epochs: int) -> dict[str, Any]:
    """Return everything in a configuration that had an influence on the first epochs, as plain data.

    Args:
        config: settings of the trial.
        epochs: number of epochs, from 1 to `config.nb_epochs`.

    Example:
        >>> two, four = (TrialConfig(nb_clusters=2, mod_epoch=mod) for mod in (2, 4))
        >>> [acting_settings(two, e) == acting_settings(four, e) for e in (1, 2, 3)]
        [True, True, False]
    """
    plans = [EpochPlan.at(epoch, config) for epoch in range(epochs)]
    found = _from_the_start(config)
    for plan in plans:
        found |= {name: getattr(config, name) for name in acting_in(plan, config)}
    if (averaged := _averaged(config, epochs)) > 1:
        found |= {"averaged": averaged}
    return {**found, "plans": [list(astuple(plan)) for plan in plans]}


MEASURING = frozenset({"average_epochs", "pretrained_share"})
"""Settings that act on the weights that are measured alone: training is the same with and without."""

SHORT = 12
"""Trainings of at most so many epochs may leave a state after each epoch, so that another trial can measure all of them."""


def training_settings(config: TrialConfig, epochs: int) -> dict[str, Any]:
    """Return everything in a configuration that had an influence on the trained weights of the first epochs, as plain data."""
    return acting_settings(as_trained(config), epochs)


def as_trained(config: TrialConfig) -> TrialConfig:
    """Return the configuration of the same training whose trained weights are measured as they are.

    Example:
        >>> as_trained(TrialConfig(average_epochs=3, pretrained_share=0.5)) == TrialConfig()
        True
    """
    return config.changed(average_epochs=1, pretrained_share=0.0)


def acting_in(plan: EpochPlan, config: TrialConfig) -> frozenset[str]:
    """Return the names of the conditional settings that act in an epoch, apart from those in its plan and in averages."""
    still = plan.full_embedding or config.fixed_mask or (plan.nb_clusters == 1 and config.masks_freeze_one_cluster)
    groups = (
        (MASKS, not still),
        (SEVERAL_CLUSTERS, plan.nb_clusters > 1),
        (RECLUSTERING, plan.recluster),
    )
    return frozenset().union(*(names for names, acts in groups if acts))


def common_epochs(first: TrialConfig, second: TrialConfig) -> int:
    """Return the number of first epochs that are the same computation with both configurations.

    It is the largest e for which `acting_settings(first, e) == acting_settings(second, e)`.

    Example:
        >>> common_epochs(TrialConfig(nb_clusters=2, mod_epoch=2), TrialConfig(nb_clusters=2, mod_epoch=4))
        2
    """
    if _from_the_start(first) != _from_the_start(second):
        return 0
    last = min(first.nb_epochs, second.nb_epochs)
    return next((epoch for epoch in range(last) if not _same_epoch(epoch, first, second)), last)


def _same_epoch(epoch: int, first: TrialConfig, second: TrialConfig) -> bool:
    plan = EpochPlan.at(epoch, first)
    if plan != EpochPlan.at(epoch, second) or _averaged(first, epoch + 1) != _averaged(second, epoch + 1):
        return False
    return all(getattr(first, name) == getattr(second, name) for name in acting_in(plan, first))


def _averaged(config: TrialConfig, epochs: int) -> int:
    """Number of epochs whose weights the measured ones are the mean of, after some epochs."""
    return min(config.average_epochs, epochs)


def _from_the_start(config: TrialConfig) -> dict[str, Any]:
    """The settings that act from the first epoch on."""
    settings: Mapping[str, Any] = config.model_dump()
    found = {name: value for name, value in settings.items() if name not in CONDITIONAL}
    return found | ({"nb_clusters": config.nb_clusters} if _initialises_by_cluster(config) else {})


def _initialises_by_cluster(config: TrialConfig) -> bool:
    """Return whether the embedding layer is initialised separately for each cluster's slice of it."""
    return config.init_method not in (None, "pt_default", "pca")
