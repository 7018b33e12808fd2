"""Recovery of the spool that a process left behind: delivery of its records, and the end of its open runs."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.moved import moved_address, output_before
from dcml_tune.runs.paths import ARTIFACTS
from dcml_tune.tracking.connection import Connection
from dcml_tune.tracking.delivery import Delivery
from dcml_tune.tracking.delivery_thread import BACK_OFF_S
from dcml_tune.tracking.lines import Target
from dcml_tune.tracking.mlflow_api import THREAD, end_fields, now_ms
from dcml_tune.tracking.outbox import Outbox
from dcml_tune.tracking.uris import absolute_uri
from dcml_tune.utils.stored import checked, parse


def flush(directory: Path, uri: str | None = None, *, timeout: float = 60.0) -> int:
    """Deliver the waiting records of a spool.

    Args:
        directory: the spool directory.
        uri: address of the store; that in target.json by default. Required if that address had a password, which is
            not stored.
        timeout: seconds after which to give up.

    Returns:
        The number of records that still wait.

    Raises:
        SettingError: if there is no spool, or its address had a password and no address is given.
    """
    target = _read_target(directory)
    if uri is None and "***" in target.uri:
        raise SettingError(f"{target.uri}: its password is not stored; give the whole address by --tracking-uri")
    delivery = Delivery(directory, _connection(directory, target, uri))
    stop = threading.Event()

    def deliver() -> None:
        while not delivery.attempt() and not stop.wait(BACK_OFF_S[0]):
            pass

    # On a thread, because a server that accepts connections and never answers can block a request beyond the timeout.
    thread = threading.Thread(target=deliver, name=THREAD, daemon=True)
    thread.start()
    thread.join(timeout)
    stop.set()
    return delivery.count_waiting()


def end_dead(directory: Path, uri: str | None = None, *, reason: str, timeout: float = 10.0) -> int:
    """End the runs that a killed process left RUNNING: KILLED in MLflow, with the state `interrupted`.

    Call it only when no process records to this spool. Records that cannot be delivered now wait in the spool.
    Nothing is recorded if no run was left open.

    Args:
        directory: the spool directory; it may be missing.
        uri: address of the store; that in target.json by default. If that address had a password, which is not
            stored, nothing is delivered unless an address is given.
        reason: why the runs ended, as far as it is known.
        timeout: seconds after which to give up the delivery.

    Returns:
        The number of runs that were ended.
    """
    if not (directory / "target.json").exists():
        return 0
    with Outbox(directory) as outbox:
        dead = list(reversed(outbox.open_runs))  # the search last
        for key in dead:
            fields = end_fields(outbox.states.get(key), "INTERRUPTED", reason)
            outbox.append({"kind": "end", "key": key, "time": now_ms(), **fields})
        written = max(0, len(dead) - outbox.write_held())
    with suppress(SettingError):
        flush(directory, uri, timeout=timeout)
    return written


def _read_target(directory: Path) -> Target:
    try:
        return checked(Target, parse((directory / "target.json").read_bytes()))
    except OSError:
        raise SettingError(f"{directory}: holds no records of a search; check NAME and --output-dir") from None
    except ValueError as error:
        raise SettingError(f"{directory / 'target.json'}: {error}; restore the file, or resume the search") from None


def _connection(directory: Path, target: Target, uri: str | None) -> Connection:
    """The connection to a target, or to `uri`; the paths follow an output directory that was moved."""
    directory = directory.absolute()
    output, old = directory.parent.parent, output_before(directory.parent, {})
    address, root = target.uri, Path(target.artifact_root) if target.artifact_root else None
    if old is not None:
        address, root = moved_address(address, old, output), output / ARTIFACTS
    return Connection(absolute_uri(uri or address), target.experiment, root)
