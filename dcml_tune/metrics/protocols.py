"""Final measures of a test set: retrieval by the protocol of its data set, and NMI and AMI of k-means.

Shapes: N images, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcml_tune.clustering.kmeans import kmeans
from dcml_tune.data import EvaluationSet, ImageList
from dcml_tune.data.datasets.vid import OFFICIAL
from dcml_tune.data.remains import matched_queries
from dcml_tune.metrics.clustering import ami, nmi
from dcml_tune.metrics.retrieval import retrieval_measures

Labels = npt.NDArray[np.int64]
Embed = Callable[[ImageList], tuple[Tensor, Labels]]
"""Embeds images. Returns rows of unit length (N, D) and labels (N,), without images that cannot be decoded."""

DRAWS = 10
"""Number of galleries that VehicleID's protocol draws."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measures of one test set by one protocol."""

    name: str
    """Name of the test set."""
    protocol: str
    """whole: each image is searched in all others. gallery: queries are searched in the gallery. official: VehicleID's."""
    measures: dict[str, float]
    """Measures by name, shares of 1; NAME_std is the standard deviation over draws or clusterings."""


def final_measures(
    embed: Embed, sets: tuple[EvaluationSet, ...], *, official: bool, clusterings: int = 10, seed: int = 0
) -> Iterator[Measured]:
    """Yield the final measures of a model for each test set.

    In-Shop's queries are searched in its gallery only; queries and gallery are clustered together. With `official` each
    set is also measured by VehicleID's protocol, under a protocol name of its own.

    Args:
        embed: embeds images by the model. Each image is embedded once, also if a set is part of another one.
        sets: the test sets.
        official: whether the sets are VehicleID's.
        clusterings: number of seeded k-means clusterings over which NMI and AMI are averaged; 0 omits NMI and AMI.
        seed: the first seed.
    """
    known = EmbeddedOnce(embed)
    for test in sets:
        queries, labels = known(test.queries)
        others, other_labels = known(test.gallery) if test.gallery is not None else (None, None)
        kept = matched_queries(test, labels, other_labels)
        queries, labels = queries[torch.from_numpy(kept).to(queries.device)], labels[kept]
        if others is None or other_labels is None:
            found = retrieval_measures(queries, labels, test.ks)
        else:
            found = retrieval_measures(queries, labels, test.ks, gallery=others, gallery_labels=other_labels)
            queries, labels = torch.cat([queries, others]), np.concatenate([labels, other_labels])
        if clusterings:
            found |= clustering_measures(queries, labels, clusterings=clusterings, seed=seed)
        yield Measured(name=test.name, protocol="whole" if test.gallery is None else "gallery", measures=found)
        if official:
            drawn = official_measures(queries, labels, test.ks, seed=seed)
            yield Measured(name=test.name, protocol=OFFICIAL, measures=drawn)


class EmbeddedOnce:
    """Embeds each image once: a list whose images were all embedded before is assembled from their embeddings."""

    def __init__(self, embed: Embed) -> None:
        """Wrap a function that embeds images."""
        self._embed, self._rows = embed, dict[str, int]()
        self._all: tuple[Tensor, Labels] | None = None

    def __call__(self, images: ImageList) -> tuple[Tensor, Labels]:
        """Embed images as the wrapped function does."""
        if self._all is not None and all(path in self._rows for path in images.paths):
            at = [self._rows[path] for path in images.paths]
            return self._all[0][torch.tensor(at, device=self._all[0].device)], images.labels
        found, labels = self._embed(images)
        if len(found) == len(images):  # otherwise some could not be decoded, and which ones is unknown
            self._all, self._rows = (found, labels), {path: row for row, path in enumerate(images.paths)}
        return found, labels


def official_measures(
    embeddings: Tensor, labels: Labels, ks: tuple[int, ...], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """Measure by VehicleID's protocol: the gallery is one random image of each class, and all other images are queries.

    Measures are averaged over several draws of the gallery. The image of a class with a single image is in the gallery,
    and the class has no query.

    Args:
        embeddings: (N, D) Rows of unit length.
        labels: (N,) Classes.
        ks: Ranks of the recall (CMC in the protocol).
        draws: Number of galleries.
        seed: Seed of the draws.

    Returns:
        `recall_at_K` and its `_std` over the draws, for each k.

    Source: Liu et al., "Deep Relative Distance Learning", CVPR 2016, section 5.
    """
    found: dict[str, list[float]] = {}
    for number in range(draws):
        is_gallery = _one_each(labels, np.random.default_rng([seed, number]))
        at = torch.from_numpy(is_gallery).to(embeddings.device)
        each = retrieval_measures(
            embeddings[~at], labels[~is_gallery], ks, gallery=embeddings[at], gallery_labels=labels[is_gallery]
        )
        for k in ks:
            found.setdefault(f"recall_at_{k}", []).append(each[f"recall_at_{k}"])
    return _with_spread(found)


def _one_each(labels: Labels, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """(N,) Whether each image is drawn; one image per class is."""
    order = rng.permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    drawn = np.zeros(len(labels), dtype=np.bool_)
    drawn[order[first]] = True
    return drawn


def clustering_measures(
    embeddings: Tensor, labels: Labels, *, clusterings: int = 10, seed: int = 0, backend: str = "auto"
) -> dict[str, float]:
    """NMI (arithmetic mean) and AMI of k-means with as many clusters as classes, averaged over seeds.

    k-means stops when an iteration gains less than a ten-thousandth (`clustering.lloyd.LEAST_GAIN`). With the eleven
    thousand classes of Stanford Online Products a clustering takes minutes on a CPU.

    Args:
        embeddings: (N, D) Rows of unit length.
        labels: (N,) Classes.
        clusterings: Number of seeds.
        seed: The first seed.
        backend: As in `clustering.kmeans`.

    Returns:
        `nmi`, `nmi_std`, `ami`, `ami_std` in [0, 1]; NMI and AMI are 1 if there is a single class.
    """
    classes = len(np.unique(labels))
    found: dict[str, list[float]] = {"nmi": [], "ami": []}
    for number in range(clusterings):
        clusters, _ = kmeans(embeddings, classes, seed=seed + number, backend=backend)
        found["nmi"].append(nmi(labels, clusters))
        found["ami"].append(ami(labels, clusters))
    return _with_spread(found)


def _with_spread(found: dict[str, list[float]]) -> dict[str, float]:
    """Mean of each list, and as NAME_std its sample standard deviation (0 for one value)."""
    result: dict[str, float] = {}
    for name, values in found.items():
        result[name] = float(np.mean(values))
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return result
