"""What may stand in the place of a database file. Each function changes the file that it is given."""

import os
import signal
import sqlite3
import subprocess
import sys

KILLED = """
import os, signal, sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("PRAGMA cache_size = 1")
held.execute("BEGIN IMMEDIATE")
held.execute("CREATE TABLE unfinished (x)")
held.executemany("INSERT INTO unfinished VALUES (?)", [("x" * 1000,)] * 2000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_in_a_transaction(file):
    """A process that is killed after it has written a part of its changes; they have to be rolled back."""
    assert subprocess.run([sys.executable, "-c", KILLED, file], check=False).returncode == -signal.SIGKILL
    assert file.with_name(f"{file.name}-journal").stat().st_size > 0


def execute(*statements):
    """A change by SQL statements."""

    def change(file):
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)

    return change


def directory(file):
    file.unlink()
    (file / "x").mkdir(parents=True)


def fifo(file):
    file.unlink()
    os.mkfifo(file)


def dangling(file):
    file.unlink()
    file.symlink_to(file.parent / "nothing")
