"""Connection to Ray: starts a local cluster, or joins a running one and lists its nodes."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.signals import hangup_ignored, signals_wait
from dcml_tune.utils.tracebacks import InFile
from trainables.authentication import use_mode_of_cluster
from trainables.nodes import Node
from trainables.ray_files import remove_old_sessions, secure_token, session_root

_GPU_TYPE = "ray.io/accelerator-type"
"""Ray's label of the type of a node's accelerators."""


def connect(address: str | None) -> str:
    """Start a local Ray cluster, or join a running one; returns the address of its dashboard, if it has one.

    Only this user of this machine can use a local cluster: see docs/security.md.

    Raises:
        SettingError: if no cluster answers at the address.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray's result loggers are not needed, and abort a search when they cannot write. We handle signals ourselves.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # Progress prints one line, and keeps the text
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():  # Ray itself retries for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise SettingError(
                f"--ray-address {address}: nothing answers ({error}); start the cluster, or correct the address"
            ) from None
    import ray
    from ray._private import worker

    if address:
        use_mode_of_cluster(address)
        # When a node dies Ray prints the last pages of its log; a line of ours names the node.
        worker.print_to_stdstream = lambda *_, **__: None
    secure_token(make=address is None)
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray").handlers:
        if not any(isinstance(each, InFile) for each in handler.filters):
            handler.addFilter(InFile())
    options: dict[str, Any] = {"address": address}
    if address is None:
        # Ray's default is 15. A trial then gets a thirtieth of a core that another program of this machine wants, too.
        os.environ.setdefault("RAY_worker_niceness", "0")
        _listen_on_loopback()
        remove_old_sessions()
        options = {"address": "local", "include_dashboard": True, "_temp_dir": str(session_root())}
    try:
        with signals_wait(), _same_handler(signal.SIGTERM), hangup_ignored():
            context = ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise SettingError(
            f"--ray-address {address}: the Ray cluster refused the connection ({str(error).splitlines()[0]}); check the "
            f"address and its token (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')}), or leave the flag out"
        ) from None
    return str(context.dashboard_url or "")


def disconnect() -> None:
    """Leave the cluster; a local one ends.

    Garbage is collected before the shutdown, and not during it: Ray 2.60 aborts the process if another thread finalises
    an object reference while it shuts down.
    """
    import ray

    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _listen_on_loopback() -> None:
    """Bind all processes of a local cluster to the loopback interface.

    Ray does this by default on macOS and Windows. On Linux only this variable does it, and Ray reads it at its import.
    With the value 1 other machines can reach the cluster.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    os.environ.setdefault(name, "0")  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[name].lower() in ("1", "true")


@contextmanager
def _same_handler(number: int) -> Iterator[None]:
    """Restore the handler of a signal after the block: Ray installs its own, which exits at any point of the program."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, handler)


def alive_nodes() -> list[Node]:
    """Return the nodes of the cluster that was joined, those that only manage it included."""
    import ray

    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        has, labels = node["Resources"], node.get("Labels") or {}
        types = [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
        found.append(
            Node(
                id=node["NodeID"],
                host=node["NodeManagerHostname"],
                cpus=has.get("CPU", 0.0),
                gpus=has.get("GPU", 0.0),
                gpu_type=labels.get(_GPU_TYPE) or next(iter(types), None),
            )
        )
    return sorted(found, key=lambda node: (node.host, node.id))


def has_autoscaler() -> bool:
    """Whether an autoscaler brings nodes to the cluster that was joined.

    The nodes of such a cluster are of types that its autoscaler knows, and its autoscaler reports to the head. A plain
    cluster has a process that reports, but no types; one of KubeRay without its autoscaler has types, but no reports.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import _internal_kv_get

    client = GcsClient(ray.get_runtime_context().gcs_address)
    status = GetClusterStatusReply()
    status.ParseFromString(client.get_cluster_status(timeout_s=10))
    has_types = any(node.ray_node_type_name for node in status.cluster_resource_state.node_states)
    reports = status.autoscaling_state.autoscaler_state_version > 0
    return has_types and (reports or _internal_kv_get("__autoscaling_status") is not None)
