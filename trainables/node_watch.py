"""NodeWatch: the callback that follows the nodes of a cluster while trials run, and says when no node can hold one."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback

from dcml_tune.utils.signals import SearchStopped
from trainables.node_pool import NodePool
from trainables.placement import node_of_actor

_WAITS_S = 45.0
"""Time without a trial that runs after which a line says what they wait for."""

_PAUSE_S = 0.05  # Tune's loop does not pause while no process runs and no group is pending


class NodeWatch(Callback):
    """Keeps a pool up to date, and stops the search when no node can run its trials."""

    def __init__(self, nodes: NodePool, wait_s: float) -> None:
        """Watch a stage.

        Args:
            nodes: of the cluster.
            wait_s: longest wait for a node that can hold a trial, in seconds.
        """
        self.nodes, self.wait_s = nodes, wait_s
        self._idle_since: float | None = None
        self._empty_since: float | None = None
        self._said = False
        nodes.announce()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks to disk; the pool stays in this process."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the nodes; say what trials wait for; stop when no node can come."""
        self.nodes.refresh()
        now = time.monotonic()
        if any(trial.status == "RUNNING" for trial in trials):
            self._idle_since = self._empty_since = None
            self._said = False
            return
        time.sleep(_PAUSE_S)
        self._idle_since = self._idle_since or now
        has_nodes = bool(self.nodes.fit() or self.nodes.checking())
        self._empty_since = None if has_nodes else self._empty_since or now
        if not has_nodes and self.nodes.unfit() and not self.nodes.autoscales:
            raise SearchStopped(f"no node of the cluster can run this search: {self.nodes.named_faults()}")
        if self._empty_since is not None and now - self._empty_since > self.wait_s:
            raise SearchStopped(
                f"no node that can hold a trial ({self._wanted()}) came within {self.wait_s:g} s (--wait-for-nodes)"
            )
        if now - self._idle_since > _WAITS_S and not self._said:
            self._said = True
            self.nodes.say(self._why_idle(has_nodes))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the node of a trial."""
        self.nodes.starts(trial.trial_id, node_of_actor(trial.temporary_state.ray_actor._actor_id.hex()))

    def _why_idle(self, has_nodes: bool) -> str:
        if not has_nodes:
            return f"no node can hold a trial ({self._wanted()}); waiting up to {self.wait_s:g} s for one"
        if not self.nodes.fit():
            names = ", ".join(node.name for node in self.nodes.checking())
            return f"no trial runs before a node was checked: {names}"
        return f"no trial runs: the nodes that can hold one ({self._wanted()}) are in use; waiting for room"

    def _wanted(self) -> str:
        shares = self.nodes.shares
        return "" if shares is None else f"{shares.cpus_per_trial:g} CPUs and {shares.gpus_per_trial:g} GPUs"
