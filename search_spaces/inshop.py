"""In-Shop Clothes Retrieval: 52,712 photographs of 7,982 items of clothing.

3,997 items train. Of the other 3,985, queries are searched in a gallery.

Paper: "Improving Deep Metric Learning by Divide and Conquer" (TPAMI 2021), masks fixed or learned.
cvpr2019 is "Divide and Conquer the Embedding Space for Metric Learning" (CVPR 2019), which has slices instead of masks.

    python -m dcml_tune.search inshop --dataset-dir DIRECTORY --num-samples 64 --time-budget 10h

The time that it needs on a GPU has not been measured. ResNet-50 with ImageNet weights, embedding of 512 dimensions.

Published results, in percent, of the best epoch by the test classes (sources: search_spaces/published.py):

    fixed    nmi 89.76  marp 87.86  R@1 89.84  R@10 97.56  R@20 98.21  R@30 98.51
    learned  nmi 89.88  marp 88.50  R@1 90.49  R@10 97.48  R@20 98.23  R@30 98.51
    cvpr2019 R@1 87.36

Published point (trial 0): the authors' sample command, unchanged. It was published for Stanford Online Products; that it
suits this data set is our choice.

Ranges:

    nb_clusters     4 to 64: 3,198 classes train while trials are compared, so that 64 clusters keep 50 each
    mod_epoch       2 to 8: with 8, the division still ends well before the full-embedding phase at epoch 80
    masking_lambda  0.001 to 1: holds 0.01 of the sample command and 1, the flag's default
    mask_lr_mult    1 to 1000: holds 100 of the sample command and 1, the flag's default
"""

from search_spaces.reference_point import published_space
from search_spaces.wide import wide_space

SPACE = published_space(
    "inshop",
    nb_clusters=32,
    choices=[4, 8, 16, 32, 64],
    why="published for SOP: 32; 3,198 classes train, so that 64 clusters leave 50 each",
)

WIDE = wide_space(SPACE, base_lr=1e-5, batches=[64, 80, 112, 128, 256, 512], full_size=True)
"""`--space wide`: whole recipes; `search_spaces.wide` gives the reason of each range."""
