"""Commands of the command line, run in this process: what they print, and their exit code, without a start of Python."""

import importlib
import io
import os
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

from dcml_tune.cli.parser import run_command


def inside(*words, module="search"):
    """Run `python -m dcml_tune.MODULE WORDS`, for commands that do not start Ray."""
    main = importlib.import_module(
        f"dcml_tune.{module}.__main__" if module in ("search", "data") else f"dcml_tune.{module}"
    )
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    argv = [module, *map(str, words)]
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", argv),
        patch.object(threading, "excepthook", threading.excepthook),  # a command sets it
        patch.dict(os.environ, COLUMNS="200"),
    ):
        try:
            run_command(main.main)
        except SystemExit as end:
            status = end.code
    said, errors = (stream.buffer.getvalue().decode() for stream in (out, err))
    return CompletedProcess(argv, status, said, errors)
