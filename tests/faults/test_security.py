"""What a search shows to others: open ports, files of its processes, and passwords."""

import re
import signal
import socket
import urllib.error
import urllib.request
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

# Names of processes that may listen beyond the loopback interface, each with its reason in docs/security.md.
BEYOND_LOOPBACK = set()

RAY = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}


def tree(process):
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def listening(process):
    """Name, address and port of each socket of a process tree that takes connections (or datagrams) from outside."""
    found = set()
    for each in tree(process):
        try:
            name, sockets = each.name(), each.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found |= {
            (name, each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
            for each in sockets
            if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and not each.raddr)
        }
    return found


def session(process):
    """The directory of the search's Ray session, as its processes were told."""
    words = {word for each in tree(process) for word in each.cmdline() if word.startswith("--session-dir=")}
    assert len(words) == 1, words
    return Path(words.pop().removeprefix("--session-dir="))


def answer(address):
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def hanging(cheap):
    """A scene whose second trial hangs after an epoch: the search waits to be looked at."""
    cheap.faults({"trial": "001", "epoch": 1, "kind": "hang"})
    return cheap


def test_nothing_listens_beyond_loopback_and_no_other_user_gets_in(hanging):
    """Every port of its process tree is on the loopback interface; token and directories keep other users out."""
    home = hanging.directory / "home"
    home.mkdir()
    hanging.environment = {n: v for n, v in hanging.environment.items() if not n.startswith("RAY_AUTH")}
    hanging.environment["HOME"] = str(home)
    process = hanging.start("--num-samples", 2)
    hanging.wait_for("001 epoch 1", process)
    token = home / ".ray" / "auth_token"
    assert [path.stat().st_mode & 0o777 for path in (token, token.parent)] == [0o600, 0o700]
    found = listening(process)
    assert {name for name, _, _ in found} > RAY
    beyond = {each for each in found if not ip_address(each[1]).is_loopback}
    assert {name for name, _, _ in beyond} <= BEYOND_LOOPBACK, beyond
    dashboard = re.search(r"Ray dashboard: (http://127.0.0.1:\d+) ", process.log.read_text())[1]
    assert answer(f"{dashboard}/api/v0/actors") == 401
    assert any(parent.stat().st_mode & 0o077 == 0 for parent in session(process).parents)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3


def test_a_password_is_written_nowhere(hanging):
    """Not into a file of the search or of its Ray sessions, not into its output; a resume asks for it again."""
    address = "http://ann:a b'c\"%2Fgeheim7@127.0.0.1:9"
    hanging.environment |= {"MLFLOW_TRACKING_USERNAME": "bob", "MLFLOW_TRACKING_PASSWORD": "geheim8"}
    process = hanging.start("--num-samples", 2, "--tracking-uri", address)
    hanging.wait_for("001 epoch 1", process)
    sessions = session(process).parent
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3
    status, said = hanging.resume()
    assert (status, "its password is not stored" in said) == (2, True), said
    status, said = hanging.resume("--tracking-uri", address)
    assert status == 0, said
    assert "records for MLflow wait" in said
    places = [hanging.directory, *(each for p in hanging.processes for each in sessions.glob(f"session_*_{p.pid}"))]
    assert len(places) == 3
    for place in places:
        files = [path for path in place.rglob("*") if path.is_file()]
        assert len(files) > 10
        assert [path for path in files if re.search(b"geheim[78]", path.read_bytes())] == []
