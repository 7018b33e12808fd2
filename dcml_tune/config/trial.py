"""TrialConfig: every setting of a trial, frozen, checked and documented.

The names are those of the original implementation's flags in snake case, so that a user of it finds them
here. A default is the original's flag default unless the docstring of the field says otherwise. Every number has a
lower and an upper bound, so that infinity, NaN and typing errors are refused. Nothing
writes to a configuration: what changes during training is a function of the epoch (`schedule.EpochPlan`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dcml_tune.config.errors import SettingError, invalid_setting
from dcml_tune.config.rules import broken_rule

Criterion = Literal["margin", "kantorov_margin", "triplet", "triplet_semihard", "triplet_all", "npairs"]
Sampler = Literal["distanceweighted", "easypeasy", "HPHN", "EPHN", "EPSHN", "HPSHN", "RPSHN", "RPHN"]
BatchSampler = Literal["adaptbalanced", "balanced_old", "npairs", "randombatch"]
Backend = Literal["auto", "faiss", "faiss-gpu", "torch", "sklearn"]

# Losses that take triplets from a sampler; the others look at the whole batch.
SAMPLED_CRITERIA: frozenset[str] = frozenset({"margin", "triplet"})

PAPER_LABEL = "paper protocol: epochs and trials are chosen on the test classes"
"""Stands wherever numbers of `protocol=paper` do."""

WORDS_FOR_WEIGHTS = ("pretrained", "none")
"""Values of `weights` that are no file."""

# What the images of a data set ask for, where it is not what the original uses for photographs
# (ResNet-50, shorter side 256, crop 224).
IMAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "emoji": {"arch": "tf_efficientnet_lite0", "sz_resize": 64, "sz_crop": 64},
    "folder": {"arch": "tf_efficientnet_lite0"},
}


SEEDS = 2**32
"""Every seed is smaller than this, as NumPy and scikit-learn need it."""


def _never(value: Any) -> Any:
    """Read the original's `inf` ("never") as None."""
    return None if value in (math.inf, "inf", "none", "None") else value


Never = BeforeValidator(_never)

# What the original calls some choices; its class names and ours mean the same.
ORIGINAL_NAMES: dict[str, str] = {
    "MarginLoss": "margin",
    "KantorovMarginLoss": "kantorov_margin",
    "TripletLoss": "triplet",
    "TripletSemihardLoss": "triplet_semihard",
    "TripletAllLoss": "triplet_all",
    "NPairsLoss": "npairs",
    "Adam": "adam",
    "AdamW": "adamw",
    "torch+sklearn": "sklearn",
}

Renamed = BeforeValidator(lambda value: ORIGINAL_NAMES.get(value, value) if isinstance(value, str) else value)


