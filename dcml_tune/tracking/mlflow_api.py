"""What MLflow takes: clients, names, lengths; and what its errors mean."""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from dcml_tune.utils.redaction import redact

KEY, ROLE, SEARCH, STATE, REASON = "dcml.key", "dcml.role", "dcml.search", "dcml.state", "dcml.reason"


Record = dict[str, Any]


THREAD = "dcml-tracking"


_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000


STEP, TIME = "dcml.step", "dcml.time"  # of a model: when in its run, and when at all, it was recorded


_REFUSALS = (405, 413, 501)  # what a proxy before MLflow will say again to the same request


# What is wrong with a disk or a machine, not with the files of one record: it is waited for.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE})


def client_of(uri: str) -> Any:
    """A client that gives up early: our own thread tries again, and keeps the rest of the process quiet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("mlflow.store.db.utils", "CRITICAL")):
        logging.getLogger(name).setLevel(level)
    # urllib3 warns of each retry; `attempt` says once that the server is away.
    logging.getLogger("urllib3.connectionpool").addFilter(_not_from_here)
    return MlflowClient(tracking_uri=uri)


def _not_from_here(entry: logging.LogRecord) -> bool:
    return entry.threadName != THREAD


def is_away(error: Exception) -> bool:
    """Whether the same record may be taken later: the server is down, busy, full, or wants another login."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        return not is_refusal(error) and error.error_code != "BAD_REQUEST"
    if isinstance(error, RequestException):
        return not is_refusal(error)
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING)


def is_refusal(error: Exception) -> bool:
    """Whether it is certain that MLflow will never take this record: few answers of a proxy before it are."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import HTTPError

    if isinstance(error, FileNotFoundError | LookupError):
        return True
    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in _REFUSALS
    if not isinstance(error, MlflowException):
        return False
    if "API request" in error.message and not isinstance(error, RestException):
        status = re.search(r"failed with error code (\d+)", error.message)
        return status is not None and int(status[1]) in _REFUSALS
    return error.error_code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")


def finite_values(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Values under names that MLflow takes: those that are finite numbers, and the others."""
    finite: dict[str, float] = {}
    strange: dict[str, Any] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            finite[_legal(name)] = number
        else:
            strange[_legal(name)] = value
    return finite, strange


@functools.lru_cache(maxsize=4096)
def _legal(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:250]


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters under names and with lengths that MLflow accepts, without passwords."""
    return {_legal(name): redact(str(value))[:_LONGEST_PARAM] for name, value in values.items()}


def as_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags under names and with lengths that MLflow accepts, without passwords."""
    return {_legal(name): redact(str(value))[:_LONGEST_TAG] for name, value in tags.items()}


def safe_key(key: str) -> str:
    """The key without what would end a quoted string in MLflow's filters."""
    return re.sub(r"['\"`\\]", "_", key)


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return int(time.time() * 1000)


def short(error: Exception) -> str:
    """Return an error on one line, without passwords."""
    return redact(" ".join(str(error).split()))[:300] or type(error).__name__
