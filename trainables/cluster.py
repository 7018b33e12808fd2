"""Ray: a local cluster of one's own, or a running one that is joined."""

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
from trainables.ray_files import remove_old_sessions, secure_token, session_root, token_file


def connect(address: str | None) -> str:
    """Start a local Ray cluster, or join a running one; returns the address of its dashboard, if it has one.

    A local cluster is for this user of this machine alone: see docs/security.md.

    Raises:
        SettingError: if no cluster answers at the address.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray's own logs of results are not needed, and end a search when they cannot be written; signals are ours.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # we say it in a line, and keep the text
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise SettingError(f"--ray-address {address}: nothing answers ({error}); is the cluster up?") from None
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    if address and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray sends its token to an address that is given only when told to
        Config.initialize("")  # it has read its environment when it was imported
    secure_token(make=address is None)
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray").handlers:
        if not any(isinstance(each, InFile) for each in handler.filters):
            handler.addFilter(InFile())
    options: dict[str, Any] = {"address": address}
    if address is None:
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
            f"--ray-address {address}: no Ray cluster lets us in there ({str(error).splitlines()[0]}); check the "
            "address, and RAY_AUTH_MODE (token or disabled) and the token of that cluster, or leave the flag out"
        ) from None
    return str(context.dashboard_url or "")


def disconnect() -> None:
    """Leave the cluster; a local one ends.

    Handles of Ray that are garbage are let go of before, and none while it shuts down: one that another thread collects in
    that moment makes Ray 2.60 end the whole process.
    """
    import ray

    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _listen_on_loopback() -> None:
    """Have all of a local cluster listen on the loopback interface alone.

    That is what Ray does on macOS and Windows; nothing but this variable, which it reads when it is imported, makes it
    do so on Linux. With the value 1 other machines reach the cluster.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    os.environ.setdefault(name, "0")  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[name].lower() in ("1", "true")


@contextmanager
def _same_handler(number: int) -> Iterator[None]:
    """Ray sets a handler of its own, which exits in the middle of things."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, handler)


def cluster_size() -> tuple[int, int]:
    """CPU cores and GPUs of the cluster that was joined."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def _has_token() -> bool:
    return "RAY_AUTH_TOKEN" in os.environ or token_file().is_file()
