import html
import json
import os
import shlex
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import optuna
import pytest
import ray
from commands import inside
from PIL import Image

from dcml_tune.runs import ledger
from dcml_tune.runs.paths import mlflow_address, study_address
from dcml_tune.tracking import best_model
from dcml_tune.train import Flags
from dcml_tune.utils.files import read_checksummed

TINY = [
    "--train-classes", "16", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "16",
    "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "3", "--force-full-embedding-epoch", "2",
    "--mod-epoch", "1", "--mod-epoch-freeze", "0",
]  # fmt: skip
ALONE = ["--confirm", "0", "--final-seeds", "1"]  # nothing is confirmed


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
    """Trials, confirmation, final runs, verdict, report: each run once in MLflow, each scoring once in the ledger."""
    done = command(
        "folder", "--dataset-dir", folder, "--num-samples", 3, "--name", "s", "--output-dir", tmp_path, *TINY,
        "--confirm", 1, "--folds", 2, "--final-seeds", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in (
        "s: best MAP@R ",
        "trial 002 epoch",
        "best of 3 trials",
        "settings are compared on further held-out classes",
        "verdict:\n  the winner is ",
        "test, untrained",
        "dcml_tune.train",
        "compare-runs",
        "open the report: file://",
    ):
        assert words in done.stdout
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = of_role(runs, "search")[0]
    assert_trials(client, of_role(runs, "trial"), done.stdout, parent.data.tags["dcml.winner"])
    assert_confirmed(of_role(runs, "confirm"))
    assert_scored(runs, tmp_path / ledger.NAME)
    verdict = read_checksummed(tmp_path / "s" / "verdict.json")
    assert parent.data.tags["dcml.verdict"].splitlines() == verdict["lines"]
    assert all(line in done.stdout for line in verdict["lines"])
    files = {each.path for each in client.list_artifacts(parent.info.run_id)}
    assert {"verdict.json", ledger.NAME, "report"} <= files
    figures = {each.path for each in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/learning-curves.png", "report/neighbours.png"} <= figures
    assert "cannot be shown" not in (tmp_path / "s" / "report" / "index.html").read_text()
    assert best_model(uri, "dcml_tune", "s") is not None
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 's' / 'optuna.db'}")
    assert len(study.trials) == 3
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}


def of_role(runs, *roles):
    return [run for run in sorted(runs, key=key) if run.data.tags["dcml.role"] in roles]


def assert_trials(client, trials, said, winner):
    """A point an epoch from the untrained network on, no test class; the command that is printed trains the winner."""
    assert len(trials) == 3
    history = client.get_metric_history(trials[0].info.run_id, "val/map_at_r")
    assert [point.step for point in history][:2] == [0, 1]
    assert len({point.step for point in history}) == len(history)
    assert not [name for run in trials for name in run.data.metrics if name.startswith("test")]
    again = shlex.split(said.partition("train it again:\n")[2].splitlines()[0])
    config = Flags.read(again[3:]).config()
    params = next((run.data.params for run in trials if key(run) == f"s/{winner}"), {"nb_clusters": "1"})
    assert {name: str(getattr(config, name)) for name in params} == dict(params)


def assert_confirmed(confirm):
    """None on a unit of the search; controls on the first one, for their number of epochs; nothing of the test classes."""
    units = {}
    for run in confirm:
        units.setdefault(run.data.tags["dcml.setting"], set()).add((run.data.params["fold"], run.data.params["seed"]))
    assert set(units) >= {"published", "no division"}
    of_controls = [units.pop(control) for control in ("published", "no division")]
    assert of_controls == [{("1", "2")}] * 2
    assert list(units.values()) == [{("1", "2"), ("2", "3")}]
    assert not [name for run in confirm for name in run.data.metrics if name.startswith("test")]


def assert_scored(runs, file):
    """Winner and controls with two seeds each, the untrained network; the ledger has a line for each."""
    scored = of_role(runs, "final", "published", "no division", "untrained")
    assert {run.data.tags["dcml.setting"] for run in scored} >= {"published", "no division"}
    assert {"final", "untrained"} <= {run.data.tags["dcml.role"] for run in scored}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["run"] for line in lines) == [key(run) for run in scored]
    assert [line["before"] for line in lines] == list(range(len(scored)))
    before = {run.data.tags["dcml.key"]: int(run.data.tags["dcml.test_scored_before"]) for run in scored}
    assert before == {line["run"]: line["before"] for line in lines}
    assert all("test/recall_at_1" in run.data.metrics for run in scored)
    assert ledger.broken(file) == []


def key(run):
    return run.data.tags["dcml.key"]


