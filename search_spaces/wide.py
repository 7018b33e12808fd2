"""`--space wide`: whole recipes. Loss, rates, batches, initialisation, augmentation, pooling, decay and the division vary.

Ranges, with the reason or source of each. Trial 0 is the published point; a value that cannot work on a data set is moved to the
nearest one that can, and the search says so (emoji: 4 clusters instead of 32). Where a source is named as "tuning runs", these are the published ones of powerful-benchmarker (Musgrave et al., "A
Metric Learning Reality Check", ECCV 2020: 50 trials for each loss and data set).

    criterion              margin, and those that gain on it in the tuning runs by 2 to 5 points of MAP@R (SOP: margin
                           37.3, multi-similarity 42.0, normalised softmax 42.3, ArcFace 41.9), with Proxy-Anchor, SupCon
                           and contrastive; a loss's own numbers vary only with it
    margin                 0.02 to 0.3: the best of the tuning runs are 0.05 to 0.09, the published point has 0.2
    beta                   0.6 to 1.4: around 1.2 (Wu et al., "Sampling Matters", ICCV 2017), on the unit sphere
    lr_beta                0, or 1e-6 to 1e-2: a trained beta for each class is worth 2 points of MAP@R on SOP
    ms_alpha, ms_beta      0.01 to 20 and 30 to 160: around 2 and 50 (Wang et al., "Multi-Similarity Loss", CVPR 2019),
    ms_base                as in the tuning runs; 0.4 to 0.9
    pa_alpha, pa_delta     16 to 64 and 0.05 to 0.2: half to twice 32 and 0.1 (Kim et al., "Proxy Anchor Loss", CVPR 2020)
    softmax_temperature    0.02 to 0.2: around 0.05 (Zhai and Wu, "Classification is a Strong Baseline", BMVC 2019)
    arcface_margin, _scale 15 to 30 degrees, 16 to 220: 28.6 and 64 (Deng et al., "ArcFace", CVPR 2019), and the best of
                           the tuning runs
    supcon_temperature     0.01 to 0.2: around 0.1 (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020)
    contrastive margins    0 to 0.4 and 0.4 to 1.2: positives closer than negatives, as in the tuning runs
    proxy_lr_mult          5 to 100: Proxy-Anchor has 100, the tuning runs have less
    init_method            PyTorch's, or a PCA of the pretrained features: worth 3 points of recall@1 on emoji
    base_lr                1e-6 to 6e-4: published rates of convolutional networks, 6e-4 being Proxy-Anchor's on SOP
    emb_lr_mult            1 to 100: 1 of the sample command, 10 of emoji, and ten times that
    weight_decay           1e-6 to 1e-2: 1e-4 of the sample command, two orders of magnitude on either side
    batch_size             64 to 512, of 2, 4 or 8 images a class: all of them can be divided by 8
    sz_embedding           128 and 512 of published results, 384 as the width of small ViTs
    crop_scale             0.08, the default of random resized crops, to 0.3
    album                  none, jitter of geometry and colour, or RandAugment (Cubuk et al., NeurIPS 2020)
    bn_learnable           frozen as in the authors' code, or trained
    warmup_epochs          0 to 5: Proxy-Anchor has 1 to 5
    features_pooling       average, its sum with the maximum (Proxy-Anchor), or the generalised mean
    lr_decay               step, which is none without lr_step, or cosine
    average_epochs         none, 2 or 3: of the 6 epochs of emoji at most half
    pretrained_share       0 to 0.5: the best mixes of Wortsman et al. ("WiSE-FT", CVPR 2022) lie around 0.5
    sz_resize, sz_crop     224, 256 and 288 pixels, for data sets of photographs in full size
    nb_clusters            none of the division (1) or the numbers of `--space four`, with fixed masks or learned ones
    mod_epoch, masking_lambda, mask_lr_mult   as in `--space four`, with a division; the latter two with learned masks
    arch                   with a GPU, the convolutional networks of `search_spaces.backbones` whose weights are on this
                           machine. Vision transformers are not among them: their published rates are 3e-6 to 1e-4, and
                           a range cannot depend on another setting, so that 45 % of the trials with one would have a
                           rate outside. `--arch` with a vision transformer narrows base_lr to these rates
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from search_spaces.conditions import When
from search_spaces.domains import Choice, Domain, Float, Int
from search_spaces.space import SearchSpace, Start

_OF_LOSSES: Mapping[str, tuple[tuple[str, ...], Domain]] = {
    "margin": (("margin",), Float(0.02, 0.3)),
    "beta": (("margin",), Float(0.6, 1.4)),
    "lr_beta": (("margin",), Choice([0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])),
    "ms_alpha": (("multi_similarity",), Float(0.01, 20, log=True)),
    "ms_beta": (("multi_similarity",), Float(30, 160, log=True)),
    "ms_base": (("multi_similarity",), Float(0.4, 0.9)),
    "pa_alpha": (("proxy_anchor",), Float(16, 64, log=True)),
    "pa_delta": (("proxy_anchor",), Float(0.05, 0.2)),
    "softmax_temperature": (("normalized_softmax",), Float(0.02, 0.2, log=True)),
    "arcface_margin": (("arcface",), Float(15, 30)),
    "arcface_scale": (("arcface",), Float(16, 220, log=True)),
    "supcon_temperature": (("supcon",), Float(0.01, 0.2, log=True)),
    "contrastive_pos_margin": (("contrastive",), Float(0, 0.4)),
    "contrastive_neg_margin": (("contrastive",), Float(0.4, 1.2)),
    "proxy_lr_mult": (("proxy_anchor", "normalized_softmax", "arcface"), Float(5, 100, log=True)),
}
"""Setting -> the losses with which it varies, and its domain."""

_CRITERIA = ("margin", "multi_similarity", "proxy_anchor", "normalized_softmax", "arcface", "supcon", "contrastive")

_RECIPE: Mapping[str, Domain] = {
    "init_method": Choice([None, "pca"]),
    "base_lr": Float(1e-6, 6e-4, log=True),
    "emb_lr_mult": Float(1, 100, log=True),
    "weight_decay": Float(1e-6, 1e-2, log=True),
    "num_samples_per_class": Choice([2, 4, 8]),
    "sz_embedding": Choice([128, 384, 512]),
    "crop_scale": Float(0.08, 0.3),
    "album": Choice([None, "GeomColor", "RandAugment"]),
    "bn_learnable": Choice([False, True]),
    "features_pooling": Choice(["avg", "avg+max", "gem"]),
    "lr_decay": Choice(["step", "cosine"]),
    "average_epochs": Choice([1, 2, 3]),
    "pretrained_share": Float(0, 0.5),
}

_REASONS = {
    "criterion": "published tuning runs: the loss is worth 2 to 5 points of MAP@R",
    "batch_size": "28 classes of 4 images, and powers of two from 64",
    "warmup_epochs": "Proxy-Anchor: 1 to 5",
    "fixed_mask": "fixed masks of the conference paper, or learned ones",
}

_DIVIDES = When("nb_clusters", above=1)
_LEARNS_MASKS = (_DIVIDES, When("fixed_mask", among=(False,)))


def wide_space(
    four: SearchSpace,
    *,
    base_lr: float,
    batches: Iterable[int],
    warmup_epochs: int = 5,
    crop_scale: float | None = None,
    full_size: bool = False,
) -> SearchSpace:
    """The wide space of a data set; see the module for the ranges.

    Args:
        four: the space of its four settings.
        base_lr: learning rate of the multi-similarity start.
        batches: sizes of batches.
        warmup_epochs: largest number of epochs of warm-up.
        crop_scale: of the multi-similarity start; None: the published value.
        full_size: whether the images are photographs in full size, so that their number of pixels varies.
    """
    losses = {name: domain for name, (_, domain) in _OF_LOSSES.items()}
    rest = {name: domain for name, domain in four.domains.items() if name != "nb_clusters"}
    clusters = Choice([1, *four.domains["nb_clusters"].ends()])
    sizes: dict[str, Domain] = {"sz_resize": Choice([256, 288, 320]), "sz_crop": Choice([224, 256, 288])}
    return replace(
        four,
        domains={
            "criterion": Choice(_CRITERIA),
            **losses,
            **_RECIPE,
            "batch_size": Choice(batches),
            "warmup_epochs": Int(0, warmup_epochs),
            **(sizes if full_size else {}),
            "nb_clusters": clusters,
            "fixed_mask": Choice([False, True]),
            **rest,
        },
        conditions={
            **{name: (When("criterion", among=criteria),) for name, (criteria, _) in _OF_LOSSES.items()},
            "fixed_mask": (_DIVIDES,),
            "mod_epoch": (_DIVIDES,),
            "masking_lambda": _LEARNS_MASKS,
            "mask_lr_mult": _LEARNS_MASKS,
        },
        why=dict.fromkeys((*losses, *_RECIPE, *sizes), "search_spaces/wide.py") | _REASONS | four.why,
        starts=_starts(base_lr, {} if crop_scale is None else {"crop_scale": crop_scale}),
    )


def _starts(base_lr: float, crops: Mapping[str, Any]) -> tuple[Start, ...]:
    plain: dict[str, Any] = {"nb_clusters": 1, "init_method": "pca", "emb_lr_mult": 1.0, "weight_decay": 1e-4}
    batches = {"batch_size": 112, "num_samples_per_class": 4}
    return (
        Start(
            name="proxy-anchor",
            source="Kim et al., CVPR 2020: rate 1e-4, proxies x 100, alpha 32, delta 0.1, warm-up; PCA and batches are ours",
            settings={**plain, **batches, "criterion": "proxy_anchor", "base_lr": 1e-4, "proxy_lr_mult": 100.0,
                      "pa_alpha": 32.0, "pa_delta": 0.1, "warmup_epochs": 1},
        ),
        Start(
            name="multi-similarity",
            source="Wang et al., CVPR 2019: alpha 2, beta 50, base 0.5; rate, PCA, batches and crops are ours",
            settings={**plain, **batches, "criterion": "multi_similarity", "base_lr": base_lr, "ms_alpha": 2.0,
                      "ms_beta": 50.0, "ms_base": 0.5, **crops},
        ),
        Start(
            name="plain",
            source="a plain recipe of emoji: rate 5e-5, batches of 28 classes x 4, frozen batch-norm, no new layer; the "
            "PCA of all dimensions is no new layer, either",
            settings={**plain, **batches, "criterion": "margin", "base_lr": 5e-5},
        ),
    )  # fmt: skip
