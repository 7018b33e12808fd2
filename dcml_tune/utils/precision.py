"""Full float32 precision for distances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keep TF32 and autocast, which may be on for the backbone, out of distances."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
