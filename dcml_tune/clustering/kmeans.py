"""k-means by Lloyd's algorithm: checks the arguments and selects a back end.

Shapes: N images, D feature dimensions, K clusters.

This implementation is kept instead of Faiss's own k-means: it stops when an iteration gains little, keeps tensors on their
device, and was measured to be faster at the same objective (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from dcml_tune.clustering import lloyd
from dcml_tune.clustering.faiss_backend import faiss_cpu, faiss_gpu, faiss_gpus
from dcml_tune.clustering.lloyd import FloatArray, IntArray
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.trial import Backend

Features = FloatArray | torch.Tensor


def kmeans(
    features: Features, k: int, *, seed: int, backend: str = "auto", init: npt.ArrayLike | None = None
) -> tuple[IntArray, FloatArray]:
    """Run k-means by Lloyd's algorithm, starting from k images that `seed` selects.

    All back ends start from the same images, which are those that Faiss draws for that seed, and use all images. They
    stop when an iteration lowers the objective by less than the share `LEAST_GAIN`, and after `MAX_ITERATIONS` at the
    latest. An empty cluster receives half of another cluster, as in Faiss. With k = N each image is a cluster.

    Args:
        features: (N, D) Floats. The torch back end computes on the device of a tensor.
        k: Number of clusters, 1 <= k <= N.
        seed: At least 0.
        backend: `faiss` (CPU), `faiss-gpu` and `torch` (device of the features) return the same labels up to rounding
            errors, which grow with each iteration where the data have no clusters. `sklearn` is an independent check:
            it stops by its own rule (movement of the centroids) and moves the farthest images into empty clusters.
            `auto` is torch. It keeps features on their device, where faiss-gpu copies them to the host in every iteration
            and takes memory outside of torch's cap. On the CPU it is as fast as Faiss, and ten times as fast for a few
            hundred images.
        init: (k, D) Initial centroids; None draws them with `seed`.

    Returns:
        The labels (N,), which are the index of the nearest centroid of each image, and the centroids (k, D).

    Raises:
        ValueError: if k is out of range, features or centroids have a wrong shape or are not finite, the back end is
            unknown, or `faiss-gpu` finds no GPU.

    Example:
        >>> import numpy as np
        >>> from dcml_tune import kmeans
        >>> labels, centroids = kmeans(np.array([[0.0], [0.2], [5.0], [5.2]]), 2, seed=0, backend="torch")
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3]), centroids.shape
        (True, (2, 1))
    """
    x = checked_features(features)
    run = _backend(backend)
    if not 1 <= k <= len(x):
        raise ValueError(f"`1 <= k <= images` must hold, but got k={k} and {len(x)} images; lower k")
    if k == len(x):
        return np.arange(k, dtype=np.int64), x.cpu().numpy().copy()
    start = x[_first_images(len(x), k, seed).to(x.device)] if init is None else _checked_init(init, x, k)
    return run(x, start)


def checked_features(features: Features) -> torch.Tensor:
    """Features as a contiguous float32 tensor.

    Raises:
        ValueError: if they are not a matrix of finite numbers.
    """
    x = as_tensor(features)
    if x.ndim != 2:
        raise ValueError(f"features must be a matrix with one row per image, but got shape {tuple(x.shape)}")
    # A sum is finite only if all its terms are, and computing it takes a twentieth of the time of checking each term.
    if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        rows = int((~torch.isfinite(x)).any(1).sum())
        raise ValueError(
            f"features of {rows} of {len(x)} images are not finite and cannot be clustered; "
            "training has diverged, lower the learning rates"
        )
    return x


def as_tensor(features: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
    """Features as a contiguous float32 tensor on their device."""
    if isinstance(features, torch.Tensor):
        return features.detach().to(torch.float32).contiguous()
    return torch.from_numpy(np.require(features, dtype=np.float32, requirements=["C", "W"]))


def _checked_init(init: npt.ArrayLike, x: torch.Tensor, k: int) -> torch.Tensor:
    """The initial centroids on the device of the features.

    Raises:
        ValueError: if they are not k finite rows with as many dimensions as the features.
    """
    start = checked_features(cast(Features, init)).to(x.device)
    if start.shape != (k, x.shape[1]):
        raise ValueError(f"init must have shape {(k, x.shape[1])}, but got {tuple(start.shape)}")
    return start


def _first_images(n: int, k: int, seed: int) -> torch.Tensor:
    """Indices of the images that Faiss starts from: its permutation for a seed is torch's for the next seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))[:k]


def check_backend(name: str) -> None:
    """Check before training that a back end can be used on this machine.

    Raises:
        SettingError: if the name is unknown, or `faiss-gpu` finds no GPU.
    """
    try:
        _backend(name)
    except ValueError as error:
        raise SettingError(str(error)) from None


Run = Callable[[torch.Tensor, torch.Tensor], tuple[IntArray, FloatArray]]


def _backend(name: str) -> Run:
    """The function that implements a back end."""
    known = list(get_args(Backend))
    if name not in known:
        raise ValueError(unknown_name("k-means backend", name, known))
    if name == "faiss-gpu" and faiss_gpus() == 0:
        raise ValueError("backend='faiss-gpu': Faiss finds no GPU here; use backend='auto', or give the trial a GPU")
    runs: dict[str, Run] = {
        "auto": _torch, "torch": _torch, "faiss": faiss_cpu, "faiss-gpu": faiss_gpu, "sklearn": _sklearn
    }  # fmt: skip
    return runs[name]


def _torch(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    return lloyd.lloyd(x, start, lloyd.torch_nearest(x))


def _sklearn(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    from sklearn.cluster import KMeans  # importing it takes a second, and most trials do not use it

    model = KMeans(len(start), init=start.cpu().numpy(), n_init=1, max_iter=lloyd.MAX_ITERATIONS, tol=lloyd.LEAST_GAIN)
    model.fit(x.cpu().numpy())
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)
