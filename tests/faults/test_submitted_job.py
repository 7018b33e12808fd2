"""A search as a job of a real Ray cluster: submitted, followed, left, submitted again, stopped."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOKEN = "0123456789abcdef" * 4


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def dashboard(cheap, tmp_path, monkeypatch):
    """The address of the dashboard of a cluster on which `python -m dcml_tune.search` trains nothing."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = f'#!/bin/sh\nshift 2\nexec {sys.executable} {HERE / "faulty_search.py"} {cheap.directory} "$@"\n'
    (binaries / "python").write_text(script)
    (binaries / "python").chmod(0o755)
    gcs, board, agent, client = free_ports(4)
    sessions = tempfile.mkdtemp(prefix="dcml-job-", dir="/tmp")  # the paths of Ray's sockets must be short
    environment = {
        **cheap.environment,
        "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    words = ["ray", "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--port", gcs,
             "--dashboard-port", board, "--dashboard-agent-listen-port", agent, "--ray-client-server-port", client,
             "--temp-dir", sessions, "--disable-usage-stats"]  # fmt: skip
    log = (tmp_path / "ray.txt").open("w")
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), *map(str, words[1:])],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    end = time.monotonic() + 240
    while "Ray runtime started" not in (tmp_path / "ray.txt").read_text():
        assert process.poll() is None, (tmp_path / "ray.txt").read_text()
        assert time.monotonic() < end
        time.sleep(0.2)
    cheap.environment |= {
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ADDRESS": "127.0.0.1:1",
    }  # another cluster, which must not be taken
    yield f"http://127.0.0.1:{board}"
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    shutil.rmtree(sessions, ignore_errors=True)


def test_a_search_is_submitted_left_and_submitted_again(cheap, dashboard):
    """Ctrl-C leaves the job; a second submission is refused while it runs, and finds it complete afterwards."""
    cheap.environment["DCML_TEST_PAUSE"] = "1"
    words = ["--num-samples", 2, "--scheduler", "none", "--submit", "--ray-address", dashboard, "--quiet"]
    process = cheap.start(*words)
    cheap.wait_for("epoch 1: ", process, 400)  # of a trial: the command of the job, which is printed before, has none
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 3
    said = process.log.read_text()
    assert "SIGINT: the job runs on" in said
    assert f"ray job stop --address {dashboard} s-" in said
    status, said = cheap.search(*words)
    assert status in (0, 4), said  # 4 while the first job runs
    if status == 4:
        assert "runs it; wait for its end" in said
    while status == 4:
        time.sleep(2)
        status, said = cheap.search(*words)
    assert (status, "search s is complete, 2 of 2 trials" in said) == (0, True), said
    cheap.assert_sound(2)
    assert len(cheap.trained()) == len(set(cheap.trained())) == 8
    status, said = cheap.search(*words, "--patience", 3)
    assert (status, "--patience 3: search s began with None" in said) == (2, True), said


def test_a_job_that_is_stopped_has_time_to_record_it(cheap, dashboard):
    """`ray job stop`: the follower says so, and the search can be resumed."""
    cheap.faults({"trial": "001", "epoch": 1, "kind": "hang"})
    words = ["--num-samples", 2, "--scheduler", "none", "--submit", "--ray-address", dashboard, "--quiet"]
    process = cheap.start(*words)
    cheap.wait_for_hang("001", process)
    job = process.log.read_text().split()[1]
    stop = [Path(sys.executable).parent / "ray", "job", "stop", "--no-wait", "--address", dashboard, job]
    environment = {**cheap.environment, "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS")
    subprocess.run([str(word) for word in stop], env=environment, check=True, capture_output=True)
    assert process.wait(120) == 3, process.log.read_text()
    said = process.log.read_text()
    assert "the job was stopped" in said
    assert "interrupted: SIGTERM" in said
    status, said = cheap.search(*words)
    assert status == 0, said
    cheap.assert_sound(2)
    assert cheap.lost() == []