class TrialConfig(BaseModel):
    """Every setting of one trial.

    Example:
        >>> from dcml_tune import TrialConfig
        >>> TrialConfig(nb_clusters=4, mod_epoch=3, nb_epochs=20).epoch_of_full_division
        6

    Raises:
        SettingError: (a ValueError) for an unknown setting, a value out of range, or settings that
            contradict each other; the message names setting, value, rule and remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    # -- data ------------------------------------------------------------------------------------------
    dataset: str = "emoji"
    """Name of the data set; `python -m dcml_tune.search --help` lists them."""
    dataset_dir: str | None = None
    """Directory that holds the data set; the embedded one needs none."""
    train_classes: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Data set `folder` only: how many of the sorted classes train; by default the first half."""
    val_share: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    """Share of the training classes held out to compare trials; 0 holds none out. Not in the original,
    which compares on the test classes."""
    protocol: Literal["held_out", "paper"] = "held_out"
    """How epochs and trials are chosen: held_out, by training classes that are held out; or paper, as the original
    does it: all training classes train, and the test classes are scored every epoch and decide (measures are then
    named `paper/...`)."""
    ratio_classes: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training classes that are used at all, the first ones in the data set's order. The original
    shrinks the test classes, too; here they stay whole."""
    split_seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    """Seed of the choice of the held-out classes; the same for all trials of a search."""
    fold: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Which classes are held out: there are 1 / val_share folds, no two of which share a class. Trials of a search have
    the first; the confirming runs have others."""
    skip_unreadable: bool = False
    """Leave out image files that cannot be decoded, with a line that counts them, instead of stopping."""
    allow_partial: bool = False
    """Go on with a copy of a published data set whose counts are not the published ones, instead of stopping."""
    strict: bool = False
    """Refuse classes with a single image instead of leaving them out with a line that counts them."""
    image_store: Literal["full", "small"] = "full"
    """Resolution at which training images are kept decoded: full size, or shorter side `sz_resize`
    (less disk, but RandomResizedCrop then sees less detail)."""

    # -- images ----------------------------------------------------------------------------------------
    sz_resize: Annotated[int, Field(ge=8, le=4096)] = 256
    """Shorter side in pixels to which evaluation images are resized before the centre crop."""
    sz_crop: Annotated[int, Field(ge=8, le=4096)] = 224
    """Side in pixels of the square that the network sees."""
    album: Literal["Geom", "GeomColor", "ColorHeavy"] | None = None
    """Augmentation of training images beyond random resized crop and flip."""

    # -- model -----------------------------------------------------------------------------------------
    arch: str = "resnet50"
    """Backbone: a torchvision ResNet, or any timm model by name."""
    weights: str = "pretrained"
    """Weights of the backbone: `pretrained` (ImageNet, found on this machine, nothing is downloaded),
    `none` (random), or a file of them."""
    features_pooling: Literal["avg", "max"] = "avg"
    """Global pooling of the backbone's feature map."""
    features_dropout_prob: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Probability with which a penultimate feature is dropped in training."""
    bn_learnable: bool = False
    """Let the batch-norm statistics move in training. Not in the original, which freezes them for ResNets;
    here they are frozen for every backbone unless this is set."""
    sz_embedding: Annotated[int, Field(ge=2, le=65_536)] = 512
    """Number of dimensions of the embedding."""
    init_method: str | None = None
    """Initialisation of the embedding layer, for one slice of it a cluster: None (torch's own), pt_splitted (the
    same), xavier_uniform_GAIN, xavier_normal_GAIN, kaiming_normal_fan_in, kaiming_normal_fan_out (both with gain 1),
    trunc_normal (deviation 0.1)."""
    masking_init: Literal["ones", "normal"] = "ones"
    """Masks start as ones, or as normal(0.9, 0.7)."""
    mask_relu: bool = True
    """Rectify the masks before they are multiplied into the embedding."""
    fixed_mask: bool = False
    """Binary masks that are not trained: each learner owns a contiguous slice of the embedding (CVPR 2019)."""
    masks_freeze_one_cluster: bool = True
    """Do not train the only mask while there is one cluster. The original's default is 0; ours is 1, so
    that masking_lambda and mask_lr_mult act only while there are several learners."""
    masks_sum_for_full_emb: bool = False
    """Multiply the full embedding by the sum of the masks."""
    masks_normalize_before_sum: Annotated[Literal["l1"] | None, Never] = None
    """Normalisation of each mask before they are summed for the full embedding."""

    # -- loss ------------------------------------------------------------------------------------------
    criterion: Annotated[Criterion, Renamed] = "margin"
    """Metric loss."""
    margin: Annotated[float, Field(ge=0, le=100)] = 0.2
    """Margin of the margin and triplet losses, in units of Euclidean distance on the unit sphere."""
    beta: Annotated[float, Field(gt=0, le=100)] = 1.2
    """Boundary between positive and negative distances in the margin loss."""
    nu: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Weight of the pull of the trained beta towards zero in the margin loss."""
    lr_beta: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """Learning rate of the margin loss's beta; above 0 there is one beta a class."""
    soft_loss: bool = False
    """Soft form log(1 + exp(d_ap - d_an)) of the triplet losses instead of the margin."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Initial scale of the similarities in the N-pairs loss."""
    lr_alpha: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Learning rate of alpha; unlike the multiples it does not follow base_lr."""
    masking_lambda: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Weight of the overlap of the masks in the loss."""
    sampler: Sampler = "easypeasy"
    """How triplets are sampled from a batch (margin and triplet losses)."""
    cutoff: Annotated[float, Field(gt=0, le=100)] = 0.5
    """Distances below this count as this much when negatives are sampled."""

    # -- batches ---------------------------------------------------------------------------------------
    batch_sampler: BatchSampler = "balanced_old"
    """How the images of a batch are chosen."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 128
    """Images in a batch, all copies counted."""
    num_samples_per_class: Annotated[int, Field(ge=1, le=32_768)] = 4
    """Images of each class in a batch; randombatch takes any."""
    small_class_action: Literal["sample_other", "duplicate", "smaller_batch"] = "sample_other"
    """What adaptbalanced does where a class has too few images."""
    num_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """How often a batch holds each of its images, each copy augmented anew: batch_size / num_replicas are different."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Processes that prepare batches; by default 4 with a GPU and none without. Has no effect on results."""

    # -- schedule --------------------------------------------------------------------------------------
    nb_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Epochs of training."""
    nb_clusters: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Clusters, and so learners, at full division; 1 is training without division."""
    mod_epoch: Annotated[int, Field(ge=1, le=1_000_000)] = 2
    """Epochs between reclusterings, and between divisions."""
    mod_epoch_freeze: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """The backbone is frozen in the first so many epochs after each reclustering."""
    freeze_without_division: bool = False
    """Freeze the backbone in the same epochs when nb_clusters is 1, too: the fair control without division."""
    force_full_embedding_epoch: Annotated[Annotated[int, Field(ge=0, le=1_000_000)] | None, Never] = None
    """First epoch of the full-embedding phase; None is never."""
    hierarchy_method: Literal["top_bot", "none", "bot_top"] = "top_bot"
    """top_bot divides from one cluster to nb_clusters; none starts with all of them; bot_top merges."""
    stop_recluster: bool = False
    """Keep the partition once the number of clusters is final; the backbone is not frozen any more either."""
    reassign_random: bool = False
    """Leave new clusters in the order in which k-means found them, instead of matching them to the previous."""
    clustering_method: Literal["kmeans", "kmeans_adaptive_centroids"] = "kmeans"
    """kmeans_adaptive_centroids starts from the previous clusters' centroids in the new features."""
    clustering_random_state: Annotated[Annotated[int, Field(ge=0, lt=SEEDS)] | None, Never] = None
    """When given, each clustering takes a fresh seed derived from it; else all take the same."""
    penultimate_for_clusters: bool = True
    """Cluster the penultimate features instead of the embedding."""
    backend: Annotated[Backend, Renamed] = "auto"
    """Implementation of k-means; auto takes the fastest that works."""

    # -- optimiser -------------------------------------------------------------------------------------
    optimizer: Annotated[Literal["adam", "adamw"], Renamed] = "adam"
    """Adam with coupled, or AdamW with decoupled weight decay."""
    base_lr: Annotated[float, Field(gt=0, le=1e3)] = 1e-5
    """Learning rate of the backbone."""
    emb_lr_mult: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Learning rate of the embedding layer, as a multiple of base_lr."""
    mask_lr_mult: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Learning rate of the masks, as a multiple of base_lr."""
    mask_wd_mult: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Weight decay of the masks, as a multiple of weight_decay."""
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 1e-3
    """Weight decay of backbone and embedding layer."""
    lr_step: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, Never] = None
    """Epochs between decays of the learning rate; None is never. The original parses it and ignores it."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor of each decay of the learning rate."""

    # -- chance and machine ----------------------------------------------------------------------------
    seed: Annotated[int, Field(ge=0, lt=SEEDS, validation_alias=AliasChoices("seed", "random_seed"))] = 1
    """Seed of everything random in a trial; the original's random_seed."""
    amp: bool = True
    """On a GPU, run the backbone in bfloat16 (embedding, loss, k-means and evaluation stay in float32).
    Has no effect on the CPU."""

    def __init__(self, **settings: Any) -> None:
        """Check the settings; see the class."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise SettingError(invalid_setting(error, TrialConfig.model_fields)) from None

    @model_validator(mode="before")
    @classmethod
    def _image_defaults(cls, settings: Any) -> Any:
        if isinstance(settings, dict):
            return {**IMAGE_DEFAULTS.get(settings.get("dataset", "emoji"), {}), **settings}
        return settings

    @model_validator(mode="after")
    def _agree(self) -> TrialConfig:
        if reason := broken_rule(self):
            raise ValueError(reason)
        return self

    @property
    def epoch_of_full_division(self) -> int:
        """The epoch from which `nb_clusters` is reached (with bot_top: from which one cluster is left)."""
        return 0 if self.hierarchy_method == "none" else self.mod_epoch * (self.nb_clusters.bit_length() - 1)

    @property
    def compared_on(self) -> Literal["val", "paper"]:
        """What the measures by which epochs and trials are compared begin with."""
        return "paper" if self.protocol == "paper" else "val"

    @property
    def held_out_share(self) -> float:
        """Share of the training classes that are held out: `val_share`, and none with `protocol=paper`."""
        return 0.0 if self.protocol == "paper" else self.val_share

    @property
    def images_per_batch(self) -> int:
        """Different images in a batch: `batch_size` without the copies."""
        return self.batch_size // self.num_replicas

    @property
    def nonzero_loss_cutoff(self) -> float:
        """Distance beyond which a negative gives no margin loss, `beta + margin`."""
        return self.beta + self.margin

    def changed(self, **settings: Any) -> TrialConfig:
        """A copy with other values of some settings, checked again."""
        return TrialConfig(**{**self.model_dump(), **settings})

    def non_default(self) -> dict[str, Any]:
        """The settings that differ from what `TrialConfig(dataset=...)` has, in the order of definition."""
        default = TrialConfig(dataset=self.dataset).model_dump()
        return {name: value for name, value in self.model_dump().items() if value != default[name]}
