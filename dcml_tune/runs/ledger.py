"""The ledger of the test classes: one line for each time that they are scored, written before a test image is opened.

A line is a JSON object: `when`, `run`, `dataset`, `test_set` (fingerprint of its images), `before` (how often they were
scored before) and `previous`, the SHA-256 of the line before. The hashes reveal lines that were removed or changed. A run that
adds a seed to settings whose verdict is known has a `note` that says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from dcml_tune.runs.paths import LEDGER
from dcml_tune.runs.storage import Storage
from dcml_tune.runs.stores import Stores
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.locks import SharedLock
from dcml_tune.utils.stored import Count, Stored, checked, parse

log = logging.getLogger(__name__)

NAME = LEDGER
"""Name of the file in the output directory."""


_FOLDER = "test-ledger"
"""In a storage: one object for each line."""

_THREADS = 8


class Entry(Stored):
    """A line of the ledger."""

    when: str
    run: str
    dataset: str
    test_set: str
    before: Count
    previous: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The ledger of an output directory and, with --storage, of a storage."""

    file: Path
    storage: str | None = None
    """Address of the storage that all nodes share; `file` is then a copy."""

    @classmethod
    def of(cls, file: Path | str | None, stores: Stores) -> Ledger:
        """Return the ledger with this file; None: the file beside the directory of the stores that trials share."""
        return cls(file=Path(file or stores.common.absolute().parent / NAME), storage=stores.storage)

    def enter(self, *, run: str, dataset: str, test_set: str, note: str = "") -> int:
        """Append a line; see the function `enter`. In a storage each line is an object, which is created once."""
        if self.storage is None:
            return enter(self.file, run=run, dataset=dataset, test_set=test_set, note=note)
        storage = Storage(self.storage)
        while True:
            lines = _stored(storage)
            entry, before = _entry(lines, run=run, dataset=dataset, test_set=test_set, note=note)
            if storage.create(f"{_FOLDER}/{len(lines) + 1:08d}.json", entry):
                _copy(self.file, [*lines, entry])
                return before


def pull(file: Path, storage: Storage) -> None:
    """Make the file of a ledger that of a storage; a storage without one gets the lines of the file.

    A file that has other lines is left as it is.
    """
    lines, known = _stored(storage), file.read_bytes().splitlines() if file.exists() else []
    if not lines:
        for number, line in enumerate(known, 1):
            storage.create(f"{_FOLDER}/{number:08d}.json", line)
    _copy(file, lines)


def _stored(storage: Storage) -> list[bytes]:
    names = sorted(storage.sizes(_FOLDER))
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(storage.read, names))


def _copy(file: Path, lines: list[bytes]) -> None:
    with SharedLock(Path(f"{file}.lock")):
        known = file.read_bytes().splitlines() if file.exists() else []
        if known == lines[: len(known)]:
            write_atomic(file, b"".join(line + b"\n" for line in lines))
        elif lines != known[: len(lines)]:
            log.warning("%s has other lines than the ledger of the storage, and is left as it is", file)


def enter(file: Path, *, run: str, dataset: str, test_set: str, note: str = "") -> int:
    """Append a line that says that a run scores the test classes.

    Args:
        file: the ledger; it is created if it is missing.
        run: name of the run that scores them.
        dataset: name of the data set.
        test_set: fingerprint of the test images.
        note: why they are scored, if there is something to say.

    Returns:
        How often they were scored before.

    Raises:
        OSError: if the ledger cannot be written. The test classes must not be scored then.
    """
    with SharedLock(Path(f"{file}.lock")):
        text = file.read_bytes() if file.exists() else b""
        lines = text.splitlines()
        entry, before = _entry(lines, run=run, dataset=dataset, test_set=test_set, note=note)
        torn = b"" if text.endswith(b"\n") or not text else b"\n"  # ends a line that a power failure cut off
        with file.open("ab") as out:
            out.write(torn + entry + b"\n")
            out.flush()
            os.fsync(out.fileno())
    return before


def _entry(lines: list[bytes], *, run: str, dataset: str, test_set: str, note: str) -> tuple[bytes, int]:
    """Return the next line, and how often the test classes were scored before."""
    before: int = sum(_read(line).get("test_set") == test_set for line in lines)
    entry = {
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "run": run,
        "dataset": dataset,
        "test_set": test_set,
        "before": before,
        "previous": _digest(lines[-1] if lines else b""),
    } | ({"note": note} if note else {})
    return json.dumps(entry).encode(), before


def broken(file: Path) -> list[int]:
    """Numbers, from 1, of the lines whose hash is not that of the line before: something was changed or removed there."""
    lines = file.read_bytes().splitlines()
    return [
        number
        for number, (last, line) in enumerate(pairwise([b"", *lines]), 1)
        if _read(line).get("previous") != _digest(last)
    ]


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def entry_of(line: str | bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is incomplete or not valid."""
    try:
        found: dict[str, Any] = parse(line)
        checked(Entry, found)
    except ValueError:
        return None
    return found


def _read(line: bytes) -> dict[str, Any]:
    return entry_of(line) or {}
