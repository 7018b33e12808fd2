"""Stanford Online Products: 120,053 photographs of 22,634 products. 11,318 classes train, 11,316 test.

Paper: "Improving Deep Metric Learning by Divide and Conquer" (TPAMI 2021), masks fixed or learned.
cvpr2019 is "Divide and Conquer the Embedding Space for Metric Learning" (CVPR 2019), which has slices instead of masks.

    python -m dcml_tune.search sop --dataset-dir DIRECTORY --num-samples 64 --time-budget 10h

The time that it needs on a GPU has not been measured. ResNet-50 with ImageNet weights, embedding of 512 dimensions.

Published results, in percent, of the best epoch by the test classes (sources: search_spaces/published.py):

    fixed    nmi 89.59  marp 79.32  R@1 79.50  R@10 90.44  R@100 95.08
    learned  nmi 89.68  marp 79.60  R@1 79.80  R@10 90.46  R@100 95.26
    cvpr2019 R@1 76.40

Published point (trial 0): the authors' sample command, which is for this data set: 180 epochs, the full-embedding phase
from epoch 80, 32 clusters, batches of 80 images with 2 of each class.

Ranges:

    nb_clusters     4 to 64: 9,054 classes train while trials are compared, so that 64 clusters keep 140 each
    mod_epoch       2 to 8: with 8, the division still ends well before the full-embedding phase at epoch 80
    masking_lambda  0.001 to 1: holds 0.01 of the sample command and 1, the flag's default
    mask_lr_mult    1 to 1000: holds 100 of the sample command and 1, the flag's default
"""

from search_spaces.reference_point import published_space
from search_spaces.wide import wide_space

SPACE = published_space(
    "sop",
    nb_clusters=32,
    choices=[4, 8, 16, 32, 64],
    why="published: 32; 9,054 classes train, so that 64 clusters leave 140 each",
)

WIDE = wide_space(SPACE, base_lr=1e-5, batches=[64, 80, 112, 128, 256, 512], full_size=True)
"""`--space wide`: whole recipes; `search_spaces.wide` gives the reason of each range."""
