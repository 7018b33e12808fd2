"""Settings that have no effect because of other settings.

Commands name them before anything runs, so that no setting is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from dcml_tune.config.trial import PROXY_CRITERIA, SAMPLED_CRITERIA, TrialConfig

OWN_SETTINGS: dict[str, tuple[str, ...]] = {
    "npairs": ("alpha", "lr_alpha"),
    "multi_similarity": ("ms_alpha", "ms_beta", "ms_base", "ms_epsilon"),
    "supcon": ("supcon_temperature",),
    "contrastive": ("contrastive_pos_margin", "contrastive_neg_margin"),
    "proxy_anchor": ("pa_alpha", "pa_delta"),
    "normalized_softmax": ("softmax_temperature",),
    "arcface": ("arcface_margin", "arcface_scale"),
}
"""Settings that act with a single criterion."""

Rule = tuple[tuple[str, ...], bool, str]
"""Names of settings, whether they have no effect, and why."""


_NONE: Mapping[str, str] = MappingProxyType({})


def unused_settings(
    config: TrialConfig, given: Collection[str] | None = None, replaced: Mapping[str, str] = _NONE
) -> list[str]:
    """One line for each setting that differs from its default and has no effect.

    Args:
        config: settings of a trial.
        given: names of the settings to consider; None: all.
        replaced: settings that have no effect in this run, with the reason (`replaced_by_model`).

    Example:
        >>> unused_settings(TrialConfig(nb_clusters=1, masking_lambda=0.5))
        ['masking_lambda=0.5 has no effect: nb_clusters=1 has no other mask to overlap with']
    """
    changed = config.non_default()
    found = {
        name: why
        for name, why in {**replaced, **unused_reasons(config)}.items()
        if name in changed and (given is None or name in given)
    }
    return [f"{name}={changed[name]} has no effect: {why}" for name, why in found.items()]


def unused_reasons(config: TrialConfig) -> dict[str, str]:
    """The settings that have no effect whatever their value is, with the reason."""
    found: dict[str, str] = {}
    for names, does_nothing, why in (rule for group in GROUPS for rule in group(config)):
        for name in names if does_nothing else ():
            found.setdefault(name, why)
    return found


def replaced_by_model(*, restart: bool) -> dict[str, str]:
    """The settings that have no effect in a training that continues a trained model, with the reason.

    Args:
        restart: whether it takes only the weights of the model; its masks are then its own.
    """
    why = "training continues the model of --checkpoint"
    return dict.fromkeys(("init_method", *(() if restart else ("masking_init",))), why)


def _of_masks(config: TrialConfig) -> list[Rule]:
    single = config.nb_clusters == 1
    still = single and config.masks_freeze_one_cluster  # one mask, which keeps its initial value
    plain = still and config.masking_init == "ones"  # multiplication by it changes nothing
    full = config.force_full_embedding_epoch == 0 and not single
    summed = config.masks_sum_for_full_emb  # the full embedding is multiplied with the sum of the initial masks
    return [
        (("masking_lambda", "mask_lr_mult", "mask_wd_mult", "masking_init", "mask_relu", "masks_freeze_one_cluster"),
         config.fixed_mask, "fixed_mask=True trains no masks"),
        (("masking_lambda", "mask_lr_mult", "mask_wd_mult"), full, "force_full_embedding_epoch=0 trains no masks"),
        (("mask_relu",), full and not summed, "force_full_embedding_epoch=0 uses no masks"),
        (("fixed_mask",), single, "nb_clusters=1 has one mask, of ones"),
        (("masking_lambda",), single, "nb_clusters=1 has no other mask to overlap with"),
        (("mask_lr_mult", "mask_wd_mult"), still, "nb_clusters=1 trains no masks unless masks_freeze_one_cluster=False"),
        (("mask_relu", "force_full_embedding_epoch"), plain, "nb_clusters=1 has one mask, of ones, that is not trained"),
        (("masks_freeze_one_cluster",), not single and config.hierarchy_method == "none",
         "hierarchy_method=none never has one cluster"),
        (("mask_wd_mult",), config.weight_decay == 0, "weight_decay=0"),
    ]  # fmt: skip


def _of_loss(config: TrialConfig) -> list[Rule]:
    criterion = config.criterion
    # For every loss, distanceweighted draws only negatives that have a margin loss, which beta and margin decide.
    drawn = criterion in SAMPLED_CRITERIA and config.sampler == "distanceweighted"
    return [
        (("sampler", "cutoff"), criterion not in SAMPLED_CRITERIA, f"criterion={criterion} samples no triplets"),
        (
            ("cutoff",),
            config.sampler not in ("distanceweighted", "easypeasy"),
            f"sampler={config.sampler} has no cutoff",
        ),
        *[(names, criterion != owner, f"only criterion={owner} uses it") for owner, names in OWN_SETTINGS.items()],
        (("proxy_lr_mult",), criterion not in PROXY_CRITERIA, f"criterion={criterion} has no proxies"),
        (("nu", "lr_beta"), criterion != "margin", f"criterion={criterion} has no beta"),
        (("beta",), criterion != "margin" and not drawn, f"criterion={criterion} has no beta"),
        (("nu",), config.lr_beta == 0, "lr_beta=0 trains no beta"),
        (("soft_loss",), not criterion.startswith("triplet"), f"criterion={criterion} has no soft form"),
        (("margin",), not criterion.startswith(("margin", "triplet")), f"criterion={criterion} does not use it"),
        (
            ("margin",),
            criterion.startswith("triplet") and config.soft_loss and not drawn,
            "the soft form has no margin",
        ),
    ]


def _of_batches(config: TrialConfig) -> list[Rule]:
    sampler = config.batch_sampler
    return [
        (("small_class_action",), sampler != "adaptbalanced", f"batch_sampler={sampler} does not use it"),
        (("num_samples_per_class",), sampler == "randombatch", "batch_sampler=randombatch takes any images"),
    ]


def _of_schedule(config: TrialConfig) -> list[Rule]:
    single = config.nb_clusters == 1
    freezes = config.mod_epoch_freeze > 0 and (not single or config.freeze_without_division)
    return [
        (("lr_decay", "lr_step", "lr_gamma"), config.nb_epochs == 1, "nb_epochs=1 leaves no epoch for a decay"),
        (("lr_step", "lr_gamma"), config.lr_decay == "cosine", "lr_decay=cosine decays without steps"),
        (("lr_gamma",), config.lr_step is None, "lr_step=None never decays the learning rate"),
        (("freeze_without_division",), not single or config.mod_epoch_freeze == 0,
         "it acts only when nb_clusters=1 and mod_epoch_freeze > 0"),
        (("mod_epoch_freeze",), single and not config.freeze_without_division,
         "nb_clusters=1 never freezes the backbone unless freeze_without_division=True"),
        (("mod_epoch",), single and not freezes, "nb_clusters=1 never divides"),
        (("hierarchy_method", "stop_recluster", "reassign_random", "clustering_method", "clustering_random_state",
          "penultimate_for_clusters", "backend"), single, "nb_clusters=1 leaves nothing to cluster"),
    ]  # fmt: skip


def _of_data(config: TrialConfig) -> list[Rule]:
    return [
        (
            ("randaugment_ops", "randaugment_magnitude"),
            config.album != "RandAugment",
            "it acts only with album=RandAugment",
        ),
        (("val_share",), config.protocol == "paper", "protocol=paper holds no classes out"),
        (("split_seed", "fold"), config.held_out_share == 0, "no classes are held out"),
        (("allow_partial",), config.dataset in ("emoji", "folder"), f"{config.dataset} has no published counts"),
        (("strict",), config.dataset == "emoji", "emoji has no classes with a single image"),
    ]


GROUPS: tuple[Callable[[TrialConfig], list[Rule]], ...] = (_of_masks, _of_loss, _of_batches, _of_schedule, _of_data)
"""The rules, in groups; `search_spaces` evaluates a group as soon as the settings that it reads have values."""
