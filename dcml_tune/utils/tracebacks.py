"""Unexpected errors: one line for the user, the traceback in a file."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
import traceback
from pathlib import Path

from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import printable

_LONGEST = 300
_RAISED = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Exit|Interrupt)(?:\(\w+\))?(?::|$)")
_directory: Path | None = None
_file: Path | None = None


def keep_in(directory: Path) -> None:
    """Write later tracebacks of this process to files in an existing directory."""
    global _directory, _file
    _directory, _file = directory, None


def one_line(error: BaseException) -> str:
    """Type and message of an error and of its cause, in one line without passwords."""
    said = _said(error)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return said if cause is error else f"{said} (because of {_said(cause)})"


def keep(error: BaseException) -> Path | None:
    """Append the traceback of an error to this process's error file, which only its user can read.

    Returns:
        The file; None if it cannot be written.
    """
    global _file
    text = redact("".join(traceback.format_exception(error)))
    for directory in (_directory, Path(tempfile.gettempdir())):
        if directory is None:
            continue
        file = _file or directory / f"errors-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(file, flags, 0o600), "a", encoding="utf-8", errors="backslashreplace") as opened:
                opened.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n")
        except OSError:
            _file = None
            continue
        _file = file
        return file
    return None


def warn(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log in one line an error after which the command continues."""
    log.warning("%s: %s; %s", what, one_line(error), where(error))


def where(error: BaseException) -> str:
    """Write the traceback to a file, and return a clause that names the file."""
    file = keep(error)
    return "its traceback could not be written" if file is None else f"its traceback is in {file}"


def last_error(text: str) -> str:
    """The line of a text with tracebacks that names the last exception; if there is none, the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line for line in text.splitlines() if _RAISED.match(line)]
    return raised[-1] if raised else lines[-1] if lines else ""


class InFile(logging.Filter):
    """Filter for the handlers of other libraries: an error becomes one line, its traceback is written to the file."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Move the traceback of a record to the file."""
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.msg, record.args = f"{record.getMessage()} ({one_line(error)}; {where(error)})", ()
            record.exc_info = record.exc_text = None
        return True


def _said(error: BaseException) -> str:
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # Ray puts the traceback of another process into its message.
    line = last_error(text) if "Traceback (most recent call last)" in text else lines[0]
    return f"{type(error).__name__}: {redact(printable(' '.join(line.split())))}"[:_LONGEST]
