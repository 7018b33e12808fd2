"""Trials whose files are in a storage: they go on on other nodes, and the driver gets what it reads of them."""

import dataclasses
import json
import subprocess
import sys

import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.models.embedder import best_model
from dcml_tune.runs import ledger
from dcml_tune.runs.paths import LEDGER, output_directory
from dcml_tune.runs.storage import Storage, StorageError
from dcml_tune.runs.stores import Stores
from dcml_tune.runs.trial_files import StoredTrialFiles
from dcml_tune.training.saving import has_state
from trainables import DivideAndConquer, Run
from trainables.node_check import Needs, NodeFaultError, examine
from trainables.run import STOP_SEARCH
from trainables.starts import Starts
from trainables.stored_trial import take_stored

SETTINGS = {
    "dataset": "folder", "train_classes": 16, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32,
    "sz_embedding": 8, "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 4, "nb_clusters": 2, "mod_epoch": 1,
    "force_full_embedding_epoch": 3,
}  # fmt: skip


@pytest.fixture
def address(tmp_path):
    return f"file://{tmp_path}/bucket"


@pytest.fixture
def files(address, monkeypatch):
    """What the driver does with the trials of a search; a process that was replaced finds out only when it saves."""
    monkeypatch.setattr("trainables.stored_trial._LOOK_S", 10**6)
    return StoredTrialFiles(Storage(address), "s")


@pytest.fixture
def config(folder, tmp_path, address, files):
    """Makes the dictionary of a new start of a trial on a node, given the name of the node."""

    def dictionary(node, key="000", **run):
        directory = tmp_path / node / "s" / "trials" / key
        where = {"storage": address, "stores": str(tmp_path / "store"), "directory": str(directory), "key": key, **run}
        return {
            **SETTINGS,
            "dataset_dir": str(folder),
            "run": Run(attempt=files.next_attempt(directory), **where).as_dict(),
        }

    return dictionary


def values(result):
    return {name: value for name, value in result.items() if name.startswith(("val/", "train/"))}


def test_a_trial_goes_on_on_another_node(config, files, tmp_path):
    """With the very numbers of one that ran through. The driver gets its best model; the node keeps nothing."""
    through = DivideAndConquer({**config("x"), "run": Run(stores=str(tmp_path / "store")).as_dict()})
    expected = [values(through.train()) for _ in range(4)]
    first = DivideAndConquer(config("a"))
    reported = [first.train() for _ in range(2)]
    second = DivideAndConquer(config("b", reported=2))  # the first one is cut off from the driver
    again = [second.train() for _ in range(3)]
    assert [values(result) for result in (*reported, *again[1:])] == expected
    assert (again[0]["epoch"], again[0]["time_ms"]) == (2, reported[1]["time_ms"])
    assert again[-1]["done"]
    directory = tmp_path / "driver" / "s" / "trials" / "000"
    files.collect(directory)
    assert best_model(directory) is not None
    assert not has_state(directory)
    second.stop()
    first._ownership.release()
    assert [path.name for path in (tmp_path / "b" / "s").rglob("*") if path.is_file()] == []


def test_epochs_that_the_driver_lacks_are_reported_again(config):
    """A driver on another machine has an older study: each saved epoch from the last one that it has comes again, in order."""
    first = DivideAndConquer(config("a"))
    reported = [first.train() for _ in range(3)]
    second = DivideAndConquer(config("b", reported=1))
    again = [second.train() for _ in range(3)]
    assert [(each["epoch"], values(each), each["time_ms"]) for each in again] == [
        (each["epoch"], values(each), each["time_ms"]) for each in reported
    ]
    assert second.train()["epoch"] == 4
    for trial in (first, second):
        trial._ownership._released.set()
        trial.stop()


def test_a_new_trial_does_not_take_the_files_of_another_one(config, files, tmp_path):
    """Of one with its key that a driver sampled just before it was killed; but a second start of it takes its own."""
    old = DivideAndConquer(config("a"))
    old.train()
    starts, run = Starts(files=files), dataclasses.replace(old.run, is_new=True)
    directory = tmp_path / "a" / "s" / "trials" / "000"
    starts.next_attempt(run, directory)
    assert files.files(directory).newest().files == {}
    other = DivideAndConquer({**config("b"), "base_lr": 1e-4})
    assert other.train()["epoch"] == 1
    starts.next_attempt(run, directory)
    assert files.files(directory).newest().files != {}
    old.stop()
    other.stop()


@pytest.mark.parametrize(
    ("run", "last", "expected"),
    [
        ({}, None, None),
        ({"storage": "file:///x"}, {"epoch": 5}, 5),
        ({"storage": "file:///x", "reported": 4}, {}, 3),
        ({"storage": "file:///x", "reported": 2}, None, 2),
        ({"storage": "file:///x"}, None, 3),
    ],
)
def test_what_the_driver_has_of_a_trial(run, last, expected):
    """What this process was told; otherwise what both the study and the outbox have, which is 3 epochs here."""
    assert Starts(recorded=lambda key: 3).reported(Run(**run), last) == expected


def test_what_is_not_needed_of_an_ended_trial_is_removed(config, files, tmp_path):
    """But only when the study in the storage knows its end; what the driver has removed since is removed there, too."""
    trial = DivideAndConquer(config("a"))
    trial.train()
    directory = tmp_path / "driver" / "s" / "trials" / "000"
    files.collect(directory)
    assert trial._ownership.is_over()
    files.keep(directory)
    best = best_model(directory)
    files.remove_rest(0.0)  # a push that began before the end of the trial
    assert any("/trainer-" in name for name in Storage(f"file://{tmp_path}/bucket").sizes())
    files.remove_rest()
    names = Storage(f"file://{tmp_path}/bucket").child("s", "trials", "000").sizes()
    assert not any("/trainer-" in name for name in names)
    assert any(f"/{best.name}/" in name for name in names)
    for path in best.iterdir():
        path.unlink()
    files.keep(directory)
    files.remove_rest()
    other = tmp_path / "other" / "s" / "trials"
    files.get_all(other)
    assert best_model(other / "000") is None
    trial.stop()


