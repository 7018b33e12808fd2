"""Metric losses, miners of triplets, and the regulariser of the masks."""

from dcml_tune.losses.functional import (
    kantorov_margin_loss,
    margin_loss,
    mask_overlap,
    npairs_loss,
    triplet_all_loss,
    triplet_loss,
    triplet_semihard_loss,
)

__all__ = [
    "kantorov_margin_loss",
    "margin_loss",
    "mask_overlap",
    "npairs_loss",
    "triplet_all_loss",
    "triplet_loss",
    "triplet_semihard_loss",
]
