"""Searches and trials in a table, from a real MLflow store."""

import csv
import io
import json

import mlflow
import pytest

from dcml_tune.browse import main
from dcml_tune.config.errors import SettingError
from dcml_tune.tracking import Tracker
from dcml_tune.tracking.reading import model_of_run, read_runs

TRIALS = [  # key, nb_clusters, state, values by epoch
    ("000", 4, "FINISHED", [0.3, 0.5, 0.4]),
    ("001", 2, "PRUNED", [0.2, 0.1]),
    ("002", 8, "FINISHED", [0.4, 0.6, 0.7]),
    ("003", 8, "FAILED", []),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a search of four trials, a run of train by the paper's protocol, and a run of someone else."""
    output = tmp_path_factory.mktemp("runs")
    tracker = Tracker.open(output, "cars-1")
    tracker.start(
        "cars-1", name="cars-1", role="search", params={"dataset": "cars"}, tags={"dcml.protocol": "held_out"}
    )
    for key, clusters, state, values in TRIALS:
        name = f"cars-1/{key}"
        params = {"dataset": "cars", "nb_clusters": clusters, "nb_epochs": 3}
        tracker.start(name, name=key, role="trial", parent="cars-1", params=params, tags={})
        for step, value in enumerate([0.1, *values]):
            best = {"val/recall_at_1_best": max(values[:step])} if step else {}
            tracker.metrics(name, step, {"val/recall_at_1": value, "train/loss": 1.0, **best})
        tracker.end(name, state, reason="its loss is not finite" if state == "FAILED" else None)
    (output / "model").mkdir()
    (output / "model" / "model.json").write_text("{}")
    tracker.model("cars-1/002", output / "model", name="m", step=3, metrics={"val/recall_at_1_best": 0.7})
    tracker.start("cars-1/final", name="final", role="final", parent="cars-1", params={"nb_clusters": 8}, tags={})
    tracker.metrics("cars-1/final", 3, {"test/recall_at_1": 0.66})
    tracker.end("cars-1/final", "FINISHED")
    tracker.metrics("cars-1", 3, {"val/recall_at_1_best": 0.7})
    tracker.end("cars-1", "FINISHED")
    assert tracker.close(60) == 0
    tracker = Tracker.open(output, "mine")
    tracker.start("mine", name="mine", role="train", params={"dataset": "cub"}, tags={"dcml.protocol": "paper"})
    tracker.metrics("mine", 1, {"paper/recall_at_1": 0.9, "paper/recall_at_1_best": 0.9})
    tracker.end("mine", "INTERRUPTED", reason="SIGTERM")
    assert tracker.close(60) == 0
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    client.create_run(client.get_experiment_by_name("dcml_tune").experiment_id, run_name="someone else's")
    return output


@pytest.fixture
def browse(store, capsys):
    """Runs the command; gives the rows of its JSON, or what it said."""

    def run(*words, form="json"):
        assert main([*words, "--output-dir", str(store), *([f"--{form}"] if form else [])]) == 0
        said = capsys.readouterr().out
        if form == "json":
            return json.loads(said)
        return list(csv.DictReader(io.StringIO(said))) if form == "csv" else said

    return run


def test_searches_and_runs_have_a_row_each(browse):
    """With what came of them, the best first, and the protocol of those that chose on the test classes."""
    first, second = browse()
    assert [first["name"], first["kind"], first["state"], first["best"]] == ["mine", "train", "interrupted", 0.9]
    assert first["protocol"] == "paper"
    counts = [second[name] for name in ("name", "dataset", "state", "trials", "pruned", "failed", "best", "test")]
    assert counts == ["cars-1", "cars", "done", 4, 1, 1, 0.7, 0.66]
    assert [row["name"] for row in browse("--all", "--sort", "name")] == ["cars-1", "mine", "someone else's"]


def test_trials_show_what_varies(browse):
    """Of the settings only those that differ; epochs, last and best values, state and reason."""
    rows = browse("cars-1", form="csv")
    assert list(rows[0]) == [
        "name", "nb_clusters", "epochs", "last", "best", "best epoch", "test", "state", "min", "reason",
    ]  # fmt: skip
    found = {row["name"]: row for row in rows}
    assert [row["name"] for row in rows][:3] == ["002", "000", "001"]
    first = found["000"]
    assert [first[name] for name in ("epochs", "last", "best", "best epoch", "state")] == [
        "3",
        "0.4",
        "0.5",
        "2",
        "done",
    ]
    assert (found["001"]["state"], found["003"]["reason"]) == ("pruned", "its loss is not finite")
    assert found["final"]["test"] == "0.66"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--filter", "nb_clusters=8"], ["002", "003", "final"]),
        (["--filter", "nb_clusters>2", "--filter", "state=done"], ["002", "000", "final"]),
        (["--filter", "val/recall_at_1_best>=0.5"], ["002", "000"]),
        (["--filter", "state!=done"], ["001", "003"]),
        (["--sort", "nb_clusters"], ["001", "000"]),
        (["--sort", "best", "--descending", "--limit", "2"], ["002", "000"]),
        (["--filter", "best < 0.3"], ["001"]),
    ],
)
def test_filters_and_order(browse, words, names):
    """By columns, settings and measures; rows without the value are left out of a filter, and last in the order."""
    found = [row["name"] for row in browse("cars-1", *words)]
    assert sorted(found) == sorted(names) if "--sort" not in words else found[: len(names)] == names


