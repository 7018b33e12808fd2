"""Whether a Ray cluster asks for a token: a driver must use the mode of the cluster that it joins.

Ray does not compare the two. A driver that sends a token to a cluster without authentication connects, and then all of its
trials fail before they start; so a token that a local search has left in the home directory must not decide.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from dcml_tune.config.errors import SettingError
from trainables.ray_files import token_file

Mode = Literal["token", "disabled"]

_MODE = "RAY_AUTH_MODE"
_ANSWERS_S = 10.0


def use_mode_of_cluster(address: str) -> None:
    """Set the authentication of this process to that of the cluster at an address, before Ray connects.

    Raises:
        SettingError: if the environment asks for another mode, or the cluster asks for a token and there is none.
    """
    mode, given = cluster_mode(address), os.environ.get(_MODE)
    has_token = "RAY_AUTH_TOKEN" in os.environ or token_file().is_file()
    if mode is None:  # Ray itself will say what is wrong
        mode = "token" if has_token else None
    elif given is not None and given.lower() != mode:
        asks = "asks for a token" if mode == "token" else "has no authentication, so every trial would fail"
        raise SettingError(f"{_MODE}={given}: the Ray cluster at {address} {asks}; set it to {mode}, or unset it")
    elif mode == "token" and not has_token:
        raise SettingError(
            f"--ray-address {address}: the cluster asks for a token, and there is none in RAY_AUTH_TOKEN or {token_file()}; "
            "write the token of the cluster there (mode 0600): the output of `ray get-auth-token` on its head"
        )
    if mode is None or given is not None:
        return
    os.environ[_MODE] = mode
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")  # Ray read its environment when it was imported


def cluster_mode(address: str) -> Mode | None:
    """Ask the head of a cluster, without a token, whether it wants one; None if it does not say, such as with TLS."""
    import grpc  # type: ignore[import-untyped]

    def as_it_is(message: Any) -> Any:
        return message

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId", as_it_is, as_it_is)
        try:
            call(b"", timeout=_ANSWERS_S)
        except grpc.RpcError as error:
            return "token" if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return "disabled"
