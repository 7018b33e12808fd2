"""What a process may take of its machine: threads, GPU memory."""

from __future__ import annotations


def set_threads(count: int) -> None:
    """Let torch use so many threads; Ray sets one by itself for a trial."""
    import torch

    torch.set_num_threads(count)


def cap_gpu_memory(fraction: float) -> None:
    """Let this process take no more than a fraction of the GPU's memory; does nothing without a GPU."""
    import torch

    if 0 < fraction < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(fraction)
