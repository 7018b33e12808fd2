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

import errno
import functools
import getpass
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from pathlib import Path
from typing import Any, ParamSpec, cast

from filelock import FileLock, Timeout

from dcml_tune import __version__, tracebacks
from dcml_tune.config import SettingError
from dcml_tune.files import write_whole
from dcml_tune.moved import moved_address, output_before
from dcml_tune.paths import ARTIFACTS, SPOOL, mlflow_address, sqlite_file
from dcml_tune.redaction import redact, redact_command
from dcml_tune.stored import checked, parse
from dcml_tune.studies import by_launch, first_best
from dcml_tune.tracking.addresses import absolute_uri, compare_url, tracking_uri, ui_command
from dcml_tune.tracking.lines import Mark, SpoolRecord, Target
from dcml_tune.tracking.moved import repoint

__all__ = [
    "Tracker",
    "absolute_uri",
    "best_model",
    "compare_url",
    "end_dead",
    "environment_tags",
    "flush",
    "tracking_uri",
    "ui_command",
]

log = logging.getLogger(__name__)

KEY, ROLE, SEARCH, STATE, REASON = "dcml.key", "dcml.role", "dcml.search", "dcml.state", "dcml.reason"

Record = dict[str, Any]
P = ParamSpec("P")

_THREAD = "dcml-tracking"
_LAST_CHANCE_S = 5.0  # for a server that is away when the search ends
_LINGER_S = 0.2  # records of so long are sent together
_EQUAL = 100  # models that may share the highest value
_BACK_OFF_S = (0.5, 30.0)  # between tries while the server is away: the first wait, doubled up to the last
_TRIES_IF_UNCLEAR = 3  # of a record that fails for a reason that may or may not pass
_WINDOW = 1000  # records between two marks of what was delivered
_METRICS, _PARAMS, _TAGS = 1000, 100, 100  # MLflow's limits of one log_batch
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000
_STEP, _TIME = "dcml.step", "dcml.time"  # of a model: when in its run, and when at all, it was recorded
_FORGOTTEN = "forgotten"  # role of a model from the moment that its files are being removed
_REFUSALS = (405, 413, 501)  # what a proxy before MLflow will say again to the same request
# What is wrong with a disk or a machine, not with the files of one record: it is waited for.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE})
_PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow", "faiss-gpu")
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
        self._spool = _Spool(directory)
        self._delivery = _Delivery(directory, uri, experiment, artifact_root)
        self._delivery.write_target()
        if (file := sqlite_file(uri)) is not None:
            _open_store(self._delivery, file)
        self._cannot_keep = False
        self._wake, self._closing, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._wake.set()  # what an earlier process left behind
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
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
        parent = self._spool.parents.get(_safe_key(parent), _safe_key(parent)) if parent else None
        own = {KEY: _safe_key(key), ROLE: role, SEARCH: parent or _safe_key(key), STATE: "running"}
        tags = {"mlflow.user": _user(), **(tags or {}), **own}
        settings = _params(params or {})
        self._record("start", key, name=redact(name), role=role, parent=parent, params=settings, tags=_texts(tags))

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
        finite, strange = _finite(values)
        finite = self._spool.fresh(_safe_key(key), int(step), finite)
        if finite:
            self._record("metrics", key, time=timestamp, step=int(step), values=finite)
        if strange:
            marks = {f"dcml.not_finite/{name}": f"{value} at step {step}" for name, value in strange.items()}
            self._record("tags", key, tags=_texts(marks))

    @_guarded
    def tags(self, key: str, tags: Mapping[str, Any]) -> None:
        """Set tags of a run."""
        self._record("tags", key, tags=_texts(tags))

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
        finite, _ = _finite(metrics)
        kept = self._keep(path, _link_or_copy)
        facts: Record = {"name": re.sub(r"[/:.%\"']", "-", redact(name)) or "model", "params": _params(params or {})}
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
        return self._spool.states.get(_safe_key(key))

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
        return self._delivery.run_id(_safe_key(key))

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
        self._spool.append({"kind": kind, "key": _safe_key(key), "time": _now() if time is None else time, **facts})
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
                log.warning("tracking: %s cannot be kept (%s); it is sent from where it lies", path, _short(error))
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
    delivery = _Delivery(directory, absolute_uri(uri or address), target.experiment, root)
    stop = threading.Event()

    def deliver() -> None:
        while not delivery.attempt() and not stop.wait(_BACK_OFF_S[0]):
            pass

    # On a thread, because a server that accepts and never answers holds each request for as long as it likes.
    thread = threading.Thread(target=deliver, name=_THREAD, daemon=True)
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
    with _Spool(directory) as spool:
        dead = list(reversed(spool.open_runs))  # the search last
        for key in dead:
            facts = _end_facts(spool.states.get(key), "INTERRUPTED", reason)
            spool.append({"kind": "end", "key": key, "time": _now(), **facts})
        written = max(0, len(dead) - spool.write_held())
    with suppress(SettingError):
        flush(directory, uri, timeout=timeout)
    return written


