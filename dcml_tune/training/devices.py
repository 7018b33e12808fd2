"""Limits of a process: CPU threads and GPU memory, and the errors of memory that is exhausted."""

from __future__ import annotations

from typing import Literal

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


def cap_gpu_memory(fraction: float) -> None:
    """Limit this process to a fraction of the GPU's memory; does nothing without a GPU."""
    import torch

    if 0 < fraction < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)
