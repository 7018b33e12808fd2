"""Sending of the records that carry files: artifacts and models, and the removal of models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dcml_tune.tracking.connection import Connection
from dcml_tune.tracking.mlflow_api import (
    KEY,
    MAX_METRICS,
    REFUSAL_STATUSES,
    ROLE,
    SEARCH,
    STEP,
    TIME,
    Record,
    chunks,
    short,
)
from dcml_tune.utils.files import link_or_copy

log = logging.getLogger(__name__)

_FORGOTTEN = "forgotten"  # role of a model whose files are being removed


class FileSender:
    """Sends artifacts and models. Each method is idempotent: sending a record again changes nothing."""

    def __init__(self, directory: Path, connection: Connection) -> None:
        self._directory, self._connection = directory, connection

    def log_artifact(self, record: Record) -> None:
        """Upload a file or directory as an artifact of its run."""
        path, target = self._find_files(record), record["artifact_path"]
        if path is None:
            return
        client, run_id = self._connection.client, self._connection.needed_run_id(record)
        if path.is_dir():
            client.log_artifacts(run_id, str(path), target)
        else:
            client.log_artifact(run_id, str(path), target)

    def log_model(self, record: Record) -> None:
        """Create a logged model with its files, link it to its run, and log its metrics.

        Each step is skipped if an earlier delivery of the record completed it.
        """
        run = self._connection.client.get_run(self._connection.needed_run_id(record))
        model = next(iter(self._find_models(record)), None)
        if model is not None and _is_newer(model, record):
            return
        if model is None or model.status != "READY":
            model = self._complete_model(model, record, run)
        if model is not None:
            self._link(run, model, record["step"])
            self._log_model_metrics(run, model, record)

    def forget_model(self, record: Record) -> None:
        """Delete the model of a record's key and step, and its files."""
        for model in self._find_models(record):
            if _is_newer(model, record):
                continue
            # The tag goes first: `best_model` then ignores the model even if the delivery stops after the files are removed.
            self._connection.client.set_logged_model_tags(model.model_id, {ROLE: _FORGOTTEN})
            self._remove_files(model)
            self._connection.client.delete_logged_model(model.model_id)

    def _complete_model(self, model: Any, record: Record, run: Any) -> Any:
        """Create a model unless it exists, and upload its files.

        Returns:
            The model; None if it was forgotten before all its files were sent. The `forget` record that follows
            removes what was sent.
        """
        files = self._find_files(record)
        if files is None:
            return None
        model = model or self._create_model(record, run)
        try:
            self._upload(model, files)
        except Exception:
            if self._find_files(record) is None:
                return None
            raise
        self._connection.client.finalize_logged_model(model.model_id, "READY")
        return model

    def _create_model(self, record: Record, run: Any) -> Any:
        tags = {name: run.data.tags[name] for name in (KEY, ROLE, SEARCH) if name in run.data.tags}
        return self._connection.client.create_logged_model(
            self._connection.experiment_id,
            name=record["name"],
            source_run_id=run.info.run_id,
            tags={**tags, STEP: str(record["step"]), TIME: str(record["time"])},
            params=record["params"],
        )

    def _upload(self, model: Any, files: Path) -> None:
        """Upload the files of a model; as hard links if MLflow keeps its files on this machine."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository  # slow to import

        repository = self._repository(model)
        if not isinstance(repository, LocalArtifactRepository):
            repository.log_artifacts(str(files))
            return
        for source in files.rglob("*"):
            if not source.is_dir():
                target = Path(repository.artifact_dir) / source.relative_to(files)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, target)

    def _link(self, run: Any, model: Any, step: int) -> None:
        """Register a model as an output of its run."""
        from mlflow.entities import LoggedModelOutput

        linked = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        if model.model_id not in linked:
            self._connection.client.log_outputs(run.info.run_id, models=[LoggedModelOutput(model.model_id, step)])

    def _log_model_metrics(self, run: Any, model: Any, record: Record) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, self._time_of_point(run, name, value, record), record["step"], model_id=model.model_id)
            for name, value in record["values"].items()
        ]
        for batch in chunks(points, MAX_METRICS):
            self._connection.client.log_batch(run.info.run_id, metrics=batch)

    def _time_of_point(self, run: Any, name: str, value: float, record: Record) -> int:
        """The time of the run's own point, if it logged this one: with another time MLflow would store it twice."""
        if name not in run.data.metrics:
            return int(record["time"])
        same = (
            point.timestamp
            for point in self._connection.client.get_metric_history(run.info.run_id, name)
            if point.step == record["step"] and point.value == value
        )
        return next(same, int(record["time"]))

    def _remove_files(self, model: Any) -> None:
        from requests import HTTPError

        try:
            self._repository(model).delete_artifacts()
        except HTTPError as error:
            if error.response is None or error.response.status_code not in (403, *REFUSAL_STATUSES):
                raise
            log.warning("tracking: the files of model %s are not removed: %s", model.model_id, short(error))

    def _repository(self, model: Any) -> Any:
        """MLflow's artifact repository that holds the files of a model."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(model.artifact_location, tracking_uri=self._connection.uri)

    def _find_models(self, record: Record) -> list[Any]:
        """The models with a record's key and step: one at most."""
        return list(
            self._connection.client.search_logged_models(
                [self._connection.experiment_id],
                filter_string=f"tags.`{KEY}` = '{record['key']}' AND tags.`{STEP}` = '{record['step']}'",
            )
        )

    def _find_files(self, record: Record) -> Path | None:
        """The path of a record's files; None if its model was forgotten in the meantime.

        Raises:
            FileNotFoundError: if the files are missing for another reason.
        """
        place: str = record["original"] if "original" in record else f"files/{record['file']}"
        path = self._directory / place
        if path.exists():
            return path
        if "file" in record and path.parent.exists():  # `Outbox` leaves the empty directory as this sign
            return None
        raise FileNotFoundError(path)


def _is_newer(model: Any, record: Record) -> bool:
    """Whether the model was recorded after this record: it was forgotten and recorded again, and this is a repeated delivery."""
    return int(model.tags.get(TIME, 0)) > int(record["time"])
