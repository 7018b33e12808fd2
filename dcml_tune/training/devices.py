"""Limits of a process: CPU threads and GPU memory; its arithmetic and allocator; and the errors of memory that is exhausted."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from dcml_tune.config.trial import TrialConfig

_EXHAUSTED = {
    "gpu": (
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cudaMalloc error out of memory",
        "StandardGpuResources: alloc fail",
    ),
    "host": ("not enough memory", "can't allocate memory", "std::bad_alloc"),
}
"""Parts of the messages by which torch, cuBLAS, cuDNN and Faiss say that memory is exhausted; most are RuntimeErrors."""


def exhausted_memory(error: BaseException) -> Literal["gpu", "host"] | None:
    """Which memory an error says is exhausted: that of the GPU or that of the host; None for another error."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "gpu"
    text = str(error)
    if any(part in text for part in _EXHAUSTED["gpu"]):
        return "gpu"
    return "host" if isinstance(error, MemoryError) or any(part in text for part in _EXHAUSTED["host"]) else None


def set_threads(count: int) -> None:
    """Set the number of threads of torch; Ray sets it to one for a trial."""
    import torch

    torch.set_num_threads(count)


_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
"""Numbers of glibc's `mallopt` (malloc.h)."""


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next allocations; only glibc's allocator can.

    By default glibc gives the memory of a large tensor back to the system, and takes it again, page by page, for the same
    tensor of the next batch. The process does not need more memory at its peak, but keeps it up to its end. So this is for a
    process that trains on the CPU and ends. `benchmarks/epoch.py` measures the effect.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # no mapping of its own for a large tensor
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 1 << 28)


_CONTEXT_BYTES = 512 << 20
"""Memory of a GPU that a process takes outside of torch's allocator: the CUDA context, with the code of torch, cuBLAS and
cuDNN. An assumption; it was not measured."""

_USABLE = 0.95
"""Part of its share of the GPU that a trial may use; the rest is for fragments."""


def cap_gpu_memory(fraction: float, backend: str = "auto") -> None:
    """Limit this process to a fraction of the GPU's memory; does nothing without a GPU, or with all of it.

    The limit of torch's allocator is lower: what this process takes besides it counts, too, so that processes whose
    fractions sum to 1 fit on the GPU.

    Args:
        fraction: of all memory of the GPU.
        backend: the k-means back end. faiss-gpu has memory of its own.
    """
    import torch

    if 0 < fraction < 1 and torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(allocator_share(fraction, total, backend))


def finish_work(device: torch.device) -> None:
    """Wait for what a GPU still computes for this process: one that ends before may disturb others that share it through MPS."""
    import torch

    if device.type == "cuda" and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # an earlier error of the GPU is raised again here
            torch.cuda.synchronize(device)


def gpu_memory() -> int:
    """Return the bytes of memory of the current GPU; 0: there is none."""
    import torch

    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else 0


def allocator_share(fraction: float, total: int, backend: str = "auto") -> float:
    """Part of a GPU that torch's allocator may take in a process that may take a fraction of it.

    Args:
        fraction: of the GPU, for all that the process takes.
        total: memory of the GPU in bytes.
        backend: the k-means back end.

    Example:
        >>> round(allocator_share(0.25, 80 * 2**30), 3)
        0.231
    """
    from dcml_tune.clustering.faiss_backend import FAISS_GPU_BYTES

    beside = _CONTEXT_BYTES + (FAISS_GPU_BYTES if backend == "faiss-gpu" else 0)
    return max(_USABLE * fraction - beside / total, fraction / 2)


def set_arithmetic(config: TrialConfig, *, deterministic: bool = False) -> None:
    """Choose the algorithms of this process: docs/settings.md, "Arithmetic on a GPU".

    Must be called before the first computation on a GPU. Apart from `deterministic`, nothing here acts on the CPU.

    Args:
        config: with `amp` the convolutions of the backbone may use TF32 where they are not bfloat16. cuDNN tries its
            algorithms for each shape of a batch, unless batches have many shapes.
        deterministic: take only algorithms that give the same numbers in each run; torch raises a RuntimeError in an
            operation that has none.
    """
    import torch

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(deterministic)
    cudnn = torch.backends.cudnn
    cudnn.deterministic = deterministic
    cudnn.benchmark = not deterministic and config.small_class_action != "smaller_batch"
    cudnn.allow_tf32 = config.amp


def is_deterministic() -> bool:
    """Whether this process takes only algorithms that give the same numbers in each run."""
    import torch

    return torch.are_deterministic_algorithms_enabled()
