"""Shared by the benchmarks of what surrounds the training: ratios of costs, commands in fresh processes, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import Row, median
from rich.console import Console
from rich.table import Table


def cost_line(part: str, ours: Sequence[float], reference: Sequence[float], *, goal: str = "", unit: str = "s") -> Row:
    """The row of two works by the seconds of their repeats; the ratio is that of ours to the reference."""
    ratios = [own / theirs for own, theirs in zip(ours, reference, strict=True)]
    return Row(
        part=part,
        ours=median(ours),
        reference=median(reference),
        unit=unit,
        ratio=median(ours) / median(reference),
        least=min(ratios),
        most=max(ratios),
        goal=goal,
    )


def child(file: str, *words: Any) -> Any:
    """What a fresh process prints in its last line, as JSON.

    Raises:
        SystemExit: if it fails, with what it said.
    """
    command = [sys.executable, file, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_mb(field: str = "VmRSS") -> float:
    """Megabytes of this process that its status tells of: VmRSS now, VmHWM at most.

    Not getrusage's `ru_maxrss`: Linux starts that of a process at the peak of the one which started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def watch_memory() -> Callable[[], float]:
    """Start to watch; the function returned gives the most megabytes taken since, beside those that are held now.

    Linux counts VmRSS exactly and VmHWM in steps of each core: a peak at the start may look lower than the start.
    """
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts anew
    before = memory_mb()
    return lambda: max(0.0, memory_mb("VmHWM") - before)


def grid(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of the same keys as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
