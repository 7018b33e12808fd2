"""The outbox of a search or run: records wait in a spool directory on disk until MLflow has them.

The spool directory holds `spool.jsonl` (the records, one line each with a checksum), `delivered.json` (how far they were
delivered), `target.json` (where they go) and `files/` (checkpoints and artifacts until they are sent).

The records are in a line format of our own instead of SQLite: a record is one append, which a full disk cuts off at a known
place, and version 0.1 wrote this format. While the disk is full, records are held in memory and written with the first record
that finds room, or by `Tracker.close`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from dcml_tune.tracking.lines import encode_line, read_lines, read_mark, write_mark
from dcml_tune.tracking.mlflow_api import STATE, Record, short

log = logging.getLogger(__name__)


class Outbox:
    """Appends records to a spool, and knows the state of each run from the records so far.

    A line is `{"n": number, "crc": checksum of number and record, "record": {...}}`. It is written by one system
    call, so that a killed process leaves whole lines. A line that is cut off (full disk, power failure) is skipped.

    Attributes:
        parents: key of the parent of each run that has one.
        states: last `dcml.state` of each run.
        open_runs: keys of the runs that were started and not ended, in the order of their start.
    """

    def __init__(self, directory: Path) -> None:
        (directory / "files").mkdir(parents=True, exist_ok=True)
        self.directory, self.path = directory, directory / "spool.jsonl"
        self.parents: dict[str, str] = {}
        self.states: dict[str, str] = {}
        self.open_runs: dict[str, None] = {}
        self._searches: set[str] = set()
        self._points: dict[tuple[str, int], frozenset[Any]] = {}
        self._sets: dict[frozenset[Any], frozenset[Any]] = {}  # to share equal sets of names between epochs
        self._models: dict[tuple[str, int], list[str]] = {}  # kept files of each model
        self._lock = threading.Lock()
        self._held: deque[bytes] = deque()
        self._full = False
        self._last = read_mark(directory)[1]
        wanted = self._replay(self._last)
        for orphan in (directory / "files").iterdir():
            if orphan.name not in wanted:
                shutil.rmtree(orphan, ignore_errors=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as the outbox is
        if _is_cut_off(self.path):
            self._held.append(b"\n")
        offset, number = read_mark(directory)
        if offset > self.path.stat().st_size:  # lost its end in a power failure: only the number is valid once it grows
            write_mark(directory, 0, number)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Write a record; if the disk is full, hold it in memory and write it with a later one."""
        with self._lock:
            self._last += 1
            self._held.append(encode_line(self._last, record))
            self._write_held()
            self._learn(record)

    def write_held(self) -> int:
        """Write the records that are held in memory; returns how many still are."""
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
                log.warning("tracking: %s cannot be written (%s); records are held in memory", self.path, short(error))
            self._full = True
            return
        if self._full:
            log.warning("tracking: %s can be written again", self.path)
        self._full = False

    def fresh(self, key: str, step: int, values: dict[str, float]) -> dict[str, float]:
        """The values of metrics that were not recorded for this run and step before."""
        with self._lock:
            known = self._points.get((key, step), frozenset())
            return {name: value for name, value in values.items() if self._point(key, name, value) not in known}

    def last_step(self, key: str) -> int:
        """The last step of a run with recorded metrics; 0 if there is none."""
        with self._lock:
            return max((step for run, step in self._points if run == key), default=0)

    def _point(self, key: str, name: str, value: float) -> Any:
        """Identity of a point within its step: its name; for the run of a search, its name and value."""
        return (name, value) if key in self._searches else name

    def keep(self, path: Path, copy: Callable[[Any, Any], Any]) -> str:
        """Copy a file or directory into the spool; returns its path relative to `files/`."""
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
        """Remove kept files atomically. Their empty parent directory stays: it tells the delivery that they were forgotten."""
        kept = self.directory / "files" / file
        gone = kept.with_name(".forgotten")
        with suppress(FileNotFoundError):  # already delivered
            os.replace(kept, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _replay(self, delivered: int) -> set[str]:
        """Learn from the existing records; returns the directories in `files/` that are not delivered yet."""
        wanted = set()
        for number, record, _ in read_lines(self.path, 0):
            self._last = max(self._last, number)
            if record is None:
                continue
            self._learn(record)
            if number > delivered and "file" in record:
                wanted.add(record["file"].split("/")[0])
        return wanted

    def _learn(self, record: Record) -> None:
        """Update the state of the runs by a record."""
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


def _write_line(file: FileIO, line: bytes) -> None:
    written = file.write(line)
    if written < len(line):
        file.truncate(os.fstat(file.fileno()).st_size - written)  # needs no room, unlike a line end
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_cut_off(path: Path) -> bool:
    """Whether the last line of a file has no line end."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
