"""The SQLite file of an Optuna study: retries while it is locked, its backup copy, and its repair from the copy.

Retries and complaints are also those of a study on a server, whose errors `dcml_tune.runs.study_server` knows. Above 250 lines
because the three share what they know of SQLite's errors.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from dcml_tune.config.errors import SettingError
from dcml_tune.runs import study_server
from dcml_tune.runs.paths import TRIALS
from dcml_tune.utils.errnos import TRANSIENT
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.signals import raise_if_signalled
from dcml_tune.utils.tracebacks import one_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 300.0
"""Seconds for which calls are retried while the study is locked or temporarily unreadable."""

BUSY_S = 0.5
"""Seconds for which SQLite itself waits for a lock; signals are not handled in that time."""

_AGAIN_S = 0.2
_MAY_PASS = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    }
)
_NOT_WRITABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})

_patience_s: float | None = None


def patiently(call: Callable[[], T], place: Path | str, *, patience: float | None = None) -> T:
    """Call a function that uses a study, and retry it while the file is locked or unreadable, or its server is away.

    Signals are handled between two attempts.

    Args:
        call: the function; it must be idempotent.
        place: file of the study, or the address of its server without a password.
        patience: seconds after which the error is raised; `PATIENCE_S` by default.
    """
    allowed = patience if patience is not None else PATIENCE_S if _patience_s is None else _patience_s
    end, waits = time.monotonic() + allowed, False
    while True:
        try:
            done = call()
        except Exception as error:
            if not may_pass(error) or time.monotonic() >= end:
                raise
            if not waits and allowed > 60:
                log.warning(
                    "%s: %s; it is tried again for %.0f minutes", redact(str(place)), _reason(error), allowed / 60
                )
            waits = True
        else:
            if waits and allowed > 60:
                log.warning("%s: can be used again", redact(str(place)))
            return done
        raise_if_signalled()
        time.sleep(_AGAIN_S)


@contextmanager
def impatient() -> Iterator[None]:
    """Limit retries to two seconds in the block, because the process is about to end."""
    global _patience_s
    before, _patience_s = _patience_s, 2.0
    try:
        yield
    finally:
        _patience_s = before


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: the file is locked, or its disk or its server does not answer."""
    found = _origin(error)
    if study_server.is_of_server(found):
        return study_server.may_pass(found)
    if isinstance(found, OSError):
        return found.errno in TRANSIENT
    return _code(found) in _MAY_PASS


def complaint(place: Path | str, error: BaseException, *, waited: float | None = None) -> str:
    """One line that says why a search cannot use its study, and the remedy.

    Args:
        place: file of the study, or the address of its server without a password.
        error: that was raised.
        waited: seconds for which the call was retried; `PATIENCE_S` by default.
    """
    minutes = (PATIENCE_S if waited is None else waited) / 60
    if not isinstance(place, Path):
        found = _origin(error)
        for_long = f", for {minutes:.0f} minutes now" if may_pass(error) and waited != 0 else ""
        return f"--study-uri {redact(place)}: {study_server.reason(found)}{for_long}; {study_server.remedy(found)}"
    file = place
    if may_pass(error):
        return (
            f"{file}: {_reason(error)}, for {minutes:.0f} minutes now; end the process that holds the file "
            f"(`fuser {file.name}` names it), or see to its disk"
        )
    if _code(_origin(error)) in _NOT_WRITABLE:
        return f"{file}: {_reason(error)}; free some space there, or make it writable again"
    return f"{file}: {_reason(error)}; --resume puts its copy in its place"


def mend(file: Path, name: str) -> None:
    """Replace a missing or damaged study by its copy, with a warning. A search that has launched no trial needs none.

    Args:
        file: file of the study, in the directory of its search.
        name: name of the study.

    Raises:
        SettingError: if neither the file nor its copy is intact, the file may not be read or written, another version of
            Optuna wrote it, or another process holds it for minutes.
    """
    trials = file.parent / TRIALS
    has_begun = os.path.lexists(copy_of(file)) or (trials.is_dir() and any(trials.iterdir()))
    if not has_begun and not os.path.lexists(file):
        return
    try:
        fault = patiently(lambda: fault_of(file, name), file)
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(complaint(file, error)) from None
    if fault is not None:
        _restore(file, name, fault)


