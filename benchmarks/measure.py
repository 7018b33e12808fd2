"""Shared by the benchmarks: timing of two programs that run alternately, and the table of the results.

Two programs that are compared run A B A B ... in one process, so that a machine that becomes slower affects both. A row
of times has the median of each, the ratio of the medians (how many times as fast ours is), and the range of the ratios
of single repeats. A row of values has the ratio of our value to that of the reference.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

from rich.console import Console
from rich.table import Table


class Row(TypedDict):
    """One line of a table."""

    part: str
    ours: float
    reference: float
    unit: str
    ratio: float
    least: float
    """The least ratio of a repeat."""
    most: float
    goal: str


def alternate(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds that each work takes, in the order of the repeats; within a repeat the works run one after the other."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return taken


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def ratio_line(
    part: str,
    ours: Sequence[float],
    reference: Sequence[float],
    *,
    goal: str,
    unit: Literal["ms", "s"] = "ms",
    calls: int = 1,
) -> Row:
    """The row of two works by the seconds of their repeats, in each of which they ran `calls` times."""
    scale = {"ms": 1e3, "s": 1.0}[unit] / calls
    ratios = [theirs / own for own, theirs in zip(ours, reference, strict=True)]
    return Row(
        part=part,
        ours=median(ours) * scale,
        reference=median(reference) * scale,
        unit=unit,
        ratio=median(reference) / median(ours),
        least=min(ratios),
        most=max(ratios),
        goal=goal,
    )


def rate_line(part: str, ours: Sequence[float], reference: Sequence[float], *, count: int, unit: str, goal: str) -> Row:
    """The row of two works that handle `count` things in the seconds of each repeat: how many a second."""
    row = ratio_line(part, ours, reference, goal=goal, unit="s")
    row["ours"], row["reference"], row["unit"] = count / row["ours"], count / row["reference"], unit
    return row


def value_line(part: str, ours: float, reference: float, *, goal: str, unit: str = "") -> Row:
    """The row of two values that were measured once; the ratio is that of ours to the reference."""
    ratio = ours / reference if reference else math.nan
    return Row(part=part, ours=ours, reference=reference, unit=unit, ratio=ratio, least=ratio, most=ratio, goal=goal)


def middle_line(part: str, rows: Sequence[Row], *, goal: str) -> Row:
    """The row of the median of some rows' ratios, from the least of them to the greatest."""
    ratios = [row["ratio"] for row in rows]
    return Row(
        part=part,
        ours=math.nan,
        reference=math.nan,
        unit="",
        ratio=median(ratios),
        least=min(ratios),
        most=max(ratios),
        goal=goal,
    )


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    table = Table("part", "ours", "reference", "ratio", "min to max", "goal", title=title)
    for row in rows:
        ours, reference = (_shown(value, row["unit"]) for value in (row["ours"], row["reference"]))
        spread = "" if row["least"] == row["most"] else f"{row['least']:.2f} to {row['most']:.2f}"
        table.add_row(row["part"], ours, reference, f"{row['ratio']:.5g}", spread, row["goal"])
    Console().print(table)


def _shown(value: float, unit: str) -> str:
    return "" if math.isnan(value) else f"{value:.4g} {unit}".rstrip()
