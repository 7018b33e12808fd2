"""Fractional GPUs and cores: what a trial gets, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dcml_tune.cli.quantities import invalid_share
from dcml_tune.config.errors import SettingError
from dcml_tune.utils.machine import usable_cores

# Trials at once on a machine without a GPU; more would make the search blinder for little gain.
_MOST_ON_CPU = 4


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What each trial gets."""

    concurrent: int
    """Trials at once; 0: as many as the resources allow."""
    cpus_per_trial: float
    gpus_per_trial: float
    threads_per_trial: int
    why: str
    """A sentence for the head of a search."""

    def tags(self) -> dict[str, str]:
        """For MLflow: what a trial runs on, and how many of it."""
        on_gpu = self.gpus_per_trial > 0
        share = self.gpus_per_trial if on_gpu else self.cpus_per_trial
        return {"dcml.device": "GPU" if on_gpu else "CPU core", "dcml.device_share": f"{share:g}"}


def cluster_address(given: str | None) -> str | None:
    """The address of the cluster that --ray-address means; None for one of our own.

    Raises:
        SettingError: if it names none. Ray's own `auto` would join whatever cluster it finds on this machine, also that of
            another user, and send it the token.
    """
    if given is None or given == "local":
        return None
    found = os.environ.get("RAY_ADDRESS", "") if given == "auto" else given
    if found in ("", "auto", "local"):
        raise SettingError(
            f"--ray-address {given or repr('')}: must be the address of a cluster, such as 127.0.0.1:6379, local, or auto for "
            "that of RAY_ADDRESS; give one"
        )
    return found


def share(
    *,
    num_samples: int,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
    cores: int | None = None,
    gpus: int | None = None,
) -> Shares:
    """Divide the machine among trials.

    Raises:
        SettingError: for a number of GPUs that cannot be, or is not there.
    """
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    cores = cores or usable_cores()
    check_gpus(gpus_per_trial, gpus)
    if max_concurrent is not None and max_concurrent < 1:
        raise SettingError(f"--max-concurrent {max_concurrent}: must be at least 1; leave it out for as many as fit")
    if gpus > 0 and gpus_per_trial != 0:
        each = gpus_per_trial or 1.0
        fit = int(gpus / each) if each >= 1 else gpus * int(1 / each + 1e-6)
        count = min(num_samples, fit, max_concurrent or fit)
        cpus = max(1, cores // max(1, fit))
        why = f"{gpus} GPUs, {each:g} each; {cpus} of {cores} cores each"
        return Shares(concurrent=count, cpus_per_trial=cpus, gpus_per_trial=each, threads_per_trial=cpus, why=why)
    count = min(num_samples, cores, max_concurrent or _MOST_ON_CPU)
    threads = max(1, cores // count)
    why = f"no GPU, {cores} cores, {threads} for each trial"
    return Shares(concurrent=count, cpus_per_trial=threads, gpus_per_trial=0.0, threads_per_trial=threads, why=why)


def check_gpus(gpus_per_trial: float | None, gpus: int) -> None:
    """Refuse a number of GPUs a trial that cannot be.

    Raises:
        SettingError: if it is negative, above 1 and not whole, or more than there are.
    """
    if gpus_per_trial is None:
        return
    name = f"--gpus-per-trial {gpus_per_trial:g}"
    if reason := invalid_share(gpus_per_trial):
        raise SettingError(f"{name}: {reason}")
    if gpus_per_trial > gpus:
        raise SettingError(f"{name}: this machine has {gpus} GPUs; give at most {gpus}, or leave it out")
