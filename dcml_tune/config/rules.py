"""Rules between the settings of a trial: one function for each rule, which returns the error message or None.

A message has one line: setting and value, the rule, the remedy. Bounds of a single setting stand in its field
(`dcml_tune.config.fields`); settings that have no effect are in `dcml_tune.config.unused`.
"""

from __future__ import annotations

from collections.abc import Callable

from dcml_tune.config.fields import TrialFields

INIT_METHODS = (
    "pt_default",
    "pt_splitted",
    "xavier_uniform_GAIN",
    "xavier_normal_GAIN",
    "kaiming_normal_fan_in",
    "kaiming_normal_fan_out",
    "trunc_normal",
    "pca",
)
"""Values of `init_method`; GAIN stands for a number."""

_LARGEST_GAIN = 1000


def broken_rule(config: TrialFields) -> str | None:
    """The message of the first rule that `config` breaks, or None if it keeps all of them."""
    messages = (rule(config) for rule in RULES)
    return next((message for message in messages if message is not None), None)


def _clusters_are_a_power_of_two(config: TrialFields) -> str | None:
    clusters = config.nb_clusters
    if _is_power_of_two(clusters) or config.hierarchy_method == "none":
        return None
    return (
        f"nb_clusters={clusters}: must be a power of two with hierarchy_method={config.hierarchy_method}; "
        f"take {1 << (clusters.bit_length() - 1)} or {1 << clusters.bit_length()}, or hierarchy_method=none"
    )


def _full_embedding_follows_the_division(config: TrialFields) -> str | None:
    phase, divided = config.force_full_embedding_epoch, _end_of_division(config)
    if phase is None or phase == 0 or divided < phase:
        return None
    return (
        f"force_full_embedding_epoch={phase}: must be later than epoch {divided}, at which the division "
        f"ends (mod_epoch={config.mod_epoch} * log2(nb_clusters={config.nb_clusters})); "
        "lower nb_clusters or mod_epoch, or start the phase later"
    )


def _full_embedding_from_the_start_divides_nothing(config: TrialFields) -> str | None:
    clusters = config.nb_clusters
    if config.force_full_embedding_epoch != 0 or clusters == 1 or config.hierarchy_method == "none":
        return None
    return (
        f"force_full_embedding_epoch=0: leaves no epoch for the division into nb_clusters={clusters}; "
        "set nb_clusters=1 or hierarchy_method=none, or start the phase later"
    )


def _training_outlasts_the_division(config: TrialFields) -> str | None:
    last, divided = config.nb_epochs, _end_of_division(config)
    if divided < last:
        return None
    return (
        f"nb_epochs={last}: must be more than {divided}, the epoch at which the division ends "
        f"(mod_epoch={config.mod_epoch} * log2(nb_clusters={config.nb_clusters})); "
        "lower nb_clusters or mod_epoch, or train longer"
    )


def _backbone_trains(config: TrialFields) -> str | None:
    if config.mod_epoch_freeze == 0 or config.mod_epoch_freeze < config.mod_epoch:
        return None
    return (
        f"mod_epoch_freeze={config.mod_epoch_freeze}: must be less than mod_epoch={config.mod_epoch}, "
        "else the backbone never trains; lower it or raise mod_epoch"
    )


def _backbone_trains_after_the_warm_up(config: TrialFields) -> str | None:
    if config.warmup_epochs < config.nb_epochs:
        return None
    return (
        f"warmup_epochs={config.warmup_epochs}: must be less than nb_epochs={config.nb_epochs}, "
        "else the backbone never trains; lower it or raise nb_epochs"
    )


def _averaged_epochs_exist(config: TrialFields) -> str | None:
    if config.average_epochs <= config.nb_epochs:
        return None
    return f"average_epochs={config.average_epochs}: must be at most nb_epochs={config.nb_epochs}; lower it or raise nb_epochs"


def _replicas_divide_the_batch(config: TrialFields) -> str | None:
    if config.batch_size % config.num_replicas == 0 and config.images_per_batch >= 2:
        return None
    return (
        f"batch_size={config.batch_size}: must be a multiple of num_replicas={config.num_replicas}, at least twice as "
        "much; change one of them"
    )


def _samples_per_class_divide_the_batch(config: TrialFields) -> str | None:
    samples = config.num_samples_per_class
    if config.batch_sampler == "randombatch" or config.images_per_batch % samples == 0:
        return None
    return (
        f"batch_size={config.batch_size}: must be a multiple of num_samples_per_class="
        f"{samples}{_times_replicas(config)}; change one of them"
    )


