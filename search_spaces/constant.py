"""Settings that must be the same in all trials of a search, so that trials can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_IMAGES = "trials would be trained and compared on different images"
_CLASSES = "trials would be compared on different held-out classes"
_CHANCE = "the luckiest seed would win; --seeds and --final-seeds train several"
_MACHINE = "it has no effect on what is measured, so that trials would be spent on nothing"

MAY_NOT_VARY: Mapping[str, str] = MappingProxyType(
    {
        "dataset": _IMAGES,
        "dataset_dir": _IMAGES,
        "skip_unreadable": _IMAGES,
        "allow_partial": _IMAGES,
        "strict": _IMAGES,
        "train_classes": _CLASSES,
        "ratio_classes": _CLASSES,
        "val_share": _CLASSES,
        "split_seed": _CLASSES,
        "fold": _CLASSES,
        "protocol": "some trials would score the test classes, which stay sealed until the end",
        "seed": _CHANCE,
        "clustering_random_state": _CHANCE,
        "num_workers": _MACHINE,
        "backend": _MACHINE,
    }
)
"""The settings that may not vary, each with the reason.

All others are part of a training recipe and may vary. These include `sz_resize` and `sz_crop`, because a model is used at
the size at which it was measured; `image_store`, which changes the training crops; and `amp`, which trades precision for
time on a GPU.
"""
