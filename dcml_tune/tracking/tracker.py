"""MLflow: the only package that imports it. Nothing here blocks or ends a search.

Everything to be tracked is first a line in a spool file; one thread delivers the lines in order. While the
server cannot be reached the lines wait, and what is left at the end is delivered by

    python -m dcml_tune.tracking flush NAME --output-dir runs

The spool directory holds `spool.jsonl` (the records), `delivered.json` (how far they were sent), `target.json`
(where to) and `files/` (checkpoints and artifacts until they are sent). A record may be sent twice, after a
crash, and changes nothing the second time: a run is found by its tag `dcml.key`, a model by key and step, and a
point of a metric repeats its step, its time and its value.

A run carries the tags `dcml.key`, `dcml.role` (search, trial, confirm, final, published, no division, untrained,
train), `dcml.search` (key of the search), `dcml.state` (running, done, pruned, interrupted, killed, failed) and, where
there is one, `dcml.reason`. To MLflow a pruned run is FINISHED: it did all that was asked of it; an interrupted one is KILLED
until it is started again. The step of a metric is the number of epochs completed; 0 is the untrained network.

While the disk of the spool is full, records are held in memory and written with the first that finds room, or by
`close`; files are sent from where they lie.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.moved import moved_address, output_before
from dcml_tune.runs.paths import ARTIFACTS, SPOOL, mlflow_address, sqlite_file
from dcml_tune.runs.study import by_launch, first_best
from dcml_tune.tracking.delivery import Delivery, open_store
from dcml_tune.tracking.lines import Target
from dcml_tune.tracking.mlflow_api import (
    KEY,
    REASON,
    ROLE,
    SEARCH,
    STATE,
    THREAD,
    Record,
    as_params,
    as_tags,
    client_of,
    finite_values,
    now_ms,
    safe_key,
    short,
)
from dcml_tune.tracking.outbox import Outbox, link_or_copy
from dcml_tune.tracking.provenance import user_name
from dcml_tune.tracking.uris import absolute_uri, compare_url
from dcml_tune.utils import tracebacks
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import checked, parse

log = logging.getLogger(__name__)


P = ParamSpec("P")

_LAST_CHANCE_S = 5.0  # for a server that is away when the search ends
_LINGER_S = 0.2  # records of so long are sent together
_EQUAL = 100  # models that may share the highest value
_BACK_OFF_S = (0.5, 30.0)  # between tries while the server is away: the first wait, doubled up to the last
# One status a run may end with -> MLflow's status, our state.
_ENDS = {
    "FINISHED": ("FINISHED", "done"),
    "PRUNED": ("FINISHED", "pruned"),
    "INTERRUPTED": ("KILLED", "interrupted"),
    "KILLED": ("KILLED", "killed"),
    "FAILED": ("FAILED", "failed"),
}


def _guarded(method: Callable[P, None]) -> Callable[P, None]:
    """An exception in tracking must not end a search: it is logged, and the record left out."""

    @functools.wraps(method)
    def safe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            tracebacks.warn(log, f"tracking: {method.__name__} failed, this record is left out", error)

    return safe


class Tracker:
    """Records runs, metrics and models; a thread of its own delivers them.

    A run is known by a key that the caller chooses, such as search name and trial id. The methods that record
    never raise and never wait for MLflow.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        directory: Path,
        artifact_root: Path | None = None,
    ) -> None:
        """Open the spool and begin to deliver.

        An SQLite store and its experiment are made at once, before any other process opens them: two processes
        that make the tables of a fresh store at the same time break it. A server may be away; records then wait.

        Args:
            uri: address of a server, or of a database such as sqlite:///FILE.
            experiment: name of the experiment; it is made where it is missing.
            directory: of the spool. A spool that is there already is continued, and points that it holds are
                not recorded again.
            artifact_root: where a new experiment of an SQLite store keeps its files; `mlartifacts` beside the
                database by default. A server chooses its own place.

        Raises:
            SettingError: if the address is of no kind that MLflow takes, or the database cannot be opened.
        """
        uri = absolute_uri(uri)
        self._spool = Outbox(directory)
        self._delivery = Delivery(directory, uri, experiment, artifact_root)
        self._delivery.write_target()
        if (file := sqlite_file(uri)) is not None:
            open_store(self._delivery, file)
        self._cannot_keep = False
        self._wake, self._closing, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._wake.set()  # what an earlier process left behind
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, output: Path, name: str, *, experiment: str = "dcml_tune", uri: str | None = None) -> Tracker:
        """The tracker of a search or run called `name`, at the usual places below the directory `output`.

        Without `uri` it is the SQLite store `output/mlflow.db`.
        """
        output = output.resolve()
        store = uri or mlflow_address(output)
        return cls(store, experiment, directory=output / name / SPOOL, artifact_root=output / ARTIFACTS)

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
        """Make a run, or go on with the run of this key: it is RUNNING again, without the reason of its end.

        Args:
            key: identity of the run.
            name: what MLflow shows.
            role: as above.
            parent: key of the search. Runs nest one level deep (MLflow's pages break with more): the child of a
                child becomes a child of the search.
            params: settings. MLflow never changes one: the first value stays, with a warning.
            tags: versions, command and the like; see `environment_tags`.
        """
        parent = self._spool.parents.get(safe_key(parent), safe_key(parent)) if parent else None
        own = {KEY: safe_key(key), ROLE: role, SEARCH: parent or safe_key(key), STATE: "running"}
        tags = {"mlflow.user": user_name(), **(tags or {}), **own}
        settings = as_params(params or {})
        self._record("start", key, name=redact(name), role=role, parent=parent, params=settings, tags=as_tags(tags))

    @_guarded
    def metrics(self, key: str, step: int, values: Mapping[str, float], timestamp: int | None = None) -> None:
        """Record measures after `step` epochs.

        A point of a run that was recorded for this step before, as happens when a trial resumes from its last
        checkpoint, is left out: MLflow would show both. On the search itself only an equal value is left out.
        A value that is not finite becomes a tag `dcml.not_finite/NAME`.

        Args:
            key: of the run.
            step: epochs completed, 0 for the untrained network.
            values: measures by name; characters that MLflow refuses are replaced (`recall@1`: `recall_at_1`).
            timestamp: milliseconds since 1970; now by default.
        """
        finite, strange = finite_values(values)
        finite = self._spool.fresh(safe_key(key), int(step), finite)
        if finite:
            self._record("metrics", key, time=timestamp, step=int(step), values=finite)
        if strange:
            marks = {f"dcml.not_finite/{name}": f"{value} at step {step}" for name, value in strange.items()}
            self._record("tags", key, tags=as_tags(marks))

    @_guarded
    def tags(self, key: str, tags: Mapping[str, Any]) -> None:
        """Set tags of a run."""
        self._record("tags", key, tags=as_tags(tags))

    @_guarded
    def artifact(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        """Record a file or directory.

        A copy is kept at once: the original may change or vanish. Only where no copy can be written (disk full),
        with a warning, what the original is at the time of the delivery is sent.
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
        """Record a checkpoint directory as a logged model of MLflow, linked to its measures.

        The files are kept at once, as hard links where the file system allows: whoever writes a checkpoint
        again must write to a new name and rename, as `checkpoint.write` does. A store of local files takes hard
        links, too: the checkpoint is on the disk once. Where nothing can be kept (disk full), with a warning, the
        checkpoint is sent from where it lies; if it is gone by then, the record is left out.

        Args:
            key: of the run that trained it.
            path: directory of the checkpoint.
            name: what MLflow shows; characters that it refuses are replaced.
            step: epochs completed. One model a key and step.
            metrics: measures by which `best_model` compares.
            params: settings to be shown with the model.
        """
        finite, _ = finite_values(metrics)
        kept = self._keep(path, link_or_copy)
        facts: Record = {"name": re.sub(r"[/:.%\"']", "-", redact(name)) or "model", "params": as_params(params or {})}
        self._record("model", key, **kept, step=int(step), values=finite, **facts)

    @_guarded
    def forget_model(self, key: str, step: int) -> None:
        """Remove the model of this key and step from MLflow, and its files from where MLflow keeps them.

        A model that waits in the spool is not sent any more, and its files there go at once. Forgetting what is
        not there changes nothing. A model that is recorded later is a new one.

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
            status: FINISHED, PRUNED, INTERRUPTED, KILLED or FAILED. To MLflow a pruned run is FINISHED, and one
                that was interrupted KILLED; the tag `dcml.state` tells them apart. A state that the caller set by
                `tags` is left as it is when the run finished.
            reason: why, for a run that failed, was interrupted or killed.
        """
        self._record("end", key, **_end_facts(self.state(key), status, reason))

    def state(self, key: str) -> str | None:
        """The last recorded `dcml.state` of a run, also by an earlier process; None if it was never started."""
        return self._spool.states.get(safe_key(key))

    def close(self, timeout: float = 60.0) -> int:
        """Wait at most `timeout` seconds for the delivery; returns how many records are left on disk.

        A server that is away already gets a few seconds to come back.
        """
        lost = self._spool.write_held()
        if lost:
            log.error("tracking: %d records could not be written to %s, and are lost", lost, self._spool.path)
        self._closing.set()
        self._wake.set()
        self._wait(timeout, lambda: not self._thread.is_alive())
        self._stop.set()
        return self._delivery.left()

    def wait(self, timeout: float = 60.0) -> None:
        """Wait at most `timeout` seconds until what was recorded so far can be read in MLflow."""
        self._wait(timeout, lambda: self._delivery.left() == 0)

    def _wait(self, timeout: float, is_over: Callable[[], bool]) -> None:
        begun = time.monotonic()
        while not is_over() and time.monotonic() - begun < timeout:
            time.sleep(0.1)
            if self._delivery.failed_at > begun + _LAST_CHANCE_S:
                break

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run, once it was delivered; that of an earlier process is asked for, if MLflow answers."""
        return self._delivery.run_id(safe_key(key))

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment, once the store was reached."""
        return self._delivery.experiment_id

    def compare_url(self, base: str, keys: Sequence[str]) -> str | None:
        """The compare page of the runs that were delivered so far, or None if there are none.

        Args:
            base: address of the MLflow server; that which `ui_command` starts if it is no web address.
            keys: of the runs.
        """
        ids = [run for run in map(self.run_id, keys) if run]
        return compare_url(base, self.experiment_id, ids) if ids and self.experiment_id else None

    def _record(self, kind: str, key: str, *, time: int | None = None, **facts: Any) -> None:
        self._spool.append({"kind": kind, "key": safe_key(key), "time": now_ms() if time is None else time, **facts})
        self._wake.set()

    def _keep(self, path: Path, copy: Callable[[Any, Any], Any]) -> Record:
        """Where the files of a record lie: in the spool or, if nothing can be written there, where they are."""
        path = Path(path).absolute()
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            kept: Record = {"file": self._spool.keep(path, copy)}
        except OSError as error:
            if not self._cannot_keep:
                log.warning("tracking: %s cannot be kept (%s); it is sent from where it lies", path, short(error))
            self._cannot_keep = True
            # As seen from the spool, so that both can be moved together.
            beside = path.is_relative_to(self._spool.directory.parent.absolute())
            return {"original": os.path.relpath(path, self._spool.directory) if beside else str(path)}
        self._cannot_keep = False
        return kept

    def _run(self) -> None:
        """Deliver until closed and empty. A wait between tries is cut short by nothing but `close`."""
        delay = _BACK_OFF_S[0]
        while not self._stop.is_set():
            if not self._closing.is_set():
                self._wake.wait()
                self._closing.wait(_LINGER_S)
            self._wake.clear()
            if self._delivery.attempt():
                delay = _BACK_OFF_S[0]
                if self._closing.is_set() and not self._wake.is_set():
                    return
                continue
            self._wake.set()
            if self._closing.is_set():
                self._stop.wait(_BACK_OFF_S[0])
            else:
                self._closing.wait(delay)
            delay = min(2 * delay, _BACK_OFF_S[1])


def flush(directory: Path, uri: str | None = None, *, timeout: float = 60.0) -> int:
    """Deliver what a spool still holds; returns how many records are left.

    Args:
        directory: of the spool.
        uri: where to, if not where the spool says; needed if that address held a password, which is not stored.
        timeout: seconds after which it gives up.

    Raises:
        SettingError: if there is no spool, or its address held a password and none was given.
    """
    try:
        target = checked(Target, parse((directory / "target.json").read_bytes()))
    except OSError:
        raise SettingError(f"{directory}: no records of a search there; check NAME and --output-dir") from None
    except ValueError as error:
        raise SettingError(f"{directory / 'target.json'}: {error}; put it back, or resume the search") from None
    if uri is None and "***" in target.uri:
        raise SettingError(f"{target.uri}: its password is not stored; give the whole address by --tracking-uri")
    output = directory.absolute().parent.parent
    old = output_before(directory.absolute().parent, {})
    address, root = target.uri, Path(target.artifact_root) if target.artifact_root else None
    if old is not None:
        address, root = moved_address(address, old, output), output / ARTIFACTS
    delivery = Delivery(directory, absolute_uri(uri or address), target.experiment, root)
    stop = threading.Event()

    def deliver() -> None:
        while not delivery.attempt() and not stop.wait(_BACK_OFF_S[0]):
            pass

    # On a thread, because a server that accepts and never answers holds each request for as long as it likes.
    thread = threading.Thread(target=deliver, name=THREAD, daemon=True)
    thread.start()
    thread.join(timeout)
    stop.set()
    return delivery.left()


def end_dead(directory: Path, uri: str | None = None, *, reason: str, timeout: float = 10.0) -> int:
    """End the runs that a process left RUNNING when it was killed; returns how many these are.

    To be called when no process records to this spool. The runs are KILLED to MLflow, and `interrupted`; what
    cannot be delivered now waits in the spool, as ever. Where nothing was left running, nothing is recorded.

    Args:
        directory: of the spool; it may be missing.
        uri: where to, if not where the spool says. If that address held a password, which is not stored, nothing
            is delivered without it.
        reason: what is known of the end.
        timeout: seconds to try to deliver.
    """
    if not (directory / "target.json").exists():
        return 0
    with Outbox(directory) as spool:
        dead = list(reversed(spool.open_runs))  # the search last
        for key in dead:
            facts = _end_facts(spool.states.get(key), "INTERRUPTED", reason)
            spool.append({"kind": "end", "key": key, "time": now_ms(), **facts})
        written = max(0, len(dead) - spool.write_held())
    with suppress(SettingError):
        flush(directory, uri, timeout=timeout)
    return written


def _end_facts(before: str | None, status: str, reason: str | None) -> Record:
    """What is recorded of the end of a run that was in the state `before`."""
    ended, state = _ENDS.get(status.upper(), _ENDS["FAILED"])
    if state == "done" and before not in (None, "running", "interrupted"):
        state = before
    return {"status": ended, "tags": as_tags({STATE: state} | ({REASON: reason} if reason else {}))}


def best_model(
    uri: str, experiment: str, search: str, metric: str = "val/recall_at_1_best", *, role: str = "trial"
) -> Any:
    """The logged model (mlflow.entities.LoggedModel) of a search with the highest metric, of equal ones the first trial's.

    It is one query.

    Args:
        uri: of the store.
        experiment: its name.
        search: key of the search.
        metric: one of those given to `Tracker.model`.
        role: of the runs that compete.

    Returns:
        The model, with `artifact_location`, `source_run_id` and `metrics`; None if no model has the metric. From the
        moment that a forgotten model begins to be removed it is not returned; while that waits in a spool it is.
    """
    client = client_of(absolute_uri(uri))
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    models = client.search_logged_models(
        [found.experiment_id],
        filter_string=f"tags.`{SEARCH}` = '{safe_key(search)}' AND tags.`{ROLE}` = '{safe_key(role)}'",
        order_by=[{"field_name": f"metrics.{metric}", "ascending": False}],
        max_results=_EQUAL,
    )

    def value(model: Any) -> float | None:
        return next((float(point.value) for point in model.metrics or [] if point.key == metric), None)

    return first_best(sorted(models, key=lambda model: by_launch(model.tags.get(KEY, ""))), value)
