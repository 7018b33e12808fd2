"""The connection of a delivery to MLflow: the store, its experiment, and the runs in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import ARTIFACTS, sqlite_file
from dcml_tune.tracking.mlflow_api import KEY, Record, client_of, deleted_experiment, short
from dcml_tune.tracking.moved import repoint
from dcml_tune.utils.locks import SharedLock
from dcml_tune.utils.redaction import redact


class Connection:
    """An MLflow store and an experiment of it, connected on first use.

    Attributes:
        client: MLflow's client; None until `connect` succeeded.
        experiment_id: MLflow's id of the experiment; None until `connect` succeeded.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path | None) -> None:
        self.uri, self.experiment = uri, experiment
        self.artifact_root = artifact_root.resolve() if artifact_root else None
        self.client: Any = None
        self.experiment_id: str | None = None
        self._run_ids: dict[str, str] = {}

    def connect(self) -> None:
        """Connect to the store, and create the experiment if it is missing. Does nothing if already connected.

        Raises:
            SettingError: if the experiment was deleted.
        """
        if self.experiment_id is not None:
            return
        client = client_of(self.uri)
        found = client.get_experiment_by_name(self.experiment) or self._create_experiment(client)
        if found.lifecycle_stage == "deleted":
            raise deleted_experiment(self.experiment)
        self.client, self.experiment_id = client, found.experiment_id
        if (file := sqlite_file(self.uri)) is not None:
            repoint(file, found.artifact_location, self._artifact_root_of(file))

    def find_run(self, key: str) -> Any:
        """Query MLflow for the run with a key; None if there is none."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            self._run_ids[key] = found[0].info.run_id
        return found[0] if found else None

    def create_run(self, record: Record, tags: dict[str, str]) -> Any:
        """Create the run of a `start` record."""
        run = self.client.create_run(self.experiment_id, start_time=record["time"], tags=tags, run_name=record["name"])
        self._run_ids[record["key"]] = run.info.run_id
        return run

    def known_run_id(self, key: str) -> str | None:
        """MLflow's id of a run that was found or created before, without a query."""
        return self._run_ids.get(key)

    def run_id(self, key: str) -> str | None:
        """MLflow's id of the run with a key; None if there is none."""
        if key not in self._run_ids:
            self.find_run(key)
        return self._run_ids.get(key)

    def needed_run_id(self, record: Record) -> str:
        """MLflow's id of the run that a record belongs to.

        Raises:
            LookupError: if that run was never started.
        """
        run_id = self.run_id(record["key"])
        if run_id is None:
            raise LookupError("no run was started with this key")
        return run_id

    def _create_experiment(self, client: Any) -> Any:
        from mlflow.exceptions import MlflowException  # imported on use: mlflow takes seconds to import

        location = None
        if (file := sqlite_file(self.uri)) is not None:
            location = self._artifact_root_of(file).as_uri()
        try:
            client.create_experiment(self.experiment, location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process created it first
                raise
        return client.get_experiment_by_name(self.experiment)

    def _artifact_root_of(self, database: Path) -> Path:
        """The directory in which a new experiment of an SQLite store keeps its files."""
        return self.artifact_root or database.parent / ARTIFACTS


def open_store(connection: Connection, database: Path) -> None:
    """Create an SQLite store and its experiment, under a lock: one process at a time.

    Raises:
        SettingError: if the database cannot be opened, or the experiment was deleted.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with SharedLock(Path(f"{database}.lock")):
            connection.connect()
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(
            f"tracking-uri={redact(connection.uri)}: cannot be opened ({short(error)}); give another by --tracking-uri"
        ) from error
