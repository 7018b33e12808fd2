"""The process of a search is killed, or asked to stop."""

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import mlflow
import pytest

from dcml_tune.utils.files import read_checksummed


@pytest.mark.fast
def test_sigkill_loses_no_epoch_and_repeats_no_trial(scene):
    """Killed twice at random moments and resumed, a search with real training ends as if nothing had been."""
    process = scene.start("--num-samples", 4, "--scheduler", "none")
    scene.wait_for("epoch 1", process)
    for _ in range(2):
        time.sleep(random.Random(1).uniform(0.5, 2.0))
        reported = {line.split(":")[0] for line in process.log.read_text().splitlines() if line.startswith("trial ")}
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = set(scene.trained())
        process = scene.start("--resume", "s", new=False)
        scene.wait_for("epoch", process)
        assert {f"{line.split()[1]} {line.split()[3]}" for line in reported} <= saved
    assert process.wait(200) == 0, process.log.read_text()
    scene.assert_sound(4)
    assert scene.lost() == []
    assert len(scene.trained()) <= 16 + 2 * 2  # two trials at once, and two kills: what was in flight
    assert set(scene.states().values()) == {"COMPLETE"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_it_can_be_resumed(cheap, number):
    """With exit code 3; nothing is left running in MLflow or Optuna, or in memory."""
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start("--num-samples", 3)
    cheap.wait_for_hang("001", process)
    process.send_signal(number)
    assert process.wait(60) == 3
    said = process.log.read_text()
    assert f"interrupted: {number.name}" in said
    assert "--resume s" in said
    runs = cheap.runs()
    assert (runs["s"].info.status, runs["s/001"].info.status) == ("KILLED", "KILLED")
    assert "RUNNING" not in {run.info.status for run in runs.values()}
    assert runs["s"].data.tags["dcml.state"] == "interrupted"
    assert "RUNNING" not in cheap.states().values()
    status, said = cheap.resume()
    assert status == 0, said
    cheap.assert_sound(3)


def test_a_killed_final_scores_no_test_class_twice(cheap):
    """Killed while the winner is retrained: the run that had scored is not scored again."""
    cheap.faults({"trial": "final-published", "epoch": 3, "kind": "hang"})
    process = cheap.start("--num-samples", 2, "--final", "best", "--max-concurrent", 2)
    cheap.wait_for("untrained epoch 0", process)
    cheap.wait_for_hang("final-published", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scored = (cheap.output / "s" / "trials" / "untrained" / "result.json").stat().st_mtime_ns
    status, said = cheap.resume()
    assert status == 0, said
    assert (cheap.output / "s" / "trials" / "untrained" / "result.json").stat().st_mtime_ns == scored
    assert "final-published epoch 4" in said
    assert "untrained epoch" not in said
    assert {run.info.status for run in cheap.runs().values()} == {"FINISHED"}
    assert [step for step, _ in cheap.curve("s/final-published", "test/recall_at_1")] == [4]


def test_what_a_killed_search_left_running_is_ended_by_the_next_command(cheap):
    """Without a resume, too: listing the searches is enough; a search that still runs is left alone."""
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start("--num-samples", 2)
    cheap.wait_for_hang("001", process)
    status, said = cheap.search("--resume", new=False)
    assert (status, "s: running" in said) == (0, True)
    assert "RUNNING" in {run.info.status for run in cheap.runs().values()}
    process.send_signal(signal.SIGKILL)
    process.wait()
    status, said = cheap.search("--resume", new=False)
    assert (status, "s: interrupted" in said) == (0, True)
    runs = cheap.runs()
    assert (runs["s"].info.status, runs["s/001"].info.status) == ("KILLED", "KILLED")
    assert "RUNNING" not in {run.info.status for run in runs.values()}


def test_the_time_budget_is_that_of_all_processes(cheap):
    """What an earlier process used is gone; a search that used up its budget is whole, and leaves nothing running.

    Trial 001 has no epoch to end with.
    """
    cheap.faults({"trial": "001", "epoch": 0, "kind": "hang", "times": 9})
    cheap.environment["DCML_TEST_PAUSE"] = "1"
    process = cheap.start("--num-samples", 50, "--time-budget", "45s")
    cheap.wait_for("epoch 2", process)
    process.send_signal(signal.SIGTERM)
    process.wait()
    status, said = cheap.resume()
    assert status == 0, said
    assert "the time budget was used up" in said
    state = read_checksummed(cheap.output / "s" / "state.json")
    assert (state["status"], state["processes"]) == ("finished", 2)
    assert 45 <= state["elapsed_s"] < 90
    assert len(cheap.states()) < 50
    runs = cheap.runs()
    assert {run.info.status for run in runs.values()} <= {"FINISHED", "KILLED"}, said
    assert runs["s/001"].data.tags["dcml.state"] == "interrupted"
    assert runs["s/001"].data.tags["dcml.reason"] == "the time budget was used up"


def test_a_killed_search_that_shares_epochs_is_resumed(scene):
    """The lock of a shared epoch goes with the trial that held it; the resume knows every epoch of every trial."""
    scene.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = scene.start("--num-samples", 3, "--scheduler", "none", shares=True)
    scene.wait_for_hang("001", process)
    process.kill()
    process.wait()
    status, said = scene.resume()
    assert status == 0, said
    scene.assert_sound(3)
    assert len(set(scene.trained())) < 12, "no epoch was shared"


def test_epochs_since_the_last_state_are_trained_again_and_recorded_once(cheap):
    """--checkpoint-every 2: a process of a trial is killed after epoch 3, then the driver; the resume knows the flag."""
    cheap.faults({"trial": "000", "epoch": 3, "kind": "kill"}, {"trial": "001", "epoch": 3, "kind": "hang"})
    process = cheap.start("--num-samples", 2, "--scheduler", "none", "--checkpoint-every", 2)
    cheap.wait_for_hang("001", process)
    cheap.wait_for("trial 000 epoch 4", process)
    process.kill()
    process.wait()
    status, said = cheap.resume()
    assert status == 0, said
    cheap.assert_sound(2)
    assert set(cheap.states().values()) == {"COMPLETE"}
    again = [epoch for epoch, times in Counter(cheap.trained()).items() if times > 1]
    assert sorted(again) == ["000 3", "001 3"]
    steps = [step for step, _ in cheap.curve("s", "val/map_at_r_best")]
    assert len(steps) == len(set(steps)), "the search has two values at one step"


def test_a_killed_search_goes_on_in_another_place(scene, tmp_path):
    """Output directory and images are moved together; final stage, verdict and report end there, and nothing is left behind."""
    scene.images = Path(shutil.copytree(scene.images, tmp_path / "images"))
    scene.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = scene.start("--num-samples", 2, "--scheduler", "none", "--final", "best")
    scene.wait_for_hang("001", process)
    process.kill()
    process.wait()
    place = tmp_path / "another place"
    place.mkdir()
    scene.output = Path(shutil.move(scene.output, place / "searches"))
    scene.images = Path(shutil.move(scene.images, place / "images"))
    status, said = scene.resume("--dataset-dir", scene.images)
    assert status == 0, said
    scene.assert_sound(2)
    assert scene.lost() == []
    assert not (tmp_path / "runs").exists()
    assert (scene.output / "s" / "verdict.json").is_file()
    client = mlflow.MlflowClient(scene.uri)
    for key, run in scene.runs().items():
        assert run.info.status == "FINISHED", key
        assert str(scene.output) in unquote(run.info.artifact_uri)
    parent = scene.runs()["s"].info.run_id
    assert "report" in {each.path for each in client.list_artifacts(parent)}
