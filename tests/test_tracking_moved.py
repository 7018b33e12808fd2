"""MLflow's files are found after an output directory was moved, and what a spool holds is checked."""

import json
import shutil
import sqlite3
import zlib
from contextlib import closing

import pytest
from mlflow import MlflowClient

from dcml_tune.config import SettingError
from dcml_tune.tracking import Tracker, flush
from dcml_tune.tracking.moved import files_of, local_path
from dcml_tune.tracking.reading import model_of_run


def fill(output, name="s"):
    """A run with an artifact and a model; returns its id."""
    tracker = Tracker.open(output, name)
    tracker.start(name, name=name, role="search")
    model = output / name / "best"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    tracker.model(name, model, name="m", step=1, metrics={"val/recall_at_1": 0.5})
    tracker.artifact(name, model / "model.json", "facts")
    assert tracker.close() == 0
    run = tracker.run_id(name)
    assert run is not None
    return run


def addresses(database):
    with closing(sqlite3.connect(database)) as connection:
        rows = [
            *connection.execute("SELECT artifact_location FROM experiments WHERE name = 'dcml_tune'"),
            *connection.execute("SELECT artifact_uri FROM runs"),
            *connection.execute("SELECT artifact_location FROM logged_models"),
        ]
    return [address for (address,) in rows]


def below(output):
    return (output / "mlartifacts").as_uri()


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("name", ["runs", "r % ü?#'x"])
def test_artifacts_follow_an_output_directory(tmp_path, how, name, caplog):
    """Old ones are found, new ones are written beside them, and nothing is written to the old place."""
    old, new = tmp_path / "here" / name, tmp_path / "there" / name
    (tmp_path / "there").mkdir()
    run = fill(old)
    before = sorted(path.name for path in old.rglob("*"))
    old.rename(new) if how == "moved" else shutil.copytree(old, new)
    again = fill(new, "t")
    assert f"are in {new / 'mlartifacts'} now; 3 addresses follow" in caplog.text
    assert all(address.startswith(below(new)) for address in addresses(new / "mlflow.db"))
    client = MlflowClient(f"sqlite:///{new / 'mlflow.db'}")
    for each in (run, again):
        assert [file.path for file in client.list_artifacts(each, "facts")] == ["facts/model.json"]
    if how == "moved":
        assert not old.exists()
    else:
        assert sorted(path.name for path in old.rglob("*")) == before
        assert all(address.startswith(below(old)) for address in addresses(old / "mlflow.db"))


def test_a_reader_finds_models_without_changing_the_store(tmp_path):
    """As `evaluate RUN` does, before anybody has resumed."""
    run = fill(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    before = addresses(tmp_path / "new" / "mlflow.db")
    found = model_of_run(run, uri=f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", target=tmp_path / "download")
    assert (found / "model.json").is_file()
    assert found.is_relative_to(tmp_path / "new")
    assert addresses(tmp_path / "new" / "mlflow.db") == before


def test_a_place_of_the_users_own_stays(tmp_path):
    """The files of an experiment that a user put elsewhere are there still."""
    output, own = tmp_path / "runs", tmp_path / "large disk" / "mlartifacts"
    output.mkdir()
    own.mkdir(parents=True)
    MlflowClient(f"sqlite:///{output / 'mlflow.db'}").create_experiment("dcml_tune", own.as_uri())
    fill(output)
    assert all(address.startswith(own.as_uri()) for address in addresses(output / "mlflow.db"))
    assert next(own.rglob("model.json")).is_file()


def test_what_waits_is_delivered_at_the_new_place(tmp_path):
    """`flush` makes no database where the output directory was."""
    old, new = tmp_path / "old", tmp_path / "new"
    fill(old)
    with (old / "s" / "tracking" / "delivered.json").open("w") as file:
        json.dump({"offset": 0, "n": 0}, file)
    old.rename(new)
    assert flush(new / "s" / "tracking") == 0
    assert not old.exists()
    assert all(address.startswith(below(new)) for address in addresses(new / "mlflow.db"))


def test_addresses_of_files_are_read_as_they_are_written(tmp_path):
    """With whatever characters a path has; what is elsewhere is no path."""
    odd = tmp_path / "a b%20?#ü"
    odd.mkdir()
    assert local_path(odd.as_uri()) == local_path(str(odd)) == files_of(odd.as_uri(), None) == odd
    assert local_path("s3://bucket/x") is local_path("mlflow-artifacts:/0") is None
    assert files_of("file://other-host/x", tmp_path / "mlflow.db") is None


def line(number, record):
    text = json.dumps(record)
    return f'{{"n":{number},"crc":{zlib.crc32(f"{number}:{text}".encode())},"record":{text}}}\n'.encode()


START = {"kind": "start", "key": "t", "time": 1, "name": "t", "role": "train", "parent": None, "params": {}, "tags": {}}


@pytest.mark.parametrize(
    "record",
    [
        {},
        [],
        {**START, "kind": "launch"},
        {**START, "key": 5},
        {**START, "tags": {"a": 1}},
        {**START, "params": "x"},
        {"kind": "metrics", "key": "t", "time": 1, "step": 1, "values": {"a": "high"}},
        {"kind": "metrics", "key": "t", "time": 1, "step": 1.5, "values": {}},
        {"kind": "metrics", "key": "t", "time": 10**30, "step": 1, "values": {}},
        {"kind": "artifact", "key": "t", "time": 1, "artifact_path": None, "file": "../../victim/x"},
        {"kind": "artifact", "key": "t", "time": 1, "artifact_path": None, "file": f"{'0' * 32}/."},
        {"kind": "artifact", "key": "t", "time": 1, "artifact_path": None, "file": f"{'0' * 32}/.."},
    ],
)
def test_a_record_with_a_right_checksum_and_wrong_content_is_skipped(tmp_path, record, caplog):
    """It is named in the log, what follows is delivered, and nothing outside of the spool is touched."""
    spool = tmp_path / "s" / "tracking"
    (spool / "files").mkdir(parents=True)
    (tmp_path / "s" / "victim").mkdir()
    (tmp_path / "s" / "victim" / "x").write_text("")
    (spool / "spool.jsonl").write_bytes(line(1, record) + line(2, START))
    tracker = Tracker.open(tmp_path, "s")
    tracker.metrics("t", 1, {"a": 0.5})
    assert tracker.close() == 0
    assert "is skipped" in caplog.text
    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(tracker.run_id("t"))
    assert run.data.metrics == {"a": 0.5}
    assert (tmp_path / "s" / "victim" / "x").exists()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"offset": -1, "n": 0}', '{"offset": 1e300, "n": 0}', "[]", '{"offset": "0", "n": 0}']
)
def test_a_mark_that_cannot_be_sends_all_again(tmp_path, text):
    """Which changes nothing."""
    fill(tmp_path)
    (tmp_path / "s" / "tracking" / "delivered.json").write_text(text)
    tracker = Tracker.open(tmp_path, "s")
    tracker.metrics("s", 5, {"a": 1.0})
    assert tracker.close() == 0


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", '{"uri": 5, "experiment": "e", "artifact_root": null}'])
def test_a_target_that_cannot_be_is_one_line(tmp_path, text):
    """Nobody knows then where the records go."""
    (tmp_path / "s" / "tracking").mkdir(parents=True)
    (tmp_path / "s" / "tracking" / "target.json").write_text(text)
    with pytest.raises(SettingError, match=r"target\.json: "):
        flush(tmp_path / "s" / "tracking")
