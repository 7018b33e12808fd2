import os
import shlex
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import optuna
import pytest
from PIL import Image

from dcml_tune.tracking import best_model
from dcml_tune.train import _config, parser

TINY = [
    "--train-classes", "16", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "16",
    "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "3", "--force-full-embedding-epoch", "2",
    "--mod-epoch", "1", "--mod-epoch-freeze", "0",
]  # fmt: skip


def command(*words, module="search"):
    return subprocess.run(
        [sys.executable, "-m", f"dcml_tune.{module}", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=400,
        check=False,
    )


def test_search_ends_to_end(folder, tmp_path):
    """A search records every trial once in MLflow and Optuna, scores the test classes, and prints the way on."""
    done = command(
        "folder", "--dataset-dir", folder, "--num-samples", 3, "--name", "s", "--output-dir", tmp_path, *TINY
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "s: best ",
        "trial 002 epoch",
        "best of 3 trials",
        "test, final",
        "test, untrained",
        "dcml_tune.train",
        "compare-runs",
    ):
        assert words in done.stdout
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
    roles = sorted(run.data.tags["dcml.role"] for run in runs)
    assert [role for role in roles if role not in ("final", "published")] == [
        "search",
        "trial",
        "trial",
        "trial",
        "untrained",
    ]
    assert "final" in roles
    assert {run.info.status for run in runs} == {"FINISHED"}
    trial = next(run for run in runs if run.data.tags["dcml.role"] == "trial")
    history = client.get_metric_history(trial.info.run_id, "val/recall_at_1")
    assert [point.step for point in history][:2] == [0, 1]
    assert len({point.step for point in history}) == len(history)
    assert "test/recall_at_1" not in trial.data.metrics
    assert best_model(uri, "dcml_tune", "s") is not None
    again = shlex.split(done.stdout.partition("train it again:\n")[2].splitlines()[0])
    config = _config(parser().parse_args(again[3:]))
    best = max((run for run in sorted(runs, key=key) if run.data.tags["dcml.role"] == "trial"), key=value)
    assert {name: str(getattr(config, name)) for name in best.data.params} == dict(best.data.params)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 's' / 'optuna.db'}")
    assert len(study.trials) == 3
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}


def key(run):
    return run.data.tags["dcml.key"]


def value(run):
    return run.data.metrics["val/recall_at_1_best"]


