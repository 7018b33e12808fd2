"""Check before a search or run starts that its MLflow store will accept records."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import sqlite_file
from dcml_tune.runs.study_file import BUSY_S, after_rollback, patiently
from dcml_tune.tracking.mlflow_api import client_of, deleted_experiment, short
from dcml_tune.tracking.uris import refuse_missing_package
from dcml_tune.utils.redaction import redact

_LOCKED_S = 20.0  # longest wait for a database that another process has locked
_NO_LOGIN = (401, 403)
_NO_SERVER = (404, 405)


def check_store(uri: str, *, experiment: str = "dcml_tune", make: bool = False) -> bool:
    """Refuse a store that will not accept records. A server that is away is accepted: records wait for it.

    Args:
        uri: address of the store.
        experiment: name of the experiment.
        make: create the experiment on a server if it is missing; otherwise nothing is written.

    Returns:
        Whether the store is reachable.

    Raises:
        SettingError: for a database whose Python package is not installed, or that cannot be written, is damaged, or
            belongs to another program or another version of MLflow; a server that refuses the login or is not an MLflow
            server; an experiment that was deleted or cannot be created.
    """
    file = sqlite_file(uri)
    if file is not None:
        _check_file(file, experiment)
        return True
    refuse_missing_package(uri)
    try:
        found = client_of(uri).get_experiment_by_name(experiment)
        if found is None and make:
            client_of(uri).create_experiment(experiment)
    except Exception as error:
        _refuse(uri, experiment, error)
        return False
    if found is not None and found.lifecycle_stage == "deleted":
        raise deleted_experiment(experiment)
    return True


def _refuse(uri: str, experiment: str, error: Exception) -> None:
    """Raise for an error that is permanent."""
    from mlflow.exceptions import MlflowException

    status, code = _status(error), getattr(error, "error_code", "")
    shown = f"tracking-uri={redact(uri)}"
    if code == "RESOURCE_ALREADY_EXISTS":  # another process created it first
        return
    if status in _NO_LOGIN or code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        raise SettingError(
            f"{shown}: the server refuses ({short(error)}); give its login in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD or in MLFLOW_TRACKING_TOKEN, and permission to write"
        )
    if status in _NO_SERVER or code == "ENDPOINT_NOT_FOUND" or "valid JSON" in str(error):
        raise SettingError(
            f"{shown}: answers, but not as MLflow does ({short(error)}); give the address of an MLflow server"
        )
    if isinstance(error, MlflowException) and code in ("INVALID_PARAMETER_VALUE", "RESOURCE_LIMIT_EXCEEDED"):
        raise SettingError(
            f"{shown}: experiment {experiment} cannot be created ({short(error)}); give another store by --tracking-uri"
        )


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of MLflow; None if it has none."""
    found = re.search(r"error code (\d{3})", str(error))
    known: Any = getattr(getattr(error, "response", None), "status_code", None)
    return int(found[1]) if found else known


def _check_file(file: Path, experiment: str) -> None:
    if not os.path.lexists(file):
        place = next(each for each in file.parents if os.path.lexists(each))
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise _cannot(file, f"{place} cannot be written")
        return
    if not file.is_file():
        raise _cannot(file, "is not a file")
    if not os.access(file, os.R_OK | os.W_OK):
        raise _cannot(file, "may not be read and written by this user")
    if file.stat().st_size == 0:
        return
    try:
        tables, version, stage = patiently(
            lambda: after_rollback(lambda: _read_schema(file, experiment), file), file, patience=_LOCKED_S
        )
    except sqlite3.Error as error:
        raise _cannot(file, str(error)) from None
    if tables and "experiments" not in tables:
        raise _cannot(file, f"is the database of another program (with {', '.join(sorted(tables)[:3])})")
    if tables:
        _check_version(file, version)
    if stage == "deleted":
        raise deleted_experiment(experiment)


def _read_schema(file: Path, experiment: str) -> tuple[set[str], str | None, str | None]:
    """Names of the tables, version of the schema, and lifecycle stage of the experiment (active or deleted)."""
    with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=BUSY_S)) as database:

        def first(query: str, *values: str) -> str | None:
            row = database.execute(query, values).fetchone()
            return None if row is None else str(row[0])

        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = first("SELECT version_num FROM alembic_version") if "alembic_version" in tables else None
        query = "SELECT lifecycle_stage FROM experiments WHERE name = ?"
        return tables, version, first(query, experiment) if "experiments" in tables else None


def _check_version(file: Path, version: str | None) -> None:
    """Refuse a database schema of another version of MLflow."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(""))  # type: ignore[no-untyped-call]
    head = scripts.get_current_head()
    if version == head:
        return
    if version in {each.revision for each in scripts.walk_revisions()}:
        raise _cannot(file, f"has tables of an older MLflow; run `mlflow db upgrade sqlite:///{file}`")
    raise _cannot(file, f"has tables of a newer MLflow (schema {version}, here {head}); update MLflow")


def _cannot(file: Path, why: str) -> SettingError:
    return SettingError(f"tracking-uri={file}: {why}; fix that, or give another store by --tracking-uri")
