"""Delivery: sends the records of an outbox to MLflow, in order."""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import ARTIFACTS, sqlite_file
from dcml_tune.tracking.mlflow_api import (
    _REFUSALS,
    KEY,
    REASON,
    ROLE,
    SEARCH,
    STEP,
    TIME,
    Record,
    client_of,
    is_away,
    is_refusal,
    short,
)
from dcml_tune.tracking.moved import repoint
from dcml_tune.tracking.outbox import link_or_copy, read_mark, read_records
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.redaction import redact

log = logging.getLogger(__name__)


_TRIES_IF_UNCLEAR = 3  # of a record that fails for a reason that may or may not pass


_WINDOW = 1000  # records between two marks of what was delivered


_METRICS, _PARAMS, _TAGS = 1000, 100, 100  # MLflow's limits of one log_batch


_FORGOTTEN = "forgotten"  # role of a model from the moment that its files are being removed


class Delivery:
    """Sends the records of a spool to MLflow, from where the last delivery ended."""

    def __init__(self, directory: Path, uri: str, experiment: str, artifact_root: Path | None) -> None:
        self.directory, self.uri, self.experiment = directory, uri, experiment
        self.artifact_root = artifact_root.resolve() if artifact_root else None
        self.experiment_id: str | None = None
        self.runs: dict[str, str] = {}
        self.client_of: Any = None
        self._lock = FileLock(directory / "delivery.lock")
        self._away = False
        self.failed_at = -math.inf
        self._tries: dict[int, int] = {}
        self._rejected: set[tuple[str, str]] = set()
        self._torn: set[int] = set()
        self._send_one = {
            "start": self._start,
            "tags": self._set_tags,
            "artifact": self._artifact,
            "model": self._model,
            "forget": self._forget,
            "end": self._end,
        }

    def write_target(self) -> None:
        """Write down where the records go, for `flush`; without the password."""
        root = str(self.artifact_root) if self.artifact_root else None
        target = {"uri": redact(self.uri), "experiment": self.experiment, "artifact_root": root}
        write_atomic(self.directory / "target.json", json.dumps(target, indent=1).encode())

    def attempt(self) -> bool:
        """Deliver what waits; returns whether all was. Logs once when MLflow goes away, once when it is back."""
        try:
            with self._lock.acquire(timeout=0):
                self._deliver()
        except Timeout:
            return False  # another process delivers this spool
        except Exception as error:
            if not self._away:
                log.warning(
                    "tracking: %s takes no records (%s); they wait in %s",
                    redact(self.uri),
                    short(error),
                    self.directory,
                )
            self._away = True
            self.failed_at = time.monotonic()
            return False
        if self._away:
            log.warning("tracking: %s takes records again", redact(self.uri))
        self._away = False
        return True

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run; None if it has none, or is away."""
        if key not in self.runs and self.client_of is not None and not self._away:
            try:
                self._find(key)
            except Exception as error:
                log.debug("tracking: %s was not found: %s", key, short(error))
        return self.runs.get(key)

    def left(self) -> int:
        """How many records wait."""
        offset, last = self._position()
        return sum(
            record is not None and number > last
            for number, record, _ in read_records(self.directory / "spool.jsonl", offset)
        )

    def connect(self) -> None:
        """Reach the store, and find or make the experiment."""
        if self.experiment_id is not None:
            return
        client = client_of(self.uri)
        found = client.get_experiment_by_name(self.experiment) or self._make_experiment(client)
        if found.lifecycle_stage == "deleted":
            raise SettingError(f"experiment {self.experiment!r} was deleted: `mlflow experiments restore` it first")
        self.client_of, self.experiment_id = client, found.experiment_id
        if (file := sqlite_file(self.uri)) is not None:
            repoint(file, found.artifact_location, self._root(file))

    def _make_experiment(self, client: Any) -> Any:
        from mlflow.exceptions import MlflowException

        place = None
        if (file := sqlite_file(self.uri)) is not None:
            place = self._root(file).as_uri()
        try:
            client.create_experiment(self.experiment, place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                raise
        return client.get_experiment_by_name(self.experiment)

    def _root(self, file: Path) -> Path:
        """Where a new experiment of an SQLite store has its files."""
        return self.artifact_root or file.parent / ARTIFACTS

    def _deliver(self) -> None:
        while window := self._window():
            self.connect()
            self._send([(number, record) for number, record, _ in window if record is not None])
            self._mark(window[-1][2], max(number for number, _, _ in window))
            for _, record, _ in window:
                if record is not None and "file" in record:
                    shutil.rmtree((self.directory / "files" / record["file"]).parent, ignore_errors=True)

    def _position(self) -> tuple[int, int]:
        """Where to read on. A spool that lost its end to a power cut is shorter than the mark says."""
        offset, last = read_mark(self.directory)
        path = self.directory / "spool.jsonl"
        if path.exists() and offset > path.stat().st_size:
            return 0, last
        return offset, last

    def _window(self) -> list[tuple[int, Record | None, int]]:
        """The next records that wait, up to the first that carries files (not to send these twice)."""
        offset, last = self._position()
        window: list[tuple[int, Record | None, int]] = []
        for number, record, end in read_records(self.directory / "spool.jsonl", offset):
            if record is None:
                self._say_torn(end)
            elif number <= last:
                continue
            window.append((number, record, end))
            if len(window) == _WINDOW or (record is not None and record["kind"] in ("artifact", "model")):
                break
        return window

    def _say_torn(self, end: int) -> None:
        if end not in self._torn:
            log.warning("tracking: a torn record in %s, before byte %d, is skipped", self.directory, end)
        self._torn.add(end)

    def _mark(self, offset: int, number: int) -> None:
        number = max(number, read_mark(self.directory)[1])
        path = self.directory / "delivered.json"
        try:
            write_atomic(path, json.dumps({"offset": offset, "n": number}).encode())
        except OSError as error:  # say which disk is full; what was sent is sent again, which changes nothing
            raise OSError(error.errno, error.strerror, str(path)) from None

    def _send(self, records: list[tuple[int, Record]]) -> None:
        """Send records in the order of each run; metrics of a run that follow each other go together."""
        waiting: dict[str, list[tuple[int, Record]]] = {}
        for number, record in records:
            if record["kind"] == "metrics":
                waiting.setdefault(record["key"], []).append((number, record))
                continue
            self._send_metrics(waiting.pop(record["key"], []))
            self._or_reject(number, record, functools.partial(self._send_one[record["kind"]], record))
        for metrics in waiting.values():
            self._send_metrics(metrics)

    def _send_metrics(self, records: list[tuple[int, Record]]) -> None:
        """All in one call; if MLflow refuses it, one record a call, so that only the bad one is lost."""
        if len(records) > 1:
            try:
                self._metrics([record for _, record in records])
                return
            except Exception as error:
                if is_away(error):
                    raise
        for number, record in records:
            self._or_reject(number, record, functools.partial(self._metrics, [record]))

    def _or_reject(self, number: int, record: Record, send: Callable[[], None]) -> None:
        """Send a record; one that MLflow will never take is left out, or nothing behind it would be delivered."""
        try:
            send()
        except Exception as error:
            if is_away(error):
                raise
            self._tries[number] = self._tries.get(number, 0) + 1
            if not is_refusal(error) and self._tries[number] < _TRIES_IF_UNCLEAR:
                raise
            kind = record["kind"], record["key"]
            if kind not in self._rejected:
                log.warning("tracking: %s of %s is left out: %s", *kind, short(error))
            self._rejected.add(kind)

    def _start(self, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        run, params = self._find(record["key"]), record["params"]
        if run is None:
            run = self._create(record)
        else:
            self.client_of.update_run(run.info.run_id, status="RUNNING")
            self.client_of.log_batch(run.info.run_id, tags=[RunTag(*pair) for pair in record["tags"].items()])
            self._drop_reason(run)
            self._say_changed(record["key"], run.data.params, params)
        missing = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        for some in _chunks(missing, _PARAMS):
            self.client_of.log_batch(run.info.run_id, params=some)

    def _create(self, record: Record) -> Any:
        tags = dict(record["tags"])
        if parent := record["parent"] and self._run(record["parent"]):
            tags["mlflow.parentRunId"] = parent
        run = self.client_of.create_run(
            self.experiment_id, start_time=record["time"], tags=tags, run_name=record["name"]
        )
        self.runs[record["key"]] = run.info.run_id
        return run

    def _drop_reason(self, run: Any) -> None:
        """Why the run had ended before does not hold any more."""
        if REASON in run.data.tags:
            self.client_of.delete_tag(run.info.run_id, REASON)

    def _say_changed(self, key: str, stored: dict[str, str], params: dict[str, str]) -> None:
        changed = [name for name, text in params.items() if stored.get(name, text) != text]
        if changed:
            log.warning("tracking: %s of %s changed; MLflow keeps the first values", ", ".join(changed), key)

    def _metrics(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        run = self._needed_run(records[0])
        points = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record["values"].items()
        ]
        for some in _chunks(points, _METRICS):
            self.client_of.log_batch(run, metrics=some)

    def _set_tags(self, record: Record) -> None:
        from mlflow.entities import RunTag

        for some in _chunks([RunTag(*pair) for pair in record["tags"].items()], _TAGS):
            self.client_of.log_batch(self._needed_run(record), tags=some)

    def _artifact(self, record: Record) -> None:
        path, place = self._files(record), record["artifact_path"]
        if path is None:
            return
        if path.is_dir():
            self.client_of.log_artifacts(self._needed_run(record), str(path), place)
        else:
            self.client_of.log_artifact(self._needed_run(record), str(path), place)

    def _end(self, record: Record) -> None:
        self._set_tags(record)
        if REASON not in record["tags"]:
            self._drop_reason(self.client_of.get_run(self._needed_run(record)))
        self.client_of.set_terminated(self._needed_run(record), record["status"], end_time=record["time"])

    def _model(self, record: Record) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        run = self.client_of.get_run(self._needed_run(record))
        model = next(iter(self._find_models(record)), None)
        if model is not None and _is_newer(model, record):
            return
        if model is None or model.status != "READY":
            files = self._files(record)
            if files is None:
                return
            model = model or self._create_model(record, run)
            try:
                self._upload(model, files)
            except Exception:
                if self._files(record) is None:  # forgotten just now; what was sent goes with the next records
                    return
                raise
            self.client_of.finalize_logged_model(model.model_id, "READY")
        linked = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        if model.model_id not in linked:
            self.client_of.log_outputs(run.info.run_id, models=[LoggedModelOutput(model.model_id, record["step"])])
        points = [
            Metric(name, value, self._time(run, name, value, record), record["step"], model_id=model.model_id)
            for name, value in record["values"].items()
        ]
        for some in _chunks(points, _METRICS):
            self.client_of.log_batch(run.info.run_id, metrics=some)

    def _create_model(self, record: Record, run: Any) -> Any:
        tags = {name: run.data.tags[name] for name in (KEY, ROLE, SEARCH) if name in run.data.tags}
        return self.client_of.create_logged_model(
            self.experiment_id,
            name=record["name"],
            source_run_id=run.info.run_id,
            tags={**tags, STEP: str(record["step"]), TIME: str(record["time"])},
            params=record["params"],
        )

    def _upload(self, model: Any, files: Path) -> None:
        """Give a model its files; hard links where MLflow keeps them on this machine."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        place = self._place(model)
        if not isinstance(place, LocalArtifactRepository):
            place.log_artifacts(str(files))
            return
        for source in files.rglob("*"):
            if not source.is_dir():
                target = Path(place.artifact_dir) / source.relative_to(files)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, target)

    def _forget(self, record: Record) -> None:
        for model in self._find_models(record):
            if _is_newer(model, record):
                continue
            # First, so that `best_model` passes over it even if no more than the files could be removed.
            self.client_of.set_logged_model_tags(model.model_id, {ROLE: _FORGOTTEN})
            self._remove_files(model)
            self.client_of.delete_logged_model(model.model_id)

    def _remove_files(self, model: Any) -> None:
        from requests import HTTPError

        try:
            self._place(model).delete_artifacts()
        except HTTPError as error:
            if error.response is None or error.response.status_code not in (403, *_REFUSALS):
                raise
            log.warning("tracking: the files of model %s stay where they are: %s", model.model_id, short(error))

    def _place(self, model: Any) -> Any:
        """Where MLflow keeps the files of a model."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(model.artifact_location, tracking_uri=self.uri)

    def _find_models(self, record: Record) -> list[Any]:
        """The models of a record's key and step; there is one at most."""
        return list(
            self.client_of.search_logged_models(
                [self.experiment_id],
                filter_string=f"tags.`{KEY}` = '{record['key']}' AND tags.`{STEP}` = '{record['step']}'",
            )
        )

    def _time(self, run: Any, name: str, value: float, record: Record) -> int:
        """The time of the run's own point, if it has this one: with another time MLflow would store it twice."""
        if name not in run.data.metrics:
            return int(record["time"])
        same = (
            point.timestamp
            for point in self.client_of.get_metric_history(run.info.run_id, name)
            if point.step == record["step"] and point.value == value
        )
        return next(same, int(record["time"]))

    def _files(self, record: Record) -> Path | None:
        """Where the files of a record lie; None if its model was forgotten meanwhile."""
        place: str = record["original"] if "original" in record else f"files/{record['file']}"
        path = self.directory / place
        if path.exists():
            return path
        if "file" in record and path.parent.exists():
            return None
        raise FileNotFoundError(path)

    def _needed_run(self, record: Record) -> str:
        run = self._run(record["key"])
        if run is None:
            raise LookupError("no run was started with this key")
        return run

    def _run(self, key: str) -> str | None:
        if key not in self.runs:
            self._find(key)
        return self.runs.get(key)

    def _find(self, key: str) -> Any:
        found = self.client_of.search_runs([self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            self.runs[key] = found[0].info.run_id
        return found[0] if found else None


def _is_newer(model: Any, record: Record) -> bool:
    """Whether a model was recorded, forgotten and recorded again since: then this record is sent a second time."""
    return int(model.tags.get(TIME, 0)) > int(record["time"])


def open_store(delivery: Delivery, path: Path) -> None:
    """Make an SQLite store and its experiment, one process at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            delivery.connect()
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(
            f"tracking-uri={redact(delivery.uri)}: cannot be opened ({short(error)}); give another by --tracking-uri"
        ) from error


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
