import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from file_systems import KINDS, on, replace_flock

from dcml_tune.models.embedder import load
from dcml_tune.runs.attempts import files_of, next_attempt, settle
from dcml_tune.utils.checkpoint import numbers
from dcml_tune.utils.files import write_atomic
from trainables import DivideAndConquer, Run
from trainables.trial_lock import take

OWNER = """
import contextlib, itertools, pathlib, sys
from dcml_tune.utils.files import write_atomic
from trainables.trial_lock import take
owner = take(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
for number in itertools.count():
    # Both errors: its successor may move the directory away at any time, in the middle of mkdir, too.
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        owner.files.mkdir(exist_ok=True)  # as the writing of a checkpoint does
        write_atomic(owner.files / "state", f"old {number}".encode())
    if number == 0:
        print("taken", flush=True)
"""

TRAINS = """
import json, sys
from trainables import DivideAndConquer
trial = DivideAndConquer(json.loads(sys.argv[1]))
done = False
while not done:
    result = trial.train()
    done = result["done"]
    print(result["epoch"], flush=True)
"""


def start(directory, kind="works", number=0):
    words = [sys.executable, "-c", OWNER, str(directory), str(number)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=on(directory.parent, kind))
    assert process.stdout.readline() == "taken\n"
    return process


@pytest.fixture
def trial(tmp_path):
    """The directory of a trial."""
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_process_replaces_one_that_is_busy(trial, monkeypatch, kind):
    """The old one ends by itself, in the middle of what it does; the new one has what it left."""
    replace_flock(monkeypatch, kind)
    old = start(trial, kind)
    new = take(trial)
    assert old.wait(5) == 75
    assert (new.files / "state").read_text().startswith("old ")
    new.release()


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_leaves_the_directory_free(trial, monkeypatch, kind):
    """However it ended, nothing is waited for."""
    replace_flock(monkeypatch, kind)
    old = start(trial, kind)
    old.kill()
    old.wait()
    begun = time.monotonic()
    new = take(trial)
    new.release()
    take(trial).release()
    assert time.monotonic() - begun < 10, "the patience with a process that lives"


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_was_suspended_changes_nothing(trial, monkeypatch, kind):
    """It goes on after its successor has committed: what that has, and what the driver has settled, stays as it is."""
    monkeypatch.setattr("trainables.trial_lock._PATIENCE_S", 1.0)
    replace_flock(monkeypatch, kind)
    old = start(trial, kind)
    old.send_signal(signal.SIGSTOP)
    new = take(trial)
    write_atomic(new.files / "state", b"new")
    old.send_signal(signal.SIGCONT)
    assert old.wait(5) == 75
    assert (files_of(trial) / "state").read_text() == "new"
    new.release()
    settle(trial)
    assert (trial / "state").read_text() == "new"
    assert files_of(trial) == trial
    third = take(trial)
    assert (third.files / "state").read_text() == "new"
    third.release()


def test_a_process_ends_if_its_directory_is_moved(trial):
    """The driver was killed, and its user has moved the output directory before the trial's process has ended."""
    old = start(trial)
    trial.rename(trial.parent / "moved")
    assert old.wait(5) == 75
    assert not trial.exists()


def test_a_start_that_comes_late_ends_before_it_takes_anything(trial):
    """Its number is lower than that of a start which the driver has ordered since."""
    first, second = next_attempt(trial), next_attempt(trial)
    new = take(trial, second)
    write_atomic(new.files / "state", b"new")
    words = [sys.executable, "-c", OWNER, str(trial), str(first)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 75
    assert (files_of(trial) / "state").read_text() == "new"
    new.release()


def test_a_trial_that_the_driver_has_ended_saves_nothing_more(trial):
    """Its process may be in an epoch then."""
    owner = take(trial)
    assert not owner.is_over()
    settle(trial)
    assert owner.is_over()
    owner.release()


@pytest.mark.parametrize("kind", ["works", "silent"])
def test_a_trial_that_was_suspended_trains_on_in_vain(small, tmp_path, monkeypatch, kind):
    """A real trial is stopped after its second epoch, its successor trains to the end, and the first one goes on."""
    monkeypatch.setattr("trainables.trial_lock._PATIENCE_S", 1.0)
    replace_flock(monkeypatch, kind)
    place = tmp_path / "trial"
    run = Run(stores=str(tmp_path / "store"), directory=str(place), key="000", device="cpu")
    config = {**small, "nb_epochs": 5, "run": run.as_dict()}
    words = [sys.executable, "-c", TRAINS, json.dumps(config)]
    old = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=on(tmp_path, kind))
    assert [old.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
    old.send_signal(signal.SIGSTOP)
    reached = numbers(files_of(place), "trainer")[0]
    new = DivideAndConquer(config)
    results = [new.train() for _ in range(6 - reached)]
    assert [result["epoch"] for result in results] == list(range(reached, 6)), "no epoch that was saved is lost"
    before = {path: path.read_bytes() for path in new.directory.rglob("*") if path.is_file()}
    old.send_signal(signal.SIGCONT)
    assert old.wait(10) == 75
    assert {path: path.read_bytes() for path in files_of(place).rglob("*") if path.is_file()} == before
    new.stop()
    settle(place)
    assert {path.name: path.read_bytes() for path in place.rglob("*.safetensors")} == {
        path.name: content for path, content in before.items() if path.suffix == ".safetensors"
    }
    assert load(place)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 8)
