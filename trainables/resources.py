"""Shares: the cores and the fraction of a GPU that each trial gets."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from dcml_tune.cli.quantities import invalid_share
from dcml_tune.config.errors import SettingError
from dcml_tune.utils.machine import usable_cores
from trainables.nodes import Node

# Concurrent trials on a machine without a GPU. With more, each draw knows fewer results, and little time is saved.
_MOST_ON_CPU = 4

# On a cluster a trial with a GPU asks for no more CPUs: nodes that join later may have fewer than those that are there.
_MOST_CPUS = 16
_KEPT = 0.9  # share of the places for trials that more CPUs for each must leave


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Resources of each trial."""

    concurrent: int
    """Number of concurrent trials; 0: as many as the resources allow."""
    cpus_per_trial: float
    gpus_per_trial: float
    threads_per_trial: int
    why: str
    """The reason, as printed at the start of a search."""

    @property
    def ranks(self) -> int:
        """Number of processes that train a trial together, one for each of its GPUs."""
        return max(1, int(self.gpus_per_trial))

    def tags(self) -> dict[str, str]:
        """Return tags for MLflow: the device of a trial, and its share of it."""
        on_gpu = self.gpus_per_trial > 0
        share = self.gpus_per_trial if on_gpu else self.cpus_per_trial
        return {"dcml.device": "GPU" if on_gpu else "CPU core", "dcml.device_share": f"{share:g}"}


def cluster_address(given: str | None) -> str | None:
    """Return the address of the cluster that --ray-address selects; None for a local cluster.

    Without the flag RAY_ADDRESS counts, which Ray sets for its jobs: a search that is submitted as a job runs on the
    cluster of the job.

    Raises:
        SettingError: if it selects none, or is an address of Ray Client. Ray's own `auto` joins any cluster that it finds
            on this machine, also that of another user, and sends it the token.
    """
    environment = os.environ.get("RAY_ADDRESS", "")
    if given == "local" or (given is None and environment in ("", "auto", "local")):
        return None
    found = environment if given in (None, "auto") else given
    if found.startswith("ray://"):
        raise SettingError(
            f"--ray-address {found}: a search does not run through Ray Client; submit it as a job instead: --submit "
            "--ray-address http://HOST:8265"
        )
    if found.startswith(("http://", "https://")):
        raise SettingError(
            f"--ray-address {found}: is the address of a dashboard, which takes jobs; add --submit, or give HOST:PORT of the cluster"
        )
    if found in ("", "auto", "local"):
        raise SettingError(
            f"--ray-address {given or repr('')}: must be the address of a cluster, such as 127.0.0.1:6379, or local, or auto for "
            "the address in RAY_ADDRESS; give one"
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
    """Divide the resources of the machine among trials.

    Raises:
        SettingError: for a number of GPUs that is not valid, or more than there are.
    """
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    cores = cores or usable_cores()
    check_gpus(gpus_per_trial, gpus)
    check_concurrent(max_concurrent)
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


def share_nodes(
    nodes: Sequence[Node], *, num_samples: int, gpus_per_trial: float | None = None, max_concurrent: int | None = None
) -> Shares:
    """Divide the nodes of a cluster among trials: what a trial asks for must fit on one node.

    The GPUs per trial are as asked, and 1 by default. The CPUs per trial are as many as leave at least nine tenths of the
    trials that the GPUs allow, at most 16 for each GPU; a fraction where a node has fewer CPUs than its GPUs hold trials. Without a GPU
    a node holds up to four trials, as one machine does.

    Args:
        nodes: those that can hold a trial; see `trainables.nodes.able`.
        num_samples: number of trials.
        gpus_per_trial: a fraction up to 1, or a whole number; None: 1 if there are GPUs.
        max_concurrent: maximum number of concurrent trials; None: as many as fit.

    Raises:
        SettingError: for a number of GPUs or of trials that is not valid.

    Example:
        >>> head, worker = Node(id="a", host="a", cpus=8, gpus=0), Node(id="b", host="b", cpus=2, gpus=1)
        >>> share_nodes([worker], num_samples=20).cpus_per_trial
        2.0
        >>> share_nodes([head] * 100, num_samples=1000).cpus_per_trial
        2.0
    """
    check_gpus(gpus_per_trial, gpus=math.inf)
    check_concurrent(max_concurrent)
    gpus = sum(int(node.gpus) for node in nodes)
    each = gpus_per_trial if gpus_per_trial is not None else float(gpus > 0)
    cpus = _cpus_beside_gpus(nodes, each)
    if each == 0:
        asked = math.ceil(min(num_samples, max_concurrent or num_samples) / len(nodes))
        cpus = _cpus_without_gpus(nodes, asked if max_concurrent is not None else min(asked, _MOST_ON_CPU))
    fit = sum(node.trials(cpus, each) for node in nodes)
    count = min(num_samples, fit, max_concurrent or fit)
    cores, threads = sum(int(node.cpus) for node in nodes), max(1, int(cpus))
    on = f"{len(nodes)} nodes" if len(nodes) != 1 else "1 node"
    why = f"no GPU, {cores} cores on {on}, {cpus:g} for each trial"
    if each > 0:
        why = f"{gpus} GPUs and {cores} cores on {on}, {each:g} and {cpus:g} for each trial"
    return Shares(concurrent=count, cpus_per_trial=cpus, gpus_per_trial=each, threads_per_trial=threads, why=why)


def _cpus_beside_gpus(nodes: Sequence[Node], gpus: float) -> float:
    """Return the largest number of CPUs per trial that leaves nine tenths of the trials that the GPUs hold."""
    wanted = {node: count for node in nodes if (count := node.trials(0, gpus)) > 0}

    def places(cpus: float) -> int:
        return sum(min(count, node.trials(cpus, 0)) if cpus else count for node, count in wanted.items())

    shares = {min(_MOST_CPUS * max(1, gpus), node.cpus / count) for node, count in wanted.items()}
    # Whole numbers for nodes that have a CPU for each trial; a tenth is the finest fraction.
    shares = {float(int(share)) if share >= 1 else math.floor(share * 10) / 10 for share in shares}
    return max((cpus for cpus in shares if places(cpus) >= _KEPT * sum(wanted.values())), default=0.0)


def _cpus_without_gpus(nodes: Sequence[Node], trials: int) -> float:
    """Return the largest number of CPUs per trial that leaves nine tenths of the CPUs in use, with so many trials on a node."""
    cores = sum(int(node.cpus) for node in nodes)
    shares = {int(node.cpus / max(1, min(node.cpus, trials))) for node in nodes}
    return float(
        max(
            cpus
            for cpus in shares
            if cpus * sum(node.trials(cpus, 0) for node in nodes) >= _KEPT * cores or cpus == min(shares)
        )
    )


def check_concurrent(max_concurrent: int | None) -> None:
    """Check the maximum number of concurrent trials.

    Raises:
        SettingError: if it is less than 1.
    """
    if max_concurrent is not None and max_concurrent < 1:
        raise SettingError(f"--max-concurrent {max_concurrent}: must be at least 1; leave it out for as many as fit")


def check_gpus(gpus_per_trial: float | None, gpus: float) -> None:
    """Check the number of GPUs per trial.

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