def _end_facts(before: str | None, status: str, reason: str | None) -> Record:
    """What is recorded of the end of a run that was in the state `before`."""
    ended, state = _ENDS.get(status.upper(), _ENDS["FAILED"])
    if state == "done" and before not in (None, "running", "interrupted"):
        state = before
    return {"status": ended, "tags": _texts({STATE: state} | ({REASON: reason} if reason else {}))}


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
    client = _client(absolute_uri(uri))
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    models = client.search_logged_models(
        [found.experiment_id],
        filter_string=f"tags.`{SEARCH}` = '{_safe_key(search)}' AND tags.`{ROLE}` = '{_safe_key(role)}'",
        order_by=[{"field_name": f"metrics.{metric}", "ascending": False}],
        max_results=_EQUAL,
    )

    def value(model: Any) -> float | None:
        return next((float(point.value) for point in model.metrics or [] if point.key == metric), None)

    return first_best(sorted(models, key=lambda model: by_launch(model.tags.get(KEY, ""))), value)


def environment_tags(data_fingerprint: str, argv: Sequence[str]) -> dict[str, str]:
    """Tags that say what a run was made by: versions, commit, command, fingerprint of the data."""
    tags = {f"dcml.version.{name}": _version(name) for name in _PACKAGES}
    tags |= {"dcml.version.dcml-tune": __version__, "dcml.version.python": platform.python_version()}
    tags |= {"dcml.data": data_fingerprint}
    tags |= {"dcml.command": redact_command(argv), "mlflow.source.name": redact(argv[0]) if argv else ""}
    commit = _commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


