"""The ledger of the test classes: a line for each time that they are scored, written before an image of them is opened.

A line is JSON: `when`, `run`, `dataset`, `test_set` (of its images), `before` (how often they had been scored), and
`previous`, the SHA-256 of the line before it, so that a line that was removed or changed shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from filelock import FileLock

from dcml_tune.runs.paths import LEDGER
from dcml_tune.utils.stored import Count, Stored, checked, parse

NAME = LEDGER
"""Of the file, in the output directory."""


class Entry(Stored):
    """A line of the ledger."""

    when: str
    run: str
    dataset: str
    test_set: str
    before: Count
    previous: str


def enter(file: Path, *, run: str, dataset: str, test_set: str) -> int:
    """Write down that a run scores the test classes; returns how often they were scored before.

    Args:
        file: the ledger; it is made where it is missing.
        run: who scores them.
        dataset: its name.
        test_set: fingerprint of the test images.

    Raises:
        OSError: if it cannot be written; the test classes must not be scored then.
    """
    with FileLock(f"{file}.lock"):
        text = file.read_bytes() if file.exists() else b""
        lines = text.splitlines()
        before: int = sum(_read(line).get("test_set") == test_set for line in lines)
        entry = {
            "when": datetime.now().astimezone().isoformat(timespec="seconds"),
            "run": run,
            "dataset": dataset,
            "test_set": test_set,
            "before": before,
            "previous": _digest(lines[-1] if lines else b""),
        }
        torn = b"" if text.endswith(b"\n") or not text else b"\n"  # by a power cut
        with file.open("ab") as out:
            out.write(torn + json.dumps(entry).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
    return before


def broken(file: Path) -> list[int]:
    """The lines, counted from 1, that do not follow from the line before them: something was changed or removed there."""
    lines = file.read_bytes().splitlines()
    return [
        number
        for number, (last, line) in enumerate(pairwise([b"", *lines]), 1)
        if _read(line).get("previous") != _digest(last)
    ]


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def entry_of(line: str | bytes) -> dict[str, Any] | None:
    """What a line says; None for one that is torn, or that nobody can have written."""
    try:
        found: dict[str, Any] = parse(line)
        checked(Entry, found)
    except ValueError:
        return None
    return found


def _read(line: bytes) -> dict[str, Any]:
    return entry_of(line) or {}
