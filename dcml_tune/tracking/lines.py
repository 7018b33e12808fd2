"""The format of a spool: a model for each kind of record, the lines of spool.jsonl, and the two files beside it.

A line is `{"n": number, "crc": checksum of number and record, "record": {...}}`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import ConfigDict, Field

from dcml_tune.tracking.mlflow_api import Record
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.stored import Count, Finite, Stored, checked, parse

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""An integer of 64 bits. MLflow may still refuse it as a time or step; then only that record is lost."""
Texts = dict[str, str]
_LINE = re.compile(rb'\{"n":(\d{1,15}),"crc":(\d{1,10}),"record":(\{.*\})\}\n')
_KEPT = r"^[0-9a-f]{32}/(?!\.{1,2}\Z)[^/\x00]+\Z"


class _Record(Stored):
    key: str
    time: Whole


class _WithFiles(_Record):
    """A record with files: `file` is their path below `files/`; `original` is absolute or relative to the spool."""

    model_config = ConfigDict(regex_engine="python-re")

    file: Annotated[str, Field(pattern=_KEPT)] | None = None
    original: str | None = None


class _Start(_Record):
    kind: Literal["start"]
    name: str
    role: str
    parent: str | None
    params: Texts
    tags: Texts


class _Metrics(_Record):
    kind: Literal["metrics"]
    step: Whole
    values: dict[str, Finite]


class _Tags(_Record):
    kind: Literal["tags"]
    tags: Texts


class _Artifact(_WithFiles):
    kind: Literal["artifact"]
    artifact_path: str | None


class _Model(_WithFiles):
    kind: Literal["model"]
    step: Whole
    values: dict[str, Finite]
    name: str
    params: Texts


class _Forget(_Record):
    kind: Literal["forget"]
    step: Whole


class _End(_Record):
    kind: Literal["end"]
    status: str
    tags: Texts


SpoolRecord = Annotated[_Start | _Metrics | _Tags | _Artifact | _Model | _Forget | _End, Field(discriminator="kind")]
"""A record of spool.jsonl."""


class Mark(Stored):
    """delivered.json: how far the spool was delivered."""

    offset: Count
    n: Count


class Target(Stored):
    """target.json: where the records are delivered to."""

    uri: str
    experiment: str
    artifact_root: str | None


class Line(NamedTuple):
    """A line of spool.jsonl."""

    number: int
    """Of the record, counted from 1; 0 if `record` is None."""
    record: Record | None
    """None if the line is corrupt, or of a kind that this version does not know."""
    end: int
    """Byte offset behind the line."""


def encode_line(number: int, record: Record) -> bytes:
    """A line of spool.jsonl: its number and record, with their checksum."""
    text = json.dumps(record, separators=(",", ":"))
    return f'{{"n":{number},"crc":{zlib.crc32(f"{number}:{text}".encode())},"record":{text}}}\n'.encode()


def read_lines(path: Path, offset: int) -> Iterator[Line]:
    """The complete lines of a spool from a byte offset on; none if there is no file."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # cut off, or still being written
            offset += len(line)
            number, record = _parsed(line)
            yield Line(number, record, offset)


def _parsed(line: bytes) -> tuple[int, Record | None]:
    match = _LINE.fullmatch(line)
    if match is None or zlib.crc32(match[1] + b":" + match[3]) != int(match[2]):
        return 0, None
    try:
        record: Record = parse(match[3])
        checked(cast(Any, SpoolRecord), record)
    except ValueError:  # a valid checksum of invalid content
        return 0, None
    return int(match[1]), record


def read_mark(directory: Path) -> tuple[int, int]:
    """Byte offset behind the last delivered record, and its number.

    Both are 0 without a readable mark: all records are delivered again, which is idempotent.
    """
    try:
        mark = checked(Mark, parse((directory / "delivered.json").read_bytes()))
    except (OSError, ValueError):
        return 0, 0
    return mark.offset, mark.n


def write_mark(directory: Path, offset: int, number: int) -> None:
    """Write what `read_mark` reads.

    Raises:
        OSError: with the path of the mark, so that the message says which disk is full. Records behind the old mark
            are then delivered again, which is idempotent.
    """
    path = directory / "delivered.json"
    try:
        write_atomic(path, json.dumps({"offset": offset, "n": number}).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
