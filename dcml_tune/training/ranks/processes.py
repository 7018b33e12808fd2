"""RankProcesses: the further ranks of a training, as processes of the same machine, seen from rank 0.

Rank 0 writes what they need into a private directory, starts them, and joins them by a file in it. No process remains when
rank 0 ends: they look for it (`dcml_tune.training.ranks.__main__`).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import dcml_tune
from dcml_tune.cli.quantities import MOST_GPUS
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.stores import Stores
from dcml_tune.training.devices import is_deterministic
from dcml_tune.training.ranks.exchange import RankError, Ranks
from dcml_tune.utils.files import write_checksummed
from dcml_tune.utils.stored import printable

log = logging.getLogger(__name__)

SPEC, MEETING = "ranks.json", "meeting"
"""Files of the directory: what the further ranks need, and through what all ranks find each other."""

_IDLE = timedelta(days=30)
"""Longest wait for another rank. Ranks wait while rank 0 clusters, or waits for another trial, so this is no check."""

_START_S = 600.0
_LOOK_S, _ENDS_S = 0.5, 5.0
_GRACE_S = 15.0
"""Time for rank 0 to notice that another rank has ended, before its process is ended."""

_LOST = 76  # exit code of rank 0 when another rank has ended and rank 0 still waits for it


class RankProcesses:
    """Starts the further ranks of a training, watches them, and ends them."""

    def __init__(
        self, config: TrialConfig, *, size: int, stores: Stores, device: torch.device, compiled: bool = False
    ) -> None:
        """Start the processes; `join` waits for them.

        Args:
            config: settings of the trial.
            size: number of ranks, this process included.
            stores: directory of the image stores.
            device: of this process; on GPUs rank r takes GPU r of those that this process sees.
            compiled: whether each rank compiles the training of its backbone.

        Raises:
            SettingError: if there are not as many GPUs, or another training of this process has ranks.
        """
        if not 2 <= size <= MOST_GPUS:
            raise SettingError(f"ranks={size}: must be a whole number from 1 to {MOST_GPUS}; give one")
        if device.type == "cuda" and (gpus := torch.cuda.device_count()) < size:
            raise SettingError(f"ranks={size}: this process sees {gpus} GPUs; give at most {gpus}")
        if device.index:
            raise SettingError(
                f"device={device}: {size} ranks take the first GPUs; leave the number out, or hide the others"
            )
        if dist.is_initialized():
            raise SettingError(f"ranks={size}: another training of this process has ranks; close it first")
        self._size, self._device, self._closed = size, device, False
        self._directory = Path(tempfile.mkdtemp(prefix="dcml-ranks-"))
        self._known = threading.Event()
        """Rank 0 has closed the ranks, or knows that one has ended."""
        spec = {
            "config": config.model_dump(),
            "size": size,
            "stores": str(stores.directory.absolute()),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "deterministic": is_deterministic(),
            "compiled": compiled,
            "parent": os.getpid(),
        }
        write_checksummed(self._directory / SPEC, spec)
        self._processes = [self._start(rank) for rank in range(1, size)]

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        root = str(Path(dcml_tune.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, "-m", "dcml_tune.training.ranks", str(self._directory), str(rank)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for rank 0, which ends the others
        )

    def join(self) -> Ranks:
        """Wait for the other ranks, and return the view of rank 0.

        Raises:
            RankError: if one of them fails.
        """
        try:
            until = time.monotonic() + _START_S
            while not all(ready(self._directory, rank).exists() for rank in range(1, self._size)):
                self._raise_if_ended()
                if time.monotonic() > until:
                    raise RankError(f"the {self._size} ranks did not start in {_START_S:g} s")
                time.sleep(0.05)
            threading.Thread(target=self._watch, name="dcml-ranks", daemon=True).start()
            return replace(meet(self._directory, 0, self._size, self._device.type), why_failed=self._why_failed)
        except BaseException:
            self.close()
            raise

    def _why_failed(self) -> str | None:
        """Return why a rank has ended, which an exchange has shown before its process had; None if all still run."""
        until = time.monotonic() + _ENDS_S
        while (found := self._ended()) is None and time.monotonic() < until:
            time.sleep(0.05)
        if found is not None:
            self._known.set()
        return found

    def _ended(self) -> str | None:
        for rank, process in enumerate(self._processes, 1):
            if (code := process.poll()) is not None:
                with suppress(OSError):
                    said = failed(self._directory, rank).read_text(errors="replace")
                    return f"rank {rank} of {self._size} has failed: {printable(said)}"
                return f"rank {rank} of {self._size} has ended with status {code}"
        return None

    def _raise_if_ended(self) -> None:
        if found := self._ended():
            raise RankError(found)

    def _watch(self) -> None:
        """End this process if another rank has ended: it could wait for that rank for ever."""
        while not self._known.wait(_LOOK_S):
            if found := self._ended():
                log.error("%s", found)
                if not self._known.wait(_GRACE_S):
                    os._exit(_LOST)

    def close(self) -> None:
        """End the other ranks. They hold nothing that is not in rank 0, too."""
        if self._closed:
            return
        self._closed = True
        self._known.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()
        shutil.rmtree(self._directory, ignore_errors=True)


def ready(directory: Path, rank: int) -> Path:
    """Return the file that a rank writes when it is ready to meet the others."""
    return directory / f"rank-{rank}.ready"


def failed(directory: Path, rank: int) -> Path:
    """Return the file that a rank writes when it fails, with the reason."""
    return directory / f"rank-{rank}.failed"


def meet(directory: Path, rank: int, size: int, device: str) -> Ranks:
    """Join the ranks of a directory, and check that a sum over them arrives.

    Orders and the tensors of the CPU are exchanged through the loopback interface, those of GPUs by NCCL.

    Raises:
        RankError: if the sum is wrong.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    where: Any = "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
        where = torch.device("cuda", rank)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    store = dist.FileStore(str(directory / MEETING), size)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_IDLE)
    ranks = Ranks(rank=rank, size=size)
    total = float(ranks.add(torch.full((1,), float(rank + 1), device=where)))
    if total != size * (size + 1) / 2:
        raise RankError(
            f"a sum over {size} ranks is {total:g} on {device}: they cannot exchange; give --gpus-per-trial 1"
        )
    return ranks
