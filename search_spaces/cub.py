"""CUB-200-2011: 11,788 photographs of 200 species of birds. The first 100 classes train, the other 100 test.

Paper: "Improving Deep Metric Learning by Divide and Conquer" (TPAMI 2021), masks fixed or learned.

    python -m dcml_tune.search cub --dataset-dir DIRECTORY --num-samples 64 --time-budget 10h

The time that it needs on a GPU has not been measured. ResNet-50 with ImageNet weights, embedding of 512 dimensions.

Published results, in percent, of the best epoch by the test classes (sources: search_spaces/published.py):

    fixed    nmi 68.60  marp 54.98  R@1 67.39  R@2 77.43  R@4 84.82  R@8 90.83
    learned  nmi 69.84  marp 55.11  R@1 67.71  R@2 78.14  R@4 85.80  R@8 91.46

Published point (trial 0): the authors' sample command with 4 clusters instead of 32. That number is our choice: 80
classes train while trials are compared, and 4 clusters keep 20 of them each.

Ranges:

    nb_clusters     2 to 16: 16 clusters leave 5 classes each
    mod_epoch       2 to 8: with 8, the division still ends well before the full-embedding phase at epoch 80
    masking_lambda  0.001 to 1: holds 0.01 of the sample command and 1, the flag's default
    mask_lr_mult    1 to 1000: holds 100 of the sample command and 1, the flag's default
"""

from search_spaces.reference_point import published_space
from search_spaces.wide import wide_space

SPACE = published_space(
    "cub",
    nb_clusters=4,
    choices=[2, 4, 8, 16],
    why="80 classes train: 16 clusters leave 5 classes each",
)

WIDE = wide_space(SPACE, base_lr=1e-5, batches=[64, 80, 112, 128, 256, 512], full_size=True)
"""`--space wide`: whole recipes; `search_spaces.wide` gives the reason of each range."""
