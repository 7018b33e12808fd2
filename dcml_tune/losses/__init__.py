"""Metric losses, their proxies, miners of triplets, and the regulariser of the masks."""

from dcml_tune.losses.functional import (
    kantorov_margin_loss,
    margin_loss,
    mask_overlap,
    npairs_loss,
    triplet_all_loss,
    triplet_loss,
    triplet_semihard_loss,
)
from dcml_tune.losses.pair_losses import contrastive_loss, multi_similarity_loss, supcon_loss
from dcml_tune.losses.proxies import arcface_loss, normalized_softmax_loss, proxy_anchor_loss

__all__ = [
    "arcface_loss",
    "contrastive_loss",
    "kantorov_margin_loss",
    "margin_loss",
    "mask_overlap",
    "multi_similarity_loss",
    "normalized_softmax_loss",
    "npairs_loss",
    "proxy_anchor_loss",
    "supcon_loss",
    "triplet_all_loss",
    "triplet_loss",
    "triplet_semihard_loss",
]