def wider_space(directory):
    """A file with a space of one's own: that of `folder` and a learning rate."""
    path = directory / "wider.py"
    path.write_text(
        "from search_spaces import Float\nfrom search_spaces.folder import SPACE as FOLDER\n"
        "SPACE = FOLDER.widened(base_lr=Float(1e-5, 1e-3, log=True))\n"
    )
    return path


def test_a_search_never_opens_a_test_image(folder, tmp_path):
    """With test images that nothing can decode search and confirmation end well; nothing is in the ledger.

    A space of one's own and another searcher are taken.
    """
    space = wider_space(tmp_path)
    source = tmp_path / "images"
    shutil.copytree(folder, source)
    for directory in sorted(source.iterdir())[16:]:
        for image in directory.iterdir():
            image.write_bytes(b"not an image")
    done = command(
        "folder", "--dataset-dir", source, "--num-samples", 2, "--name", "s", "--output-dir", tmp_path / "runs", *TINY,
        "--final", "none", "--searcher", "random", "--scheduler", "none", "--max-concurrent", 2, "--time-budget", "10m",
        "--space", space, "--confirm", 1, "--folds", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "confirm-published-fold-1-seed-2 epoch 3" in done.stdout
    assert "the winner is " in done.stdout
    assert not (tmp_path / "runs" / ledger.NAME).exists()
    assert "2 at once" in done.stdout
    assert "test, " not in done.stdout
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'runs' / 's' / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert all(1e-5 <= trial.params["base_lr"] <= 1e-3 for trial in study.trials)


@pytest.mark.slow
def test_a_budget_ends_a_search(folder, tmp_path):
    """Of epochs: with status 0, as it was asked for; the reason is said."""
    images = ["folder", "--dataset-dir", folder, "--output-dir", tmp_path, *TINY, *ALONE, "--final", "none"]
    alone = ["--scheduler", "none", "--max-concurrent", 1]
    done = command(*images, "--name", "e", "--num-samples", 5, "--epoch-budget", 4, *alone)
    assert done.returncode == 0, done.stderr
    assert "ended early: the epoch budget was used up" in done.stdout
    assert "best of 2 trials" in done.stdout
    assert "4 of 6 epochs run" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
def test_patience_ends_a_search(folder, tmp_path):
    """With status 0, too."""
    words = ["folder", "--dataset-dir", folder, "--output-dir", tmp_path, *TINY, *ALONE, "--final", "none"]
    done = command(*words, "--num-samples", 30, "--patience", 1, "--scheduler", "none", "--max-concurrent", 1)
    assert done.returncode == 0, done.stderr
    assert "ended early: 1 trials in a row brought no improvement" in done.stdout


def test_a_search_is_extended_and_a_trial_repeated(folder, tmp_path):
    """In a wider space, with two metrics and a prior; another search learns from it; a trial repeats to the last bit.

    The output directory and the name hold characters that mean something in addresses, shells and templates.
    """
    space, place = wider_space(tmp_path), tmp_path / "odd"
    output = place / "r?u%20n#s & {y}'\"<>\\;$HOME[b]*é☃"
    images = ["folder", "--dataset-dir", folder, "--output-dir", output, *TINY, *ALONE, "--final", "none"]
    metrics = ["--metric", "recall_at_1", "--metric", "time/epoch_s"]
    done = command(*images, "--name", "lr%20x & {y};[b]", "--num-samples", 2, *metrics, "--prior")
    assert done.returncode == 0, done.stderr
    assert "prior: the published setting is the prior" in done.stdout
    assert "2 trials by optuna and none" in done.stdout
    search = output / "lr%20x & {y};[b]"
    done = command("--extend", search, "--num-samples", 1, "--space", space)  # by its path
    assert done.returncode == 0, done.stderr
    assert "best of 3 trials" in done.stdout
    front = done.stdout.partition("Pareto-optimal trials")[2].splitlines()
    assert front[1].startswith("  trial 00")
    assert "time/epoch_s" in front[1]
    assert "front-time-epoch_s.png" in os.listdir(search / "report")
    study = optuna.load_study(study_name=search.name, storage=study_address(search))
    rates = [trial.params["base_lr"] for trial in study.trials]
    assert rates[0] == rates[1] != rates[2]
    assert {len(trial.values) for trial in study.trials} == {2}

    done = command("--repeat-trial", search / "trials" / "002")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["epoch 0", "epoch 1", "epoch 2", "epoch 3", "identical"]
    client = mlflow.MlflowClient(mlflow_address(output))
    run = of_role(client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id]), "trial")[2]
    client.log_metric(run.info.run_id, "val/map_at_r", 0.999, step=3)
    done = command("--repeat-trial", run.info.run_id, "--output-dir", output)
    assert done.returncode == 3
    assert "val/map_at_r" in done.stdout
    assert "(was 0.999)" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 measures differ"
    done = inside("--repeat-trial", f"{search.name}/7", "--output-dir", output)
    assert (done.returncode, f"{search.name} has {search.name}/000, {search.name}/001" in done.stderr) == (2, True)

    later = [*images, "--name", "t", "--warm-start", search, *metrics, "--dry-run"]
    done = inside(*later)
    assert done.returncode == 0, done.stderr
    assert f"warm start from {search.name}: 2 trials teach the sampler; 1 are not comparable (base_lr)" in done.stdout
    done = inside(*later, "--scheduler", "asha")
    assert (done.returncode, "with several metrics no trial is pruned" in done.stderr) == (2, True)

    done = inside(search.name, "--output-dir", output, "--csv", module="browse")
    assert {line.partition(",")[0] for line in done.stdout.splitlines()} == {"name", "000", "001", "002"}, done.stderr
    again = subprocess.run(
        page_command(search, "This page again"), shell=True, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (again.returncode, (search / "report" / "index.html").as_uri() in again.stdout) == (0, True), again.stderr
    assert client.list_artifacts(of_role(runs_of(client), "search")[0].info.run_id)
    assert os.listdir(place) == [output.name]
    assert sorted(os.listdir(output)) == sorted(["mlflow.db", "mlflow.db.lock", "mlartifacts", "store", search.name])


def runs_of(client):
    return client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])


