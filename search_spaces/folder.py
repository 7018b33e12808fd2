"""Folder: any directory that has one folder of images for each class.

    python -m dcml_tune.search folder --dataset-dir DIRECTORY

Published point (trial 0): the authors' sample command for Stanford Online Products (TPAMI 2021), the largest and most
varied of the published data sets, with 24 epochs instead of 180 and the phases in proportion. The backbone is
EfficientNet-Lite0, whose weights come with the package. For the published recipe in full, give `--arch resnet50
--nb-epochs 180 --force-full-embedding-epoch 80`.

Ranges:

    nb_clusters     2 to 32: the published numbers are 4 to 32 and grow with the number of classes
    mod_epoch       1 to 8: published is 2; the division has to end before the full-embedding phase
    masking_lambda  0.001 to 1: holds 0.01 of the sample command and 1, the flag's default
    mask_lr_mult    1 to 1000: holds 100 of the sample command and 1, the flag's default

The embedding layer starts as a PCA of the pretrained features, as that of emoji, where it was measured.
"""

from search_spaces.reference_point import DIVISION_CONDITIONS, MASK_DOMAINS, MASK_REASONS
from search_spaces.space import Choice, Int, SearchSpace
from search_spaces.wide import wide_space

SPACE = SearchSpace(
    name="folder",
    published={
        "dataset": "folder",
        "nb_epochs": 24,
        "force_full_embedding_epoch": 16,
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
        "batch_size": 80,
        "num_samples_per_class": 2,
        "batch_sampler": "adaptbalanced",
        "sampler": "distanceweighted",
    },
    domains={
        "nb_clusters": Choice([2, 4, 8, 16, 32]),
        "mod_epoch": Int(1, 8),
        **MASK_DOMAINS,
    },
    why={
        "nb_clusters": "published: 4 to 32, growing with the number of classes",
        "mod_epoch": "published: 2; the division has to end before the full-embedding phase",
        **MASK_REASONS,
    },
    references="no published results",
    conditions=DIVISION_CONDITIONS,
)

WIDE = wide_space(SPACE, base_lr=1e-4, batches=[64, 80, 112, 128, 256])
"""`--space wide`: whole recipes; `search_spaces.wide` gives the reason of each range. The rate of the multi-similarity start
is that of emoji, where it was measured."""
