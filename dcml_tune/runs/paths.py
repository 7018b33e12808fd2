"""What lies directly below OUTPUT and in a search's directory, and what searches and runs may be called.

A search is named by its name below OUTPUT, or by the path of its directory: a word with a slash in it is a path. Every
command reads names and paths by the functions of this module, and every address of an SQLite file is made here.
"""

from __future__ import annotations

import os
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.utils import tracebacks
from dcml_tune.utils.stored import is_shown

MLFLOW, ARTIFACTS, STORES, LEDGER = "mlflow.db", "mlartifacts", "store", "test-ledger.jsonl"
"""Directly below OUTPUT: MLflow's database and files, the image stores, the ledger of the test classes."""

STUDY, TRIALS, SPOOL, CHECKPOINT = "optuna.db", "trials", "tracking", "checkpoint"
"""In the directory of a search: the study, its trials, what MLflow has not taken yet. Of a run of train: its model."""

LONGEST_NAME = 255
"""Bytes of a file name, on every file system that Linux and macOS have in common."""

LONGEST_DIRECTORY = 480
"""Bytes of the path of a search's directory: SQLite opens no file whose path is longer than 504."""

# SQLite and filelock put files of their own beside those that are ours; wandb makes a folder.
_BESIDE = ("", ".lock", "-journal", "-wal", "-shm")
_RESERVED = frozenset({each + end for each in (MLFLOW, ARTIFACTS, STORES, LEDGER) for end in _BESIDE} | {"wandb"})

# What ends or splits a word in a path, or in a filter of MLflow.
_NOT_IN_NAMES = "/\\'\"`"
_SQLITE = "sqlite:///"
_SQLITE_OPTIONS = frozenset({"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"})


def absolute(flag: str, text: str) -> Path:
    """The absolute path that a word of the command line means; `~` and `~USER` are homes.

    Raises:
        SettingError: if it is empty or no path that can be written and shown everywhere.
    """
    if not text:
        raise SettingError(f"{flag} '': an empty path; give a directory or file")
    try:
        place = Path(text).expanduser().absolute()
    except RuntimeError:
        raise SettingError(
            f"{flag} {text}: the home of {text.split('/')[0]} is not known here; write ./{text} for a folder of that name"
        ) from None
    if ".." in place.parts:
        place = place.resolve()
    if not all(map(is_shown, str(place))):
        raise SettingError(
            f"{flag} {place}: holds a control character or bytes that are not UTF-8; rename it, or give a link to it"
        )
    return place


def output_directory(text: str) -> Path:
    """The absolute path of OUTPUT; nothing is made.

    Raises:
        SettingError: if no search can lie there.
    """
    output = absolute("--output-dir", text)
    if length := _too_long(output):
        raise SettingError(f"--output-dir {output}: {length}; choose another directory")
    return output


def new_name(text: str, *, flag: str = "--name") -> str:
    """A name that a new search or run may have.

    Raises:
        SettingError: if it is not the name of a folder, means something else below OUTPUT, or cannot be printed and pasted.
    """
    if why := _why_not(text):
        raise SettingError(f"{flag} {text or repr(text)}: {why}; choose another name")
    return text


def _why_not(name: str) -> str | None:
    if not name:
        return "is empty"
    if name != name.strip() or name.startswith((".", "-")):
        return "must not begin or end with a space, nor begin with a dot or a dash"
    if found := [each for each in _NOT_IN_NAMES if each in name]:
        where = " (--output-dir says where)" if "/" in found else ""
        return f"must not hold any of {' '.join(_NOT_IN_NAMES)}{where}"
    if not all(map(is_shown, name)):
        return "holds a control character or bytes that are not UTF-8"
    if (length := len(os.fsencode(name))) > LONGEST_NAME:
        return f"is {length} bytes long, and a file name has at most {LONGEST_NAME}"
    if name.casefold() in _RESERVED:
        return "is the name of a file or folder that all searches of an output directory share"
    return None


