"""Delivery of a spool to MLflow: reads the records in order, sends them, and marks how far it got.

A delivery is idempotent. After a crash the records behind the last mark are sent again, which changes nothing: a run is
found by its tag `dcml.key`, a model by its key and step, and a point of a metric repeats its step, time and value.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from dcml_tune.tracking.connection import Connection
from dcml_tune.tracking.file_sender import FileSender
from dcml_tune.tracking.lines import Line, read_lines, read_mark, write_mark
from dcml_tune.tracking.mlflow_api import Record, is_away, is_refusal, short
from dcml_tune.tracking.run_sender import RunSender
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.locks import HeldError, SharedLock
from dcml_tune.utils.redaction import redact

log = logging.getLogger(__name__)

_TRIES_IF_UNCLEAR = 3  # for a record that fails with an error that may or may not be permanent
_WINDOW = 1000  # records between two marks of the delivered position


class Delivery:
    """Sends the records of a spool to MLflow, starting where the last delivery ended.

    Attributes:
        failed_at: `time.monotonic()` of the last attempt that failed.
        sent: number of records that were sent or rejected so far.
    """

    def __init__(self, directory: Path, connection: Connection) -> None:
        self.directory, self.connection = directory, connection
        self.failed_at, self.sent = -math.inf, 0
        self._spool = directory / "spool.jsonl"
        self._lock = SharedLock(directory / "delivery.lock")
        self._is_away = False
        self._tries: dict[int, int] = {}
        self._rejected: set[tuple[str, str]] = set()
        self._corrupt: set[int] = set()
        runs, files = RunSender(connection), FileSender(directory, connection)
        self._log_metrics = runs.log_metrics
        self._senders: dict[str, Callable[[Record], None]] = {
            "start": runs.start,
            "tags": runs.set_tags,
            "artifact": files.log_artifact,
            "model": files.log_model,
            "forget": files.forget_model,
            "end": runs.end,
        }

    def write_target(self) -> None:
        """Write the destination of the records, without its password, into target.json, where `flush` reads it."""
        root = self.connection.artifact_root
        target = {
            "uri": redact(self.connection.uri),
            "experiment": self.connection.experiment,
            "artifact_root": str(root) if root else None,
        }
        write_atomic(self.directory / "target.json", json.dumps(target, indent=1).encode())

    def attempt(self) -> bool:
        """Try to deliver all waiting records; logs one line when MLflow goes away and one when it is back.

        Returns:
            Whether everything was delivered.
        """
        try:
            self._lock.acquire()
            try:
                self._deliver()
            finally:
                self._lock.release()
        except HeldError:
            return False  # another process delivers this spool
        except Exception as error:
            self._note_failure(error)
            return False
        if self._is_away:
            log.warning("tracking: %s takes records again", redact(self.connection.uri))
        self._is_away = False
        return True

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run; None if it has none, or if MLflow is away."""
        known = self.connection.known_run_id(key)
        if known is not None or self.connection.client is None or self._is_away:
            return known
        try:
            return self.connection.run_id(key)
        except Exception as error:
            log.debug("tracking: %s was not found: %s", key, short(error))
            return None

    def count_waiting(self) -> int:
        """The number of records that are not delivered yet."""
        offset, last = self._position()
        return sum(line.record is not None and line.number > last for line in read_lines(self._spool, offset))

    def _note_failure(self, error: Exception) -> None:
        self.failed_at = time.monotonic()
        if not self._is_away:
            uri = redact(self.connection.uri)
            log.warning("tracking: %s takes no records (%s); they wait in %s", uri, short(error), self.directory)
        self._is_away = True

    def _deliver(self) -> None:
        while window := self._read_window():
            self.connection.connect()
            self._send([(line.number, line.record) for line in window if line.record is not None])
            write_mark(self.directory, window[-1].end, max(self._position()[1], *(line.number for line in window)))
            self.sent += len(window)
            for line in window:
                if line.record is not None and "file" in line.record:
                    shutil.rmtree((self.directory / "files" / line.record["file"]).parent, ignore_errors=True)

    def _position(self) -> tuple[int, int]:
        """Byte offset to read from, and number of the last delivered record.

        A spool that is shorter than its mark lost its end in a power failure: it is read from the beginning.
        """
        offset, last = read_mark(self.directory)
        if self._spool.exists() and offset > self._spool.stat().st_size:
            return 0, last
        return offset, last

    def _read_window(self) -> list[Line]:
        """The next waiting records. A record with files ends the window, so that no files are sent twice after a failure."""
        offset, last = self._position()
        window: list[Line] = []
        for line in read_lines(self._spool, offset):
            if line.record is None:
                self._warn_of_corrupt(line.end)
            elif line.number <= last:
                continue
            window.append(line)
            if len(window) == _WINDOW or (line.record is not None and line.record["kind"] in ("artifact", "model")):
                break
        return window

    def _warn_of_corrupt(self, end: int) -> None:
        if end not in self._corrupt:
            log.warning("tracking: a corrupt record in %s, before byte %d, is skipped", self.directory, end)
        self._corrupt.add(end)

    def _send(self, records: list[tuple[int, Record]]) -> None:
        """Send records; the order of each run is kept, and consecutive metrics of a run are sent in one call."""
        waiting: dict[str, list[tuple[int, Record]]] = {}
        for number, record in records:
            if record["kind"] == "metrics":
                waiting.setdefault(record["key"], []).append((number, record))
                continue
            self._send_metrics(waiting.pop(record["key"], []))
            self._send_or_reject(number, record, functools.partial(self._senders[record["kind"]], record))
        for metrics in waiting.values():
            self._send_metrics(metrics)

    def _send_metrics(self, records: list[tuple[int, Record]]) -> None:
        """Send metrics of one run in one call; if MLflow refuses it, one by one, so that only the invalid record is lost."""
        if len(records) > 1:
            try:
                self._log_metrics([record for _, record in records])
                return
            except Exception as error:
                if is_away(error):
                    raise
        for number, record in records:
            self._send_or_reject(number, record, functools.partial(self._log_metrics, [record]))

    def _send_or_reject(self, number: int, record: Record, send: Callable[[], None]) -> None:
        """Send a record; skip one that MLflow refuses permanently, since it would block all records behind it."""
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
