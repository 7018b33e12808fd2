"""Emoji: 6,653 drawings of 1,241 emoji by up to six designers, embedded in the package.

    python -m dcml_tune.search emoji

There are no published results on this data set.

Published point (trial 0): the authors' sample command for Stanford Online Products (32 clusters, mod_epoch 2,
masking_lambda 0.01, mask_lr_mult 100, the backbone frozen in every other epoch, 180 epochs with the full-embedding phase
from epoch 80), scaled to a data set that trains in minutes: images of 64 pixels, EfficientNet-Lite0, 6 epochs with the
full-embedding phase from epoch 5, and learning rates to match.

Ranges:

    nb_clusters     2 and 4: about 500 classes train, so that 2 clusters have 250 each and 4 clusters 125
    mod_epoch       2 to 4: the division has to end before the full-embedding phase at epoch 5
    masking_lambda  0.001 to 1: holds 0.01 of the sample command and 1, the flag's default
    mask_lr_mult    1 to 1000: holds 100 of the sample command and 1, the flag's default

The embedding layer starts as a PCA of the pretrained features. The authors' does not; it is worth 3.2 ± 2.4 points of recall@1 on
held-out classes (5 folds: `python benchmarks/initialisation.py`).
"""

from search_spaces.reference_point import DIVISION_CONDITIONS, MASK_DOMAINS, MASK_REASONS
from search_spaces.space import Choice, Int, SearchSpace
from search_spaces.wide import wide_space

SPACE = SearchSpace(
    name="emoji",
    published={
        "dataset": "emoji",
        "nb_epochs": 6,
        "force_full_embedding_epoch": 5,
        "nb_clusters": 32,
        "mod_epoch": 2,
        "mod_epoch_freeze": 1,
        "masking_lambda": 0.01,
        "mask_lr_mult": 100.0,
        "mask_wd_mult": 1.0,
        "weight_decay": 1e-4,
        "base_lr": 1e-4,
        "emb_lr_mult": 10.0,
        "sz_embedding": 512,
        "init_method": "pca",
        "batch_size": 64,
        "num_samples_per_class": 4,
        "batch_sampler": "adaptbalanced",
        "sampler": "distanceweighted",
    },
    domains={
        "nb_clusters": Choice([2, 4]),
        "mod_epoch": Int(2, 4),
        **MASK_DOMAINS,
    },
    why={
        "nb_clusters": "a cluster of about 500 classes halves to 250 at 2 and 125 at 4",
        "mod_epoch": "the division has to end before the full-embedding phase at epoch 5",
        **MASK_REASONS,
    },
    references="no published results",
    conditions=DIVISION_CONDITIONS,
)

WIDE = wide_space(SPACE, base_lr=1e-4, batches=[64, 112, 128, 256], warmup_epochs=2, crop_scale=0.3)
"""`--space wide`: whole recipes; `search_spaces.wide` gives the reason of each range.

The multi-similarity start has rate 1e-4: recall@1 on the held-out classes after 6 epochs is 74.0 % with it and 72.3 % with
5e-5 (one seed: `python -m dcml_tune.train emoji --nb-clusters 1 --init-method pca --criterion multi_similarity --ms-beta 50
--ms-base 0.5 --base-lr 1e-4 --emb-lr-mult 1 --weight-decay 1e-4 --batch-size 112 --batch-sampler adaptbalanced --nb-epochs 6`).
Its crops have at least 0.3 of an image: 78.7 % after 4 epochs, and 77.1 % with at least 0.08 (folds 1 and 2, with seeds 1 and 2:
the same command with --nb-epochs 4, --crop-scale, --fold and --seed).
"""
