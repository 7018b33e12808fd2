"""Provenance of a run: versions, commit, command, data."""

from __future__ import annotations

import getpass
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dcml_tune import __version__
from dcml_tune.utils.redaction import redact, redact_command

_PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow", "faiss-gpu")


def environment_tags(data_fingerprint: str, argv: Sequence[str]) -> dict[str, str]:
    """Tags with the provenance of a run: versions, commit, command, fingerprint of the data."""
    tags = {f"dcml.version.{name}": _version(name) for name in _PACKAGES}
    tags |= {"dcml.version.dcml-tune": __version__, "dcml.version.python": platform.python_version()}
    tags |= {"dcml.data": data_fingerprint}
    tags |= {"dcml.command": redact_command(argv), "mlflow.source.name": redact(argv[0]) if argv else ""}
    commit = _commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def user_name() -> str:
    """Return the name of the user, or `unknown`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user of a container without a name
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """The commit of this file, with `+changed` if the working tree was changed; None if it is not in a git repository."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True, timeout=10)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changed" if dirty.returncode else "")
