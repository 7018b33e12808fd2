"""The outbox of a run: records on disk, a line each with a checksum, until MLflow has them.

Its own line format is kept instead of SQLite: a record is one append, which a full disk cuts off at a known place, and version
0.1 wrote it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, cast

from dcml_tune.tracking.lines import Mark, SpoolRecord
from dcml_tune.tracking.mlflow_api import STATE, Record, short
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.stored import checked, parse

log = logging.getLogger(__name__)


class Outbox:
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
        self._last = read_mark(directory)[1]
        wanted = self._replay(self._last)
        for orphan in (directory / "files").iterdir():
            if orphan.name not in wanted:
                shutil.rmtree(orphan, ignore_errors=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as the spool is
        if _is_torn(self.path):
            self._held.append(b"\n")
        offset, number = read_mark(directory)
        if offset > self.path.stat().st_size:  # a power cut took the end: by number alone, before it grows again
            write_atomic(directory / "delivered.json", json.dumps({"offset": 0, "n": number}).encode())

    def __enter__(self) -> Outbox:
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
                log.warning("tracking: %s cannot be written (%s); records are held in memory", self.path, short(error))
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
        for number, record, _ in read_records(self.path, 0):
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


def read_records(path: Path, offset: int) -> Iterator[tuple[int, Record | None, int]]:
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


def read_mark(directory: Path) -> tuple[int, int]:
    """Position in the spool and number of the last record that were delivered.

    Without a readable mark all is delivered again, which changes nothing.
    """
    try:
        mark = checked(Mark, parse((directory / "delivered.json").read_bytes()))
    except (OSError, ValueError):
        return 0, 0
    return mark.offset, mark.n


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make a hard link, or a copy where the file system has no links."""
    Path(target).unlink(missing_ok=True)  # what a try before this one left: copying onto a link would change both
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
