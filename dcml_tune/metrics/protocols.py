"""What is measured on a test set: retrieval by the protocol of its data set, and how well k-means finds its classes.

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
"""Embeds images: unit rows (N, D) and their labels (N,), without those that cannot be decoded."""

DRAWS = 10
"""Galleries drawn by VehicleID's protocol."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measures of one test set by one protocol."""

    name: str
    """Of the test set."""
    protocol: str
    """whole: everyone is searched in everyone else. gallery: queries in the gallery. official: VehicleID's."""
    measures: dict[str, float]
    """Shares of 1; NAME_std is the standard deviation over draws or clusterings."""


def final_measures(
    embed: Embed, sets: tuple[EvaluationSet, ...], *, official: bool, clusterings: int = 10, seed: int = 0
) -> Iterator[Measured]:
    """The final measures of a model on test sets, one after the other.

    In-Shop's queries are searched in its gallery, never in each other; its images are clustered all together. With
    `official` each set is measured by VehicleID's protocol, too, apart from that of everyone in everyone else.

    Args:
        embed: the model. Each image is embedded once, also where a set is part of another.
        sets: with their k.
        official: the sets are VehicleID's.
        clusterings: seeded k-means clusterings over which NMI and AMI are averaged; 0 leaves them out.
        seed: the first one.
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
    """Embeds each image once: a list of which all images are known is put together from them."""

    def __init__(self, embed: Embed) -> None:
        """Embed by this."""
        self._embed, self._rows = embed, dict[str, int]()
        self._all: tuple[Tensor, Labels] | None = None

    def __call__(self, images: ImageList) -> tuple[Tensor, Labels]:
        """As the function that it was made of."""
        if self._all is not None and all(path in self._rows for path in images.paths):
            at = [self._rows[path] for path in images.paths]
            return self._all[0][torch.tensor(at, device=self._all[0].device)], images.labels
        found, labels = self._embed(images)
        if len(found) == len(images):  # else some could not be decoded, and it is not known which
            self._all, self._rows = (found, labels), {path: row for row, path in enumerate(images.paths)}
        return found, labels


def official_measures(
    embeddings: Tensor, labels: Labels, ks: tuple[int, ...], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """VehicleID's protocol: one random image of each class is the gallery, the others are queries; mean of some draws.

    A class with one image has it in the gallery and no query.

    Args:
        embeddings: (N, D) Unit rows.
        labels: (N,) Classes.
        ks: At which to measure recall (the protocol's CMC).
        draws: Galleries.
        seed: Of the first one.

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
    """Which images are drawn, one of each class."""
    order = rng.permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    drawn = np.zeros(len(labels), dtype=np.bool_)
    drawn[order[first]] = True
    return drawn


def clustering_measures(
    embeddings: Tensor, labels: Labels, *, clusterings: int = 10, seed: int = 0, backend: str = "auto"
) -> dict[str, float]:
    """NMI (arithmetic mean) and AMI of k-means with as many clusters as there are classes, over seeded clusterings.

    k-means ends when an iteration gains less than a ten-thousandth (`clustering.LEAST_GAIN`). With eleven thousand
    classes, as of Stanford Online Products, a clustering takes minutes on a processor.

    Args:
        embeddings: (N, D) Unit rows.
        labels: (N,) Classes.
        clusterings: Number of seeds.
        seed: The first one.
        backend: As `clustering.kmeans`.

    Returns:
        `nmi`, `nmi_std`, `ami`, `ami_std` in [0, 1]; 1 where there is a single class.
    """
    classes = len(np.unique(labels))
    found: dict[str, list[float]] = {"nmi": [], "ami": []}
    for number in range(clusterings):
        clusters, _ = kmeans(embeddings, classes, seed=seed + number, backend=backend)
        found["nmi"].append(nmi(labels, clusters))
        found["ami"].append(ami(labels, clusters))
    return _with_spread(found)


def _with_spread(found: dict[str, list[float]]) -> dict[str, float]:
    """Mean, and as NAME_std the standard deviation (of a sample; 0 for one value), of each list."""
    result: dict[str, float] = {}
    for name, values in found.items():
        result[name] = float(np.mean(values))
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return result
