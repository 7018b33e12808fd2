"""Connection to Ray: starts a local cluster, or joins a running one."""

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
    from ray._raylet import Config  # type: ignore[attr-defined]

    if address and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # without it, Ray sends no token to a given address
        Config.initialize("")  # Ray read its environment when it was imported
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
            "address, and RAY_AUTH_MODE (token or disabled) and the token of that cluster, or leave the flag out"
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


def cluster_size() -> tuple[int, int]:
    """Return the numbers of CPU cores and of GPUs of the cluster that was joined."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def _has_token() -> bool:
    return "RAY_AUTH_TOKEN" in os.environ or token_file().is_file()
