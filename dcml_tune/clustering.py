"""The division of the training images: k-means, matching of consecutive partitions, division in two.

A partition is an integer array, one entry an image: the number of its cluster, or -1 for none.

Shapes: N images, D feature dimensions, K clusters.

Source: TPAMI 2021, section 3 and algorithm 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from dcml_tune.config import Backend, SettingError, TrialConfig, unknown_name
from dcml_tune.schedule import EpochPlan

if TYPE_CHECKING:
    import faiss

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Features = FloatArray | torch.Tensor

MAX_ITERATIONS = 100
# Iterations end when one lowers the objective by a smaller share than this. On made-up clusters that ended
# 0.00 to 0.16 % above where 100 iterations lead (mean of 8 seeds; the worst 0.6 %), after 10 to 30 of them.
LEAST_GAIN = 1e-4
ADAPTIVE = "kmeans_adaptive_centroids"
# Seeds tried until a clustering is acceptable.
TRIES = 30
# Entries of the largest matrix that assigning images to centroids holds at once (64 MiB of float32).
MAX_ENTRIES = 1 << 24
# Entries of the images that a CPU assigns at once (16 MiB, which its cache holds): a third faster than all of them.
MAX_CACHED = 1 << 22
# Most bytes that Faiss may reserve on a GPU for the time of a clustering (it would take 1.5 GiB by itself), and the most
# of what is left of the trial's share of the memory.
FAISS_GPU_BYTES = 256 << 20
FAISS_GPU_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """What a reclustering found."""

    partition: IntArray
    """(N,) The clusters to train on; images alone of their class within their cluster are -1."""
    assignment: IntArray
    """(N,) The same with every image kept: the `previous` of the next reclustering."""
    nmi_previous: float | None
    """Agreement with the previous assignment in [0, 1], before a division; None where one of the two has
    a single cluster or does not exist."""


def recluster(
    features: Features,
    labels: npt.ArrayLike,
    plan: EpochPlan,
    previous: IntArray | None,
    *,
    config: TrialConfig,
) -> Clustering:
    """Compute the partition of an epoch anew: k-means, match, divide, drop single images.

    Whether an epoch reclusters is the plan's `recluster`; this function does it when it is called. With a
    plan of one cluster all images but those alone of their class are in it, and features do not matter.

    Args:
        features: (N, D) Unit rows in evaluation mode, penultimate features or embeddings.
        labels: (N,) Classes.
        plan: The epoch. With `divide` k-means finds half of its clusters, which are then split in two; with
            `merge` the new clusters are unrelated to the previous ones and keep k-means's order.
        previous: (N,) The `assignment` of the previous clustering, None at first.
        config: Gives seed, `clustering_random_state`, `clustering_method`, `reassign_random`, `backend`.

    Raises:
        ValueError: as `kmeans`.

    Source: TPAMI 2021, algorithm 1. The original matches with the inverse
    permutation, which undoes the matching for more than two clusters.
    """
    if plan.nb_clusters == 1:
        everything = np.zeros(len(features), dtype=np.int64)
        # `drop_singles` gives an array of its own: a checkpoint refuses to write one array under two names.
        return Clustering(partition=drop_singles(everything, labels), assignment=everything, nmi_previous=None)
    nb_found = plan.nb_clusters // 2 if plan.divide else plan.nb_clusters
    seed = _seed(config, plan.epoch)
    assignment = _found(features, labels, nb_found, previous, config=config, seed=seed)
    if previous is not None and not plan.merge and not config.reassign_random:
        assignment = match(previous, assignment)
    nmi_previous = None if previous is None else _agreement(previous, assignment)
    if plan.divide:
        spread = config.clustering_method == ADAPTIVE
        assignment = divide(features, assignment, labels, seed=seed, backend=config.backend, spread=spread)
    return Clustering(partition=drop_singles(assignment, labels), assignment=assignment, nmi_previous=nmi_previous)


def _seed(config: TrialConfig, epoch: int) -> int:
    """The seed of the clustering of an epoch: one a trial, or fresh by `clustering_random_state`."""
    if config.clustering_random_state is None:
        return config.seed
    return int(np.random.SeedSequence([config.clustering_random_state, epoch]).generate_state(1)[0]) >> 1


def _found(
    features: Features,
    labels: npt.ArrayLike,
    k: int,
    previous: IntArray | None,
    *,
    config: TrialConfig,
    seed: int,
) -> IntArray:
    """The clusters that k-means finds, in its own order."""
    if k == 1:
        return np.zeros(len(features), dtype=np.int64)
    adaptive = config.clustering_method == ADAPTIVE
    init = _means_of(previous, features, k) if adaptive and previous is not None else None
    return cluster(features, labels, k, seed=seed, backend=config.backend, init=init, spread=adaptive)[0]


def _means_of(previous: IntArray, features: Features, k: int) -> FloatArray | None:
    """The previous clusters' means in the new features; None unless these are k clusters, all with images."""
    if previous.max(initial=-1) + 1 != k:
        return None
    x, kept = _as_tensor(features), np.flatnonzero(previous >= 0)
    sums, counts = _sums(x[torch.from_numpy(kept)], torch.from_numpy(previous[kept]).to(x.device), k)
    if not bool((counts > 0).all()):
        return None
    return cast(FloatArray, (sums / counts[:, None]).cpu().numpy())


