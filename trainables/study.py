"""The Optuna study of a search: an SQLite file, and a copy of it that is whole when the file is not."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna

from dcml_tune.config import SettingError

log = logging.getLogger(__name__)

_PREFIX = "sqlite:///"


def open_study(storage: str, name: str) -> optuna.Study:
    """Open the study, or make it; a damaged file is replaced by its copy.

    Raises:
        SettingError: if the file is damaged and there is no copy that is whole.
    """
    file = _file(storage)
    if file is not None and file.exists() and not _is_whole(file):
        _restore(file)
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def copy_study(storage: str) -> None:
    """Copy the study's file beside it, whole or not at all."""
    file = _file(storage)
    if file is None:
        return
    fresh = file.with_suffix(".db.new")
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(fresh)) as target:
            source.backup(target)
        os.replace(fresh, _copy(file))
    finally:
        fresh.unlink(missing_ok=True)


def _restore(file: Path) -> None:
    copy, damaged = _copy(file), file.with_suffix(".db.damaged")
    if not copy.exists() or not _is_whole(copy):
        raise SettingError(
            f"{file}: the Optuna study is damaged and has no copy; put the file back, or start a new search (the trials' "
            "checkpoints and their MLflow runs are still there)"
        )
    log.warning("%s: the Optuna study is damaged; its copy takes its place, and it is kept as %s", file, damaged.name)
    os.replace(file, damaged)
    for rest in (file.with_name(f"{file.name}-journal"), file.with_name(f"{file.name}-wal")):
        rest.unlink(missing_ok=True)  # they belong to the damaged file
    file.write_bytes(copy.read_bytes())


def _is_whole(file: Path) -> bool:
    try:
        with closing(sqlite3.connect(file)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchall() == [("ok",)])
    except sqlite3.DatabaseError:
        return False


def _file(storage: str) -> Path | None:
    return Path(storage.removeprefix(_PREFIX)) if storage.startswith(_PREFIX) else None


def _copy(file: Path) -> Path:
    return file.with_suffix(".db.copy")