class _Spool:
    """The file of records, and what they say so far of each run.

    A line is `{"n": number, "crc": checksum of number and record, "record": {...}}`. It is written by one call
    to the system, so that a killed process leaves whole lines; a torn one (full disk, power) is skipped.
    """

    def __init__(self, directory: Path) -> None:
        (directory / "files").mkdir(parents=True, exist_ok=True)
        self.directory, self.path = directory, directory / "spool.jsonl"
        self.parents: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.open_runs: dict[str, None] = {}  # started and not ended, in this order
        self._searches: set[str] = set()
        self._points: dict[tuple[str, int], frozenset[Any]] = {}
        self._sets: dict[frozenset[Any], frozenset[Any]] = {}  # epochs that measure the same share one set of names
        self._models: dict[tuple[str, int], list[str]] = {}  # where the files of a model were kept
        self._lock = threading.Lock()
        self._held: deque[bytes] = deque()
        self._full = False
        self._last = _read_mark(directory)[1]
        wanted = self._replay(self._last)
        for orphan in (directory / "files").iterdir():
            if orphan.name not in wanted:
                shutil.rmtree(orphan, ignore_errors=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as the spool is
        if _is_torn(self.path):
            self._held.append(b"\n")
        offset, number = _read_mark(directory)
        if offset > self.path.stat().st_size:  # a power cut took the end: by number alone, before it grows again
            write_whole(directory / "delivered.json", json.dumps({"offset": 0, "n": number}).encode())

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Write a record; if the disk is full it is held in memory and written with a later one."""
        with self._lock:
            self._last += 1
            self._held.append(_line(self._last, record))
            self._write_held()
            self._learn(record)

    def write_held(self) -> int:
        """Write what is held in memory; returns how many records still are."""
        with self._lock:
            self._write_held()
            return len(self._held)

    def _write_held(self) -> None:
        try:
            while self._held:
                _write_line(self._file, self._held[0])
                self._held.popleft()
        except OSError as error:
            if not self._full:
                log.warning("tracking: %s cannot be written (%s); records are held in memory", self.path, _short(error))
            self._full = True
            return
        if self._full:
            log.warning("tracking: %s can be written again", self.path)
        self._full = False

    def fresh(self, key: str, step: int, values: dict[str, float]) -> dict[str, float]:
        """The values that were not recorded for this step before."""
        with self._lock:
            known = self._points.get((key, step), frozenset())
            return {name: value for name, value in values.items() if self._point(key, name, value) not in known}

    def _point(self, key: str, name: str, value: float) -> Any:
        """What tells a point from others of its step: its name; on a search its value, too."""
        return (name, value) if key in self._searches else name

    def keep(self, path: Path, copy: Callable[[Any, Any], Any]) -> str:
        """Copy a file or directory into the spool; returns its place there."""
        place = self.directory / "files" / uuid.uuid4().hex
        try:
            place.mkdir()
            if path.is_dir():
                shutil.copytree(path, place / path.name, copy_function=copy)
            else:
                copy(path, place / path.name)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return f"{place.name}/{path.name}"

    def _drop(self, file: str) -> None:
        """Remove what was kept, at one stroke; the empty place that stays tells the delivery that this was meant."""
        kept = self.directory / "files" / file
        gone = kept.with_name(".forgotten")
        with suppress(FileNotFoundError):  # it was delivered
            os.replace(kept, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _replay(self, delivered: int) -> set[str]:
        """Learn from the records that are there; returns the directories in `files` still to be delivered."""
        wanted = set()
        for number, record, _ in _read(self.path, 0):
            self._last = max(self._last, number)
            if record is None:
                continue
            self._learn(record)
            if number > delivered and "file" in record:
                wanted.add(record["file"].split("/")[0])
        return wanted

    def _learn(self, record: Record) -> None:
        kind, key = record["kind"], record["key"]
        if kind == "start":
            self.open_runs[key] = None
            if record["parent"]:
                self.parents[key] = record["parent"]
            if record["role"] == "search":
                self._searches.add(key)
        elif kind == "end":
            self.open_runs.pop(key, None)
        elif kind == "metrics":
            place, values = (key, record["step"]), record["values"].items()
            points = self._points.get(place, frozenset()) | {self._point(key, name, value) for name, value in values}
            self._points[place] = self._sets.setdefault(points, points)
        elif kind == "model" and "file" in record:
            self._models.setdefault((key, record["step"]), []).append(record["file"])
        elif kind == "forget":
            for file in self._models.pop((key, record["step"]), []):
                self._drop(file)
        if STATE in record.get("tags", ()):
            self.states[key] = record["tags"][STATE]


def _line(number: int, record: Record) -> bytes:
    text = json.dumps(record, separators=(",", ":"))
    return f'{{"n":{number},"crc":{zlib.crc32(f"{number}:{text}".encode())},"record":{text}}}\n'.encode()


_LINE = re.compile(rb'\{"n":(\d{1,15}),"crc":(\d{1,10}),"record":(\{.*\})\}\n')


def _read(path: Path, offset: int) -> Iterator[tuple[int, Record | None, int]]:
    """Number, record (None if torn, or none that is known) and end position of each whole line from a position on."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # torn, or still being written
            offset += len(line)
            number, record = _parsed(line)
            yield number, record, offset


def _parsed(line: bytes) -> tuple[int, Record | None]:
    match = _LINE.fullmatch(line)
    if match is None or zlib.crc32(match[1] + b":" + match[3]) != int(match[2]):
        return 0, None
    try:
        record: Record = parse(match[3])
        checked(cast(Any, SpoolRecord), record)
    except ValueError:  # a right checksum of wrong content
        return 0, None
    return int(match[1]), record


def _write_line(file: FileIO, line: bytes) -> None:
    written = file.write(line)
    if written < len(line):
        file.truncate(os.fstat(file.fileno()).st_size - written)  # needs no room, unlike an end of the torn line
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_torn(path: Path) -> bool:
    """Whether the last line has no end."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _read_mark(directory: Path) -> tuple[int, int]:
    """Position in the spool and number of the last record that were delivered.

    Without a readable mark all is delivered again, which changes nothing.
    """
    try:
        mark = checked(Mark, parse((directory / "delivered.json").read_bytes()))
    except (OSError, ValueError):
        return 0, 0
    return mark.offset, mark.n


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    Path(target).unlink(missing_ok=True)  # what a try before this one left: copying onto a link would change both
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


class _Delivery:
    """Sends the records of a spool to MLflow, from where the last delivery ended."""

    def __init__(self, directory: Path, uri: str, experiment: str, artifact_root: Path | None) -> None:
        self.directory, self.uri, self.experiment = directory, uri, experiment
        self.artifact_root = artifact_root.resolve() if artifact_root else None
        self.experiment_id: str | None = None
        self.runs: dict[str, str] = {}
        self._client: Any = None
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
        write_whole(self.directory / "target.json", json.dumps(target, indent=1).encode())

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
                    _short(error),
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
        if key not in self.runs and self._client is not None and not self._away:
            try:
                self._find(key)
            except Exception as error:
                log.debug("tracking: %s was not found: %s", key, _short(error))
        return self.runs.get(key)

    def left(self) -> int:
        """How many records wait."""
        offset, last = self._position()
        return sum(
            record is not None and number > last for number, record, _ in _read(self.directory / "spool.jsonl", offset)
        )

    def connect(self) -> None:
        """Reach the store, and find or make the experiment."""
        if self.experiment_id is not None:
            return
        client = _client(self.uri)
        found = client.get_experiment_by_name(self.experiment) or self._make_experiment(client)
        if found.lifecycle_stage == "deleted":
            raise SettingError(f"experiment {self.experiment!r} was deleted: `mlflow experiments restore` it first")
        self._client, self.experiment_id = client, found.experiment_id
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
        offset, last = _read_mark(self.directory)
        path = self.directory / "spool.jsonl"
        if path.exists() and offset > path.stat().st_size:
            return 0, last
        return offset, last

    def _window(self) -> list[tuple[int, Record | None, int]]:
        """The next records that wait, up to the first that carries files (not to send these twice)."""
        offset, last = self._position()
        window: list[tuple[int, Record | None, int]] = []
        for number, record, end in _read(self.directory / "spool.jsonl", offset):
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
        number = max(number, _read_mark(self.directory)[1])
        path = self.directory / "delivered.json"
        try:
            write_whole(path, json.dumps({"offset": offset, "n": number}).encode())
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
                if _is_away(error):
                    raise
        for number, record in records:
            self._or_reject(number, record, functools.partial(self._metrics, [record]))

    def _or_reject(self, number: int, record: Record, send: Callable[[], None]) -> None:
        """Send a record; one that MLflow will never take is left out, or nothing behind it would be delivered."""
        try:
            send()
        except Exception as error:
            if _is_away(error):
                raise
            self._tries[number] = self._tries.get(number, 0) + 1
            if not _is_refusal(error) and self._tries[number] < _TRIES_IF_UNCLEAR:
                raise
            kind = record["kind"], record["key"]
            if kind not in self._rejected:
                log.warning("tracking: %s of %s is left out: %s", *kind, _short(error))
            self._rejected.add(kind)

    def _start(self, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        run, params = self._find(record["key"]), record["params"]
        if run is None:
            run = self._create(record)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._client.log_batch(run.info.run_id, tags=[RunTag(*pair) for pair in record["tags"].items()])
            self._drop_reason(run)
            self._say_changed(record["key"], run.data.params, params)
        missing = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        for some in _chunks(missing, _PARAMS):
            self._client.log_batch(run.info.run_id, params=some)

    def _create(self, record: Record) -> Any:
        tags = dict(record["tags"])
        if parent := record["parent"] and self._run(record["parent"]):
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self.experiment_id, start_time=record["time"], tags=tags, run_name=record["name"])
        self.runs[record["key"]] = run.info.run_id
        return run

    def _drop_reason(self, run: Any) -> None:
        """Why the run had ended before does not hold any more."""
        if REASON in run.data.tags:
            self._client.delete_tag(run.info.run_id, REASON)

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
            self._client.log_batch(run, metrics=some)

    def _set_tags(self, record: Record) -> None:
        from mlflow.entities import RunTag

        for some in _chunks([RunTag(*pair) for pair in record["tags"].items()], _TAGS):
            self._client.log_batch(self._needed_run(record), tags=some)

    def _artifact(self, record: Record) -> None:
        path, place = self._files(record), record["artifact_path"]
        if path is None:
            return
        if path.is_dir():
            self._client.log_artifacts(self._needed_run(record), str(path), place)
        else:
            self._client.log_artifact(self._needed_run(record), str(path), place)

    def _end(self, record: Record) -> None:
        self._set_tags(record)
        if REASON not in record["tags"]:
            self._drop_reason(self._client.get_run(self._needed_run(record)))
        self._client.set_terminated(self._needed_run(record), record["status"], end_time=record["time"])

    def _model(self, record: Record) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        run = self._client.get_run(self._needed_run(record))
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
            self._client.finalize_logged_model(model.model_id, "READY")
        linked = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        if model.model_id not in linked:
            self._client.log_outputs(run.info.run_id, models=[LoggedModelOutput(model.model_id, record["step"])])
        points = [
            Metric(name, value, self._time(run, name, value, record), record["step"], model_id=model.model_id)
            for name, value in record["values"].items()
        ]
        for some in _chunks(points, _METRICS):
            self._client.log_batch(run.info.run_id, metrics=some)

    def _create_model(self, record: Record, run: Any) -> Any:
        tags = {name: run.data.tags[name] for name in (KEY, ROLE, SEARCH) if name in run.data.tags}
        return self._client.create_logged_model(
            self.experiment_id,
            name=record["name"],
            source_run_id=run.info.run_id,
            tags={**tags, _STEP: str(record["step"]), _TIME: str(record["time"])},
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
                _link_or_copy(source, target)

    def _forget(self, record: Record) -> None:
        for model in self._find_models(record):
            if _is_newer(model, record):
                continue
            # First, so that `best_model` passes over it even if no more than the files could be removed.
            self._client.set_logged_model_tags(model.model_id, {ROLE: _FORGOTTEN})
            self._remove_files(model)
            self._client.delete_logged_model(model.model_id)

    def _remove_files(self, model: Any) -> None:
        from requests import HTTPError

        try:
            self._place(model).delete_artifacts()
        except HTTPError as error:
            if error.response is None or error.response.status_code not in (403, *_REFUSALS):
                raise
            log.warning("tracking: the files of model %s stay where they are: %s", model.model_id, _short(error))

    def _place(self, model: Any) -> Any:
        """Where MLflow keeps the files of a model."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(model.artifact_location, tracking_uri=self.uri)

    def _find_models(self, record: Record) -> list[Any]:
        """The models of a record's key and step; there is one at most."""
        return list(
            self._client.search_logged_models(
                [self.experiment_id],
                filter_string=f"tags.`{KEY}` = '{record['key']}' AND tags.`{_STEP}` = '{record['step']}'",
            )
        )

    def _time(self, run: Any, name: str, value: float, record: Record) -> int:
        """The time of the run's own point, if it has this one: with another time MLflow would store it twice."""
        if name not in run.data.metrics:
            return int(record["time"])
        same = (
            point.timestamp
            for point in self._client.get_metric_history(run.info.run_id, name)
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
        found = self._client.search_runs([self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            self.runs[key] = found[0].info.run_id
        return found[0] if found else None


def _is_newer(model: Any, record: Record) -> bool:
    """Whether a model was recorded, forgotten and recorded again since: then this record is sent a second time."""
    return int(model.tags.get(_TIME, 0)) > int(record["time"])


def _open_store(delivery: _Delivery, path: Path) -> None:
    """Make an SQLite store and its experiment, one process at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            delivery.connect()
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(
            f"tracking-uri={redact(delivery.uri)}: cannot be opened ({_short(error)}); give another by --tracking-uri"
        ) from error


def _client(uri: str) -> Any:
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
    return entry.threadName != _THREAD


def _is_away(error: Exception) -> bool:
    """Whether the same record may be taken later: the server is down, busy, full, or wants another login."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException):
        return not _is_refusal(error) and error.error_code != "BAD_REQUEST"
    if isinstance(error, RequestException):
        return not _is_refusal(error)
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING)


def _is_refusal(error: Exception) -> bool:
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


def _finite(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
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


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {_legal(name): redact(str(value))[:_LONGEST_PARAM] for name, value in values.items()}


def _texts(tags: Mapping[str, Any]) -> dict[str, str]:
    return {_legal(name): redact(str(value))[:_LONGEST_TAG] for name, value in tags.items()}


def _safe_key(key: str) -> str:
    """The key without what would end a quoted string in MLflow's filters."""
    return re.sub(r"['\"`\\]", "_", key)


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _now() -> int:
    return int(time.time() * 1000)


def _short(error: Exception) -> str:
    return redact(" ".join(str(error).split()))[:300] or type(error).__name__


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """The commit of this file, with a mark if the tree was changed; None if it is not under git."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True, timeout=10)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changed" if dirty.returncode else "")
