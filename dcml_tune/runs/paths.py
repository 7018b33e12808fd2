"""Names of all files below the output directory, and the rules for names and paths that users give.

A user refers to a search by its name below the output directory, or by the path of its directory: a word with a slash is
a path. Every command reads names and paths by the functions of this module, which also makes all SQLite addresses.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dcml_tune.config.errors import SettingError
from dcml_tune.utils import tracebacks
from dcml_tune.utils.stored import is_shown

MLFLOW, ARTIFACTS, STORES, LEDGER = "mlflow.db", "mlartifacts", "store", "test-ledger.jsonl"
"""In the output directory: MLflow's database and files, the image stores, the ledger of the test classes."""

STUDY, TRIALS, PREFIXES, SPOOL, VERDICT = "optuna.db", "trials", "prefixes", "tracking", "verdict.json"
"""In the directory of a search: the study, the trials, the states that trials share, what was not yet sent to MLflow, the
verdict."""

LOCAL = "local"
"""In the directory of a search with --storage: the files of the trials that run on this node."""

CHECKPOINT = "checkpoint"
"""In the directory of a run of train: its model."""

LONGEST_NAME = 255
"""Longest file name, in bytes, on the usual file systems of Linux and macOS."""

LONGEST_DIRECTORY = 480
"""Longest path of a search's directory, in bytes: SQLite opens no file with a path of more than 504."""

# SQLite and filelock create files beside ours; wandb creates a folder.
_BESIDE = ("", ".lock", ".lock.lease", "-journal", "-wal", "-shm")
_RESERVED = frozenset({each + end for each in (MLFLOW, ARTIFACTS, STORES, LEDGER) for end in _BESIDE} | {"wandb"})

# Characters that end or split a word in a path or in an MLflow filter.
_NOT_IN_NAMES = "/\\'\"`"
_SQLITE = "sqlite:///"
_SQLITE_OPTIONS = frozenset({"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"})


def absolute(flag: str, text: str) -> Path:
    """The absolute path of a word of the command line; `~` and `~USER` stand for home directories.

    Raises:
        SettingError: if the word is empty, its home directory is unknown, or it cannot be shown on every terminal.
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
    """The absolute path of the output directory, which is not created.

    Raises:
        SettingError: if it is not a valid path, or too long for SQLite.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise SettingError(
            f"--output-dir {text}: searches are written to a directory, not to an address; give --storage {text} to keep them "
            "there, and a directory on each node's own disk here"
        )
    output = absolute("--output-dir", text)
    if length := _too_long(output):
        raise SettingError(f"--output-dir {output}: {length}; choose another directory")
    return output


def new_name(text: str, *, flag: str = "--name") -> str:
    """Validate the name of a new search or run.

    Raises:
        SettingError: if it is not a valid folder name, is reserved, or cannot be printed and pasted.
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
        SettingError: if the name is not valid, or the path is too long for SQLite.
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
    """The directory of a search or run that a user refers to. A name is not required to exist.

    Args:
        flag: flag that took the word, for messages.
        text: a name below the output directory, or the path of a directory: `runs/NAME`, `./NAME`, `NAME/`.
        output: the output directory.

    Raises:
        SettingError: if the word is empty, is not a valid name, or is the path of a directory that does not exist.
    """
    if not text:
        raise SettingError(f"{flag} '': an empty name; give that of a search below {output}")
    if "/" not in text and text not in (".", ".."):
        if os.path.isdir(output / text):  # version 0.1 allowed more names
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
    """The SQLAlchemy address of an SQLite file; its path may hold any characters.

    If some must be escaped, the slashes are escaped, too: MLflow creates the directories of an address without decoding
    it, and creates none for an address without slashes.

    Example:
        >>> sqlite_address(Path("/runs/mlflow.db")), sqlite_address(Path("/r?uns/mlflow.db"))
        ('sqlite:////runs/mlflow.db', 'sqlite:///%2Fr%3Funs%2Fmlflow.db')
    """
    from sqlalchemy.engine import URL

    path = URL.create("sqlite", database=str(file)).render_as_string().removeprefix(_SQLITE)
    return _SQLITE + (path.replace("/", "%2F") if "%" in path else path)


def sqlite_file(address: str) -> Path | None:
    """The file of an SQLAlchemy address; None if the address is not one of SQLite.

    Raises:
        SettingError: if it is an address of SQLite that does not name a file.
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
    """Create an output directory, check that it is writable, and keep tracebacks of this process there.

    Returns:
        Its absolute path.

    Raises:
        SettingError: if it cannot be written, is not a valid path, or is too long for SQLite.
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
