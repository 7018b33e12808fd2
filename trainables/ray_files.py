"""Ray's token, which is secret, and the directories of its sessions, which Ray does not remove."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from dcml_tune.config.errors import SettingError

log = logging.getLogger(__name__)

# Ray refuses a session whose sockets have paths of more than 107 bytes; this is what it leaves for their root.
_LONGEST_ROOT = 24
_SESSION = re.compile(r"session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+_(\d+)")
_STARTS_S = 60.0  # a session this young may have no sockets yet


def token_file() -> Path:
    """Where Ray looks for the token of a cluster."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def secure_token(*, make: bool) -> None:
    """Make the token readable by its owner alone: anyone who has it can run code as the owner of the cluster.

    Ray creates it with the umask, on most systems readable by every user. The mode of a file or directory that others
    can access is changed, with a warning.

    Args:
        make: create a token if there is none, as for a local cluster.

    Raises:
        SettingError: if the token of a local cluster belongs to another user, or cannot be written.
    """
    file = token_file()
    try:
        if file.parent.name == ".ray":
            if make:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _close(file.parent, 0o700)
        if "RAY_AUTH_TOKEN" not in os.environ and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and make:
            _make(file)
        if make and file.exists() and file.stat().st_uid != os.getuid():
            raise SettingError(
                f"{file}: Ray's token belongs to another user, who could run code as you; give a file of your own with "
                "RAY_AUTH_TOKEN_PATH"
            )
        if _close(file, 0o600):
            log.warning(
                "anyone who has read it can run code on your Ray clusters: stop them and delete it; the next search creates "
                "a new one"
            )
    except OSError as error:
        raise SettingError(
            f"{file}: Ray's token cannot be stored there ({error.strerror}); give another file with RAY_AUTH_TOKEN_PATH"
        ) from None


def _make(file: Path) -> None:
    """Write a token unless there is one. If several processes write one at once, the first token is kept."""
    if file.exists() and file.stat().st_size:
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if not file.stat().st_size:
            file.unlink()
    descriptor, fresh = tempfile.mkstemp(prefix=".auth_token-", dir=file.parent)  # 0600
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(fresh, file)
    finally:
        os.unlink(fresh)


def _close(path: Path, mode: int) -> bool:
    """Remove other users' access to a file or directory of this user; returns whether they had any."""
    with suppress(FileNotFoundError):
        found = path.stat()
        open_to = stat.S_IMODE(found.st_mode)
        if found.st_uid == os.getuid() and open_to & 0o077:
            path.chmod(mode)
            log.warning("%s: other users could access it (mode %04o); its mode is now %04o", path, open_to, mode)
            return True
    return False


def session_root() -> Path:
    """Directory of Ray's sessions. Ray makes it writable by all users, so its parent is closed to other users."""
    root = _root()
    own = root / f"dcml-{os.getuid()}"
    with suppress(FileExistsError):
        own.mkdir(mode=0o700, parents=True)
    if not _is_own(own):
        own = Path(tempfile.mkdtemp(prefix="dcml-", dir=root))  # the name is taken
    return own / "ray"


def remove_old_sessions() -> None:
    """Remove the sessions of this user's searches whose processes no longer exist. Ray does not remove them."""
    for own in _root().glob("dcml-*"):
        if not _is_own(own):
            continue
        sessions = [each for each in (own / "ray").glob("session_*") if _SESSION.fullmatch(each.name)]
        gone = [each for each in sessions if not each.is_symlink() and _is_gone(each)]
        for session in gone:
            shutil.rmtree(session, ignore_errors=True)
        if gone and len(gone) == len(sessions) and own.name != f"dcml-{os.getuid()}":
            shutil.rmtree(own, ignore_errors=True)


def _is_gone(session: Path) -> bool:
    """Whether no process of a session is left: neither its driver nor, in another container, a listener on its sockets."""
    match = _SESSION.fullmatch(session.name)
    assert match is not None
    try:
        starts = time.time() - session.stat().st_mtime < _STARTS_S
    except OSError:
        return False
    return not starts and _is_dead(int(match[1])) and not any(map(_answers, (session / "sockets").glob("*")))


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # unknown: it may answer
            return True
    return True


def _root() -> Path:
    root = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp").absolute()
    return Path("/tmp") if len(str(root)) > _LONGEST_ROOT else root


def _is_own(directory: Path) -> bool:
    """Whether it is a directory that this user alone can enter."""
    with suppress(OSError):
        found = directory.lstat()
        return found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700 and stat.S_ISDIR(found.st_mode)
    return False
