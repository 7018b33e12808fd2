"""MLflow's files after a move: an SQLite store holds the address of each run, model and experiment as an absolute one.

An output directory holds the database and, beside it, the directory `mlartifacts`. When both were moved, the addresses are
written anew, in one transaction, by the first process that records there; whoever only reads finds the files all the same.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dcml_tune.runs.paths import ARTIFACTS

log = logging.getLogger(__name__)

# Tables and columns of MLflow 3.17 that hold the address of files.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_PATIENCE_S = 60.0


def repoint(database: Path, location: str, root: Path) -> None:
    """Write the addresses of an SQLite store anew, if its files were moved with it.

    They were, if they lie beside the database now; a place of its own that a user gave an experiment stays.

    Args:
        database: of the store.
        location: address of the experiment's files, as the store has it.
        root: where a new experiment of this output directory has its files.
    """
    old = local_path(location)
    if old is None or old == root or old.name != ARTIFACTS or root != database.parent / ARTIFACTS:
        return
    with closing(sqlite3.connect(database, timeout=_PATIENCE_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if old.is_dir() and not _is_copy(connection, location, root):
            connection.execute("ROLLBACK")
            return
        count = sum(_replace(connection, *place, location, root.as_uri()) for place in _ADDRESSES)
        connection.execute("COMMIT")
    log.warning("tracking: MLflow's files were in %s and are in %s now; %d addresses follow", old, root, count)


def local_path(location: str) -> Path | None:
    """The path of an address on this machine; None for one that is elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


def files_of(location: str, database: Path | None) -> Path | None:
    """Where files are that a store says to be at an address; None if they are not on this machine.

    Args:
        location: the address.
        database: of the store, if it is an SQLite store.
    """
    path = local_path(location)
    if path is None or path.exists() or database is None or ARTIFACTS not in path.parts:
        return path if path is not None and path.exists() else None
    place = len(path.parts) - path.parts[::-1].index(ARTIFACTS)
    moved = database.parent.joinpath(ARTIFACTS, *path.parts[place:])
    return moved if moved.exists() else None


def _is_copy(connection: sqlite3.Connection, old: str, root: Path) -> bool:
    """Whether files of the store's runs or models lie below the new place, too."""
    return any(
        (root / address.removeprefix(f"{old}/")).exists()
        for table, column in _ADDRESSES[1:3]
        for (address,) in connection.execute(f"SELECT {column} FROM {table}")
        if (address or "").startswith(f"{old}/")
    )


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Let addresses in a column begin with the new place instead of the old one; returns how many there are."""
    known = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
    if column not in known:
        return 0
    return connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
    ).rowcount
