"""An S3 server of its own (moto's), in memory."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec


class S3Server:
    """A server on a port of the loopback interface, with an empty bucket `searches`.

    Attributes:
        environment: variables with which a process finds it.
    """

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._directory = tempfile.TemporaryDirectory()
        self._said = Path(self._directory.name) / "said.txt"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._make_bucket()

    def _make_bucket(self):
        address = self.environment["AWS_ENDPOINT_URL"]
        files = fsspec.filesystem("s3", endpoint_url=address, key="user", secret="secret")
        end = time.monotonic() + 60
        while True:
            try:
                files.mkdir("searches")
                return
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError(f"the S3 server does not answer: {self._said.read_text()}") from None
                time.sleep(0.2)

    def stop_answering(self):
        """Answer no call, and begin no connection, until `answer`."""
        self._process.send_signal(signal.SIGSTOP)

    def answer(self):
        self._process.send_signal(signal.SIGCONT)

    def close(self):
        self.answer()
        self._process.terminate()
        self._process.wait(60)
        self._directory.cleanup()
