"""The k-means back ends that find nearest centroids with Faiss, on the CPU and on a GPU.

Faiss is imported inside the functions: the other back ends do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import faiss
from dcml_tune.clustering.lloyd import FloatArray, IntArray, Nearest, lloyd

# Upper limits of the memory that Faiss reserves on a GPU during a clustering (its default is 1.5 GiB): in bytes, and as a
# share of what is left of the memory that the trial may use.
FAISS_GPU_BYTES = 256 << 20


FAISS_GPU_SHARE = 0.25


def faiss_gpus() -> int:
    """Number of GPUs that Faiss can use; 0 if Faiss is not installed."""
    try:
        import faiss
    except ImportError:
        return 0
    return int(faiss.get_num_gpus())


def faiss_cpu(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    """Run k-means with Faiss on the CPU."""
    import faiss

    return lloyd(x, start, _faiss_nearest(x, faiss.IndexFlatL2(x.shape[1])))


def faiss_gpu(x: torch.Tensor, start: torch.Tensor) -> tuple[IntArray, FloatArray]:
    """Run k-means with Faiss on the current GPU.

    The memory is freed with `resources` when the function returns: the model needs it.
    """
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_faiss_bytes(*_gpu_memory()))
    config = faiss.GpuIndexFlatConfig()
    config.device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return lloyd(x, start, _faiss_nearest(x, faiss.GpuIndexFlatL2(resources, x.shape[1], config)))


def _gpu_memory() -> tuple[int, int, int]:
    """Bytes that are free on the current GPU, that this process may reserve, and that it has reserved."""
    if not torch.cuda.is_available():
        return FAISS_GPU_BYTES * 4, FAISS_GPU_BYTES * 4, 0
    free, total = torch.cuda.mem_get_info()
    capped = int(total * torch.cuda.get_per_process_memory_fraction())
    return free, capped, torch.cuda.memory_reserved()


def _faiss_bytes(free: int, cap: int, taken: int) -> int:
    """Bytes that Faiss may reserve, given what torch has reserved of the trial's share."""
    left = min(free, max(0, cap - taken))
    return int(min(FAISS_GPU_BYTES, FAISS_GPU_SHARE * left))


def _faiss_nearest(x: torch.Tensor, index: faiss.Index) -> Nearest:
    """A function that finds nearest centroids with a Faiss index."""
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
    """Limit Faiss to `n` threads inside the block, because trials share the machine."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
