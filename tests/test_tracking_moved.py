"""MLflow's files are found after an output directory was moved, and what a spool holds is checked."""

import json
import shutil
import sqlite3
import zlib
from contextlib import closing

import pytest
from mlflow import MlflowClient

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import mlflow_address
from dcml_tune.tracking import Tracker, flush
from dcml_tune.tracking.moved import files_of, local_path, repoint
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


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An output directory with a run, and its id; to be copied, since making a database takes seconds."""
    output = tmp_path_factory.mktemp("template") / "runs"
    return output, fill(output)


@pytest.fixture(params=["runs", "r % ü?#'x"])
def output(request, filled, tmp_path):
    """An output directory of that kind, all of whose addresses are its own."""
    place = shutil.copytree(filled[0], tmp_path / "here" / request.param)
    Tracker.open(place, "s").close()
    (tmp_path / "there").mkdir()
    return place


def test_artifacts_follow_an_output_directory_that_was_moved(output, filled, tmp_path, caplog):
    """Old ones are found, new ones are written beside them, and nothing is written to the old place."""
    new = output.rename(tmp_path / "there" / output.name)
    caplog.clear()
    again = fill(new, "t")
    assert f"are in {new / 'mlartifacts'} now; 3 addresses are updated" in caplog.text
    assert all(address.startswith(below(new)) for address in addresses(new / "mlflow.db"))
    client = MlflowClient(mlflow_address(new))
    for each in (filled[1], again):
        assert [file.path for file in client.list_artifacts(each, "facts")] == ["facts/model.json"]
    assert not output.exists()


def test_a_copy_has_artifacts_of_its_own(output, tmp_path):
    """And the original keeps its own."""
    before = sorted(path.name for path in output.rglob("*"))
    new = shutil.copytree(output, tmp_path / "there" / output.name)
    fill(new, "t")
    assert all(address.startswith(below(new)) for address in addresses(new / "mlflow.db"))
    assert all(address.startswith(below(output)) for address in addresses(output / "mlflow.db"))
    assert sorted(path.name for path in output.rglob("*")) == before


def test_a_reader_finds_models_without_changing_the_store(output, filled, tmp_path):
    """As `evaluate RUN` does, before anybody has resumed."""
    new = output.rename(tmp_path / "there" / output.name)
    before = addresses(new / "mlflow.db")
    found = model_of_run(filled[1], uri=mlflow_address(new), target=tmp_path / "download")
    assert (found / "model.json").is_file()
    assert found.is_relative_to(new)
    assert addresses(new / "mlflow.db") == before


def test_a_place_of_the_users_own_stays(output, filled, tmp_path):
    """The files of an experiment that a user put elsewhere are there still."""
    own = tmp_path / "large disk" / "mlartifacts"
    own.parent.mkdir()
    (output / "mlartifacts").rename(own)
    repoint(output / "mlflow.db", (output / "mlartifacts").as_uri(), own)  # not beside the database: nothing is done
    assert all(address.startswith(below(output)) for address in addresses(output / "mlflow.db"))
    with closing(sqlite3.connect(output / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'dcml_tune'", (own.as_uri(),))
    fill(output, "t")
    assert sum(address.startswith(own.as_uri()) for address in addresses(output / "mlflow.db")) == 3


def test_what_waits_is_delivered_at_the_new_place(output, tmp_path):
    """`flush` makes no database where the output directory was."""
    (output / "s" / "tracking" / "delivered.json").unlink()
    new = output.rename(tmp_path / "there" / output.name)
    assert flush(new / "s" / "tracking") == 0
    assert not output.exists()
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


WRONG = [
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
]


def test_records_with_a_right_checksum_and_wrong_content_are_skipped(filled, tmp_path, caplog):
    """They are named in the log, what follows is delivered, and nothing outside of the spool is touched."""
    output = shutil.copytree(filled[0], tmp_path / "runs")
    spool = output / "t" / "tracking"
    (spool / "files").mkdir(parents=True)
    (output / "t" / "victim").mkdir()
    (output / "t" / "victim" / "x").write_text("")
    lines = [line(number, record) for number, record in enumerate(WRONG, 1)]
    deep = '{"a":' * 50_000
    lines.append(f'{{"n":99,"crc":{zlib.crc32(f"99:{deep}}}".encode())},"record":{deep}}}}}\n'.encode())
    (spool / "spool.jsonl").write_bytes(b"".join(lines) + line(100, START))
    tracker = Tracker.open(output, "t")
    tracker.metrics("t", 1, {"a": 0.5})
    assert tracker.close() == 0
    assert caplog.text.count("is skipped") == len(WRONG) + 1
    run = MlflowClient(mlflow_address(output)).get_run(tracker.run_id("t"))
    assert run.data.metrics == {"a": 0.5}
    assert (output / "t" / "victim" / "x").exists()


def test_a_mark_that_cannot_be_sends_all_again(filled, tmp_path):
    """Which changes nothing."""
    output = shutil.copytree(filled[0], tmp_path / "runs")
    for text in ("[" * 100_000, '{"offset": -1, "n": 0}', '{"offset": 1e300, "n": 0}', "[]", '{"offset": "0", "n": 0}'):
        (output / "s" / "tracking" / "delivered.json").write_text(text)
        assert flush(output / "s" / "tracking") == 0


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", '{"uri": 5, "experiment": "e", "artifact_root": null}'])
def test_a_target_that_cannot_be_is_one_line(tmp_path, text):
    """Nobody knows then where the records go."""
    (tmp_path / "s" / "tracking").mkdir(parents=True)
    (tmp_path / "s" / "tracking" / "target.json").write_text(text)
    with pytest.raises(SettingError, match=r"target\.json: "):
        flush(tmp_path / "s" / "tracking")
