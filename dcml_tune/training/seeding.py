"""Random numbers that are derived from the seed and the epoch instead of being stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def epoch_seeded(seed: int, epoch: int) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) inside the block; restore their state after it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(epoch_seed(seed, epoch))
        yield


def epoch_seed(seed: int, epoch: int) -> int:
    """Combine two numbers into one seed. Unlike their sum, it does not repeat for neighbouring seeds and epochs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
