"""Joins the nodes of a cluster: waits for the first one that can hold a trial, and checks all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.signals import SearchStopped
from trainables.cluster import alive_nodes, has_autoscaler
from trainables.node_pool import ANSWERS_S, NodePool
from trainables.nodes import Node, able

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainables.node_check import Needs

_GPUS_FIRST_S = 20.0  # without --gpus-per-trial, nodes without a GPU are taken when no GPU has come for this time
_LOOK_S = 0.5


def join_nodes(
    address: str, needs: Needs, *, gpus_per_trial: float | None, wait_s: float, say: Callable[[str], None]
) -> NodePool:
    """Return the nodes of the cluster that this process has joined; at least one can run trials, or is being checked.

    Args:
        address: of the cluster, for messages.
        needs: what a node must have.
        gpus_per_trial: as it was asked for; None: 1 if there are GPUs.
        wait_s: longest wait for a node that can hold a trial, in seconds.
        say: prints a line.

    Raises:
        SettingError: if all nodes that can hold a trial lack what is needed.
        SearchStopped: if no node that can hold a trial has come within the time.
    """
    autoscales = has_autoscaler()
    nodes = alive_nodes()
    if not able(nodes, gpus_per_trial):
        _wait_for_a_node(address, nodes, gpus_per_trial, wait_s, say)
    gpus = gpus_per_trial != 0
    driver = ray.get_runtime_context().get_node_id()
    pool = NodePool(needs.with_gpus(gpus), gpus_per_trial=gpus_per_trial, autoscales=autoscales, driver=driver, say=say)
    pool.wait(ANSWERS_S, lambda: not pool.checking())
    wait_until_fit(pool, address, wait_s)
    return pool


def wait_until_fit(pool: NodePool, address: str, wait_s: float) -> None:
    """Wait until a node may run trials.

    Args:
        pool: of nodes that are being checked.
        address: of the cluster, for the message.
        wait_s: longest wait, in seconds.

    Raises:
        SettingError: if all nodes were left out, or none has answered within the time.
    """
    pool.wait(wait_s, lambda: bool(pool.fit()) or not pool.checking())
    if pool.fit():
        pool.tell()
        return
    faults = pool.named_faults() or f"no node has answered within {wait_s:g} s"
    raise SettingError(f"--ray-address {address}: no node of the cluster can run this search: {faults}")


def _wait_for_a_node(
    address: str, nodes: Sequence[Node], gpus_per_trial: float | None, wait_s: float, say: Callable[[str], None]
) -> None:
    """Wait for the first node that can hold a trial; an autoscaler is asked for one.

    Raises:
        SearchStopped: if none has come within the time; a later start may find one.
    """
    gpus = 1.0 if gpus_per_trial is None else gpus_per_trial
    wanted = f"{gpus:g} GPU" if gpus > 0 else "1 CPU"
    there = ", ".join(f"{node.name} with {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes)
    say(
        f"no node of the cluster can hold a trial, which needs {wanted}: it has {there}; waiting up to {wait_s:g} s for one"
    )
    end, came = time.monotonic() + wait_s, None
    with _asked_for(gpus):
        while time.monotonic() < end:
            nodes = alive_nodes()
            if any(node.gpus >= min(gpus, 1) > 0 for node in nodes) and able(nodes, gpus_per_trial):
                return
            if able(nodes, gpus_per_trial):
                came = came or time.monotonic()
                if gpus_per_trial is not None or time.monotonic() - came > _GPUS_FIRST_S:
                    return
            time.sleep(_LOOK_S)
    remedy = " or, to train on CPUs, --gpus-per-trial 0" if gpus_per_trial is None else ""
    raise SearchStopped(
        f"no node that can hold a trial, which needs {wanted}, came to the cluster at {address} within {wait_s:g} s; start one, "
        f"or give a longer --wait-for-nodes{remedy}"
    )


@contextmanager
def _asked_for(gpus: float) -> Iterator[None]:
    """Let a request for the resources of a trial wait, which makes an autoscaler bring a node."""
    group = placement_group([{"CPU": 1.0} if gpus == 0 else {"GPU": gpus}])
    try:
        yield
    finally:
        remove_placement_group(group)
