"""Full float32 precision for computations on distances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Disable TF32 and autocast inside the block: both may be enabled for the backbone, and distances need float32.

    Args:
        device_type: type of the device that computes the distances, such as `cuda`.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
