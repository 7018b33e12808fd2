"""Limits of a process: CPU threads and GPU memory; its arithmetic; and the errors of memory that is exhausted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
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


def cap_gpu_memory(fraction: float) -> None:
    """Limit this process to a fraction of the GPU's memory; does nothing without a GPU."""
    import torch

    if 0 < fraction < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)


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
