"""Rows of gpu.py that need several processes: several trials at once on one GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from gpu_table import Table

from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.gpu_probe import ProbeError, choose, measure
from dcml_tune.training.devices import cap_gpu_memory

_CAP, _ASKED = 1 / 4, 1 / 2
_NEIGHBOUR_S = 20.0


def together(config: TrialConfig, at_once: Sequence[int], device: str, seconds: float, table: Table) -> str:
    """Sums of images a second, as `--gpus-per-trial auto` measures them; returns what it would say."""
    sums: dict[int, float] = {}
    alone = None
    for count in at_once:
        part = f"{count} trial{'s' if count > 1 else ''} at once, sum"
        try:
            found = measure(config, count, device=device, seconds=seconds)
        except ProbeError as error:
            table.add(part, f"failed: {error!s:.60}")
            continue
        alone = alone or found[0]
        sums[count] = sum(each.images_per_s for each in found)
        table.rates(part, [sums[count]], [alone.images_per_s], memory=max(each.reserved for each in found))
    return "a whole GPU for each" if alone is None else choose(alone.total, alone.used, sums).why


def capped(table: Table) -> None:
    """A trial that asks for more than its share runs out of memory alone, while its neighbour goes on."""
    part = f"a trial of {_CAP:g} of the GPU asks for {_ASKED:g}"
    if not table.on_gpu:
        table.add(part, "no GPU", goal="out of memory, alone")
        return
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        neighbour, greedy = pool.submit(works_on), pool.submit(asks_for_more)
        refused, (start, end) = greedy.result(), neighbour.result()
    said = "got it" if refused is None else "out of memory, alone" if start < refused < end else "not at the same time"
    table.add(part, said, goal="out of memory, alone")


def asks_for_more() -> float | None:
    """When it was refused, or None."""
    cap_gpu_memory(_CAP)
    torch.zeros(1, device="cuda")
    time.sleep(_NEIGHBOUR_S / 4)
    try:
        torch.empty(int(_ASKED * torch.cuda.mem_get_info()[1]), dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        return time.time()
    return None


def works_on() -> tuple[float, float]:
    """When it began and ended, having computed something right to the end."""
    cap_gpu_memory(_CAP)
    x = torch.eye(2048, device="cuda")
    start = time.time()
    while time.time() - start < _NEIGHBOUR_S:
        x = x @ x
        torch.cuda.synchronize()
    assert torch.equal(x, torch.eye(2048, device="cuda"))
    return start, time.time()
