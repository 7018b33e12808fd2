"""Random numbers that are derived from the seed and the epoch instead of being stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def epoch_seeded(seed: int, epoch: int, rank: int = 0) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) inside the block; restore their state after it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(epoch_seed(seed, epoch, rank))
        yield


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Combine numbers into one seed. Unlike their sum, it does not repeat for neighbouring seeds and epochs.

    Rank 0 has the seed of a training in one process; each other rank has its own.
    """
    words = [seed, epoch, rank] if rank else [seed, epoch]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
