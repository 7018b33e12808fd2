"""What a spool holds: a model for each kind of record, and for the two files beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from dcml_tune.utils.stored import Count, Finite, Stored

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What MLflow may take; a time or step that it refuses costs its own record only."""
Texts = dict[str, str]
_KEPT = r"^[0-9a-f]{32}/(?!\.{1,2}\Z)[^/\x00]+\Z"


class _Record(Stored):
    key: str
    time: Whole


class _WithFiles(_Record):
    """Files are in a directory of their own in the spool, or where they were: absolute, or as seen from the spool."""

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
    """delivered.json: how far the spool was sent."""

    offset: Count
    n: Count


class Target(Stored):
    """target.json: where to."""

    uri: str
    experiment: str
    artifact_root: str | None
