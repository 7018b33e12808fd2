"""Folder: any directory with a folder of images a class.

The point of departure is the published setting for Stanford Online Products (TPAMI 2021, the authors' sample
command), the largest and most varied of the published sets, with 24 epochs instead of 180 and the phases in proportion;
the backbone is EfficientNet-Lite0, whose weights come with the package. Give `--arch resnet50 --nb-epochs 180
--force-full-embedding-epoch 80` for the published recipe in full.

    python -m dcml_tune.search folder --dataset-dir DIRECTORY
"""

from search_spaces.space import Choice, Float, Int, SearchSpace

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
        "batch_size": 80,
        "num_samples_per_class": 2,
        "batch_sampler": "adaptbalanced",
        "sampler": "distanceweighted",
    },
    domains={
        "nb_clusters": Choice([2, 4, 8, 16, 32]),
        "mod_epoch": Int(1, 8),
        "masking_lambda": Float(1e-3, 1.0, log=True),
        "mask_lr_mult": Float(1.0, 1000.0, log=True),
    },
    why={
        "nb_clusters": "published: 4 to 32, growing with the number of classes",
        "mod_epoch": "published: 2; the division has to end before the full-embedding phase",
        "masking_lambda": "published: 0.01 and, as the flag's default, 1",
        "mask_lr_mult": "published: 100 and, as the flag's default, 1",
    },
    references="no published results",
)
