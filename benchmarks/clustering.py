"""Speed and objective of our k-means, compared with Faiss.

    python benchmarks/clustering.py [--images 60000] [--clusters 32] [--repeats 3] [--least-gain 1e-4]

The features (60,000 x 2,048 float32) are drawn from a mixture of 200 Gaussian clusters and normalised to unit length,
as those of the trainer are. There are two sets of features. In the first the clusters are well separated, and k-means
converges after a few iterations. In the second the clusters overlap, and the variance decreases from dimension to
dimension, as in the features of a network.

Ours is `dcml_tune.clustering.kmeans` with its default backend. It stops when an iteration improves the objective by
less than a ten-thousandth (`--least-gain`).

The references are runs of `faiss.Kmeans` with a single start:

- at most 100 iterations on all images. From version 1.15 on, Faiss stops when the objective no longer improves. The
  goals refer to this run;
- the same without this stop, as in earlier versions of Faiss;
- the default of Faiss, which uses a sample of 256 images for each cluster.

All but the last start from the same images. All use all cores. The objective is the sum of the squared distances of the
images to the nearest centroid. One function computes it from the centroids of each run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import faiss
import numpy as np
import numpy.typing as npt
import torch
from measure import Row, alternate, ratio_line, show, value_line

from dcml_tune.clustering.kmeans import kmeans
from dcml_tune.clustering.lloyd import LEAST_GAIN

Array = npt.NDArray[np.float32]

MIXTURE, ITERATIONS = 200, 100
# Rows that are worked on at once: temporary copies stay small.
BLOCK = 4096


@dataclass(frozen=True)
class Kind:
    """A mixture."""

    name: str
    decay: float
    """The standard deviation of dimension i, of centres and of noise, falls as i to the minus this."""
    noise: float
    """Length of the noise, in lengths of a centre."""


KINDS = [Kind("apart", decay=0.0, noise=1.0), Kind("overlapping", decay=0.5, noise=2.0)]


def drawn(kind: Kind, images: int, dimensions: int) -> Array:
    """Unit rows: one of the mixture's centres each, and noise."""
    rng = np.random.default_rng(0)
    deviations = (np.arange(1, dimensions + 1) ** -kind.decay).astype(np.float32)
    centres = rng.standard_normal((MIXTURE, dimensions), dtype=np.float32)
    features = np.empty((images, dimensions), dtype=np.float32)
    for start in range(0, images, BLOCK):
        block = rng.standard_normal(out=features[start : start + BLOCK], dtype=np.float32)
        block *= kind.noise
        block += centres[rng.integers(MIXTURE, size=len(block))]
        block *= deviations
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return features


def faiss_centroids(features: Array, clusters: int, **settings: float) -> Array:
    """What Faiss finds from the images that seed 0 of ours begins with, too."""
    model = faiss.Kmeans(
        features.shape[1], clusters, niter=ITERATIONS, nredo=1, seed=0, min_points_per_centroid=1, **settings
    )
    model.train(features)
    found: Array = model.centroids
    return found


def objective(features: Array, centroids: Array) -> float:
    """The sum over images of the squared distance to the nearest centroid."""
    images, means = torch.from_numpy(features), torch.from_numpy(centroids).double()
    norms = means.square().sum(1)
    total = 0.0
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK].double()
        nearest = torch.addmm(norms, block, means.T, alpha=-2).min(1).values
        total += float((nearest + block.square().sum(1)).sum())
    return total


def references(images: int) -> dict[str, tuple[dict[str, float], tuple[str, str]]]:
    """The settings of Faiss that are compared with, and the goals for the time and for the objective."""
    every = {"max_points_per_centroid": images}
    return {
        "Faiss": (every, ("10", "1.001 at most")),
        f"Faiss, all {ITERATIONS} iterations": ({**every, "early_stop_threshold": -1.0}, ("", "")),
        "Faiss, 256 images a cluster": ({}, ("", "")),
    }


def measured(kind: Kind, options: argparse.Namespace) -> list[Row]:
    """The rows of one mixture."""
    features = drawn(kind, options.images, options.dimensions)
    found: dict[str, Array] = {}

    def ours() -> None:
        found["ours"] = kmeans(features, options.clusters, seed=0)[1]

    def theirs(name: str, settings: dict[str, float]) -> None:
        found[name] = faiss_centroids(features, options.clusters, **settings)

    against = references(len(features))
    works: dict[str, Callable[[], object]] = {"ours": ours}
    works |= {name: partial(theirs, name, settings) for name, (settings, _) in against.items()}
    kmeans(features[: 8 * options.clusters], options.clusters, seed=0)  # what is loaded at the first call
    taken = alternate(works, options.repeats)
    reached = {name: objective(features, centroids) for name, centroids in found.items()}
    rows = []
    for name, (_, (fast, good)) in against.items():
        rows.append(ratio_line(f"{kind.name}; time; {name}", taken["ours"], taken[name], unit="s", goal=fast))
        rows.append(value_line(f"{kind.name}; objective; {name}", reached["ours"], reached[name], goal=good))
    return rows


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--clusters", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least-gain", type=float, default=LEAST_GAIN)
    options = parser.parse_args(argv)
    with patch("dcml_tune.clustering.lloyd.LEAST_GAIN", options.least_gain):
        rows = [row for kind in KINDS for row in measured(kind, options)]
    show(f"k-means of {options.images:,} x {options.dimensions:,} into {options.clusters}, all cores", rows)
    return rows


if __name__ == "__main__":
    main()
