"""The tracking server is away: the search neither stops nor slows, and all arrives later."""

import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

import pytest


class Server:
    """A real `mlflow server` on a loopback port, to be killed and started again."""

    def __init__(self, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.directory, self.process = directory, None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self.directory / 'server.db'}"]
        files = ["--artifacts-destination", str(self.directory / "server-files"), "--serve-artifacts"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *files, "--port", str(self.port), "--workers", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError("the server did not start")

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.kill()


def test_a_server_that_dies_in_the_middle_holds_nothing_up(cheap, server):
    """Killed during the search and away to its end: status 0, records wait; flush delivers all, each once."""
    server.start()
    process = cheap.start("--num-samples", 3, "--tracking-uri", server.uri, "--scheduler", "none")
    cheap.wait_for("epoch 2", process)
    server.kill()
    assert process.wait(200) == 0, process.log.read_text()
    said = process.log.read_text()
    assert "records for MLflow wait" in said
    assert "dcml_tune.tracking flush s" in said
    server.start()
    flush = [sys.executable, "-m", "dcml_tune.tracking", "flush", "s", "--output-dir", str(cheap.output)]
    done = subprocess.run(flush, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "everything is delivered" in done.stdout) == (0, True), done.stderr
    cheap.assert_sound(3, uri=server.uri)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_minutes_without_a_server(cheap, server):
    """The search goes on, and when the server is back, all is there before the search ends."""
    cheap.environment["DCML_TEST_PAUSE"] = "15"
    server.start()
    process = cheap.start("--num-samples", 22, "--tracking-uri", server.uri, "--scheduler", "none")
    cheap.wait_for("epoch 2", process)
    server.kill()
    away = time.time()
    while time.time() - away < 600:
        assert process.poll() is None, process.log.read_text()
        time.sleep(1)
    server.start()
    back = time.time()
    assert process.wait(900) == 0, process.log.read_text()
    assert "records for MLflow wait" not in process.log.read_text()
    cheap.assert_sound(22, uri=server.uri)
    curves = [cheap.times(f"s/{key}", server.uri) for key in cheap.study()]
    steps = [(first, second - first) for times in curves for first, second in itertools.pairwise(times)]
    without = [length for first, length in steps if away < first < back - 20]
    with_it = [length for first, length in steps if not away - 20 < first < back]
    print(f"epochs without the server: {len(without)}, each {statistics.median(without):.2f} s; "
          f"with it: {len(with_it)}, each {statistics.median(with_it):.2f} s")  # fmt: skip
    assert len(without) > 20


def test_a_server_that_is_gone_from_the_start_gets_all_at_the_next_resume(cheap, server):
    """The search runs, is stopped in time, and goes on; meanwhile the server has come."""
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start("--num-samples", 3, "--tracking-uri", server.uri, "--scheduler", "none")
    cheap.wait_for_hang("001", process, 120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3
    server.start()
    status, said = cheap.resume()
    assert status == 0, said
    cheap.assert_sound(3, uri=server.uri)
