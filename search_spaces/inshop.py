"""In-Shop Clothes Retrieval: 52,712 photographs of 7,982 items; 3,997 train; of 3,985 the queries are searched in a gallery.

Published by the authors, in percent, the best epoch by the test classes (search_spaces/published.py has the sources):

    fixed    nmi 89.76  marp 87.86  R@1 89.84  R@10 97.56  R@20 98.21  R@30 98.51
    learned  nmi 89.88  marp 88.50  R@1 90.49  R@10 97.48  R@20 98.23  R@30 98.51
    cvpr2019 R@1 87.36

The authors give one sample command, for Stanford Online Products; the point of departure here is that command as it is.
That it fits this data set, too, is our choice, not published. ResNet-50 with ImageNet weights, embedding of 512 dimensions.

    python -m dcml_tune.search inshop --dataset-dir DIRECTORY --num-samples 64 --time-budget 10h

Hours on a GPU were not measured yet.
"""

from search_spaces.published import as_text
from search_spaces.space import Choice, Float, Int, SearchSpace

SPACE = SearchSpace(
    name="inshop",
    published={
        "dataset": "inshop",
        "sz_embedding": 512,
        "mod_epoch": 2,
        "nb_clusters": 32,
        "nb_epochs": 180,
        "batch_size": 80,
        "num_samples_per_class": 2,
        "mod_epoch_freeze": 1,
        "sampler": "distanceweighted",
        "weight_decay": 1e-4,
        "batch_sampler": "adaptbalanced",
        "force_full_embedding_epoch": 80,
        "mask_lr_mult": 100.0,
        "masking_lambda": 0.01,
        "mask_wd_mult": 1.0,
        "base_lr": 1e-5,
    },
    domains={
        "nb_clusters": Choice([4, 8, 16, 32, 64]),
        "mod_epoch": Int(2, 8),
        "masking_lambda": Float(1e-3, 1.0, log=True),
        "mask_lr_mult": Float(1.0, 1000.0, log=True),
    },
    why={
        "nb_clusters": "published for SOP: 32; 3,198 classes train, so that 64 clusters leave 50 each",
        "mod_epoch": "published: 2; 8 epochs still end the division well before the full-embedding phase at epoch 80",
        "masking_lambda": "published: 0.01 and, as the flag's default, 1",
        "mask_lr_mult": "published: 100 and, as the flag's default, 1",
    },
    references=as_text("inshop"),
)
