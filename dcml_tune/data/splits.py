"""Which training classes are held out to compare trials. The test classes have no part in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcml_tune.config import SettingError
from dcml_tune.data.images import ImageList


@dataclass(frozen=True)
class HeldOut:
    """Rows that are held out."""

    queries: NDArray[np.int64]
    gallery: NDArray[np.int64] | None = None
    """None: the queries are searched in each other."""


def hold_out(images: ImageList, *, share: float, seed: int) -> tuple[NDArray[np.int64], HeldOut | None]:
    """Split the rows of the training classes: those that train, and those of the classes held out.

    A share of the classes is drawn within every super-class, where there are some. A share of 0 holds out none.

    Raises:
        SettingError: if fewer than two classes would be held out or would train.
    """
    rows = np.arange(len(images), dtype=np.int64)
    if share == 0:
        return rows, None
    classes, first = np.unique(images.labels, return_index=True)
    strata = np.zeros(len(classes)) if images.super_labels is None else images.super_labels[first]
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(classes[strata == stratum])[: round(share * (strata == stratum).sum())]
        for stratum in np.unique(strata)
    ]
    held = np.concatenate(drawn)
    if len(held) < 2 or len(classes) - len(held) < 2:
        raise SettingError(
            f"val_share={share}: holds out {len(held)} of {len(classes)} training classes; at least 2 must be held "
            "out and 2 train; change --val-share or add classes"
        )
    chosen = np.isin(images.labels, held)
    return rows[~chosen], HeldOut(rows[chosen])
