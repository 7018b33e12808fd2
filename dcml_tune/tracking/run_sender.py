"""Sending of the records that describe runs: their start, tags, metrics and end."""

from __future__ import annotations

import logging
from typing import Any

from dcml_tune.tracking.connection import Connection
from dcml_tune.tracking.mlflow_api import MAX_METRICS, MAX_PARAMS, MAX_TAGS, REASON, Record, chunks

log = logging.getLogger(__name__)


class RunSender:
    """Sends records of runs. Each method is idempotent: sending a record again changes nothing."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start(self, record: Record) -> None:
        """Create a run, or set an existing run to RUNNING again; then log the parameters that it lacks."""
        from mlflow.entities import Param  # imported on use: mlflow takes seconds to import

        run, params = self._connection.find_run(record["key"]), record["params"]
        run = self._create(record) if run is None else self._reopen(run, record)
        missing = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        for batch in chunks(missing, MAX_PARAMS):
            self._connection.client.log_batch(run.info.run_id, params=batch)

    def log_metrics(self, records: list[Record]) -> None:
        """Log the metrics of several records of one run."""
        from mlflow.entities import Metric

        run_id = self._connection.needed_run_id(records[0])
        points = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record["values"].items()
        ]
        for batch in chunks(points, MAX_METRICS):
            self._connection.client.log_batch(run_id, metrics=batch)

    def set_tags(self, record: Record) -> None:
        """Set tags of a run."""
        from mlflow.entities import RunTag

        for batch in chunks([RunTag(*pair) for pair in record["tags"].items()], MAX_TAGS):
            self._connection.client.log_batch(self._connection.needed_run_id(record), tags=batch)

    def end(self, record: Record) -> None:
        """Set the final status of a run, and its tags."""
        self.set_tags(record)
        client, run_id = self._connection.client, self._connection.needed_run_id(record)
        if REASON not in record["tags"]:
            self._delete_reason(client.get_run(run_id))
        client.set_terminated(run_id, record["status"], end_time=record["time"])

    def _create(self, record: Record) -> Any:
        tags = dict(record["tags"])
        if parent := record["parent"] and self._connection.run_id(record["parent"]):
            tags["mlflow.parentRunId"] = parent
        return self._connection.create_run(record, tags)

    def _reopen(self, run: Any, record: Record) -> Any:
        from mlflow.entities import RunTag

        client, run_id = self._connection.client, run.info.run_id
        client.update_run(run_id, status="RUNNING")
        client.log_batch(run_id, tags=[RunTag(*pair) for pair in record["tags"].items()])
        self._delete_reason(run)
        _warn_of_changed_params(record["key"], run.data.params, record["params"])
        return run

    def _delete_reason(self, run: Any) -> None:
        """Delete the reason of an earlier end: it no longer applies."""
        if REASON in run.data.tags:
            self._connection.client.delete_tag(run.info.run_id, REASON)


def _warn_of_changed_params(key: str, stored: dict[str, str], params: dict[str, str]) -> None:
    changed = [name for name, text in params.items() if stored.get(name, text) != text]
    if changed:
        log.warning("tracking: %s of %s changed; MLflow keeps the first values", ", ".join(changed), key)
