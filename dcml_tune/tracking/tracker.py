"""The tracker: records runs, metrics and models for MLflow, without blocking or ending a search.

A record is first a line in a spool file (see `outbox`); a background thread delivers the lines in order (see `delivery`). While
the server cannot be reached the lines wait. Lines that remain at the end of the process are delivered by

    python -m dcml_tune.tracking flush NAME --output-dir runs

The file is longer than 250 lines because half of it documents the public methods.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from dcml_tune.runs.paths import ARTIFACTS, SPOOL, mlflow_address, sqlite_file
from dcml_tune.tracking.connection import Connection, open_store
from dcml_tune.tracking.delivery import Delivery
from dcml_tune.tracking.delivery_thread import DeliveryThread
from dcml_tune.tracking.mlflow_api import (
    KEY,
    ROLE,
    SEARCH,
    STATE,
    Record,
    as_params,
    as_tags,
    end_fields,
    finite_values,
    now_ms,
    safe_key,
    short,
)
from dcml_tune.tracking.outbox import Outbox
from dcml_tune.tracking.provenance import user_name
from dcml_tune.tracking.uris import absolute_uri, compare_url
from dcml_tune.utils import tracebacks
from dcml_tune.utils.files import link_or_copy
from dcml_tune.utils.redaction import redact

log = logging.getLogger(__name__)

P = ParamSpec("P")


def _guarded(method: Callable[P, None]) -> Callable[P, None]:
    """Make a method log its exceptions and skip the record, because an error in tracking must not end a search."""

    @functools.wraps(method)
    def safe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            tracebacks.warn(log, f"tracking: {method.__name__} failed, this record is left out", error)

    return safe


class Tracker:
    """Records runs, metrics and models; a background thread delivers them to MLflow.

    The caller chooses the key of a run, such as search name and trial id. The methods that record never raise, unless
    another process records to the spool (`check`), and never wait for MLflow.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        directory: Path,
        artifact_root: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the spool and start the delivery.

        An SQLite store and its experiment are created at once, before any other process opens them: two processes
        that create the tables of a new store at the same time break it. A server may be away; records then wait.

        Args:
            uri: address of a server, or of a database such as sqlite:///FILE.
            experiment: name of the experiment; it is created if it is missing.
            directory: the spool directory. An existing spool is continued, and points that it holds are not recorded
                again.
            artifact_root: directory in which a new experiment of an SQLite store keeps its files; `mlartifacts` beside
                the database by default. A server chooses its own location.
            check: called before each record; raises if another process records to this spool now.

        Raises:
            SettingError: if MLflow does not support the kind of address, or the database cannot be opened.
        """
        uri = absolute_uri(uri)
        self._outbox = Outbox(directory)
        self._connection = Connection(uri, experiment, artifact_root)
        self._delivery = Delivery(directory, self._connection)
        self._delivery.write_target()
        if (file := sqlite_file(uri)) is not None:
            open_store(self._connection, file)
        self._cannot_keep, self._check = False, check
        self._thread = DeliveryThread(self._delivery)

    @classmethod
    def open(
        cls,
        output: Path,
        name: str,
        *,
        experiment: str = "dcml_tune",
        uri: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Tracker:
        """The tracker of the search or run `name`, with its spool and files below the output directory.

        The store is the SQLite database `output/mlflow.db`, unless `uri` names another; `check` as in the constructor.
        """
        output = output.resolve()
        store = uri or mlflow_address(output)
        return cls(store, experiment, directory=output / name / SPOOL, artifact_root=output / ARTIFACTS, check=check)

    @_guarded
    def start(
        self,
        key: str,
        *,
        name: str,
        role: str,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a run, or restart the run with this key: it is RUNNING again, and the reason of its end is deleted.

        Args:
            key: identity of the run.
            name: name that MLflow shows.
            role: one of those that `mlflow_api` lists.
            parent: key of the search. Runs nest one level deep, because MLflow's pages break with more levels: the child
                of a child becomes a child of the search.
            params: settings. MLflow never changes a parameter: the first value stays, with a warning.
            tags: versions, command and the like; see `environment_tags`.
        """
        parent = self._outbox.parents.get(safe_key(parent), safe_key(parent)) if parent else None
        own = {KEY: safe_key(key), ROLE: role, SEARCH: parent or safe_key(key), STATE: "running"}
        tags = {"mlflow.user": user_name(), **(tags or {}), **own}
        settings = as_params(params or {})
        self._record("start", key, name=redact(name), role=role, parent=parent, params=settings, tags=as_tags(tags))

    @_guarded
    def metrics(self, key: str, step: int, values: Mapping[str, float], timestamp: int | None = None) -> None:
        """Record metrics after `step` epochs.

        A point that the run recorded for this step before is skipped, because MLflow would show both. That happens when a
        trial resumes from its last checkpoint. For the run of a search, only an equal value is skipped. A value that is not
        finite becomes a tag `dcml.not_finite/NAME`.

        Args:
            key: of the run.
            step: epochs completed, 0 for the untrained network.
            values: metrics by name; characters that MLflow refuses are replaced (`recall@1`: `recall_at_1`).
            timestamp: milliseconds since 1970; the current time by default.
        """
        finite, others = finite_values(values)
        finite = self._outbox.fresh(safe_key(key), int(step), finite)
        if finite:
            self._record("metrics", key, time=timestamp, step=int(step), values=finite)
        if others:
            marks = {f"dcml.not_finite/{name}": f"{value} at step {step}" for name, value in others.items()}
            self._record("tags", key, tags=as_tags(marks))

    @_guarded
    def tags(self, key: str, tags: Mapping[str, Any]) -> None:
        """Set tags of a run."""
        self._record("tags", key, tags=as_tags(tags))

    @_guarded
    def artifact(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        """Record a file or directory.

        A copy is kept at once, since the original may change or be deleted. If no copy can be written (disk full), a
        warning is logged, and the original is sent as it is at the time of the delivery.
        """
        self._record("artifact", key, **self._keep(path, shutil.copy2), artifact_path=artifact_path)

    @_guarded
    def model(
        self,
        key: str,
        path: Path,
        *,
        name: str,
        step: int,
        metrics: Mapping[str, float],
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a checkpoint directory as a logged model of MLflow, with its metrics.

        The files are kept at once, as hard links if the file system has them: a checkpoint must therefore be overwritten
        by writing a new file and renaming it, as `checkpoint.write` does. A store of local files takes hard links, too, so
        that the checkpoint is on the disk once. If nothing can be kept (disk full), a warning is logged, and the original is
        sent; if that no longer exists by then, the record is skipped.

        Args:
            key: of the run that trained the model.
            path: directory of the checkpoint.
            name: name that MLflow shows; characters that it refuses are replaced.
            step: epochs completed. A key and step have one model.
            metrics: metrics that `best_model` compares.
            params: settings to be shown with the model.
        """
        finite, _ = finite_values(metrics)
        kept = self._keep(path, link_or_copy)
        fields: Record = {"name": re.sub(r"[/:.%\"']", "-", redact(name)) or "model", "params": as_params(params or {})}
        self._record("model", key, **kept, step=int(step), values=finite, **fields)

    @_guarded
    def forget_model(self, key: str, step: int) -> None:
        """Delete the model of this key and step from MLflow, with its files.

        A model that waits in the spool is not sent any more, and its kept files are deleted at once. A model that does not
        exist is ignored. A model that is recorded later is a new one.

        Args:
            key: as given to `model`.
            step: as given to `model`.
        """
        self._record("forget", key, step=int(step))

    @_guarded
    def end(self, key: str, status: str, reason: str | None = None) -> None:
        """End a run.

        Args:
            key: of the run.
            status: FINISHED, PRUNED, INTERRUPTED, KILLED or FAILED. A pruned run is FINISHED in MLflow, and an interrupted
                run KILLED; the tag `dcml.state` distinguishes them. If the run finished, a state that the caller set by
                `tags` is kept.
            reason: why it ended, for a run that failed or was interrupted or killed.
        """
        self._record("end", key, **end_fields(self.state(key), status, reason))

    def state(self, key: str) -> str | None:
        """The last recorded `dcml.state` of a run, also by an earlier process; None if it was never started."""
        return self._outbox.states.get(safe_key(key))

    def last_step(self, key: str) -> int:
        """The last step of a run with recorded metrics, also by an earlier process; 0 if there is none."""
        return self._outbox.last_step(safe_key(key))

    def close(self, timeout: float = 60.0) -> int:
        """Wait at most `timeout` seconds for the delivery; returns how many records remain on disk.

        If a server is already away, the wait is at most a few seconds.
        """
        lost = self._outbox.write_held()
        if lost:
            log.error("tracking: %d records could not be written to %s, and are lost", lost, self._outbox.path)
        self._thread.close(timeout)
        return self._delivery.count_waiting()

    def wait(self, timeout: float = 60.0) -> None:
        """Wait at most `timeout` seconds until MLflow has everything that was recorded so far."""
        self._thread.wait(timeout)

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a delivered run; that of a run of an earlier process is queried, if MLflow answers."""
        return self._delivery.run_id(safe_key(key))

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None until the store was reached."""
        return self._connection.experiment_id

    def compare_url(self, base: str, keys: Sequence[str]) -> str | None:
        """Address of the page that compares the runs that were delivered so far; None if there are none.

        Args:
            base: address of the MLflow server; if it is not a web address, that which `ui_command` starts.
            keys: of the runs.
        """
        ids = [run for run in map(self.run_id, keys) if run]
        return compare_url(base, self.experiment_id, ids) if ids and self.experiment_id else None

    def check(self) -> None:
        """Raise if another process records to this spool now."""
        self._check()

    def _record(self, kind: str, key: str, *, time: int | None = None, **fields: Any) -> None:
        self._check()
        self._outbox.append({"kind": kind, "key": safe_key(key), "time": now_ms() if time is None else time, **fields})
        self._thread.wake()

    def _keep(self, path: Path, copy: Callable[[Any, Any], Any]) -> Record:
        """Keep files in the spool; returns the field of a record that says where they are.

        If the spool cannot be written, the field names the original.
        """
        path = Path(path).absolute()
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            kept: Record = {"file": self._outbox.keep(path, copy)}
        except OSError as error:
            if not self._cannot_keep:
                log.warning("tracking: %s cannot be kept (%s); the original is sent instead", path, short(error))
            self._cannot_keep = True
            # Relative to the spool if it is beside it, so that both can be moved together.
            beside = path.is_relative_to(self._outbox.directory.parent.absolute())
            return {"original": os.path.relpath(path, self._outbox.directory) if beside else str(path)}
        self._cannot_keep = False
        return kept
