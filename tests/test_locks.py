"""SharedLock and the record of a search, on file systems with and without flock, and on several machines."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from file_systems import KINDS, on, replace_flock
from searches import SMALLEST

from dcml_tune.runs import record as records
from dcml_tune.runs.ledger import broken, enter
from dcml_tune.runs.record import Record, SearchRunningError
from dcml_tune.tracking import Tracker
from dcml_tune.utils.locks import HeldError, LockLostError, SharedLock

WITHOUT = [kind for kind in KINDS if kind != "works"]
LEASE = {"lease_s": 3.0, "heartbeat_s": 0.5}

HOLDER = """
import pathlib, sys
from dcml_tune.tracking import Tracker
from dcml_tune.utils.locks import HeldError, LockLostError, SharedLock
lock = SharedLock(pathlib.Path(sys.argv[1]), lease_s=3.0, heartbeat_s=0.5)
try:
    lock.acquire(lambda holder: print("waits for", holder, flush=True))
    print("held", flush=True)
except HeldError as error:
    print("refused", error.holder, flush=True)
for line in sys.stdin:
    try:
        lock.check()
        print("still held", flush=True)
    except LockLostError as error:
        print("lost", error, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts processes that take a lock; returns each with the first line that it printed."""
    started = []

    def process(kind, host=None):
        words = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, env=on(tmp_path, kind, host), **pipes))
        return started[-1], started[-1].stdout.readline().strip()

    yield process
    for each in started:
        each.kill()
        each.wait()
        each.stdin.close()
        each.stdout.close()


def ask(process):
    """What a process says when it looks whether it still has the lock."""
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", [None, "node-b"])
def test_one_process_holds_a_lock(start, kind, host):
    """A second one, on the same machine or another, is told who holds it; a release lets it in."""
    first, said = start(kind)
    assert said == "held"
    second, said = start(kind, host)
    if said.startswith("waits"):  # until it has seen a sign of life
        said = second.stdout.readline().strip()
    assert said == f"refused process {first.pid} on {os.uname().nodename}"
    assert ask(first) == "still held"
    first.stdin.close()
    first.wait()
    assert start(kind, host)[1] == "held"


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_of_the_same_machine_that_is_dead_holds_nothing(start, kind):
    """The next one does not wait, however it ended."""
    first, _ = start(kind)
    first.kill()
    first.wait()
    assert start(kind)[1] == "held"


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_of_another_machine_that_is_dead_is_waited_for(start, kind, tmp_path):
    """Until its lease ends by the clock of the one that waits. Whoever does not wait is told that it is held."""
    first, _ = start(kind, "node-a")
    first.kill()
    first.wait()
    with pytest.raises(HeldError, match=f"process {first.pid} on node-a holds the lock"):
        SharedLock(tmp_path / "lock", **LEASE).acquire()
    second, said = start(kind)
    assert said == f"waits for process {first.pid} on node-a"
    assert second.stdout.readline().strip() == "held"
    assert ask(second) == "still held"


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_process_that_was_suspended_has_lost_the_lock(start, kind):
    """It is told when it looks, and its release does not take the lock from the new holder."""
    first, _ = start(kind, "node-a")
    first.send_signal(signal.SIGSTOP)
    second, said = start(kind)
    assert said.startswith("waits")
    assert second.stdout.readline().strip() == "held"
    first.send_signal(signal.SIGCONT)
    assert ask(first) == f"lost process {second.pid} on {os.uname().nodename} has taken it over"
    first.stdin.close()
    first.wait()
    assert ask(second) == "still held"
    third, said = start(kind, "node-c")
    assert said == f"waits for process {second.pid} on {os.uname().nodename}"
    assert third.stdout.readline().strip().startswith("refused")


def test_flock_is_exact_where_it_works(start):
    """A suspended process keeps the lock there: nothing is waited for."""
    first, _ = start("works", "node-a")
    first.send_signal(signal.SIGSTOP)
    time.sleep(LEASE["lease_s"])
    assert start("works")[1] == f"refused process {first.pid} on node-a"


def test_a_lease_that_is_gone_is_lost(tmp_path):
    """Another process may have taken it, worked and released it."""
    lock = SharedLock(tmp_path / "lock", **LEASE)
    lock.acquire()
    (tmp_path / "lock.lease").unlink()
    with pytest.raises(LockLostError, match="another process has taken it over"):
        lock.check()
    lock.release()
    lock.acquire()
    lock.check()
    lock.release()


def test_a_lease_that_could_not_be_touched_for_a_while_is_kept(tmp_path, monkeypatch):
    """If no other process has taken it in that time: its signs of life begin again."""
    lock = SharedLock(tmp_path / "lock", **LEASE)
    lock.acquire()

    def away(*_, **__):
        raise OSError(errno.EIO, "the server is away")

    with monkeypatch.context() as there:
        there.setattr("filelock._lease.touch", away)
        while lock._lease.compromise is None:
            time.sleep(0.1)
    lock.check()
    before = (tmp_path / "lock.lease").stat().st_mtime_ns
    time.sleep(2 * LEASE["heartbeat_s"])
    assert (tmp_path / "lock.lease").stat().st_mtime_ns > before
    lock.release()


@pytest.mark.parametrize("content", ["", "filelock/2\npid=", "what?\n"])
def test_a_lease_that_names_nobody_ends(tmp_path, content):
    """As a power failure leaves it, with a second look after that of the library."""
    (tmp_path / "lock.lease").write_text(content)
    holders = []
    lock = SharedLock(tmp_path / "lock", **LEASE)
    lock.acquire(holders.append)
    assert holders == ["another process"]
    lock.release()


def test_a_lock_can_be_taken_again_and_waited_for(tmp_path):
    """Entering a block waits for the process that has it; what this object has is not taken twice."""
    lock = SharedLock(tmp_path / "lock")
    with lock, lock:
        assert lock.is_held()
    assert not lock.is_held()
    with SharedLock(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("kind", WITHOUT)
def test_the_list_of_searches_watches_for_a_sign_of_life(start, kind, monkeypatch, tmp_path):
    """A live holder of another machine counts as running, a dead one does not, and keeps what it left."""
    replace_flock(monkeypatch, kind)
    first, _ = start(kind, "node-a")
    assert SharedLock(tmp_path / "lock", **LEASE).is_held()
    first.kill()
    first.wait()
    assert not SharedLock(tmp_path / "lock", **LEASE).is_held()
    assert (tmp_path / "lock.lease").exists()


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_driver_that_was_replaced_writes_nothing_to_the_record(tmp_path, monkeypatch, kind, caplog):
    """What a user sees: the resume says what it waits for, and the old driver who runs the search now."""
    monkeypatch.setattr(records, "SharedLock", partial(SharedLock, **LEASE))
    with monkeypatch.context() as there:
        replace_flock(there, kind, "node-a")
        old = Record.create(tmp_path / "s", SMALLEST)
        old.begin(planned=3)
        old._lock._lease._stop_heartbeat()  # as one that is suspended
    replace_flock(monkeypatch, kind, "node-b")
    with pytest.raises(
        SearchRunningError, match=rf"search s: process {os.getpid()} on node-a runs it; wait for its end"
    ):
        Record.open(tmp_path / "s").hold(waits=False)
    new = Record.open(tmp_path / "s")
    new.hold()
    (line,) = caplog.messages
    assert line == (
        f"search s: process {os.getpid()} on node-a ran it, and has recorded no end; waiting up to 3 s for a sign of life from it"
    )
    new.begin(planned=5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(
        LockLostError, match=r"search s: process .* on node-b has taken it over; this process stops and"
    ):
        old.update(ended=3)
    with pytest.raises(LockLostError):
        old.ask(name="other")
    old.release()
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    new.update(ended=4)
    assert Record.open(tmp_path / "s").state.ended == 4
    new.release()


@pytest.mark.parametrize("kind", KINDS)
def test_what_else_is_locked_works_without_flock(tmp_path, monkeypatch, kind):
    """The ledger of the test classes, and the delivery to MLflow."""
    replace_flock(monkeypatch, kind)
    ledger = tmp_path / "test-ledger.jsonl"
    assert [enter(ledger, run=name, dataset="cub", test_set="x") for name in "abc"] == [0, 1, 2]
    assert broken(ledger) == []
    tracker = Tracker.open(tmp_path, "s")
    tracker.start("s", name="s", role="search")
    tracker.end("s", "FINISHED")
    assert tracker.close(60) == 0


def test_no_other_module_locks_files():
    """A lock by flock alone would fail, or protect nothing, on some storage."""
    root = Path(records.__file__).parents[2]
    files = [file for name in ("dcml_tune", "search_spaces", "trainables") for file in (root / name).rglob("*.py")]
    found = sorted(
        str(file.relative_to(root))
        for file in files
        if re.search(r"^(from|import) (filelock|fcntl)", file.read_text(), re.M)
    )
    assert found == ["dcml_tune/utils/locks.py", "trainables/trial_lock.py"]


@pytest.mark.parametrize("flock", ["works", "refused"])
def test_a_full_disk_has_room_for_flock_alone(tmp_path, monkeypatch, flock):
    """A holder goes on without a lease, and has one the next time; where flock is refused, it is refused, too."""
    replace_flock(monkeypatch, flock if flock == "works" else WITHOUT[0])
    lock, other = SharedLock(tmp_path / "lock", **LEASE), SharedLock(tmp_path / "lock", **LEASE)

    def no_room(*args, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(lock._lease, "acquire", no_room)
        if flock == "refused":
            with pytest.raises(OSError, match="No space left"):
                lock.acquire()
            return
        lock.acquire()
        lock.check()
        with pytest.raises(HeldError):
            other.acquire()
        lock.release()
    lock.acquire()
    assert (tmp_path / "lock.lease").exists()
    lock.release()
    other.acquire()
    other.release()