def _batch_holds_two_classes(config: TrialFields) -> str | None:
    samples = config.num_samples_per_class
    if config.batch_sampler == "randombatch" or config.images_per_batch >= 2 * samples or not config.needs_pairs:
        return None
    return (
        f"batch_size={config.batch_size}: must hold at least two classes of num_samples_per_class="
        f"{samples} images{_times_replicas(config)}; raise it"
    )


def _batch_holds_positive_pairs(config: TrialFields) -> str | None:
    if config.batch_sampler == "randombatch" or config.num_samples_per_class >= 2 or not config.needs_pairs:
        return None
    return (
        f"num_samples_per_class={config.num_samples_per_class}: must be at least 2, else there is no "
        f"positive pair in a batch, which criterion={config.criterion} needs; raise it"
    )


def _crop_fits_the_image(config: TrialFields) -> str | None:
    if config.sz_resize >= config.sz_crop:
        return None
    return f"sz_crop={config.sz_crop}: must be at most sz_resize={config.sz_resize}; lower it or raise sz_resize"


def _fixed_masks_own_a_dimension(config: TrialFields) -> str | None:
    if not config.fixed_mask or config.sz_embedding >= config.nb_clusters:
        return None
    return (
        f"nb_clusters={config.nb_clusters}: must be at most sz_embedding={config.sz_embedding} with fixed_mask=True, "
        "so that each learner owns a dimension; lower it or raise sz_embedding"
    )


def _only_summed_masks_are_normalised(config: TrialFields) -> str | None:
    if config.masks_sum_for_full_emb or config.masks_normalize_before_sum is None:
        return None
    return (
        f"masks_normalize_before_sum={config.masks_normalize_before_sum}: has no effect unless "
        "masks_sum_for_full_emb=True; set that, or leave this out"
    )


def _only_folder_takes_train_classes(config: TrialFields) -> str | None:
    if config.train_classes is None or config.dataset == "folder":
        return None
    return (
        f"train_classes={config.train_classes}: the split of data set {config.dataset!r} is given; "
        "only `folder` takes it, leave it out"
    )


def _clusters_split_the_embedding(config: TrialFields) -> str | None:
    if config.init_method != "pt_splitted" or config.sz_embedding % config.nb_clusters == 0:
        return None
    return (
        f"sz_embedding={config.sz_embedding}: must be a multiple of nb_clusters={config.nb_clusters} with "
        "init_method=pt_splitted; change one of them"
    )


def _init_method_is_known(config: TrialFields) -> str | None:
    if _is_init_method(config.init_method):
        return None
    return (
        f"init_method={config.init_method}: must be one of {INIT_METHODS}, GAIN a number above 0 and up to "
        f"{_LARGEST_GAIN}; take one of them or leave it out"
    )


RULES: tuple[Callable[[TrialFields], str | None], ...] = (
    _clusters_are_a_power_of_two,
    _full_embedding_follows_the_division,
    _full_embedding_from_the_start_divides_nothing,
    _training_outlasts_the_division,
    _backbone_trains,
    _backbone_trains_after_the_warm_up,
    _averaged_epochs_exist,
    _replicas_divide_the_batch,
    _samples_per_class_divide_the_batch,
    _batch_holds_two_classes,
    _batch_holds_positive_pairs,
    _crop_fits_the_image,
    _fixed_masks_own_a_dimension,
    _only_summed_masks_are_normalised,
    _only_folder_takes_train_classes,
    _clusters_split_the_embedding,
    _init_method_is_known,
)
"""In the order in which they are reported: later rules may rely on earlier ones."""


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _end_of_division(config: TrialFields) -> int:
    """The epoch at which the division ends; 0 where another rule refuses the number of clusters."""
    return config.epoch_of_full_division if _is_power_of_two(config.nb_clusters) else 0


def _times_replicas(config: TrialFields) -> str:
    return f" times num_replicas={config.num_replicas}" if config.num_replicas > 1 else ""


def _is_init_method(name: str | None) -> bool:
    if name is None or (name in INIT_METHODS and "GAIN" not in name):
        return True
    kind, _, gain = name.rpartition("_")
    try:
        return kind in ("xavier_uniform", "xavier_normal") and 0 < float(gain) <= _LARGEST_GAIN
    except ValueError:
        return False
