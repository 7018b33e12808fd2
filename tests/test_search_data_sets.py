"""Whole searches: on each published data set, in the exact layout of its copy, and by the paper's protocol."""

import os
import subprocess
import sys

import mlflow
import pytest
import trees

TINY = [
    "--arch", "test_resnet", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "16",
    "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "3", "--force-full-embedding-epoch", "2",
    "--mod-epoch", "1", "--mod-epoch-freeze", "0", "--nb-clusters", "2",
]  # fmt: skip


def search(*words):
    return subprocess.run(
        [sys.executable, "-m", "dcml_tune.search", *map(str, words), *TINY, "--confirm", "0", "--final-seeds", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=400,
        check=False,
    )


def runs(output):
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
    return {run.info.run_name: run for run in found}


@pytest.mark.parametrize(
    ("name", "make", "measures"),
    [
        pytest.param("cub", trees.make_cub, {"test/recall_at_1", "test/recall_at_8"}, marks=pytest.mark.slow),
        pytest.param("cars", trees.make_cars, {"test/recall_at_1", "test/recall_at_8"}, marks=pytest.mark.slow),
        pytest.param("sop", trees.make_sop, {"test/recall_at_1", "test/recall_at_100"}, marks=pytest.mark.slow),
        ("inshop", trees.make_inshop, {"test/recall_at_1", "test/recall_at_50"}),
        ("vid", trees.make_vid, {"test/recall_at_1", "test/recall_at_5", "test_1600/recall_at_1", "test_800/map_at_r"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_search_on_a_published_data_set(name, make, measures, tmp_path):
    """A partial copy is refused; when that is allowed, trials are compared on held-out classes and test classes scored."""
    make(tmp_path / "data")
    words = [name, "--dataset-dir", tmp_path / "data", "--output-dir", tmp_path / "runs"]
    refused = search(*words)
    assert refused.returncode == 2
    assert "--allow-partial" in refused.stderr
    done = search(*words, "--allow-partial", "--name", "s", "--num-samples", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"search s: {name}" in done.stdout
    found = runs(tmp_path / "runs")
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    final = next(run for run in found.values() if run.data.tags["dcml.role"] in ("final", "published"))
    assert measures <= set(final.data.metrics)
    assert "val/map_at_r_best" in found["000"].data.metrics
    assert not [metric for metric in found["000"].data.metrics if metric.startswith("test")]


@pytest.mark.slow
def test_a_search_by_the_papers_protocol(folder, tmp_path):
    """Trials are chosen on the test classes, and every place says so; nothing is retrained, and nothing is called test."""
    words = ["folder", "--dataset-dir", folder, "--output-dir", tmp_path, "--protocol", "paper"]
    refused = search(*words, "--metric", "val/map_at_r")
    assert (refused.returncode, "give that" in refused.stderr) == (2, True), refused.stderr
    done = search(*words, "--name", "s", "--num-samples", 2, "--metric", "map_at_r")
    assert done.returncode == 0, done.stderr
    label = "paper protocol: epochs and trials are chosen on the test classes"
    head, _, end = done.stdout.partition("best of 2 trials")
    assert label in head
    assert f"({label})" in " ".join(end.split())
    assert "paper/map_at_r" in end
    assert "test, " not in done.stdout
    found = runs(tmp_path)
    assert set(found) == {"s", "000", "001"}
    for run in found.values():
        assert run.data.tags["dcml.protocol"] == "paper"
        assert not [metric for metric in run.data.metrics if metric.startswith(("val/", "test"))]
    assert "paper/map_at_r_best" in found["000"].data.metrics


def test_a_search_without_anything_to_compare_on_is_refused(folder, tmp_path):
    """Without held-out classes there is nothing to choose by."""
    done = search("folder", "--dataset-dir", folder, "--output-dir", tmp_path, "--val-share", "0")
    assert done.returncode == 2
    assert "val_share=0" in done.stderr
    assert "--protocol paper" in done.stderr


@pytest.mark.slow
def test_any_setting_can_vary(folder, tmp_path):
    """Losses, samplers, initialisations and truth values are searched by naming them in a space."""
    space = tmp_path / "space.py"
    space.write_text(
        "from search_spaces import Choice, Float\nfrom search_spaces.folder import SPACE as FOLDER\n"
        "SPACE = FOLDER.widened(criterion=Choice(['MarginLoss', 'npairs', 'triplet_all']), "
        "sampler=Choice(['HPSHN', 'distanceweighted']), fixed_mask=Choice([False, True]), "
        "init_method=Choice([None, 'xavier_uniform_1']), lr_beta=Float(0.0, 0.1))\n"
    )
    words = ["folder", "--dataset-dir", folder, "--output-dir", tmp_path / "runs", "--space", space, "--name", "s"]
    done = search(*words, "--num-samples", 3, "--scheduler", "none", "--searcher", "random", "--final", "none")
    assert done.returncode == 0, done.stdout + done.stderr
    found = runs(tmp_path / "runs")
    assert len({run.data.params["criterion"] for run in found.values() if run.data.tags["dcml.role"] == "trial"}) > 1
