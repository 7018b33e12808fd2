"""Emoji: 6,653 drawings of 1,241 emoji by up to six designers, embedded in the package.

The point of departure is the published setting for Stanford Online Products (the authors' sample command: 32
clusters, mod_epoch 2, masking_lambda 0.01, mask_lr_mult 100, backbone frozen in every other epoch, 180 epochs with the
full-embedding phase from epoch 80), scaled to a data set that trains in minutes: 64 pixels, EfficientNet-Lite0,
6 epochs with the full-embedding phase from epoch 5, and learning rates to match. There are no published results.

    python -m dcml_tune.search emoji
"""

from search_spaces.space import Choice, Float, Int, SearchSpace

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
        "batch_size": 64,
        "num_samples_per_class": 4,
        "batch_sampler": "adaptbalanced",
        "sampler": "distanceweighted",
    },
    domains={
        "nb_clusters": Choice([2, 4]),
        "mod_epoch": Int(2, 4),
        "masking_lambda": Float(1e-3, 1.0, log=True),
        "mask_lr_mult": Float(1.0, 1000.0, log=True),
    },
    why={
        "nb_clusters": "a cluster of about 500 classes halves to 250 at 2 and 125 at 4",
        "mod_epoch": "the division has to end before the full-embedding phase at epoch 5",
        "masking_lambda": "published: 0.01 and, as the flag's default, 1",
        "mask_lr_mult": "published: 100 and, as the flag's default, 1",
    },
    references="no published results",
)