def page_command(search, about):
    """A command of the report, as one would paste it."""
    page = (search / "report" / "index.html").read_text()
    return html.unescape(page.partition(f"<h3>{about}</h3>\n<pre>")[2].partition("</pre>")[0])


def test_train_writes_a_checkpoint_that_loads(folder, tmp_path):
    """The training command runs one setting and leaves a model."""
    done = inside("folder", "--dataset-dir", folder, "--name", "t", "--output-dir", tmp_path, *TINY, module="train")
    assert done.returncode == 0, done.stderr
    from dcml_tune.models.embedder import load

    assert load(tmp_path / "t" / "checkpoint").masks.shape == (1, 16)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["emojy"], ["emojy", "emoji"]),
        (["folder"], ["--dataset-dir"]),
        (["folder", "--dataset-dir", "/nowhere"], ["/nowhere"]),
        (["emoji", "--nb-cluster", "4"], ["--nb-cluster", "--nb-clusters"]),
        (["emoji", "--gpus-per-trial", "1.5"], ["1.5", "whole"]),
        (["emoji", "--gpus-per-trial", "2"], ["--gpus-per-trial 2", "0 GPUs", "leave it out"]),
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
        (["cars", "--dataset-dir", os.path.dirname(__file__)], ["cars_annos.mat", "car_ims"]),
        (["emoji", "--backend", "faiss-gpu"], ["faiss-gpu", "GPU"]),
        (["emoji", "--folds", "9"], ["--folds 9", "leaves 4", "--val-share"]),
        (["emoji", "--metric", "time/epoch_s"], ["time/epoch_s", "one of images before it"]),
        (["emoji", "--metric", "map_at_r", "--metric", "val/map_at_r"], ["twice"]),
        (["emoji", "--warm-start", "yesterday"], ["--warm-start yesterday", "holds no search"]),
        (["emoji", "--final-seeds", "0"], ["--final-seeds 0", "from 1"]),
        (["emoji", "--confirm", "-1"], ["--confirm -1", "from 0"]),
        (["emoji", "--difference", "0"], ["--difference 0", "0.01"]),
        (["emoji", "--controls", "none"], ["--controls", "none", "published"]),
        (["emoji", "--more-final-seeds", "2"], ["--more-final-seeds 2", "--extend NAME"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, expected, tmp_path):
    """Bad input ends before Ray starts, with one line that names value and remedy."""
    output = [] if "--output-dir" in words else ["--output-dir", tmp_path]
    done = inside(*words, *output)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for each in expected:
        assert each in done.stderr
    assert not ray.is_initialized()


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
    done = inside(*words)
    assert done.returncode == 2
    assert str(torn) in done.stderr
    assert "--skip-unreadable" in done.stderr
    done = inside(*words, "--skip-unreadable")
    assert done.returncode == 0, done.stderr
    assert "left out 1 of 32 training images" in done.stdout


def test_nothing_is_written_over(tmp_path):
    """A name that is taken is refused."""
    (tmp_path / "s").mkdir()
    for module in ("search", "train"):
        done = inside("emoji", "--name", "s", "--output-dir", tmp_path, module=module)
        assert done.returncode == 2
        assert "--name s" in done.stderr


def test_a_cluster_that_is_not_there_is_refused(tmp_path):
    """At once, and nothing is recorded."""
    done = inside("emoji", "--ray-address", "127.0.0.1:9", "--output-dir", tmp_path, "--name", "s")
    assert done.returncode == 2
    assert "--ray-address 127.0.0.1:9: nothing answers" in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
