"""Addresses of tracking servers and databases."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.databases import refuse_missing_driver
from dcml_tune.runs.paths import mlflow_address, sqlite_address, sqlite_file
from dcml_tune.utils.redaction import redact

_WEB = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_DATABRICKS = ("databricks", "databricks-uc")


def absolute_uri(uri: str) -> str:
    """Check the address of a store, and make the path of an SQLite file absolute, since trials run in other directories.

    Raises:
        SettingError: if MLflow does not support the kind of address, or special characters of its login are not escaped.
    """
    scheme, separator, rest = uri.partition("://")
    kind = scheme.lower().partition("+")[0]
    if uri in _DATABRICKS or (separator and scheme in _DATABRICKS):
        return uri
    if separator and scheme.lower() in _WEB:
        return _web(f"{scheme.lower()}://{rest}")
    if separator and kind in _DATABASES:
        return _database(f"{scheme.lower()}://{rest}")
    known = (
        f"http(s)://HOST:PORT, sqlite:///FILE, {', '.join(f'{each}://' for each in _DATABASES[1:])}, {_DATABRICKS[0]}"
    )
    raise _refused(uri, f"must be one of {known}; MLflow no longer supports a directory")


def add_flag(parser: argparse.ArgumentParser, about: str) -> None:
    """Add the flag --tracking-uri, whose value goes through `absolute_uri`."""
    parser.add_argument("--tracking-uri", action=_TrackingUri, help=about)


class _TrackingUri(argparse.Action):
    """An action instead of a `type`: argparse would print the address, with its password, in its own error message."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: Any = None
    ) -> None:
        uri = absolute_uri(str(values))
        refuse_missing_package(uri)
        setattr(namespace, self.dest, uri)


def refuse_missing_package(uri: str) -> None:
    """Refuse the address of a database whose driver is not installed: its records would wait for ever.

    Raises:
        SettingError: with the package that has to be installed.
    """
    if not uri.startswith((*_WEB, *_DATABRICKS)):
        refuse_missing_driver(f"tracking-uri={uri}", uri)


def tracking_uri(given: str | None, output: Path) -> str:
    """The address given by --tracking-uri, or that of the store in the output directory."""
    return mlflow_address(output) if given is None else given


def _web(uri: str) -> str:
    """Check a web address: it has a host, and its login is escaped."""
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if parts is None or not host or "@" in parts.path + parts.query + parts.fragment or "\\" in parts.netloc:
        raise _refused(
            uri,
            "must be http(s)://HOST:PORT; in a user or password write / as %2F, an at sign as %40, ? as %3F, # as %23, \\ as %5C",
        )
    if parts.query or parts.fragment:
        raise _refused(
            uri,
            "nothing may follow a ? or #; give a token or password in MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_PASSWORD",
        )
    return uri


def _database(uri: str) -> str:
    """Check the SQLAlchemy address of a database; the path of an SQLite file is made absolute."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri)
        file = sqlite_file(uri)
    except SettingError as error:
        raise SettingError(f"tracking-uri={error}") from None
    except (ArgumentError, ValueError):
        raise _refused(
            uri, "must be an SQLAlchemy address, DIALECT://HOST:PORT/DATABASE; escape special characters of the login"
        ) from None
    if file is None:
        return uri
    options = uri.partition("?")[2]
    return sqlite_address(file.resolve()) + (f"?{options}" if options else "")


def _refused(uri: str, why: str) -> SettingError:
    return SettingError(f"tracking-uri={redact(uri)}: {why}")


def ui_command(uri: str) -> str:
    """The command that opens the MLflow UI of a database, or the address of a server."""
    if uri.startswith((*_WEB, *_DATABRICKS)):
        return without_login(uri)
    store = redact(absolute_uri(uri))
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", "5000"])


def compare_url(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Address of the page of MLflow that compares runs.

    Args:
        base: address of the MLflow server; if it is not a web address, that which `ui_command` starts.
        experiment_id: MLflow's id of the experiment.
        run_ids: MLflow's ids of the runs. The page is slow for more than about a hundred.
    """
    host = without_login(base).rstrip("/") if base.startswith("http") else "http://127.0.0.1:5000"
    runs, experiments = quote(json.dumps(list(run_ids)), safe=""), quote(json.dumps([experiment_id]), safe="")
    return f"{host}/#/compare-runs?runs={runs}&experiments={experiments}"


def without_login(uri: str) -> str:
    """The address without user and password."""
    return redact(uri).replace("***@", "")