def new_directory(output: Path, name: str, *, flag: str = "--name") -> Path:
    """The directory of a new search or run.

    Raises:
        SettingError: if it cannot be called so, or its path is too long for SQLite.
    """
    directory = output / new_name(name, flag=flag)
    if length := _too_long(directory):
        raise SettingError(f"{flag} {name}: {length}; choose a shorter name, or another --output-dir")
    return directory


def _too_long(directory: Path) -> str | None:
    length = len(os.fsencode(os.path.realpath(directory)))
    if length <= LONGEST_DIRECTORY:
        return None
    return (
        f"its directory has a path of {length} bytes, and SQLite opens no files in one of more than {LONGEST_DIRECTORY}"
    )


def named_directory(flag: str, text: str, output: Path) -> Path:
    """The directory of the search or run that a word means; whether anything is there, the caller says.

    Args:
        flag: that took the word.
        text: a name below the output directory, or the path of a directory: `runs/NAME`, `./NAME`, `NAME/`.
        output: the output directory.

    Raises:
        SettingError: if it is empty, can be no name, or is a path to no directory.
    """
    if not text:
        raise SettingError(f"{flag} '': an empty name; give that of a search below {output}")
    if "/" not in text and text not in (".", ".."):
        if os.path.isdir(output / text):  # whatever its name is: version 0.1 took more of them
            return output / text
        return output / new_name(text, flag=flag)
    place = absolute(flag, text)
    if not os.path.isdir(place):
        raise SettingError(
            f"{flag} {text}: there is no such directory; give the name of a search below {output}, or its path"
        )
    return place


def mlflow_address(output: Path) -> str:
    """The SQLAlchemy address of the MLflow store of an output directory."""
    return sqlite_address(output / MLFLOW)


def study_address(directory: Path) -> str:
    """The SQLAlchemy address of the Optuna study of a search."""
    return sqlite_address(directory / STUDY)


def sqlite_address(file: Path) -> str:
    """The SQLAlchemy address of an SQLite file, whatever characters its path has.

    Where some must be escaped, the slashes are, too: MLflow makes the directories of an address as it is spelled, and a
    word without slashes has none.

    Example:
        >>> sqlite_address(Path("/runs/mlflow.db")), sqlite_address(Path("/r?uns/mlflow.db"))
        ('sqlite:////runs/mlflow.db', 'sqlite:///%2Fr%3Funs%2Fmlflow.db')
    """
    from sqlalchemy.engine import URL

    path = URL.create("sqlite", database=str(file)).render_as_string().removeprefix(_SQLITE)
    return _SQLITE + (path.replace("/", "%2F") if "%" in path else path)


def sqlite_file(address: str) -> Path | None:
    """The file of an SQLAlchemy address; None if it is none of SQLite.

    Raises:
        SettingError: if it is one of SQLite and names no file.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if not address.lower().startswith("sqlite"):
        return None
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise SettingError(f"{address}: must be sqlite:///FILE; give one") from None
    if url.get_backend_name() != "sqlite":
        return None
    if url.host or url.username or not url.database or url.database in (":memory:", "/"):
        raise SettingError(f"{address}: names no file; give sqlite:///FILE, or sqlite:////FILE for an absolute path")
    if ("?" in address and not url.query) or url.query.keys() - _SQLITE_OPTIONS:
        raise SettingError(
            f"{address}: what follows the ? is no option of SQLite for a file; write %3F where the name of the file has one"
        )
    return Path(url.database)


def writable(text: str | Path) -> Path:
    """An output directory, made and absolute.

    Raises:
        SettingError: if it cannot be written, or no search can lie there.
    """
    directory = output_directory(str(text))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingError(f"--output-dir {directory}: cannot be written ({error.strerror}); choose another") from None
    tracebacks.keep_in(directory)
    return directory