def test_a_process_that_was_replaced_ends(tmp_path, address, files):
    """Before it takes anything, or before it saves."""
    directory = tmp_path / "a" / "s" / "trials" / "000"
    first, second = files.next_attempt(directory), files.next_attempt(directory)
    code = "import sys; from pathlib import Path; from trainables.stored_trial import take_stored; " + (
        "take_stored(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).is_over()"
    )
    for number, status in ((first, 75), (second, 0)):
        words = [sys.executable, "-c", code, str(directory), str(number), address]
        assert subprocess.run(words, capture_output=True, check=False).returncode == status


def test_a_process_uses_what_is_on_its_node(tmp_path, address, files, monkeypatch):
    """After a crash on the same node nothing is copied over the network."""
    directory = tmp_path / "a" / "s" / "trials" / "000"
    first = take_stored(directory, files.next_attempt(directory), address)
    (first.files / "state").write_text("1")
    first.push()
    first._released.set()
    monkeypatch.setattr(Storage, "download", lambda *_: pytest.fail("a file was copied"))
    second = take_stored(directory, files.next_attempt(directory), address)
    assert (second.files / "state").read_text() == "1"
    assert [path.name for path in second.files.parent.iterdir()] == [second.files.name]
    second.release()


@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_storage_that_is_away_ends_no_trial(config, monkeypatch, on_cluster):
    """Here the search stops, to be resumed; on a cluster the trial moves to another node. The sampler is told nothing."""
    trial = DivideAndConquer(config("a", on_cluster=on_cluster))
    trial.train()

    def away(*_):
        raise StorageError("--storage x: is away")

    monkeypatch.setattr("dcml_tune.runs.stored_files.StoredAttempt.push", away)
    if on_cluster:
        with pytest.raises(NodeFaultError, match=r"is away"):
            trial.train()
    else:
        assert trial.train()[STOP_SEARCH] == "--storage x: is away"
    trial.stop()


def test_one_ledger_of_all_nodes(tmp_path, address):
    """Each scoring counts those of all nodes; each node has the whole ledger, whose chain is unbroken."""
    places = [tmp_path / name / LEDGER for name in ("a", "b")]
    for place in places:
        place.parent.mkdir()
    facts = {"dataset": "cars", "test_set": "t"}
    befores = [
        ledger.Ledger(file=places[number % 2], storage=address).enter(run=f"s/{number}", **facts) for number in range(4)
    ]
    assert befores == [0, 1, 2, 3]
    driver = tmp_path / "c" / LEDGER
    driver.parent.mkdir()
    ledger.pull(driver, Storage(address))
    assert [json.loads(line)["run"] for line in driver.read_text().splitlines()] == [
        f"s/{number}" for number in range(4)
    ]
    assert ledger.broken(driver) == []


def test_a_ledger_that_was_there_before_is_taken_over(tmp_path, address, caplog):
    """By an empty storage; one with other lines is left as it is, with a line."""
    mine, other = tmp_path / LEDGER, tmp_path / "other"
    ledger.enter(mine, run="old", dataset="cars", test_set="t")
    ledger.pull(mine, Storage(address))
    assert ledger.Ledger(file=mine, storage=address).enter(run="new", dataset="cars", test_set="t") == 1
    assert ledger.broken(mine) == []
    ledger.enter(other, run="else", dataset="cars", test_set="t")
    before = other.read_text()
    ledger.pull(other, Storage(address))
    assert other.read_text() == before
    assert "has other lines than the ledger of the storage" in caplog.text


# -- the check of a node -------------------------------------------------------------------------------


def test_what_a_node_needs_of_a_storage(tmp_path, address):
    """That of the driver, and a directory of its own; the check leaves nothing in either."""
    needs = Needs(output=str(tmp_path / "runs"), storage=address)
    needs.write_mark()
    before = Storage(address).sizes()

    def reason(**changes):
        return examine(dataclasses.replace(needs, **changes).as_dict(), gpus=0)["reason"]

    assert reason() is None
    assert Storage(address).sizes() == before
    assert "is not the storage of the driver there" in reason(storage=f"file://{tmp_path}/another")
    (tmp_path / "file").write_text("")
    assert "file/x: cannot be used" in reason(storage=f"file://{tmp_path}/file/x")
    taken = f"--output-dir {tmp_path}/file: it cannot be written (File exists) there; all nodes need a directory of this path"
    assert taken in reason(output=str(tmp_path / "file"))
    needs.remove_mark()
    assert Storage(address).sizes() == {}


def test_image_stores_are_on_the_disk_of_each_node(tmp_path):
    """In the output directory, or that of --scratch; room for them is checked on each node."""
    assert Stores.below(tmp_path, None, "s3://b").on_node
    assert Stores.below(tmp_path, "/local", "s3://b").on_node
    assert not Stores.below(tmp_path, None).on_node
    assert Run(stores="/local", storage="s3://b").places == Stores(Stores.of("/local").directory, None, "s3://b")


def test_an_address_as_output_directory_names_the_flag():
    """--storage takes it."""
    with pytest.raises(SettingError, match=r"--output-dir s3://b/x: .* give --storage s3://b/x to keep them there"):
        output_directory("s3://b/x")