def _restore(file: Path, name: str, fault: str) -> None:
    copy = copy_of(file)
    known = patiently(lambda: fault_of(copy, name), copy)
    if known is not None:
        also = "has no copy" if not os.path.lexists(copy) else f"its copy {copy.name} {known}"
        raise SettingError(
            f"{file}: the Optuna study {fault} and {also}; put the file back, or start a new search (the trials' "
            "checkpoints and their MLflow runs are still there)"
        )
    aside = ""
    if os.path.lexists(file):
        place = _unused(file.with_suffix(".db.damaged"))
        os.replace(file, place)
        aside = f", and it is kept as {place.name}"
    log.warning("%s: the Optuna study %s; its copy takes its place%s", file, fault, aside)
    for rest in ("journal", "wal", "shm"):
        file.with_name(f"{file.name}-{rest}").unlink(missing_ok=True)  # these belong to the damaged file
    write_atomic(file, copy.read_bytes())


def fault_of(file: Path, name: str) -> str | None:
    """Why the file of a study is not usable, as the end of a sentence; None if it is intact.

    Raises:
        SettingError: if it must not be replaced: it may not be read, or another version of Optuna wrote it.
        Exception: an error that is temporary, see `may_pass`.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        return "is a link to a file that is missing" if file.is_symlink() else "is missing"
    if stat.S_ISDIR(found.st_mode):
        return "is a directory"
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_size == 0:
        return "is empty"
    try:
        os.close(os.open(file, os.O_RDWR))
    except PermissionError as error:
        raise SettingError(f"{file}: {error.strerror}; make it readable and writable for this user") from None
    try:
        with closing(sqlite3.connect(_address(file), uri=True, timeout=BUSY_S)) as connection:
            if connection.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                return "is damaged"
        read_trials(file, name)
    except KeyError:
        return f"holds no study called {name}"
    except RuntimeError as error:
        raise SettingError(f"{file}: was written by another version of Optuna ({error})") from None
    except Exception as error:
        if may_pass(error):
            raise
        if _code(_origin(error)) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return "is damaged"
        return f"cannot be read ({_reason(error)})"
    return None


def read_trials(file: Path, name: str) -> list[FrozenTrial]:
    """The trials of a study, read by a connection that cannot write.

    Raises:
        KeyError: if the file holds no study of this name.
        RuntimeError: if another version of Optuna wrote it.
    """
    import optuna
    from sqlalchemy import URL

    place = URL.create("sqlite", database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})

    def read() -> list[FrozenTrial]:
        storage = optuna.storages.RDBStorage(
            place.render_as_string(),
            engine_kwargs={"connect_args": {"timeout": BUSY_S}},
            skip_table_creation=True,
        )
        try:
            return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        finally:
            storage.engine.dispose()

    return after_rollback(read, file)


def after_rollback(read: Callable[[], T], file: Path) -> T:
    """Call a function that reads an SQLite file by a connection that cannot write.

    A process that was killed in a transaction leaves a journal. SQLite rolls it back for the next reader, but not by a
    connection that cannot write: that one fails. The file is then opened once by one that can.
    """
    try:
        return read()
    except Exception as error:
        if _code(_origin(error)) != sqlite3.SQLITE_READONLY:
            raise
    with closing(sqlite3.connect(_address(file), uri=True, timeout=BUSY_S)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return read()


def copy_study(file: Path, target: Path | None = None) -> None:
    """Copy the file of a study, atomically; by default to `copy_of(file)`."""
    target = target or copy_of(file)
    fresh = target.with_name(f"{target.name}.new") if target.parent != file.parent else file.with_suffix(".db.new")

    def copy() -> None:
        fresh.unlink(missing_ok=True)
        with closing(sqlite3.connect(_address(file), uri=True, timeout=BUSY_S)) as source:
            # Take a read lock first: the backup would wait for one without end, and without handling signals.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with closing(sqlite3.connect(fresh)) as copied:
                source.backup(copied)

    try:
        patiently(copy, file)
        os.replace(fresh, target)
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def copy_of(file: Path) -> Path:
    """Path of the copy of a study."""
    return file.with_suffix(".db.copy")


def _address(file: Path) -> str:
    """SQLite's own address of an existing file; its path may hold any characters."""
    return f"file:{quote(str(file))}?mode=rw"


def _unused(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    tried, number = path, 1
    while os.path.lexists(tried):
        number += 1
        tried = path.with_name(f"{path.name}-{number}")
    return tried


def _origin(error: BaseException) -> BaseException:
    """The error of SQLite or the system that caused an error of SQLAlchemy or Optuna."""
    while (below := getattr(error, "orig", None) or error.__cause__) is not None:
        error = below
    return error


def _code(error: BaseException) -> int | None:
    """SQLite's primary error code; None for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _reason(error: BaseException) -> str:
    found = _origin(error)
    if study_server.is_of_server(found):
        return study_server.reason(found)
    return str(found) if isinstance(found, sqlite3.Error) else one_line(found)
