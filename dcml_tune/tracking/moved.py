"""MLflow's files after an output directory was moved.

An SQLite store holds absolute addresses of the files of each run, model and experiment. An output directory holds the database
and, beside it, the directory `mlartifacts`. After both were moved, the first process that records there rewrites the addresses in
one transaction. Processes that only read find the files by `files_of`, without changing the store.
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
_PATIENCE_S = 60.0  # longest wait for a database that another process has locked


def repoint(database: Path, location: str, root: Path) -> None:
    """Rewrite the addresses of an SQLite store if its files were moved with it.

    The files were moved with it if they are beside the database now. A location that a user chose for an experiment is not
    changed.

    Args:
        database: file of the store.
        location: address of the experiment's files that the store holds.
        root: directory in which a new experiment of this output directory keeps its files.
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
    log.warning("tracking: MLflow's files were in %s and are in %s now; %d addresses are updated", old, root, count)


def local_path(location: str) -> Path | None:
    """The path of an address of local files; None for other addresses."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


def files_of(location: str, database: Path | None) -> Path | None:
    """The path of the files for which a store holds an address, also after a move; None if they are not on this machine.

    Args:
        location: the address in the store.
        database: file of the store; None if it is not an SQLite store.
    """
    path = local_path(location)
    if path is None or path.exists() or database is None or ARTIFACTS not in path.parts:
        return path if path is not None and path.exists() else None
    place = len(path.parts) - path.parts[::-1].index(ARTIFACTS)
    moved = database.parent.joinpath(ARTIFACTS, *path.parts[place:])
    return moved if moved.exists() else None


def _is_copy(connection: sqlite3.Connection, old: str, root: Path) -> bool:
    """Whether files of the store's runs or models exist below the new directory, too."""
    return any(
        (root / address.removeprefix(f"{old}/")).exists()
        for table, column in _ADDRESSES[1:3]
        for (address,) in connection.execute(f"SELECT {column} FROM {table}")
        if (address or "").startswith(f"{old}/")
    )


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Replace the old prefix of the addresses in a column; returns how many were changed."""
    known = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
    if column not in known:
        return 0
    return connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
    ).rowcount
