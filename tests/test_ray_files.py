"""Ray's token and sessions: real files with real modes; tests/faults/test_security.py looks at those of a search."""

import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dcml_tune.config.errors import SettingError
from trainables import ray_files
from trainables.ray_files import remove_old_sessions, secure_token
from trainables.resources import cluster_address


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, with a umask that lets everybody read."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_user_alone(home, caplog):
    """256 bits, without a line; a second search takes the same."""
    secure_token(make=True)
    file = home / ".ray" / "auth_token"
    token = file.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert (mode(file), mode(file.parent), caplog.text) == (0o600, 0o700, "")
    secure_token(make=True)
    assert (file.read_text(), [each.name for each in file.parent.iterdir()]) == (token, ["auth_token"])


def test_an_empty_token_is_made_anew(home):
    """Ray would take it for none and write one that all can read."""
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.touch()
    secure_token(make=True)
    assert (len(file.read_text()), mode(file)) == (64, 0o600)


@pytest.mark.parametrize("make", [True, False])
def test_a_token_that_others_can_read_is_closed_with_a_line(home, caplog, make):
    """For a cluster of one's own, and for one that is joined."""
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o755)
    file.write_text("0" * 64)
    file.chmod(0o644)
    secure_token(make=make)
    assert (mode(file), mode(file.parent), file.read_text()) == (0o600, 0o700, "0" * 64)
    assert f"{file}: other users could access it (mode 0644); its mode is now 0600" in caplog.text
    assert "stop them and delete it" in caplog.text
    caplog.clear()
    secure_token(make=make)
    assert caplog.text == ""


def test_another_place_for_the_token(home, monkeypatch):
    """RAY_AUTH_TOKEN_PATH: its file is made and closed, its directory is left as it is."""
    (home / "shared").mkdir(mode=0o755)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "shared" / "token"))
    secure_token(make=True)
    assert (mode(home / "shared" / "token"), mode(home / "shared")) == (0o600, 0o755)
    assert not (home / ".ray" / "auth_token").exists()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/dev/null/token")
    with pytest.raises(SettingError, match="Ray's token cannot be stored there"):
        secure_token(make=True)


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "0" * 64), ("RAY_AUTH_MODE", "disabled")])
def test_no_token_is_made_where_none_is_used(home, monkeypatch, name, value):
    """It is in the environment, or nobody asks for one."""
    monkeypatch.setenv(name, value)
    secure_token(make=True)
    assert not (home / ".ray" / "auth_token").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_token_of_another_user_is_refused(home, caplog):
    """Its owner could run code here; where a cluster is joined, it is that cluster's matter."""
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("0" * 64)
    os.chown(file, 12345, 12345)
    with pytest.raises(SettingError, match="belongs to another user"):
        secure_token(make=True)
    secure_token(make=False)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, None, None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "auto", None),
        (None, "local", None),
        ("local", None, None),
        ("local", "10.0.0.1:6379", None),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        ("ray://host:10001", None, SettingError),
        (None, "ray://host:10001", SettingError),
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", None, SettingError),
        ("auto", "auto", SettingError),
        ("auto", "local", SettingError),
        ("", None, SettingError),
    ],
)
def test_which_cluster_an_address_means(monkeypatch, given, environment, expected):
    """`local` is like no address; `auto` never looks for a cluster, which might be another user's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    if expected is SettingError:
        with pytest.raises(SettingError, match="--ray-address"):
            cluster_address(given)
    else:
        assert cluster_address(given) == expected


@pytest.fixture
def root(monkeypatch):
    """Where sessions lie; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as short:
        monkeypatch.setattr(ray_files, "_root", lambda: Path(short))
        yield Path(short)


def session(own, process, age=1000.0):
    made = own / "ray" / f"session_2026-01-02_03-04-05_123456_{process}"
    (made / "sockets").mkdir(parents=True)
    (made / "logs").mkdir()
    (made / "logs" / "x.log").write_text("x")
    os.utime(made, (time.time() - age,) * 2)
    return made


def test_only_own_sessions_whose_processes_are_gone_are_removed(root):
    """Not that of a search that runs, one that begins, one in another container, or anything else below /tmp."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    own, other, foreign = root / f"dcml-{os.getuid()}", root / "dcml-abc", root / "dcml-open"
    for directory in (own, other, foreign):
        directory.mkdir(mode=0o700)
    foreign.chmod(0o755)
    gone, runs, begins = session(own, dead.pid), session(own, os.getpid()), session(root / "dcml-abc", dead.pid, 5.0)
    listens, open_one, unused = (
        session(own, dead.pid + 10**6),
        session(foreign, dead.pid),
        session(other, dead.pid + 10**7),
    )
    (own / "ray" / "session_latest").symlink_to(gone.name)
    (own / "ray" / "session_of_mine").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listens / "sockets" / "raylet"))
        server.listen()
        remove_old_sessions()
        assert not gone.exists()
        assert not unused.exists()
        assert all(each.exists() for each in (runs, begins, listens, open_one, own / "ray" / "session_of_mine"))
    remove_old_sessions()
    assert not listens.exists()
    os.utime(begins, (time.time() - 1000,) * 2)
    remove_old_sessions()
    assert not other.exists()
    assert runs.exists()
