"""The table of gpu.py."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
import torch
from measure import median
from rich.console import Console


class Table:
    """Rows: part, ours, reference, ratio (least to largest), goal, memory."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self._table = rich.table.Table("part", "ours", "reference", "ratio", "goal", "memory")

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def add(self, part: str, ours: str, reference: str = "", ratio: str = "", goal: str = "", memory: str = "") -> None:
        """A row of words."""
        self._table.add_row(part, ours, reference, ratio, goal, memory)

    def rates(
        self,
        part: str,
        ours: Sequence[float],
        reference: Sequence[float] | None = None,
        *,
        unit: str = "images/s",
        goal: str = "",
        memory: int | None = None,
    ) -> None:
        """A row of values, one a repeat, beside those that they are compared with."""
        shown = [f"{median(each):,.4g} {unit}" if each else "" for each in (ours, reference or ())]
        ratio = ""
        if reference:
            pairs = [own / other for own, other in zip(ours, reference, strict=True)]
            ratio = f"{median(ours) / median(reference):.0%} ({min(pairs):.0%} to {max(pairs):.0%})"
        self.add(part, *shown, ratio, goal, "" if memory is None else f"{memory / 1e9:.2f} GB")

    def show(self, title: str) -> None:
        """Print it."""
        self._table.title = title
        Console(width=max(150, Console().width)).print(self._table)


class Memory:
    """The most that tensors of a part took beyond those that were there before it."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def peak(self) -> int | None:
        """Bytes; None on the CPU, where they are not counted."""
        return torch.cuda.max_memory_allocated() - self.before if self.on_gpu else None
