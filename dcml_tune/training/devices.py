"""Limits of a process: CPU threads and GPU memory."""

from __future__ import annotations


def set_threads(count: int) -> None:
    """Set the number of threads of torch; Ray sets it to one for a trial."""
    import torch

    torch.set_num_threads(count)


def cap_gpu_memory(fraction: float) -> None:
    """Limit this process to a fraction of the GPU's memory; does nothing without a GPU."""
    import torch

    if 0 < fraction < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)
