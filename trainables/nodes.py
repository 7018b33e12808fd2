"""The nodes of a Ray cluster: what each of them can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_TOLERANCE = 1e-6
"""Ray counts resources in ten-thousandths, so three shares of 0.3333 fit on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a cluster, as it was registered."""

    id: str
    host: str
    cpus: float
    """Number of CPUs that Ray gives away there: 0 for a head that only manages the cluster."""
    gpus: float
    gpu_type: str | None = None
    """Type of its GPUs, such as A100, where the node has Ray's label."""

    @property
    def name(self) -> str:
        """Name in messages: several nodes may have the same host."""
        return f"{self.host} ({self.id[:6]})"

    def trials(self, cpus: float, gpus: float) -> int:
        """Return the number of trials that it can hold at once.

        Args:
            cpus: of each trial.
            gpus: of each trial. A share below 1 lies on one GPU, and all GPUs of a trial on one node.

        Example:
            >>> Node(id="a", host="a", cpus=8, gpus=2).trials(2, 0.3)
            4
            >>> Node(id="a", host="a", cpus=8, gpus=2).trials(2, 4)
            0
        """
        limits = [_count(self.cpus, cpus)] if cpus > 0 else []
        if gpus >= 1:
            limits.append(_count(self.gpus, gpus))
        elif gpus > 0:
            limits.append(int(self.gpus) * _count(1, gpus))
        return min(limits, default=0)


def _count(there: float, each: float) -> int:
    return int(there / each + _TOLERANCE)


def able(nodes: Iterable[Node], gpus_per_trial: float | None) -> list[Node]:
    """Return the nodes that can hold a trial with the number of GPUs that was asked for.

    Without a number, a cluster with GPUs gives one to each trial, and nodes without a GPU hold none.

    Args:
        nodes: of the cluster.
        gpus_per_trial: as it was given; None: 1 if there are GPUs, otherwise 0.
    """
    each = gpus_per_trial
    if each is None:
        each = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    if each > 0:
        return [node for node in nodes if node.trials(0, each) > 0]
    return [node for node in nodes if node.trials(1, 0) > 0]