def test_columns_of_ones_own_and_no_cut_at_80(browse):
    """Whatever is named; a table that is piped is as wide as it needs to be."""
    assert list(browse("cars-1", "--columns", "name,nb_epochs,train/loss", form="csv")[0]) == [
        "name", "nb_epochs", "train/loss",
    ]  # fmt: skip
    said = browse("cars-1", form=None)
    assert "its loss is not finite" in said
    assert "…" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["car-1"], "search 'car-1' is not known; did you mean 'cars-1'?"),
        (["--sort", "naem"], "'naem' is not known; did you mean 'name'?"),
        (["--filter", "nb_clusterz=3"], "'nb_clusterz' is not known"),
        (["--filter", "name"], "must be NAME OP VALUE"),
        (["--columns", "name,stat"], "'stat' is not known; did you mean 'state'?"),
        (["--experiment", "other"], "which has"),
    ],
)
def test_bad_input_is_one_line(browse, words, said):
    """With the remedy."""
    with pytest.raises(SettingError, match=said.replace("?", r"\?")):
        browse(*words)


def test_looking_makes_no_store(tmp_path):
    """A store that is not there is said to be missing."""
    with pytest.raises(SettingError, match="no MLflow store there"):
        main(["--output-dir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_more_runs_than_a_page(browse, store, monkeypatch):
    """All pages are read."""
    monkeypatch.setattr("dcml_tune.tracking.reading._PAGE", 2)
    assert len(read_runs(f"sqlite:///{store / 'mlflow.db'}", "dcml_tune", search="cars-1")) == 6


def test_the_model_of_a_run(store, tmp_path):
    """Found by MLflow's id; a run without one, and one that is not there, are refused."""
    uri = f"sqlite:///{store / 'mlflow.db'}"
    runs = {run.key: run for run in read_runs(uri, "dcml_tune")}
    place = model_of_run(runs["cars-1/002"].run_id, uri=uri, target=tmp_path)
    assert (place / "model.json").read_text() == "{}"
    with pytest.raises(SettingError, match="has logged no model"):
        model_of_run(runs["cars-1/000"].run_id, uri=uri, target=tmp_path)
    with pytest.raises(SettingError, match=f"run {'0' * 32}: is not in"):
        model_of_run("0" * 32, uri=uri, target=tmp_path)
