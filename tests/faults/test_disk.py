"""The disk fills up, or cannot be written any more: on a real small file system, in a mount namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs in the namespace: the arguments are a step of the scenario each.
SCENARIO = """
import os, shutil, subprocess, sys, time
from pathlib import Path

scene, images, script = map(Path, sys.argv[1:4])
output = scene / "runs"
output.mkdir()

def mount(*options):
    subprocess.run(["mount", *options, output], check=True)

def start(name, *words):
    log = (scene / name).open("w")
    return subprocess.Popen([sys.executable, script, scene, *words, "--output-dir", output], stdout=log, stderr=log)

def said(name):
    return (scene / name).read_text()

def until(name, text, process):
    for _ in range(1200):
        if text in said(name):
            return
        assert process.poll() is None, said(name)
        time.sleep(0.05)
    raise AssertionError(said(name))

SETTINGS = sys.argv[4].split()
NEW = ["folder", "--dataset-dir", images, "--name", "s", "--num-samples", "2", "--final", "none",
       "--confirm", "0", "--scheduler", "none", "--no-share", *SETTINGS]
"""

FULL = (
    SCENARIO
    + """
mount("-t", "tmpfs", "-o", "size=40m", "tmpfs")
assert start("small.txt", *NEW).wait() == 2
assert "the search needs" in said("small.txt") and "are free" in said("small.txt"), said("small.txt")
assert not (output / "s").exists()
mount("-o", "remount,size=600m")
process = start("full.txt", *NEW)
until("full.txt", "001 epoch 2", process)
for _ in range(100):
    try:
        with open(output / "ballast", "wb") as file:  # somebody else fills the disk
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(output).free - (8 << 20))
        break
    except OSError:  # a trial has written meanwhile
        time.sleep(0.05)
assert process.wait(60) == 3, said("full.txt")
assert "interrupted: " in said("full.txt") and "free some space" in said("full.txt"), said("full.txt")
assert start("still.txt", "--resume", "s").wait() == 2
assert "are free, and the next checkpoints need" in said("still.txt"), said("still.txt")
(output / "ballast").unlink()
assert start("resumed.txt", "--resume", "s").wait() == 0, said("resumed.txt")
shutil.copytree(output, scene / "left")
"""
)


def in_namespace(scene, scenario):
    """Run a scenario where it may mount; its own processes alone see it."""
    from conftest import HERE
    from scene import SETTINGS

    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    words = [sys.executable, "-c", scenario, scene.directory, scene.images, HERE / "faulty_search.py"]
    done = subprocess.run(
        [*unshare, *map(str, words), " ".join(SETTINGS)],
        env=scene.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scene.output = Path(scene.directory / "left")


def test_a_full_disk_stops_the_search_before_anything_is_torn(scene):
    """Refused ahead where it is too small; stopped with status 3 when it fills up; resumed once there is room."""
    scene.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    in_namespace(scene, FULL)
    assert_complete(scene)


@pytest.mark.fast
def test_a_trial_that_cannot_save_stops_the_search(scene):
    """Whatever the system's reason: the trial does not fail, its epoch is not reported, and a resume trains it again."""
    scene.faults({"trial": "001", "epoch": 2, "kind": "no room"})
    status, said = scene.search("--num-samples", 2, "--scheduler", "none")
    assert (status, "cannot be written (File too large)" in said) == (3, True), said
    assert "trial 001 epoch 3" not in said
    assert {run.info.status for run in scene.runs().values()} <= {"KILLED", "FINISHED"}
    status, said = scene.resume()
    assert status == 0, said
    assert_complete(scene)


def assert_complete(scene):
    """Both trials ran all their epochs, and each is recorded once."""
    assert {f"{key} {epoch}" for key in ("000", "001") for epoch in (1, 2, 3, 4)} == set(scene.trained())
    assert scene.states() == {"000": "COMPLETE", "001": "COMPLETE"}
    assert {run.info.status for run in scene.runs().values()} == {"FINISHED"}
    for key in ("s/000", "s/001"):
        assert [step for step, _ in scene.curve(key)] == [0, 1, 2, 3, 4]


def test_a_budget_of_checkpoints_keeps_the_best_models(scene):
    """Too small a budget is refused with what is needed; else the best models stay, in the directory and in MLflow."""
    import mlflow

    from dcml_tune.utils.files import size_of

    status, said = scene.search("--num-samples", 4, "--checkpoint-budget", "1MB")
    assert (status, "--checkpoint-budget 1MB: must be at least" in said) == (2, True), said
    status, said = scene.search(
        "--num-samples", 5, "--checkpoint-budget", "290MB", "--scheduler", "none", "--max-concurrent", 2
    )
    assert status == 0, said
    trials = scene.output / "s" / "trials"
    kept = sorted(path.parent.name for path in trials.glob("*/best-*"))
    study = scene.study()
    ranked = sorted(study, key=lambda key: study[key].value, reverse=True)
    assert 0 < len(kept) < 5
    assert {study[key].value for key in kept} == {study[key].value for key in ranked[: len(kept)]}
    assert size_of(scene.output / "s") + size_of(scene.output / "mlartifacts") < 290e6
    client = mlflow.MlflowClient(scene.uri)
    models = client.search_logged_models([client.get_experiment_by_name("dcml_tune").experiment_id])
    assert sorted(model.name.removeprefix("trial-") for model in models) == kept
