"""The division of the images into clusters: over the epochs of all trials, and in the best model."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator
from pydantic import Field
from torch import Tensor

from dcml_tune.models import embedder
from dcml_tune.report.figures import SIZE, Album, axes, in_percent
from dcml_tune.report.page import Figure, Section
from dcml_tune.report.search_data import SearchData
from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError
from dcml_tune.utils.stored import Count, Stored

DIVISION = "division"
"""Name of the checkpoint beside a model that holds its partition."""

_NUMBERED = 16  # most learners for which the heat map prints the value of each cell


class _Division(Stored):
    nb_clusters: Annotated[Count, Field(ge=0, le=1 << 20)]


def division(search: SearchData, album: Album) -> Section:
    """Partitions over epochs; cluster sizes and masks of the best model."""
    section = Section(title="Division")
    _over_epochs(section, search, album)
    _sizes(section, search, album)
    _masks(section, search, album)
    return section


def _over_epochs(section: Section, search: SearchData, album: Album) -> None:
    section.parts += filter(None, [_nmi(search, album), _left_out(search, album), _extremes(search, album)])
    if not section.parts:
        section.say(
            "MLflow has no numbers of the division: no trial has divided its images yet, or the store is missing."
        )


def _nmi(search: SearchData, album: Album) -> Figure | None:
    return _lines(
        search,
        album,
        {"clusters/nmi_previous": "-"},
        "nmi",
        title="Agreement of consecutive partitions",
        unit="NMI with the previous partition (0 to 1)",
        caption="Look for lines that rise towards 1: the clusters are stable. Low values mean that learners are assigned "
        "different images after each reclustering.",
    )


def _left_out(search: SearchData, album: Album) -> Figure | None:
    return _lines(
        search,
        album,
        {"clusters/left_out": "-"},
        "left-out",
        title="Images that no learner trains on",
        unit="share of the images used for training",
        caption="Look for high lines: an image that is the only one of its class in its cluster is left out, so that many "
        "small clusters lose training data.",
        percentage=True,
    )


def _extremes(search: SearchData, album: Album) -> Figure | None:
    return _lines(
        search,
        album,
        {"clusters/largest": "-", "clusters/smallest": ":"},
        "largest-smallest",
        title="Largest (solid) and smallest (dotted) cluster",
        unit="images",
        caption="Look for a solid and a dotted line far apart: an epoch has as many rounds as the largest cluster has batches, "
        "and the images of smaller clusters are drawn more often.",
    )


def _lines(
    search: SearchData,
    album: Album,
    metrics: dict[str, str],
    name: str,
    *,
    title: str,
    unit: str,
    caption: str,
    percentage: bool = False,
) -> Figure | None:
    """Plot metrics of all trials over epochs, by metric and line style; None if no trial has them."""
    found = [
        (number, trial, style, points)
        for number, trial in enumerate(search.trials)
        for metric, style in metrics.items()
        if (points := search.curve(trial.key, metric))
    ]
    if not found:
        return None
    drawn = axes()
    for number, trial, style, points in found:
        label = trial.key if style == "-" and len(search.trials) <= 16 else None
        drawn.plot(*zip(*points, strict=True), style, marker=".", color=colormaps["tab20"](number % 20), label=label)
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.set_xlim(0, 0.5 + max(trial.epochs for trial in search.trials))
    drawn.set_xlabel("epoch")
    drawn.set_ylabel(unit)
    if percentage:
        in_percent(drawn.yaxis)
    if len(search.trials) <= 16:
        drawn.legend(title="trial", ncols=2)
    return album.keep(drawn, name, title=title, caption=caption)


def read_division(search: SearchData) -> tuple[dict[str, Tensor], int] | None:
    """The partition of the best trial and its number of clusters; None if it was not kept."""
    if search.model is None:
        return None
    try:
        tensors, found = checkpoint.read(search.model, DIVISION, _Division)
    except CheckpointError:
        return None
    parts = [tensors.get(name) for name in ("partition", "rows")]
    if any(part is None or part.dtype != torch.int64 or part.ndim != 1 for part in parts):
        return None
    partition, rows = tensors["partition"], tensors["rows"]
    if len(partition) != len(rows) or bool((partition >= found["nb_clusters"]).any()):
        return None
    return tensors, int(found["nb_clusters"])


def _sizes(section: Section, search: SearchData, album: Album) -> None:
    found = read_division(search)
    if found is None:
        section.say("The division of the best trial was not kept, so there are no sizes of its clusters.")
        return
    assert search.best is not None
    tensors, clusters = found
    partition = tensors["partition"].numpy()
    sizes = np.bincount(partition[partition >= 0], minlength=clusters)
    drawn = axes(height=3.5)
    drawn.bar(range(clusters), sizes, label="trains a learner")
    left_out = int((partition < 0).sum())
    drawn.bar([clusters], [left_out], color="grey", label="left out")
    ticks = range(0, clusters, 1 + clusters // 32)
    drawn.set_xticks([*ticks, clusters], [*map(str, ticks), "none"])
    drawn.set_xlabel("cluster")
    drawn.set_ylabel("images")
    drawn.legend()
    caption = (
        f"Look for bars of unequal height: of {len(partition):,} images used for training, {left_out:,} "
        f"({100 * left_out / max(1, len(partition)):.1f} %) belong to no cluster, and the smallest cluster has {sizes.min():,}."
    )
    section.parts.append(
        album.keep(drawn, "cluster-sizes", title=f"Clusters of trial {search.best.key}", caption=caption)
    )


def _masks(section: Section, search: SearchData, album: Album) -> None:
    if search.model is None or search.best is None:
        section.say("The model of the best trial was not kept, or there is none yet, so its masks cannot be shown.")
        return
    loaded = embedder.load(search.model)
    masks_KD = loaded.effective_masks().detach()
    if len(masks_KD) == 1:
        section.say(
            f"The best model of trial {search.best.key} is of an epoch with one cluster: it has a single mask, so that there "
            "is nothing to compare."
        )
        return
    section.parts += [_overlap(masks_KD, search.best.key, album), _image(masks_KD, search.best.key, album)]


def _overlap(masks_KD: Tensor, key: str, album: Album) -> Figure:
    unit_KD = F.normalize(F.relu(masks_KD), dim=1)
    cosine_KK = (unit_KD @ unit_KD.T).numpy()
    drawn = axes(6.5, 5.2)
    image = drawn.imshow(cosine_KK, vmin=0, vmax=1, cmap="viridis")
    drawn.grid(visible=False)
    _learners(drawn.xaxis, len(masks_KD))
    _learners(drawn.yaxis, len(masks_KD))
    if len(masks_KD) <= _NUMBERED:
        for (row, column), value in np.ndenumerate(cosine_KK):
            drawn.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="x-small",
                       color="black" if value > 0.6 else "white")  # fmt: skip
    drawn.set_xlabel("learner")
    drawn.set_ylabel("learner")
    drawn.figure.colorbar(image, ax=drawn, label="cosine of rectified masks (0 to 1)")
    mean = float(cosine_KK[~np.eye(len(masks_KD), dtype=bool)].mean())
    caption = (
        f"Look for dark cells off the diagonal: these learners use different dimensions. Values near 1 (here {mean:.2f} on "
        "average) mean that the masks hardly differ."
    )
    return album.keep(drawn, "mask-overlap", title=f"Overlap of the masks of trial {key}", caption=caption)


def _image(masks_KD: Tensor, key: str, album: Album) -> Figure:
    drawn = axes(SIZE[0], 1.8 + min(4.0, 0.22 * len(masks_KD)))
    image = drawn.imshow(masks_KD.numpy(), aspect="auto", interpolation="nearest", cmap="magma")
    drawn.grid(visible=False)
    _learners(drawn.yaxis, len(masks_KD))
    drawn.set_xlabel("dimension of the embedding")
    drawn.set_ylabel("learner")
    drawn.figure.colorbar(image, ax=drawn, label="weight")
    caption = "Look for columns that are light in one row only: dimensions that only one learner uses."
    return album.keep(drawn, "masks", title=f"Effective masks of trial {key}", caption=caption)


def _learners(axis: object, count: int) -> None:
    """Set ticks at integers."""
    axis.set_ticks(range(0, count, 1 + count // 16))  # type: ignore[attr-defined]
