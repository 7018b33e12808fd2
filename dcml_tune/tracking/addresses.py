"""Addresses of tracking servers and databases, and text that may hold their passwords."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dcml_tune.config import SettingError


def redact(text: str) -> str:
    """An address, or any text with addresses in it, without passwords and tokens.

    Example:
        >>> redact("http://ann:secret@host:5000/?token=abc&page=1")
        'http://***@host:5000/?token=***&page=1'
    """
    return _NAMED_SECRET.sub(r"\1***", _LOGIN.sub("***@", text))


# What stands before the @ of an address. The second form is a password that has a slash in it, which no port has.
_LOGIN = re.compile(r"(?<=://)(?:[^\s/?#'\"]*|[^\s/@:'\"]*:(?!\d+(?:/|\s|$))[^\s@'\"]*)@")
_SECRET_NAME = r"[\w.-]*(?:token|password|passwd|secret|credential|api[-_]?key|access[-_]?key)[\w-]*"
_NAMED_SECRET = re.compile(rf"(?i)((?<![\w.-]){_SECRET_NAME}=)[^&\s#'\"]+")


def redact_command(argv: Sequence[str]) -> str:
    """A command as one would type it, without passwords and tokens.

    Example:
        >>> redact_command(["search", "--api-token", "abc", "--nb-clusters=4"])
        "search --api-token '***' --nb-clusters=4"
    """
    flag = re.compile(rf"(?i)--?{_SECRET_NAME}")
    before = ["", *argv]
    words = ["***" if flag.fullmatch(last) else redact(word) for last, word in zip(before, argv, strict=False)]
    return shlex.join(words)


def absolute_uri(uri: str) -> str:
    """The address with the path of an SQLite file made absolute: trials run in other directories.

    Raises:
        SettingError: if it is neither a web address nor that of a database.
    """
    if "://" not in uri or uri.startswith("file:"):
        raise SettingError(
            f"tracking-uri={redact(uri)}: must be http(s)://HOST:PORT or sqlite:///FILE; MLflow no longer takes a directory"
        )
    prefix, path = "sqlite:///", uri.removeprefix("sqlite:///")
    if not uri.startswith(prefix) or path in ("", ":memory:"):
        return uri
    return f"{prefix}{Path(path).resolve()}"


def ui_command(uri: str) -> str:
    """The command that opens the MLflow UI of a database, or the address of a server."""
    if uri.startswith("http"):
        return without_login(uri)
    store = redact(absolute_uri(uri))
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", "5000"])


def compare_url(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The compare page of some runs.

    Args:
        base: address of the MLflow server; that which `ui_command` starts if it is no web address.
        experiment_id: MLflow's id.
        run_ids: MLflow's ids. Above about a hundred the page is slow.
    """
    host = without_login(base).rstrip("/") if base.startswith("http") else "http://127.0.0.1:5000"
    runs, experiments = quote(json.dumps(list(run_ids)), safe=""), quote(json.dumps([experiment_id]), safe="")
    return f"{host}/#/compare-runs?runs={runs}&experiments={experiments}"


def without_login(uri: str) -> str:
    """The address without user and password."""
    return redact(uri).replace("***@", "")
