"""--mps on, with a program that stands for NVIDIA's: it notes its calls and makes the file by which a daemon is found."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.search import __main__ as search
from dcml_tune.search import mps
from dcml_tune.search.mps import about_mps, check_mps, start_mps, stop_mps

CONTROL = """#!/bin/sh
if [ "$1" = -d ]; then
  {start}
  echo "started in $CUDA_MPS_PIPE_DIRECTORY, logs in $CUDA_MPS_LOG_DIRECTORY" >> {log}
  echo runs > "$CUDA_MPS_PIPE_DIRECTORY/control"
else
  read order
  [ "$order" = get_server_list ] && exec test -s "$CUDA_MPS_PIPE_DIRECTORY/control"
  echo "$order of $CUDA_MPS_PIPE_DIRECTORY" >> {log}
fi
"""


@pytest.fixture
def control(tmp_path, monkeypatch):
    """Puts the program on the path; returns what it has noted."""
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "_DEFAULT", str(tmp_path / "none"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    class Control:
        def install(self, start=":"):
            file = tmp_path / "bin" / "nvidia-cuda-mps-control"
            file.write_text(CONTROL.format(start=start, log=tmp_path / "log"))
            file.chmod(0o755)

        @property
        def said(self):
            return (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []

    yield Control()
    stop_mps()


def test_it_runs_as_long_as_the_search(control):
    """In a directory of its own, which is removed; what is started meanwhile finds it."""
    control.install()
    start_mps()
    place = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
    assert control.said == [f"started in {place}, logs in {place}"]
    assert about_mps(0.5) == f"MPS: trials that share a GPU go through it ({place})"
    start_mps()  # it runs
    stop_mps()
    assert control.said[1:] == [f"quit of {place}"]
    assert not os.path.exists(place)
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    stop_mps()
    assert len(control.said) == 2


def test_it_serves_all_gpus_of_the_machine(control, monkeypatch):
    """Trials name theirs by the numbers of the machine; it would number those that the search may use anew."""
    control.install(start='echo "sees $CUDA_VISIBLE_DEVICES" >> "$(dirname "$0")/../log"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    start_mps()
    assert control.said[0] == "sees "
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_a_daemon_that_keeps_its_output_open_is_not_waited_for(control, monkeypatch):
    """It is the output of this process."""
    control.install(start="sleep 5 &")
    monkeypatch.setattr(mps, "_START_S", 2.0)
    start_mps()
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"]


def test_one_that_runs_is_used(control, monkeypatch, tmp_path):
    """And goes on after the search: it belongs to the machine."""
    control.install()
    (tmp_path / "control").write_text("runs")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    start_mps()
    stop_mps()
    assert control.said == []
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path)


def test_what_a_killed_one_left_is_none_that_runs(control, tmp_path):
    """The file stays, and nobody answers."""
    control.install()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "control").touch()
    start_mps()
    assert [line.split()[0] for line in control.said] == ["started"]
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] != str(tmp_path / "none")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_a_search_that_is_killed(control, number):
    """Its guard reads from a pipe that only the search holds open."""
    control.install()
    program = (
        "import time; from dcml_tune.search import mps; mps.start_mps(); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        place = control.said[0].split()[2].rstrip(",")
        process.send_signal(number)
    until = time.monotonic() + 30
    while os.path.exists(place) and time.monotonic() < until:
        time.sleep(0.05)
    assert control.said[1:] == [f"quit of {place}"]
    assert not os.path.exists(place)


def test_a_daemon_that_does_not_start_is_said(control):
    """With its own words; nothing is left."""
    control.install(start="echo 'An instance of this daemon is already running' >&2; exit 1")
    with pytest.raises(SettingError, match=r"--mps on: .* failed \(An instance of this daemon is already running\)"):
        start_mps()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


@pytest.mark.parametrize(
    ("gpus", "joins", "rule"),
    [
        (0.5, True, "on each of its nodes"),
        (None, False, "give --gpus-per-trial a number below 1"),
        (0.0, False, "give --gpus-per-trial a number below 1"),
        (1.0, False, "give --gpus-per-trial a number below 1"),
        (2.0, False, "give --gpus-per-trial a number below 1"),
        (0.5, False, "is not on this machine"),
        ("auto", False, "is not on this machine"),
    ],
)
def test_what_cannot_work_is_refused(control, gpus, joins, rule):
    """Before anything is measured."""
    with pytest.raises(SettingError, match=f"--mps on: .*{rule}"):
        check_mps(gpus, joins=joins)


def test_a_search_starts_and_ends_it(control, folder, tmp_path, capfd):
    """Also one that is refused after it was started."""
    words = [
        "folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path / "runs"), "--train-classes", "16",
        "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--nb-epochs", "3", "--mps", "on", "--dry-run",
    ]  # fmt: skip
    with pytest.raises(SettingError, match="is not on this machine"):
        search.main([*words, "--gpus-per-trial", "0.5"])
    control.install()
    with pytest.raises(SettingError, match=r"gpus-per-trial 0\.5"):  # this machine has no GPU
        search.main([*words, "--gpus-per-trial", "0.5"])
    assert [line.split()[0] for line in control.said] == ["started", "quit"]


def test_a_search_says_whether_it_runs(control):
    """If trials share a GPU of a machine that has it."""
    assert about_mps(0.25) is None
    control.install()
    said = "MPS is not running, so trials that share a GPU take turns; --mps on starts it for this search"
    assert [about_mps(share) for share in (0.25, 0.5)] == [said] * 2
    assert [about_mps(share) for share in (0, 0.6, 1.0, 2.0)] == [None] * 4
