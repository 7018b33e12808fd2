"""MLflow: the only module that imports it. Nothing here blocks or ends a search.

Everything to be tracked is first a line in a spool file; one thread delivers the lines in order. While the
server cannot be reached the lines wait, and what is left at the end is delivered by

    python -m dcml_tune.tracking flush NAME --output-dir runs
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from dcml_tune.commandline import Parser, run_command
from dcml_tune.config import SettingError

log = logging.getLogger(__name__)

KEY, ROLE, STATE, REASON = "dcml.key", "dcml.role", "dcml.state", "dcml.reason"
_SECONDS_BETWEEN_TRIES = 5.0
_PACKAGES = ("dcml-tune", "torch", "torchvision", "timm", "ray", "optuna", "mlflow", "faiss-gpu")


class Tracker:
    """Records runs, metrics and models; delivered by a thread of its own.

    A run is known by a key that the caller chooses (search and trial), and is found by it again: a record that is
    delivered twice changes nothing, as points repeat their step and their time.
    """

    def __init__(self, uri: str, experiment: str, *, directory: Path, artifacts: Path) -> None:
        """Begin to deliver.

        Args:
            uri: address of a server, or sqlite:////absolute/path.
            experiment: name of the experiment; it is made where it is missing.
            directory: of the spool.
            artifacts: where a new experiment of an SQLite store keeps its files, absolute.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        (directory / "target.json").write_text(
            json.dumps({"uri": uri, "experiment": experiment, "artifacts": artifacts.absolute().as_uri()})
        )
        self._delivery = _Delivery(directory)
        if uri.startswith("sqlite"):
            self._delivery.connect()  # the driver makes the store before anyone else opens it
        self._spool = open(directory / "spool.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="tracking", daemon=True)
        self._thread.start()

    def start(
        self, key: str, *, name: str, role: str, parent: str | None = None, params: dict[str, Any], tags: dict[str, str]
    ) -> None:
        """Make a run, or find it by its key."""
        tags = {**tags, KEY: key, ROLE: role, "mlflow.runName": name, "mlflow.user": os.environ.get("USER", "")}
        texts = {each: str(value)[:6000] for each, value in params.items()}
        self._record("start", key, name=name, parent=parent, params=texts, tags=tags)

    def metrics(self, key: str, step: int, values: dict[str, float]) -> None:
        """Record measures after `step` epochs. Values that are not finite are left out."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._record("metrics", key, step=step, values=finite)

    def tags(self, key: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        self._record("tags", key, tags=tags)

    def model(self, key: str, path: Path, *, name: str, step: int, metrics: dict[str, float]) -> None:
        """Record a model's checkpoint, linked to its measures. The files are copied at once."""
        copy = self._directory / "models" / f"{key.replace('/', '-')}-{step}"
        try:
            shutil.copytree(path, copy, dirs_exist_ok=True)
        except OSError as error:
            log.warning("the model of %s is not tracked: %s", key, error)
            return
        self._record("model", key, path=str(copy), name=name, step=step, values=metrics)

    def end(self, key: str, status: str, *, reason: str | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        self._record("end", key, status=status, reason=reason)

    def close(self, seconds: float = 60.0) -> int:
        """Wait for the delivery at most so long; returns how many records are left on disk."""
        self._closing.set()
        self._wake.set()
        self._thread.join(seconds)
        return self._delivery.left()

    def run_id(self, key: str) -> str | None:
        """The id of a run that was delivered."""
        return self._delivery.runs.get(key)

    @property
    def experiment_id(self) -> str | None:
        """The id of the experiment, once the store was reached."""
        return self._delivery.experiment_id

    def _record(self, kind: str, key: str, **facts: Any) -> None:
        line = json.dumps({"kind": kind, "key": key, "time": int(time.time() * 1000), **facts})
        try:
            self._spool.write(line + "\n")
            self._spool.flush()
        except OSError as error:
            log.warning("a record of %s was lost: %s", key, error)
        self._wake.set()

    def _deliver(self) -> None:
        while True:
            self._wake.wait(_SECONDS_BETWEEN_TRIES)
            self._wake.clear()
            whole = self._delivery.run()
            if self._closing.is_set() and (whole or not self._wake.wait(_SECONDS_BETWEEN_TRIES)):
                return


class _Delivery:
    """Delivers the records of a spool, from where the last delivery ended."""

    def __init__(self, directory: Path) -> None:
        self.spool, self.mark = directory / "spool.jsonl", directory / "delivered"
        self.lock = FileLock(directory / "delivery.lock")
        target = json.loads((directory / "target.json").read_text())
        self.uri, self.experiment, self.artifacts = target["uri"], target["experiment"], target["artifacts"]
        self.client: Any = None
        self.experiment_id: str | None = None
        self.runs: dict[str, str] = {}
        self.reachable = True

    def connect(self) -> None:
        """Reach the store, and find or make the experiment."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(self.experiment)
        place = self.artifacts if self.uri.startswith("sqlite") else None
        self.experiment_id = found.experiment_id if found else client.create_experiment(self.experiment, place)
        self.client = client

    def run(self) -> bool:
        """Deliver what waits; returns whether all was."""
        with self.lock:
            try:
                if self.client is None:
                    self.connect()
                for line, end in self._waiting():
                    self._send(json.loads(line))
                    self._delivered(end)
            except Exception as error:
                if self.reachable:
                    log.warning("tracking waits: %s does not take records (%s)", redact(self.uri), _short(error))
                self.reachable = False
                return False
            if not self.reachable:
                log.warning("tracking goes on: %s takes records again", redact(self.uri))
            self.reachable = True
            return True

    def left(self) -> int:
        """Records that wait."""
        return sum(1 for _ in self._waiting())

    def _waiting(self) -> Any:
        """Whole lines that were not delivered, each with the position of its end."""
        if not self.spool.exists():
            return
        with open(self.spool, "rb") as file:
            position = int(self.mark.read_text()) if self.mark.exists() else 0
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # torn, or still being written
                position += len(line)
                yield line, position

    def _delivered(self, position: int) -> None:
        fresh = self.mark.with_suffix(".new")
        fresh.write_text(str(position))
        fresh.replace(self.mark)

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric, RunTag

        if record["kind"] == "start":
            self._start(record)
            return
        run = self._run(record["key"])
        if run is None:
            log.warning("a record of %s has no run", record["key"])
        elif record["kind"] == "metrics":
            points = [Metric(name, value, record["time"], record["step"]) for name, value in record["values"].items()]
            self.client.log_batch(run, metrics=points)
        elif record["kind"] == "tags":
            self.client.log_batch(run, tags=[RunTag(name, value) for name, value in record["tags"].items()])
        elif record["kind"] == "model":
            self._model(record, run)
        else:
            if record["reason"]:
                self.client.set_tag(run, REASON, record["reason"][:5000])
            self.client.set_terminated(run, record["status"], end_time=record["time"])

    def _start(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Param

        if self._run(record["key"]) is not None:
            return
        tags = dict(record["tags"])
        if record["parent"]:
            parent = self._run(record["parent"])
            tags |= {"mlflow.parentRunId": parent} if parent else {}
        run = self.client.create_run(self.experiment_id, start_time=record["time"], tags=tags, run_name=record["name"])
        self.runs[record["key"]] = run.info.run_id
        params = [Param(name, value) for name, value in record["params"].items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run.info.run_id, params=params[start : start + 100])

    def _run(self, key: str) -> str | None:
        if key not in self.runs:
            found = self.client.search_runs([self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
            if found:
                self.runs[key] = found[0].info.run_id
        return self.runs.get(key)

    def _model(self, record: dict[str, Any], run: str) -> None:
        from mlflow.entities import LoggedModelStatus, Metric

        path = Path(record["path"])
        if not path.is_dir():
            return  # delivered before a crash
        model = self.client.create_logged_model(
            self.experiment_id, name=record["name"], source_run_id=run, tags={KEY: record["key"]}
        )
        self.client.log_model_artifacts(model.model_id, str(path))
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        points = [
            Metric(name, value, record["time"], record["step"], model_id=model.model_id, run_id=run)
            for name, value in record["values"].items()
        ]
        self.client.log_batch(run, metrics=points)
        shutil.rmtree(path)


def best_model(uri: str, experiment: str, search: str, metric: str = "val/recall_at_1_best") -> Any:
    """The logged model of a search with the highest metric, or None: one query.

    Args:
        uri: of the store.
        experiment: its name.
        search: name of the search.
        metric: name of the metric.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    models = client.search_logged_models(
        [found.experiment_id],
        filter_string=f"tags.`{KEY}` LIKE '{search}/%'",
        order_by=[{"field_name": f"metrics.{metric}", "ascending": False}],
        max_results=1,
    )
    return models[0] if models else None


def redact(text: str) -> str:
    """An address or command without its password and token."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)


def environment_tags(data_fingerprint: str, argv: list[str]) -> dict[str, str]:
    """Tags that say what a run was made by: versions, commit, command, fingerprint of the data."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    tags = {f"dcml.version.{name}": version(name) for name in _PACKAGES}
    tags |= {"dcml.version.python": platform.python_version(), "dcml.data": data_fingerprint}
    return tags | {"mlflow.source.git.commit": commit, "dcml.command": redact(shlex.join(argv))}


def ui_command(uri: str) -> str:
    """The command that opens the MLflow UI of a store, or the address of a server."""
    if not uri.startswith("sqlite"):
        return redact(uri)
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", "5000"])


def compare_url(uri: str, experiment_id: str, run_ids: list[str]) -> str:
    """The compare page of some runs, for the server that `ui_command` starts or the server at the address."""
    base = "http://127.0.0.1:5000" if uri.startswith("sqlite") else redact(uri).rstrip("/")
    runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([experiment_id]))
    return f"{base}/#/compare-runs?runs={runs}&experiments={experiments}"


def _short(error: Exception) -> str:
    return redact(" ".join(str(error).split())[:200])


def main(argv: list[str]) -> int:
    """`python -m dcml_tune.tracking flush NAME`: deliver what a search left behind."""
    parser = Parser(prog="python -m dcml_tune.tracking", description="Deliver records that MLflow has not taken yet.")
    parser.add_argument("action", choices=["flush"])
    parser.add_argument("name", help="name of the search or run")
    parser.add_argument("--output-dir", default="runs", help="where it was written")
    arguments = parser.parse_args(argv)
    directory = Path(arguments.output_dir) / arguments.name / "tracking"
    if not (directory / "target.json").exists():
        raise SettingError(f"{directory}: no records there; check NAME and --output-dir")
    delivery = _Delivery(directory)
    whole = delivery.run()
    print("everything is delivered" if whole else f"{delivery.left()} records wait; is the server up?")
    return 0 if whole else 3


if __name__ == "__main__":
    run_command(main)
