"""MLflow's interface: clients, our tags, the names and lengths that it accepts, and the meaning of its errors.

A run carries the tags `dcml.key` (its identity), `dcml.role` (search, trial, confirm, final, published, no division,
untrained, train), `dcml.search` (key of its search), `dcml.state` (running, done, pruned, interrupted, killed, failed) and, if
it has one, `dcml.reason` (why it ended). A pruned run is FINISHED in MLflow: it did everything that was asked of it. An
interrupted run is KILLED until it is started again. The step of a metric is the number of completed epochs; 0 is the untrained
network.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.errnos import DELAYS_DELIVERY
from dcml_tune.utils.redaction import redact

KEY, ROLE, SEARCH, STATE, REASON = "dcml.key", "dcml.role", "dcml.search", "dcml.state", "dcml.reason"
"""Tags of a run."""
STEP, TIME = "dcml.step", "dcml.time"
"""Tags of a model: epochs completed, and the time in milliseconds at which it was recorded."""

Record = dict[str, Any]
"""A record of the spool, as `lines.SpoolRecord` describes it."""

THREAD = "dcml-tracking"
"""Name of the threads that deliver."""

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100
"""MLflow's limits for one call of `log_batch`."""

REFUSAL_STATUSES = (405, 413, 501)
"""HTTP statuses that a proxy in front of MLflow repeats for the same request."""

_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000  # characters, MLflow's limits

# Status with which a caller ends a run -> MLflow's status, and our state.
_END_STATES = {
    "FINISHED": ("FINISHED", "done"),
    "PRUNED": ("FINISHED", "pruned"),
    "INTERRUPTED": ("KILLED", "interrupted"),
    "KILLED": ("KILLED", "killed"),
    "FAILED": ("FAILED", "failed"),
}


def client_of(uri: str) -> Any:
    """A client that gives up early, since our own thread retries, and that logs little."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient  # imported on use, as below: mlflow takes seconds to import

    for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("mlflow.store.db.utils", "CRITICAL")):
        logging.getLogger(name).setLevel(level)
    # urllib3 warns of each retry; `Delivery.attempt` logs once that the server is away.
    logging.getLogger("urllib3.connectionpool").addFilter(_not_from_here)
    return MlflowClient(tracking_uri=uri)


def _not_from_here(entry: logging.LogRecord) -> bool:
    return entry.threadName != THREAD


def is_away(error: Exception) -> bool:
    """Whether MLflow may accept the same record later: it is down, busy, full, or requires another login."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        return not is_refusal(error) and error.error_code != "BAD_REQUEST"
    if isinstance(error, RequestException):
        return not is_refusal(error)
    return isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in DELAYS_DELIVERY
    )


def is_refusal(error: Exception) -> bool:
    """Whether MLflow will certainly never accept this record. Few answers of a proxy in front of it are that certain."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import HTTPError

    if isinstance(error, FileNotFoundError | LookupError):
        return True
    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in REFUSAL_STATUSES
    if not isinstance(error, MlflowException):
        return False
    if "API request" in error.message and not isinstance(error, RestException):
        status = re.search(r"failed with error code (\d+)", error.message)
        return status is not None and int(status[1]) in REFUSAL_STATUSES
    return error.error_code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")


def finite_values(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Split values into finite numbers and others, both under names that MLflow accepts.

    Returns:
        The finite numbers, and the other values as they were given.
    """
    finite: dict[str, float] = {}
    others: dict[str, Any] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            finite[_legal(name)] = number
        else:
            others[_legal(name)] = value
    return finite, others


@functools.lru_cache(maxsize=4096)
def _legal(name: str) -> str:
    """The name with the characters replaced that MLflow refuses, cut to its limit of 250."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:250]


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters under names and with lengths that MLflow accepts, without passwords."""
    return {_legal(name): redact(str(value))[:_LONGEST_PARAM] for name, value in values.items()}


def as_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags under names and with lengths that MLflow accepts, without passwords."""
    return {_legal(name): redact(str(value))[:_LONGEST_TAG] for name, value in tags.items()}


def end_fields(before: str | None, status: str, reason: str | None) -> Record:
    """Fields of the `end` record of a run.

    Args:
        before: the run's `dcml.state` so far.
        status: a key of `_END_STATES`; an unknown one counts as FAILED.
        reason: why it ended; None for a run that finished.
    """
    ended, state = _END_STATES.get(status.upper(), _END_STATES["FAILED"])
    if state == "done" and before not in (None, "running", "interrupted"):
        state = before  # set by the caller
    return {"status": ended, "tags": as_tags({STATE: state} | ({REASON: reason} if reason else {}))}


def chunks(items: list[Any], size: int) -> list[list[Any]]:
    """Split a list into lists of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def deleted_experiment(name: str) -> SettingError:
    """The error for an experiment that was deleted."""
    return SettingError(f"experiment {name!r} was deleted: `mlflow experiments restore` it first")


def safe_key(key: str) -> str:
    """The key with the characters replaced that would end a quoted string in MLflow's filters."""
    return re.sub(r"['\"`\\]", "_", key)


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)


def short(error: Exception) -> str:
    """Return an error on one line, without passwords."""
    return redact(" ".join(str(error).split()))[:300] or type(error).__name__
