"""The SQLite file of an Optuna study: patience while it is locked, a copy beside it, and what is done when it is damaged."""

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
from dcml_tune.runs.paths import TRIALS
from dcml_tune.utils.errnos import TRANSIENT
from dcml_tune.utils.files import write_atomic
from dcml_tune.utils.signals import raise_if_signalled
from dcml_tune.utils.tracebacks import one_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 300.0
"""How long a study that is locked, or cannot be read for the moment, is waited for."""

BUSY_S = 0.5
"""How long SQLite itself waits for a lock: no signal is looked at meanwhile."""

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


def patiently(call: Callable[[], T], file: Path, *, patience: float | None = None) -> T:
    """Call something that uses a study, again and again while another process holds the file or it cannot be read.

    Signals are looked at between two tries.

    Args:
        call: what to call; it must be possible to do it twice.
        file: of the study.
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
                log.warning("%s: %s; it is tried again for %.0f minutes", file, _reason(error), allowed / 60)
            waits = True
        else:
            if waits and allowed > 60:
                log.warning("%s: can be used again", file)
            return done
        raise_if_signalled()
        time.sleep(_AGAIN_S)


@contextmanager
def impatient() -> Iterator[None]:
    """Wait for a study for two seconds at most: the process is about to end."""
    global _patience_s
    before, _patience_s = _patience_s, 2.0
    try:
        yield
    finally:
        _patience_s = before


def may_pass(error: BaseException) -> bool:
    """Whether the same call may work later: the file is locked, or its disk does not answer."""
    found = _origin(error)
    if isinstance(found, OSError):
        return found.errno in TRANSIENT
    return _code(found) in _MAY_PASS


def complaint(file: Path, error: BaseException) -> str:
    """Why a search cannot go on with its study, and what to do, in one line."""
    if may_pass(error):
        return (
            f"{file}: {_reason(error)}, for {PATIENCE_S / 60:.0f} minutes now; end the process that holds the file "
            f"(`fuser {file.name}` names it), or see to its disk"
        )
    if _code(_origin(error)) in _NOT_WRITABLE:
        return f"{file}: {_reason(error)}; free some space there, or make it writable again"
    return f"{file}: {_reason(error)}; --resume puts its copy in its place"


def mend(file: Path, name: str) -> None:
    """Have a whole study at its place, unless the search has launched no trial: if it is not, its copy is put there.

    That is said in a line.

    Args:
        file: of the study, in the directory of its search.
        name: of the study.

    Raises:
        SettingError: if neither the file nor its copy is whole, the file may not be read or written, another version of
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
        file.with_name(f"{file.name}-{rest}").unlink(missing_ok=True)  # they belong to the damaged file
    write_atomic(file, copy.read_bytes())


def fault_of(file: Path, name: str) -> str | None:
    """What is wrong with the file of a study, in words; None if nothing is.

    Raises:
        SettingError: if it must not be replaced: it may not be read, or another version of Optuna wrote it.
        Exception: one that `may_pass`.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        return "is a link to a file that is missing" if file.is_symlink() else "is missing"
    if stat.S_ISDIR(found.st_mode):
        return "is a directory"
    if not stat.S_ISREG(found.st_mode):
        return "is no regular file"
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
    """The trials of a study, by a connection that can write nothing.

    Raises:
        KeyError: if it holds no study of this name.
        RuntimeError: if another version of Optuna wrote it.
    """
    import optuna
    from sqlalchemy import URL

    place = URL.create("sqlite", database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})
    storage = optuna.storages.RDBStorage(
        place.render_as_string(),
        engine_kwargs={"connect_args": {"timeout": BUSY_S}},
        skip_table_creation=True,
    )
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()


def copy_study(file: Path) -> None:
    """Copy a study's file beside it, whole or not at all."""
    fresh = file.with_suffix(".db.new")

    def copy() -> None:
        fresh.unlink(missing_ok=True)
        with closing(sqlite3.connect(_address(file), uri=True, timeout=BUSY_S)) as source:
            # With a lock of our own for reading: the backup itself waits for one for ever, and looks at no signal.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with closing(sqlite3.connect(fresh)) as target:
                source.backup(target)

    try:
        patiently(copy, file)
        os.replace(fresh, copy_of(file))
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def copy_of(file: Path) -> Path:
    """Where the copy of a study lies."""
    return file.with_suffix(".db.copy")


def _address(file: Path) -> str:
    """SQLite's own address of a file that is there, whatever characters its path has."""
    return f"file:{quote(str(file))}?mode=rw"


def _unused(path: Path) -> Path:
    """A path of that name, or with a number behind it, that nothing has yet."""
    tried, number = path, 1
    while os.path.lexists(tried):
        number += 1
        tried = path.with_name(f"{path.name}-{number}")
    return tried


def _origin(error: BaseException) -> BaseException:
    """The error of SQLite or of the system below those of SQLAlchemy and Optuna."""
    while (below := getattr(error, "orig", None) or error.__cause__) is not None:
        error = below
    return error


def _code(error: BaseException) -> int | None:
    """SQLite's primary code of an error."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _reason(error: BaseException) -> str:
    found = _origin(error)
    return str(found) if isinstance(found, sqlite3.Error) else one_line(found)
