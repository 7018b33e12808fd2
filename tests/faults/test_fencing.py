"""A search whose output directory has no locks, on two machines of which one dies or is suspended."""

import signal
import time

import pytest
from file_systems import on

WORDS = ["--num-samples", 3, "--scheduler", "none"]


@pytest.fixture
def machine(cheap):
    """Puts the processes that are started next on a machine of a name, with a short lease."""
    environment = {**cheap.environment, "DCML_TEST_LEASE": "6"}

    def there(name, kind):
        cheap.environment = {**environment, "PYTHONPATH": on(cheap.directory, kind, name)["PYTHONPATH"]}

    return there


def everything(cheap):
    """What a driver writes: the study, the record, the records for MLflow, the numbers of the trials' starts."""
    place = cheap.output / "s"
    names = ["search.json", "state.json", "tracking/spool.jsonl", "lock.lease"]
    files = [place / name for name in names] + sorted(place.glob("trials/*/*"))
    study = [(trial.number, trial.state, trial.values, trial.intermediate_values) for trial in cheap.study().values()]
    return study, {path: path.read_bytes() for path in files if path.is_file()}


def test_a_dead_machine_is_replaced_without_locks(cheap, machine):
    """While its driver lives a second one is refused; after its end the resume waits for the lease, and loses no epoch."""
    machine("node-a", "ENOLCK")
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start(*WORDS)
    cheap.wait_for_hang("001", process)
    machine("node-b", "ENOLCK")
    status, said = cheap.resume()
    assert (status, f"error: search s: process {process.pid} on node-a runs it" in said) == (4, True), said
    process.send_signal(signal.SIGKILL)
    process.wait()
    status, said = cheap.resume()
    assert status == 0, said
    waits = f"search s: process {process.pid} on node-a ran it, and has recorded no end; waiting up to 6 s for a sign of life"
    assert waits in said
    cheap.assert_sound(3)
    assert cheap.lost() == []
    assert len(set(cheap.trained())) == 12


def test_a_driver_that_was_suspended_writes_nothing_when_it_goes_on(cheap, machine):
    """Another machine has ended the search meanwhile; locks succeed for everyone there."""
    machine("node-a", "silent")
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start(*WORDS)
    cheap.wait_for_hang("001", process)
    cheap.wait_for("trial 002 epoch 4", process)
    while cheap.runs()["s/002"].info.status != "FINISHED":  # a process that is suspended later holds SQLite's lock
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGSTOP)
    try:
        machine("node-b", "silent")
        status, said = cheap.resume()
        assert status == 0, said
        before = everything(cheap)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 4
    said = process.log.read_text()
    assert "this process stops and writes nothing more" in said
    assert "Traceback" not in said
    assert everything(cheap) == before
    cheap.assert_sound(3)
    assert len(set(cheap.trained())) == 12