def _spread(features: Features, k: int, seed: int) -> FloatArray:
    """Images that lie apart, k of them, as k-means++ draws them."""
    from sklearn.cluster import kmeans_plusplus  # a second of import that most trials never need

    return cast(FloatArray, kmeans_plusplus(_as_tensor(features).cpu().numpy(), k, random_state=seed % 2**32)[0])


def cluster(
    features: Features,
    labels: npt.ArrayLike,
    k: int,
    *,
    seed: int,
    backend: str = "auto",
    init: FloatArray | None = None,
    spread: bool = False,
) -> tuple[IntArray, FloatArray]:
    """K-means with the seeds `seed`, `seed + 1`, ... until the clusters are acceptable.

    After `TRIES` seeds the last clustering is taken, with a warning. `init` serves the first try alone,
    since it would only repeat itself. Other tries start from random images; with `spread` from k-means++.

    Returns:
        The partition (N,) and the centroids (k, D).

    Raises:
        ValueError: as `kmeans`.
    """
    for attempt in range(TRIES):
        start = init if attempt == 0 else None
        if start is None and spread:
            start = _spread(features, k, seed + attempt)
        partition, centroids = kmeans(features, k, seed=seed + attempt, backend=backend, init=start)
        if acceptable(partition, labels, k):
            return partition, centroids
    logger.warning(
        "k-means of %d images into %d: with none of the %d seeds from %d does every cluster hold 2 classes "
        "with 2 images each; going on with the last",
        len(partition), k, TRIES, seed,
    )  # fmt: skip
    return partition, centroids


