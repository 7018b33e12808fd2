"""The loader of a trial's training batches, and how many processes it has: as many as its cores and /dev/shm allow.

Loader processes pass batches in shared memory. Where that is full, as in a container of Docker with its 64 MB, the system
kills the process that writes to it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import PREFETCH, BatchLoader
from dcml_tune.data.transforms import TrainTransform
from dcml_tune.training.trial_data import TrialData
from dcml_tune.utils.files import readable_size
from dcml_tune.utils.machine import usable_cores

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")

_MOST = 4


@dataclass(frozen=True, kw_only=True)
class LoaderProcesses:
    """How many processes prepare the batches of a trial, and why not more."""

    wanted: int
    """Number that its settings and its cores ask for."""
    batch_bytes: int
    """Size of a batch."""
    at_once: int
    """Number of trials that share the memory."""
    room: int | None
    """Bytes of shared memory for this trial; None: unknown, or without limit."""

    @classmethod
    def of(cls, config: TrialConfig, *, on_gpu: bool, threads: int) -> LoaderProcesses:
        """Look at this machine, which is assumed to run as many trials as it has room for.

        Args:
            config: of the trial.
            on_gpu: whether it trains on a GPU.
            threads: number of its CPU threads.
        """
        wanted = config.num_workers
        if wanted is None:  # one core is left for the process that drives the GPU
            wanted = min(_MOST, max(1, threads - 1)) if on_gpu else 0
        at_once = max(1, usable_cores() // threads)
        return cls(
            wanted=wanted,
            batch_bytes=3 * config.batch_size * config.sz_crop**2,
            at_once=at_once,
            room=_room(at_once),
        )

    @property
    def count(self) -> int:
        """Number of processes whose batches fit; 0: batches are prepared by the process that trains."""
        fits = [n for n in range(1, self.wanted + 1) if self.room is None or self.need(n) <= self.room]
        return max(fits, default=0)

    def need(self, count: int) -> int:
        """Bytes of the batches that a number of processes have prepared, and of the one that is being read."""
        return (count * PREFETCH + 1) * self.batch_bytes

    @property
    def note(self) -> str | None:
        """One line, with the remedy, if they are fewer than wanted; else None."""
        if self.count == self.wanted or self.room is None:
            return None
        need = readable_size(self.at_once * self.need(self.wanted))
        trials = "a trial" if self.at_once == 1 else f"each of {self.at_once} trials"
        return (
            f"{SHARED_MEMORY} has {readable_size(self.at_once * self.room)}, and batches of {self.wanted} loader processes for "
            f"{trials} need {need}: {self.count} are started, which is slower; enlarge it (docker run --shm-size 8g, or "
            f"mount -o remount,size=8g {SHARED_MEMORY})"
        )


def _room(at_once: int) -> int | None:
    """Bytes of shared memory for one of several trials: an equal part of all of it, and not more than are free."""
    try:
        facts = os.statvfs(SHARED_MEMORY)
    except OSError:  # macOS has none, and no limit of this kind
        return None
    return int(min(facts.f_blocks // at_once, facts.f_bavail) * facts.f_frsize)


def training_loader(config: TrialConfig, data: TrialData, device: torch.device) -> BatchLoader:
    """Return the loader of the training batches of a trial."""
    on_gpu = device.type == "cuda"
    processes = LoaderProcesses.of(config, on_gpu=on_gpu, threads=torch.get_num_threads())
    if processes.note is not None:
        log.warning("%s", processes.note)
    transform = TrainTransform(
        config.sz_crop,
        config.album,
        crop_scale=config.crop_scale,
        randaugment_ops=config.randaugment_ops,
        randaugment_magnitude=config.randaugment_magnitude,
    )
    return BatchLoader(data.originals, transform, num_workers=processes.count, pin=on_gpu)
