"""A PostgreSQL server of its own, which tests may stop and start again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]


def binaries():
    """The directory of the server's programs."""
    found = next((place for place in PLACES if (place / "postgres").exists() and (place / "initdb").exists()), None)
    if found is None:
        missing = "PostgreSQL is not installed (apt-get install postgresql)"
        pytest.fail(missing) if os.environ.get("DCML_CI") == "1" else pytest.skip(missing)
    return found


class Server:
    """A server on a port of the loopback interface, with the user `ann` and the password `geheim/@ß`."""

    PASSWORD = "geheim/@ß"
    QUOTED = "geheim%2F%40%C3%9F"

    def __init__(self):
        self.binaries = binaries()
        # Not below pytest's directory, which the user that runs the server may not enter.
        self.directory = Path(tempfile.mkdtemp(prefix="dcml-pg-"))
        self.owner = {} if os.getuid() else {"user": pwd.getpwnam("postgres" if _has("postgres") else "nobody").pw_uid}
        (self.directory / "password").write_text(self.PASSWORD)
        if self.owner:
            for path in (self.directory, self.directory / "password"):
                os.chown(path, self.owner["user"], -1)
        words = [
            "--auth=scram-sha-256",
            "--username=ann",
            f"--pwfile={self.directory / 'password'}",
            "--no-sync",
            "--encoding=UTF8",
        ]
        self._run("initdb", *words, f"--pgdata={self.directory / 'data'}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = None
        self.start()
        self.count = 0

    def _run(self, name, *words):
        subprocess.run(
            [self.binaries / name, *words], check=True, capture_output=True, cwd=self.directory, **self.owner
        )

    def start(self):
        words = ["-D", "data", "-p", str(self.port), "-k", str(self.directory), "-h", "127.0.0.1", "-F"]
        self.process = subprocess.Popen(
            [self.binaries / "postgres", *words], cwd=self.directory, stderr=subprocess.DEVNULL, **self.owner
        )
        end = time.monotonic() + 60
        while subprocess.run(
            [self.binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-U", "ann"],
            capture_output=True,
            check=False,
        ).returncode:
            assert time.monotonic() < end
            time.sleep(0.1)

    def stop(self):
        """As a node that fails: connections break."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)
            self.process = None

    def close(self):
        self.stop()
        shutil.rmtree(self.directory)

    def address(self, database="postgres", *, login=f"ann:{QUOTED}"):
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def database(self):
        """The address of a new, empty database."""
        self.count += 1
        name = f"studies_{self.count}"
        self.execute(f"CREATE DATABASE {name}")
        return self.address(name)

    def execute(self, *statements, database="postgres"):
        """Run SQL statements; returns the rows of the last one."""
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            for statement in statements:
                found = connection.execute(statement)
            return found.fetchall() if found.description else []


def _has(user):
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