def acceptable(partition: npt.ArrayLike, labels: npt.ArrayLike, k: int) -> bool:
    """Whether each of the clusters 0 to k - 1 holds at least 2 classes with at least 2 images each."""
    partition = np.asarray(partition, dtype=np.int64)
    inside = partition >= 0
    key, nb_classes = _class_in_cluster(partition[inside], np.asarray(labels)[inside])
    pairs, counts = np.unique(key, return_counts=True)
    classes = np.bincount(pairs[counts >= 2] // nb_classes, minlength=k)
    return bool((classes[:k] >= 2).all())


def drop_singles(partition: npt.ArrayLike, labels: npt.ArrayLike) -> IntArray:
    """The partition without the images that are alone of their class within their cluster: these are -1."""
    partition = np.asarray(partition, dtype=np.int64)
    key, _ = _class_in_cluster(partition, np.asarray(labels))
    _, position, counts = np.unique(key, return_inverse=True, return_counts=True)
    return np.where(counts[position] >= 2, partition, -1)


def _class_in_cluster(partition: IntArray, labels: npt.NDArray[np.generic]) -> tuple[IntArray, int]:
    """A number for each image that two share if class and cluster are the same, and the number of classes."""
    classes, position = np.unique(labels, return_inverse=True)
    return partition * len(classes) + position, max(1, len(classes))


def divide(
    features: Features,
    partition: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    seed: int,
    backend: str = "auto",
    spread: bool = False,
) -> IntArray:
    """Split every cluster in two by 2-means on its own images: the children of k are 2k and 2k + 1.

    Tries seeds as `cluster` does until both children are acceptable. Every image keeps a cluster; what was
    -1 stays -1. A cluster of a single image cannot be split: its image goes to child 2k, with a warning.

    Raises:
        ValueError: as `kmeans`.
    """
    x, classes = _checked(features), np.asarray(labels)
    partition = np.asarray(partition, dtype=np.int64)
    children = np.where(partition >= 0, 2 * partition, -1)
    for parent in range(int(partition.max(initial=-1)) + 1):
        members = np.flatnonzero(partition == parent)
        if len(members) < 2:
            logger.warning("cluster %d holds %d images and cannot be divided", parent, len(members))
            continue
        own = x[torch.from_numpy(members).to(x.device)]
        children[members] += cluster(own, classes[members], 2, seed=seed, backend=backend, spread=spread)[0]
    return children


def match(previous: npt.ArrayLike, current: npt.ArrayLike) -> IntArray:
    """Renumber the current clusters so that as many images as possible keep their previous number.

    Images that are -1 in either count for nothing, and -1 stays -1. Where there are more current clusters
    than previous ones, those left over take the numbers after the previous ones, in their order. Where there
    are fewer, each takes the number of the previous cluster that it matches, so that numbers are left free.

    Example:
        >>> match([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, -1]).tolist()
        [0, 0, 1, 1, 2, -1]

    Raises:
        ValueError: if the two are not equally long.

    Source: the assignment problem of TPAMI 2021, section 3; here with the permutation that solves it, where
    the original applies its inverse.
    """
    from scipy.optimize import linear_sum_assignment

    previous, current = np.asarray(previous, dtype=np.int64), np.asarray(current, dtype=np.int64)
    overlap = _overlap(previous, current)
    nb_previous, nb_current = overlap.shape
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    number = np.full(nb_current, -1, dtype=np.int64)
    number[columns] = rows
    left_over = number < 0
    number[left_over] = nb_previous + np.arange(left_over.sum())
    # The entry after the last stands for "none": index -1 finds it.
    renumbered: IntArray = np.append(number, -1)[current]
    return renumbered


def _overlap(previous: IntArray, current: IntArray) -> IntArray:
    """The number of images that each previous (row) and each current cluster (column) share."""
    if previous.shape != current.shape:
        raise ValueError(f"`len(previous) == len(current)` must hold, but got {len(previous)} and {len(current)}")
    shape = int(previous.max(initial=-1)) + 1, int(current.max(initial=-1)) + 1
    both = (previous >= 0) & (current >= 0)
    pairs = previous[both] * shape[1] + current[both]
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def _agreement(previous: IntArray, current: IntArray) -> float | None:
    """Normalised mutual information (arithmetic mean) of two assignments; None if one is a single cluster."""
    overlap = _overlap(previous, current)
    p = overlap / max(1, overlap.sum())
    p_previous, p_current = p.sum(1), p.sum(0)
    entropies = _entropy(p_previous), _entropy(p_current)
    if min(entropies) == 0:
        return None
    mutual = sum(entropies) - _entropy(p.ravel())
    return float(np.clip(2 * mutual / sum(entropies), 0, 1))


def _entropy(p: npt.NDArray[np.float64]) -> float:
    """Entropy in nats of probabilities, zeros allowed."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def kmeans(
    features: Features, k: int, *, seed: int, backend: str = "auto", init: npt.ArrayLike | None = None
) -> tuple[IntArray, FloatArray]:
    """K-means by Lloyd's iterations from k images drawn by `seed`.

    All backends start from the same images, those that Faiss draws for that seed, and use all images. They
    stop when an iteration lowers the objective by less than `LEAST_GAIN` of it, at the latest after
    `MAX_ITERATIONS`. An empty cluster takes half of another, as in Faiss. With k = N each image is a cluster.

    Args:
        features: (N, D) float; a tensor on a GPU stays there with the torch backend.
        k: Clusters, 1 <= k <= N.
        seed: At least 0.
        backend: `faiss` (CPU), `faiss-gpu` and `torch` (the device of the features) give the same labels up
            to rounding, which grows from iteration to iteration where the data have no clusters. `sklearn`
            stops by its own rule (movement of the centroids) and moves the farthest images into empty
            clusters: an independent check. `auto`: faiss-gpu if there is a GPU that Faiss can use, else
            torch, which is as fast as Faiss on the CPU and ten times as fast for a few hundred images.
        init: (k, D) Centroids to start from instead.

    Returns:
        The labels (N,), each image's nearest centroid, and the centroids (k, D).

    Raises:
        ValueError: for k out of range, features or centroids of a wrong shape or not finite, an unknown
            backend, or `faiss-gpu` without a GPU.
    """
    x = _checked(features)
    run = _backend(backend)
    if not 1 <= k <= len(x):
        raise ValueError(f"`1 <= k <= images` must hold, but got k={k} and {len(x)} images; lower k")
    if k == len(x):
        return np.arange(k, dtype=np.int64), x.cpu().numpy().copy()
    start = x[_first_images(len(x), k, seed).to(x.device)] if init is None else _checked_init(init, x, k)
    return run(x, start)


def _checked(features: Features) -> torch.Tensor:
    """The features as a contiguous float32 tensor, refused unless it is a finite matrix."""
    x = _as_tensor(features)
    if x.ndim != 2:
        raise ValueError(f"features must be a matrix, one row an image, but got shape {tuple(x.shape)}")
    # A sum is finite only if all its terms are, and takes a twentieth of the time of asking each.
    if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        rows = int((~torch.isfinite(x)).any(1).sum())
        raise ValueError(
            f"features of {rows} of {len(x)} images are not finite: cannot cluster them; "
            "training has diverged, lower the learning rates"
        )
    return x


def _as_tensor(features: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
    if isinstance(features, torch.Tensor):
        return features.detach().to(torch.float32).contiguous()
    return torch.from_numpy(np.require(features, dtype=np.float32, requirements=["C", "W"]))


def _checked_init(init: npt.ArrayLike, x: torch.Tensor, k: int) -> torch.Tensor:
    """The initial centroids beside the features, refused unless there are k of their dimension."""
    start = _checked(cast(Features, init)).to(x.device)
    if start.shape != (k, x.shape[1]):
        raise ValueError(f"init must have shape {(k, x.shape[1])}, but got {tuple(start.shape)}")
    return start


def _first_images(n: int, k: int, seed: int) -> torch.Tensor:
    """The images that Faiss starts from: torch's permutation of a seed is Faiss's of the seed before."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))[:k]


def check_backend(name: str) -> None:
    """Refuse a backend that cannot work here, before anything is trained for it.

    Raises:
        SettingError: for a name that is not known, or `faiss-gpu` without a GPU.
    """
    try:
        _backend(name)
    except ValueError as error:
        raise SettingError(str(error)) from None


Run = Callable[[torch.Tensor, torch.Tensor], tuple[IntArray, FloatArray]]


def _backend(name: str) -> Run:
    """The implementation of a backend's name."""
    known = list(get_args(Backend))
    if name not in known:
        raise ValueError(unknown_name("k-means backend", name, known))
    gpus = _faiss_gpus() if name in ("auto", "faiss-gpu") else 0
    if name == "faiss-gpu" and gpus == 0:
        raise ValueError("backend='faiss-gpu': Faiss finds no GPU here; use backend='auto', or give the trial a GPU")
    if name == "auto":
        name = "faiss-gpu" if gpus else "torch"
    runs: dict[str, Run] = {
        "faiss": _faiss, "faiss-gpu": _faiss_gpu, "torch": _torch, "sklearn": _sklearn
    }  # fmt: skip
    return runs[name]


def _faiss_gpus() -> int:
    """GPUs that Faiss can use: none where it is not installed."""
    try:
        import faiss
    except ImportError:
        return 0
    return int(faiss.get_num_gpus())


def _faiss(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    import faiss  # where torch's own k-means is taken it is not needed

    return _lloyd(x, start, _faiss_nearest(x, faiss.IndexFlatL2(x.shape[1])))


def _faiss_gpu(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    """On the current GPU. The memory goes back with `resources`, at the end: the model needs it."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_faiss_bytes(*_gpu_memory()))
    config = faiss.GpuIndexFlatConfig()
    config.device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return _lloyd(x, start, _faiss_nearest(x, faiss.GpuIndexFlatL2(resources, x.shape[1], config)))


def _gpu_memory() -> tuple[int, int, int]:
    """Bytes that are free on the current GPU, that this process may take by its cap, and that it has taken."""
    if not torch.cuda.is_available():
        return FAISS_GPU_BYTES * 4, FAISS_GPU_BYTES * 4, 0
    free, total = torch.cuda.mem_get_info()
    capped = int(total * torch.cuda.get_per_process_memory_fraction())
    return free, capped, torch.cuda.memory_reserved()


def _faiss_bytes(free: int, cap: int, taken: int) -> int:
    """Bytes that Faiss may reserve, beside what torch has taken of the trial's share."""
    left = min(free, max(0, cap - taken))
    return int(min(FAISS_GPU_BYTES, FAISS_GPU_SHARE * left))


def _torch(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    return _lloyd(x, start, _torch_nearest(x))


def _sklearn(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    from sklearn.cluster import KMeans  # a second of import that most trials never need

    model = KMeans(len(start), init=start.cpu().numpy(), n_init=1, max_iter=MAX_ITERATIONS, tol=LEAST_GAIN)
    model.fit(x.cpu().numpy())
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)


# Given centroids (k, D), the nearest one of each image (N,) and the squared distances to it (N,).
Nearest = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def _lloyd(x: torch.Tensor, start: torch.Tensor, nearest: Nearest) -> tuple[IntArray, FloatArray]:
    """Lloyd's iterations from initial centroids, step by step as in Faiss.

    Faiss's own early stop is not used: it sums the objective in float32, one image after the other, which
    at 60,000 images moves the gains that decide by up to a tenth.
    """
    with _full_precision(x.device.type):
        centroids, before = start, 0.0
        for _ in range(MAX_ITERATIONS):
            labels, distances = nearest(centroids)
            sums, counts = _sums(x, labels, len(start))
            centroids = _filled(sums / counts.clamp(min=1)[:, None], counts, len(x))
            objective = float(distances.double().sum())
            if before > 0 and (before - objective) / before < LEAST_GAIN:
                break
            before = objective
        labels, _ = nearest(centroids)
    return labels.cpu().numpy(), centroids.cpu().numpy()


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Keep TF32 and autocast, which may be on for the backbone, out of distances."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _faiss_nearest(x: torch.Tensor, index: faiss.Index) -> Nearest:
    """Nearest centroids by a Faiss index."""
    images = x.cpu().numpy()

    def nearest(centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index.reset()
        with _faiss_threads(torch.get_num_threads()):
            index.add(centroids.cpu().numpy())
            distances, labels = index.search(images, 1)
        return torch.from_numpy(labels[:, 0]).to(x.device), torch.from_numpy(distances[:, 0]).to(x.device)

    return nearest


@contextmanager
def _faiss_threads(n: int) -> Iterator[None]:
    """Let Faiss use as many threads as the caller allows torch: trials share the machine."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _torch_nearest(x: torch.Tensor) -> Nearest:
    """Nearest centroids by a matrix product, on the device of the features."""
    norms = torch.linalg.vector_norm(x, dim=1).square()  # without the copy of x that squaring it first would take

    def nearest(centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offsets = centroids.square().sum(1)
        rows = MAX_ENTRIES // len(centroids)
        if not x.is_cuda:
            rows = min(rows, MAX_CACHED // x.shape[1])
        blocks = x.split(max(1, rows))
        parts = [torch.addmm(offsets, block, centroids.T, alpha=-2).min(1) for block in blocks]
        distances = torch.cat([part.values for part in parts]) + norms
        return torch.cat([part.indices for part in parts]), distances.clamp(min=0)

    return nearest


def _sums(x: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum (k, D) and the number (k,) of the images of each cluster."""
    counts = torch.bincount(labels, minlength=k)
    sums = x.new_zeros(k, x.shape[1])
    if not x.is_cuda:
        return sums.index_add_(0, labels, x), counts
    # Adding at indices on a GPU sums in another order each time; a product with the one-hot matrix does not.
    rows = max(1, MAX_ENTRIES // k)
    for i in range(0, len(x), rows):
        own = labels[None, i : i + rows]
        sums.addmm_(x.new_zeros(k, own.shape[1]).scatter_(0, own, 1.0), x[i : i + rows])
    return sums, counts


def _filled(centroids: torch.Tensor, counts: torch.Tensor, n: int) -> torch.Tensor:
    """Give each empty cluster half of another one, drawn by size, as Faiss does.

    The two centroids are moved apart by 1/1024 in alternating dimensions. Source: Faiss, `split_clusters`
    in Clustering.cpp, with the same random numbers (Mersenne Twister of seed 1234).
    """
    sizes = counts.tolist()
    if all(sizes):
        return centroids
    twister = np.random.RandomState(1234)
    even = torch.arange(centroids.shape[1], device=centroids.device) % 2 == 0
    apart = torch.where(even, 1 / 1024, -1 / 1024)
    for empty in (j for j, size in enumerate(sizes) if size == 0):
        donor = _donor(sizes, n, twister)
        centroids[empty] = centroids[donor] * (1 + apart)
        centroids[donor] = centroids[donor] * (1 - apart)
        sizes[empty] = sizes[donor] / 2
        sizes[donor] -= sizes[empty]
    return centroids


def _donor(sizes: list[float], n: int, twister: np.random.RandomState) -> int:
    """Go round the clusters until a random number falls below a cluster's share of the images."""
    j = 0
    while twister.randint(1 << 32, dtype=np.uint32) / (2**32 - 1) >= (sizes[j] - 1) / (n - len(sizes)):
        j = (j + 1) % len(sizes)
    return j
