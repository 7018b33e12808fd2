"""Where Ray Tune may start trials: on nodes of the pool alone, and without counting the faults of nodes as those of trials.

Tune of Ray 2.60 starts a trial in a placement group, which Ray puts on any node that has room. It takes another manager of
placement groups as an argument, which `Tuner` does not pass on; so its name is replaced while trials run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state
from ray.air.execution.resources import PlacementGroupResourceManager, ResourceRequest
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from trainables.node_check import NodeFaultError
from trainables.node_pool import NodePool

_MOST_MOVES = 20
"""How often a trial is moved whose node failed, before it counts as its own failure: it may be what ends the nodes."""


class CheckedPlacement(PlacementGroupResourceManager):
    """Gives trials placement groups on nodes that may run trials: a group on a node that is checked waits for the answer."""

    def __init__(self, update_interval_s: float = 0.1, nodes: NodePool | None = None) -> None:
        """Take the pool that says which nodes may run trials; Ray calls this again without it."""
        if nodes is not None:
            self._nodes = nodes
        self._held: dict[ResourceRequest, set[PlacementGroup]] = defaultdict(set)
        self._avoids: dict[PlacementGroup, frozenset[str]] = {}
        super().__init__(update_interval_s)

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Ask for a placement group outside of the nodes that are avoided."""
        bound: Any = resource_request._bound
        options, avoided = dict(bound.arguments), self._nodes.avoided()
        if avoided:
            outside = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
            options["bundle_label_selector"] = [outside] * len(resource_request.bundles)
        group = placement_group(**options)
        self._avoids[group] = avoided
        self._pg_to_request[group] = resource_request
        self._request_to_staged_pgs[resource_request].add(group)
        future = group.ready()
        self._staging_future_to_pg[future] = group
        self._pg_to_staging_future[group] = future

    def update_state(self) -> None:
        """Sort the groups that Ray has placed: those on nodes that may run trials are ready, others wait or are asked anew."""
        if self._staging_future_to_pg:
            super().update_state()  # type: ignore[no-untyped-call]
        fit = frozenset(node.id for node in self._nodes.fit())
        for request, ready in list(self._request_to_ready_pgs.items()):
            self._held[request] |= ready
            ready.clear()
            self._sort(request, fit)
        for waiting in list(self._request_to_staged_pgs.values()):
            for group in [each for each in waiting if self._avoids.get(each, frozenset()) & fit]:
                waiting.remove(group)  # a node that it avoids can be used now
                future = self._pg_to_staging_future.pop(group)
                self._staging_future_to_pg.pop(future)
                ray.cancel(future)
                self._ask_anew(group)
        self._last_update = time.monotonic()

    def _sort(self, request: ResourceRequest, fit: frozenset[str]) -> None:
        held, avoided = self._held[request], self._nodes.avoided()
        for group in list(held):
            node = node_of_group(group)
            if node in fit:
                held.remove(group)
                self._request_to_ready_pgs[request].add(group)
            elif node in avoided:
                held.remove(group)
                self._ask_anew(group)

    def _ask_anew(self, group: PlacementGroup) -> None:
        request = self._pg_to_request.pop(group)
        self._avoids.pop(group, None)
        remove_placement_group(group)
        self.request_resources(request)

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Cancel a request: one that waits, before one that is ready."""
        held = self._held[resource_request]
        if held and not self._request_to_staged_pgs[resource_request]:
            group = held.pop()
            self._pg_to_request.pop(group)
            remove_placement_group(group)
        else:
            super().cancel_resource_request(resource_request)

    def clear(self) -> None:
        """Remove all groups."""
        if ray.is_initialized():
            for group in [group for groups in self._held.values() for group in groups]:
                remove_placement_group(group)
        super().clear()  # type: ignore[no-untyped-call]


class NodeLimiter(ConcurrencyLimiter):
    """Samples as many trials as the nodes hold at the moment."""

    def __init__(self, searcher: Searcher, most: int, limit: Callable[[], int]) -> None:
        """Wrap a searcher.

        Args:
            searcher: samples the trials.
            most: number of trials of the search.
            limit: returns how many trials may have been sampled and not ended.
        """
        super().__init__(searcher, max_concurrent=most)
        self._limit = limit

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the dictionary of a trial, or None while there is no room for one."""
        return super().suggest(trial_id) if len(self.live_trials) < self._limit() else None

    def get_state(self) -> dict[str, Any]:
        """Return nothing: Ray's snapshots are not used."""
        return {}


