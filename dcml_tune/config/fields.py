"""The settings of a trial: type, bounds, default and help text of each, and the values derived from them.

A field has the name of the original implementation's flag in snake case, and the original's default unless its docstring
says otherwise. The docstring is also the help text of the flag. Every number has a lower and an upper bound, so that
infinity, NaN and typing errors are refused. Rules between settings are in `dcml_tune.config.rules`.

Above 250 lines because each setting has its type, bounds, default and help text here, and nowhere else.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

Criterion = Literal[
    "margin", "kantorov_margin", "triplet", "triplet_semihard", "triplet_all", "npairs", "multi_similarity", "supcon",
    "contrastive", "proxy_anchor", "normalized_softmax", "arcface",
]  # fmt: skip
Sampler = Literal["distanceweighted", "easypeasy", "HPHN", "EPHN", "EPSHN", "HPSHN", "RPSHN", "RPHN"]
BatchSampler = Literal["adaptbalanced", "balanced_old", "npairs", "randombatch"]
Backend = Literal["auto", "faiss", "faiss-gpu", "torch", "sklearn"]

SAMPLED_CRITERIA: frozenset[str] = frozenset({"margin", "triplet"})
"""Losses of triplets that `sampler` chooses. The others use the whole batch."""

PROXY_CRITERIA: frozenset[str] = frozenset({"proxy_anchor", "normalized_softmax", "arcface"})
"""Losses that compare images with a trained proxy of each class. They need no positive pair in a batch."""

PAPER_LABEL = "paper protocol: epochs and trials are chosen on the test classes"
"""Label of all results of `protocol=paper`, wherever they are shown."""

WORDS_FOR_WEIGHTS = ("pretrained", "none")
"""Values of `weights` that do not name a file."""

IMAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "emoji": {"arch": "tf_efficientnet_lite0", "sz_resize": 64, "sz_crop": 64},
    "folder": {"arch": "tf_efficientnet_lite0"},
}
"""Defaults of a data set that differ from the original's (ResNet-50, shorter side 256, crop 224)."""

SEEDS = 2**32
"""Upper bound of all seeds, exclusive: NumPy and scikit-learn accept no larger ones."""


def _never(value: Any) -> Any:
    """Read the original's `inf` ("never") as None."""
    return None if value in (math.inf, "inf", "none", "None") else value


Never = BeforeValidator(_never)

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
"""The original's names of choices, with ours. Both are accepted."""

Renamed = BeforeValidator(lambda value: ORIGINAL_NAMES.get(value, value) if isinstance(value, str) else value)


