"""Precision of products on a GPU: full float32 for distances, TF32 for the backbone."""

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


@contextmanager
def fast_products(enabled: bool) -> Iterator[None]:
    """Allow TF32 in matrix products on a GPU inside the block.

    Args:
        enabled: otherwise the block changes nothing.
    """
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