def test_a_search_never_opens_a_test_image(folder, tmp_path):
    """With test images that nothing can decode a search runs well; a space of one's own, another searcher are taken."""
    space = tmp_path / "my_space.py"
    space.write_text(
        "from search_spaces import Float\nfrom search_spaces.folder import SPACE as FOLDER\n"
        "SPACE = FOLDER.widened(base_lr=Float(1e-5, 1e-3, log=True))\n"
    )
    source = tmp_path / "images"
    shutil.copytree(folder, source)
    for directory in sorted(source.iterdir())[16:]:
        for image in directory.iterdir():
            image.write_bytes(b"not an image")
    done = command(
        "folder", "--dataset-dir", source, "--num-samples", 2, "--name", "s", "--output-dir", tmp_path / "runs", *TINY,
        "--final", "none", "--searcher", "random", "--scheduler", "none", "--max-concurrent", 1, "--time-budget", "10m",
        "--space", space,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 at once" in done.stdout
    assert "test, " not in done.stdout
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'runs' / 's' / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert all(1e-5 <= trial.params["base_lr"] <= 1e-3 for trial in study.trials)


def test_budgets_end_a_search(folder, tmp_path):
    """Of epochs and of patience: with status 0, as it was asked for; the reason is in MLflow."""
    images = ["folder", "--dataset-dir", folder, "--output-dir", tmp_path, *TINY, "--final", "none"]
    alone = ["--scheduler", "none", "--max-concurrent", 1]
    done = command(*images, "--name", "e", "--num-samples", 5, "--epoch-budget", 4, *alone)
    assert done.returncode == 0, done.stderr
    assert "ended early: the epoch budget was used up" in done.stdout
    assert "best of 2 trials" in done.stdout
    assert "4 of 6 epochs run" in done.stdout
    done = command(*images, "--name", "p", "--num-samples", 30, "--patience", 1, *alone)
    assert done.returncode == 0, done.stderr
    assert "ended early: 1 trials in a row brought nothing" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_train_writes_a_checkpoint_that_loads(folder, tmp_path):
    """The training command runs one setting and leaves a model."""
    done = command("folder", "--dataset-dir", folder, "--name", "t", "--output-dir", tmp_path, *TINY, module="train")
    assert done.returncode == 0, done.stderr
    from dcml_tune.model import load

    assert load(tmp_path / "t" / "checkpoint").masks.shape == (1, 16)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["emojy"], ["emojy", "emoji"]),
        (["folder"], ["--dataset-dir"]),
        (["folder", "--dataset-dir", "/nowhere"], ["/nowhere"]),
        (["emoji", "--nb-cluster", "4"], ["--nb-cluster", "--nb-clusters"]),
        (["emoji", "--gpus-per-trial", "1.5"], ["1.5", "whole"]),
        (["emoji", "--nb-epochs", "few"], ["nb_epochs", "few"]),
        (["emoji", "--output-dir", "/proc/nowhere"], ["/proc/nowhere", "cannot be written"]),
        (["emoji", "--space", "missing.py"], ["missing.py"]),
        (["emoji", "--mod-epoch-freeze", "4"], ["mod_epoch_freeze"]),
        (["emoji", "--arch", "resnet50x"], ["resnet50x", "did you mean"]),
        (["emoji", "--weights", __file__], [__file__, "weights"]),
        (["emoji", "--tracking-uri", "mlruns"], ["mlruns", "sqlite:///"]),
        (["emoji", "--nb-clusters", "1024"], ["1024", "lower nb_clusters"]),
        (["emoji", "--time-budget", "soon"], ["soon", "30m"]),
        (["cars"], ["cars", "--dataset-dir"]),
        (["cars", "--dataset-dir", os.path.dirname(__file__)], ["cars196/cars_annos.mat", "car_ims"]),
        (["emoji", "--backend", "faiss-gpu"], ["faiss-gpu", "GPU"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, expected, tmp_path):
    """Bad input ends before Ray starts, with one line that names value and remedy."""
    output = [] if "--output-dir" in words else ["--output-dir", tmp_path]
    done = command(*words, *output)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for each in expected:
        assert each in done.stderr


def test_an_unreadable_image_is_refused_or_left_out(tmp_path):
    """It is named before Ray starts; with --skip-unreadable it is counted."""
    source = tmp_path / "images"
    for number in range(16):
        (source / f"c{number:02d}").mkdir(parents=True)
        for image in range(4):
            pixels = np.random.default_rng([number, image]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source / f"c{number:02d}" / f"{image}.png")
    torn = source / "c03" / "0.png"
    torn.write_bytes(torn.read_bytes()[:100])
    words = ["folder", "--dataset-dir", source, "--dry-run", "--output-dir", tmp_path / "out"]
    done = command(*words)
    assert done.returncode == 2
    assert str(torn) in done.stderr
    assert "--skip-unreadable" in done.stderr
    done = command(*words, "--skip-unreadable")
    assert done.returncode == 0, done.stderr
    assert "left out 1 of 32 training images" in done.stdout


def test_nothing_is_written_over(tmp_path):
    """A name that is taken is refused."""
    (tmp_path / "s").mkdir()
    for module in ("search", "train"):
        done = command("emoji", "--name", "s", "--output-dir", tmp_path, module=module)
        assert done.returncode == 2
        assert "--name s" in done.stderr


def test_a_cluster_that_is_not_there_is_refused(tmp_path):
    """At once, and nothing is recorded."""
    done = command("emoji", "--ray-address", "127.0.0.1:9", "--output-dir", tmp_path, "--name", "s")
    assert done.returncode == 2
    assert "--ray-address 127.0.0.1:9: nothing answers" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