class TrialFields(BaseModel):
    """Every setting of one trial, each checked on its own; `TrialConfig` also checks that they agree."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    # -- data ------------------------------------------------------------------------------------------
    dataset: str = "emoji"
    """Name of the data set; `--help` of each command lists them."""
    dataset_dir: str | None = None
    """Directory that holds the data set; `emoji` is embedded in the package and needs none."""
    train_classes: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Number of training classes, the first ones in sorted order; by default the first half. Data set `folder` only."""
    val_share: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    """Share of the training classes that are held out to compare trials; 0 holds out none. Not in the original, which
    compares on the test classes."""
    protocol: Literal["held_out", "paper"] = "held_out"
    """Classes on which epochs and trials are compared. held_out: on training classes that are held out. paper: on the test
    classes, as the original does; all training classes train, the test classes are scored in every epoch, and the
    measures are named `paper/...`."""
    ratio_classes: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training classes that are used at all, the first ones in the data set's order. The original reduces
    the test classes, too; here all of them are kept."""
    split_seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    """Seed of the random choice of the held-out classes; the same for all trials of a search."""
    fold: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Number of the fold of classes that is held out. There are 1 / val_share folds, which share no class. Trials of a
    search use fold 0, the confirming runs use others."""
    skip_unreadable: bool = False
    """Leave out image files that cannot be decoded and report their number, instead of stopping."""
    allow_partial: bool = False
    """Accept a copy of a published data set whose counts differ from the published ones, instead of stopping."""
    strict: bool = False
    """Refuse classes that have a single image, instead of leaving them out and reporting their number."""
    image_store: Literal["full", "small"] = "full"
    """Resolution of the decoded training images on disk. full: the original size. small: shorter side `sz_resize`, which
    takes less disk space, but RandomResizedCrop then sees less detail."""

    # -- images ----------------------------------------------------------------------------------------
    sz_resize: Annotated[int, Field(ge=8, le=4096)] = 256
    """Shorter side, in pixels, to which images are resized for evaluation, before the centre crop."""
    sz_crop: Annotated[int, Field(ge=8, le=4096)] = 224
    """Side, in pixels, of the square that the network sees."""
    crop_scale: Annotated[float, Field(ge=0.01, le=1)] = 0.08
    """Smallest share of an image's area that a random resized crop takes; 1: always the largest crop."""
    album: Literal["Geom", "GeomColor", "ColorHeavy", "RandAugment"] | None = None
    """Augmentation of the training images in addition to random resized crop and flip."""
    randaugment_ops: Annotated[int, Field(ge=1, le=14)] = 2
    """Number of random operations that album=RandAugment applies to an image."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Magnitude of the operations of album=RandAugment."""

    # -- model -----------------------------------------------------------------------------------------
    arch: str = "resnet50"
    """Backbone: a torchvision ResNet, or any timm model by its name."""
    weights: str = "pretrained"
    """Weights of the backbone. pretrained: trained on ImageNet; they must be on this machine, nothing is downloaded.
    none: random. Otherwise the path of a file of weights."""
    features_pooling: Literal["avg", "max", "avg+max", "gem"] = "avg"
    """Global pooling of the backbone's feature map. avg+max: the sum of both. gem: the generalised mean, whose exponent
    begins at 3 and is trained at the rate of the backbone, without weight decay."""
    features_dropout_prob: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Dropout probability of the penultimate features."""
    bn_learnable: bool = False
    """Update the batch-norm statistics in training. Not in the original, which freezes them for ResNets; here they are
    frozen for every backbone by default."""
    sz_embedding: Annotated[int, Field(ge=2, le=65_536)] = 512
    """Number of dimensions of the embedding."""
    init_method: str | None = None
    """Initialisation of the embedding layer, separately for each cluster's slice of it. One of pt_default (PyTorch's own,
    the default), pt_splitted (the same), xavier_uniform_GAIN, xavier_normal_GAIN, kaiming_normal_fan_in,
    kaiming_normal_fan_out (both with gain 1), trunc_normal (standard deviation 0.1). Or pca, for the whole layer: it
    subtracts the mean of the pretrained features of the images that train, and projects onto their principal directions;
    with as many dimensions as features it keeps all of them."""
    masking_init: Literal["ones", "normal"] = "ones"
    """Initial values of the masks. ones: all 1. normal: drawn from a normal distribution with mean 0.9 and standard
    deviation 0.7."""
    mask_relu: bool = True
    """Apply ReLU to the masks before they are multiplied with the embedding."""
    fixed_mask: bool = False
    """Use binary masks that are not trained: each learner owns a contiguous slice of the embedding (CVPR 2019)."""
    masks_freeze_one_cluster: bool = True
    """Do not train the only mask while there is one cluster. The original's default is 0. Here it is 1, so that
    masking_lambda and mask_lr_mult act only while there are several learners."""
    masks_sum_for_full_emb: bool = False
    """Multiply the full embedding with the sum of the masks."""
    masks_normalize_before_sum: Annotated[Literal["l1"] | None, Never] = None
    """Normalisation of each mask before the masks are summed for the full embedding."""

    # -- loss ------------------------------------------------------------------------------------------
    criterion: Annotated[Criterion, Renamed] = "margin"
    """Metric loss."""
    margin: Annotated[float, Field(ge=0, le=100)] = 0.2
    """Margin of the margin and triplet losses, as a Euclidean distance on the unit sphere."""
    beta: Annotated[float, Field(gt=0, le=100)] = 1.2
    """Distance in the margin loss that separates positive from negative pairs; its initial value if it is trained."""
    nu: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Weight of the regularisation of beta in the margin loss. It acts only if beta is trained."""
    lr_beta: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """Learning rate of beta in the margin loss. Above 0, a separate beta is trained for each class."""
    soft_loss: bool = False
    """Use log(1 + exp(d_ap - d_an)) in the triplet losses instead of the margin."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Initial scale of the similarities in the N-pairs loss."""
    lr_alpha: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Learning rate of alpha. It is absolute, not a multiple of base_lr."""
    ms_alpha: Annotated[float, Field(gt=0, le=1e4)] = 2.0
    """Scale of the similarities of positives in the multi-similarity loss."""
    ms_beta: Annotated[float, Field(gt=0, le=1e4)] = 50.0
    """Scale of the similarities of negatives in the multi-similarity loss."""
    ms_base: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Cosine similarity that separates positives from negatives in the multi-similarity loss."""
    ms_epsilon: Annotated[float, Field(ge=0, le=4)] = 0.1
    """Tolerance of the miner of the multi-similarity loss, in cosine similarity; above 2 it keeps all pairs."""
    supcon_temperature: Annotated[float, Field(ge=1e-4, le=100)] = 0.1
    """Divisor of the cosine similarities in the supervised contrastive loss."""
    contrastive_pos_margin: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Euclidean distance up to which positive pairs have no contrastive loss."""
    contrastive_neg_margin: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Euclidean distance from which on negative pairs have no contrastive loss."""
    pa_alpha: Annotated[float, Field(gt=0, le=1e4)] = 32.0
    """Scale of the similarities in the Proxy-Anchor loss."""
    pa_delta: Annotated[float, Field(ge=0, le=2)] = 0.1
    """Margin of the Proxy-Anchor loss, as a cosine similarity."""
    softmax_temperature: Annotated[float, Field(ge=1e-4, le=100)] = 0.05
    """Divisor of the cosine similarities in the normalised softmax loss."""
    arcface_margin: Annotated[float, Field(ge=0, le=90)] = 28.6
    """Margin of the ArcFace loss, in degrees."""
    arcface_scale: Annotated[float, Field(gt=0, le=1e4)] = 64.0
    """Scale of the similarities in the ArcFace loss."""
    masking_lambda: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Weight of the overlap of the masks in the loss."""
    sampler: Sampler = "easypeasy"
    """Method that samples triplets from a batch, for the margin and triplet losses."""
    cutoff: Annotated[float, Field(gt=0, le=100)] = 0.5
    """Lower bound of distances in the sampling of negatives: smaller distances count as this value."""

    # -- batches ---------------------------------------------------------------------------------------
    batch_sampler: BatchSampler = "balanced_old"
    """Method that chooses the images of a batch."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 128
    """Number of images in a batch, including the copies of num_replicas."""
    num_samples_per_class: Annotated[int, Field(ge=1, le=32_768)] = 4
    """Number of images of each class in a batch; randombatch ignores it."""
    small_class_action: Literal["sample_other", "duplicate", "smaller_batch"] = "sample_other"
    """What adaptbalanced does if a class has too few images. sample_other: adds random images of the cluster. duplicate:
    repeats the images of the class. smaller_batch: makes the batch smaller."""
    num_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of copies of each image in a batch, each augmented independently. A batch holds batch_size / num_replicas
    different images."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Number of processes that prepare batches; by default 4 with a GPU and 0 without. Fewer are started where
    /dev/shm has no room for their batches. It does not change results."""

    # -- schedule --------------------------------------------------------------------------------------
    nb_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Number of training epochs."""
    nb_clusters: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Number of clusters, and so of learners, after the last division; 1 trains without division."""
    mod_epoch: Annotated[int, Field(ge=1, le=1_000_000)] = 2
    """Number of epochs between reclusterings, and between divisions."""
    mod_epoch_freeze: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Number of epochs after each reclustering in which the backbone is frozen."""
    freeze_without_division: bool = False
    """Freeze the backbone in the same epochs also when nb_clusters is 1, as a fair control without division."""
    warmup_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Number of epochs at the beginning in which the backbone is frozen, in addition to those of mod_epoch_freeze. The
    embedding layer, the masks and the parameters of the loss train; clusters divide as in other epochs."""
    force_full_embedding_epoch: Annotated[Annotated[int, Field(ge=0, le=1_000_000)] | None, Never] = None
    """First epoch of the full-embedding phase, which trains the embedding as a whole; None: no such phase."""
    hierarchy_method: Literal["top_bot", "none", "bot_top"] = "top_bot"
    """How the number of clusters changes. top_bot: doubles from 1 to nb_clusters. none: nb_clusters from the start.
    bot_top: halves from nb_clusters to 1."""
    stop_recluster: bool = False
    """Stop reclustering once the number of clusters is final. The backbone is then no longer frozen, either."""
    reassign_random: bool = False
    """Keep new clusters in the order in which k-means found them, instead of matching them to the previous clusters."""
    clustering_method: Literal["kmeans", "kmeans_adaptive_centroids"] = "kmeans"
    """kmeans: k-means with new initial centroids. kmeans_adaptive_centroids: starts from the centroids of the previous
    clusters in the new features."""
    clustering_random_state: Annotated[Annotated[int, Field(ge=0, lt=SEEDS)] | None, Never] = None
    """Seed from which each clustering derives a seed of its own; None: all clusterings use the seed of the trial."""
    penultimate_for_clusters: bool = True
    """Cluster the penultimate features instead of the embedding."""
    backend: Annotated[Backend, Renamed] = "auto"
    """Implementation of k-means; auto takes the fastest that is available. It does not change results."""

    # -- optimiser -------------------------------------------------------------------------------------
    optimizer: Annotated[Literal["adam", "adamw"], Renamed] = "adam"
    """Optimiser. adam: coupled weight decay. adamw: decoupled weight decay."""
    base_lr: Annotated[float, Field(gt=0, le=1e3)] = 1e-5
    """Learning rate of the backbone."""
    emb_lr_mult: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Learning rate of the embedding layer, as a multiple of base_lr."""
    proxy_lr_mult: Annotated[float, Field(ge=0, le=1e6)] = 100.0
    """Learning rate of the proxies, as a multiple of base_lr. They have no weight decay."""
    mask_lr_mult: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Learning rate of the masks, as a multiple of base_lr."""
    mask_wd_mult: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Weight decay of the masks, as a multiple of weight_decay."""
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 1e-3
    """Weight decay of the backbone and the embedding layer."""
    lr_decay: Literal["step", "cosine"] = "step"
    """Decay of the learning rates over the epochs. step: by lr_gamma every lr_step epochs. cosine: half a cosine, from the
    full rates in the first epoch towards 0 after nb_epochs."""
    lr_step: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, Never] = None
    """Number of epochs between decays of the learning rates; None: no decay. The original reads it and ignores it."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor by which each decay multiplies the learning rates."""

    # -- weights that are measured ---------------------------------------------------------------------
    average_epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of the last epochs whose weights are averaged in the model that is measured, kept as the best and tested; 1
    averages none. Masks are averaged since the last division. Training continues from the weights that are not averaged."""
    pretrained_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the weights at the start of training in the backbone and the embedding layer of the model that is measured,
    after the average (WiSE-FT). Training continues from the weights that are not mixed."""

    # -- randomness and machine ------------------------------------------------------------------------
    seed: Annotated[int, Field(ge=0, lt=SEEDS, validation_alias=AliasChoices("seed", "random_seed"))] = 1
    """Seed of everything random in a trial; the original calls it random_seed."""
    amp: bool = True
    """Train the backbone in bfloat16 on a GPU; embedding, loss, features for k-means and all measures are float32. The
    products inside the backbone that are not bfloat16 are TF32. No effect on the CPU."""

    @property
    def epoch_of_full_division(self) -> int:
        """The first epoch with `nb_clusters` clusters (with bot_top: with a single cluster)."""
        return 0 if self.hierarchy_method == "none" else self.mod_epoch * (self.nb_clusters.bit_length() - 1)

    @property
    def compared_on(self) -> Literal["val", "paper"]:
        """Prefix of the measures by which epochs and trials are compared."""
        return "paper" if self.protocol == "paper" else "val"

    @property
    def held_out_share(self) -> float:
        """Share of the training classes that are held out: `val_share`, or 0 with `protocol=paper`."""
        return 0.0 if self.protocol == "paper" else self.val_share

    @property
    def needs_pairs(self) -> bool:
        """Whether the loss needs positive and negative pairs in a batch; losses of proxies do not."""
        return self.criterion not in PROXY_CRITERIA

    @property
    def images_per_batch(self) -> int:
        """Number of different images in a batch: `batch_size` without the copies."""
        return self.batch_size // self.num_replicas

    @property
    def nonzero_loss_cutoff(self) -> float:
        """Distance from which on a negative pair has no margin loss: `beta + margin`."""
        return self.beta + self.margin