@contextmanager
def placed_on(nodes: NodePool | None) -> Iterator[None]:
    """Let Tune start trials on the nodes of a pool alone, in this block; None: anywhere."""
    if nodes is None:
        yield
        return

    def handle_error(trial: Trial, exc: Any = None) -> None:
        before = trial.run_metadata.num_failures
        _handle_error(trial, exc)
        if trial.run_metadata.num_failures > before and is_fault_of_node(trial, exc, nodes):
            _uncount(trial)

    module: Any = tune_controller
    manager = module.PlacementGroupResourceManager
    module.PlacementGroupResourceManager = lambda: CheckedPlacement(nodes=nodes)
    Trial.handle_error = handle_error  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        module.PlacementGroupResourceManager = manager
        Trial.handle_error = _handle_error  # type: ignore[method-assign]


_handle_error = Trial.handle_error


def is_fault_of_node(trial: Trial, error: Any, nodes: NodePool) -> bool:
    """Whether a trial failed because of its node; the node is then left out, or is gone.

    A trial that fails for another reason makes its node suspect. Before it fails for good the driver waits for the answer.

    Args:
        trial: that has just failed; Tune has counted it.
        error: of its process.
        nodes: of the cluster.
    """
    node = node_of_actor(_actor_of(trial, error))
    if node is None:
        return False
    if not nodes.is_alive(node):
        reason = f"node {node[:6]} has left the cluster"
    elif (found := _found_by_trial(error)) is not None:
        nodes.leave_out(node, found)
        reason = found
    elif trial.should_recover():  # type: ignore[no-untyped-call]
        nodes.suspect(node, lambda: _uncount(trial))
        if isinstance(error, ActorUnavailableError):  # Ray notices the death of a node after half a minute
            nodes.reasons[trial.trial_id] = f"the connection to node {node[:6]} broke"
        return False
    else:
        reason = nodes.recheck(node) or ""
    if not reason:
        return False
    moves = nodes.moves[trial.trial_id] = nodes.moves.get(trial.trial_id, 0) + 1
    nodes.reasons[trial.trial_id] = reason
    return moves <= _MOST_MOVES


def _uncount(trial: Trial) -> None:
    trial.run_metadata.num_failures = max(0, trial.run_metadata.num_failures - 1)


def _found_by_trial(error: Any) -> str | None:
    """Return what the process of a trial says of its node, or None."""
    text, name = str(error), NodeFaultError.__name__
    if name not in text:
        return None
    return text.rpartition(f"{name}: ")[2].strip().splitlines()[0]


def _actor_of(trial: Trial, error: Any) -> str | None:
    """Return Ray's id of the process of a trial that has failed, also where it failed at its start."""
    actor = trial.temporary_state.ray_actor
    if isinstance(error, RayActorError) and error.actor_id:
        return str(error.actor_id)
    return None if actor is None else str(actor._actor_id.hex())


def node_of_actor(actor: str | None) -> str | None:
    """Return Ray's id of the node where a process runs, or ran; None if it is not known."""
    found = state.actor_table(actor) if actor is not None else {}
    node = str(found.get("Address", {}).get("NodeID") or "")
    return node if node.strip("f") else None  # Ray's id of no node


def node_of_group(group: PlacementGroup) -> str | None:
    """Return Ray's id of the node of a placement group, or None."""
    places = placement_group_table(group).get("bundles_to_node_id", {})
    return next(iter(places.values()), None) or None
