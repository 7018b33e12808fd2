"""A search that version 0.1 began and was stopped in goes on: its record, study, checkpoints and MLflow store are read."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest

STATE = Path(__file__).parent / "data" / "search-0.1.zip"
"""Trial 000 has ended, 001 has run 2 of its 4 epochs, 002 has not begun. The search ran in /tmp/v01/runs."""


def write_images(root):
    """The images of that search: 24 classes of 6 images, byte for byte and with the times that it saw."""
    y, x = np.mgrid[0:32, 0:32]
    for number in range(24):
        directory = root / f"class {number:02d}"
        directory.mkdir(parents=True)
        for image in range(6):
            red, green = x * (number + 1) + image * 7, y * (number + 3) + image * 5
            pixels = np.stack([red, green, x * y + 11 * number + image], axis=2) % 256
            file = directory / f"{image}.ppm"
            file.write_bytes(b"P6\n32 32\n255\n" + pixels.astype(np.uint8).tobytes())
            os.utime(file, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def old_search(tmp_path):
    """The output directory of that search, at another place, beside its images."""
    write_images(tmp_path / "photos")
    with zipfile.ZipFile(STATE) as archive:
        archive.extractall(tmp_path / "runs")
    return tmp_path / "runs"


def run(module, *words):
    command = [sys.executable, "-m", f"dcml_tune.{module}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def test_a_search_of_version_0_1_resumes(old_search, tmp_path):
    listed = run("search", "--resume", "--output-dir", old_search)
    assert "before: interrupted" in listed.stdout
    assert "1 of 3 trials ended" in listed.stdout
    photos = tmp_path / "photos"
    done = run("search", "--resume", "before", "--output-dir", old_search, "--dataset-dir", photos, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "trial 000 epoch" not in done.stdout, "a trial that had ended ran again"
    assert "trial 001 epoch 1:" not in done.stdout, "epochs that were saved ran again"
    assert "trial 001 epoch 4" in done.stdout
    assert "trial 002 epoch 4" in done.stdout
    study = optuna.load_study(study_name="before", storage=f"sqlite:///{old_search}/before/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert json.loads((old_search / "before" / "state.json").read_text())["status"] == "finished"
    client = mlflow.MlflowClient(f"sqlite:///{old_search}/mlflow.db")
    experiment = client.get_experiment_by_name("dcml_tune").experiment_id
    for trial in ("000", "001", "002"):
        (found,) = client.search_runs([experiment], f"tags.`dcml.key` = 'before/{trial}'")
        steps = [point.step for point in client.get_metric_history(found.info.run_id, "val/recall_at_1")]
        assert sorted(steps) == [0, 1, 2, 3, 4], f"trial {trial} has points twice or not at all"


def test_a_model_of_version_0_1_loads(old_search):
    from dcml_tune.models import load

    shutil.rmtree(old_search / "before" / "tracking")
    model = load(old_search / "before" / "trials" / "000")
    assert model.config.arch == "test_efficientnet"
    assert tuple(model.masks.shape) == (1, 16), "its best epoch was its first, before a division"
