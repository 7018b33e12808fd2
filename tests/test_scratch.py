"""--scratch: the image stores lie on a node's own disk, are known by content, and are built or copied once a node."""

import dataclasses
import errno
import io
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from changed_images import copied, list_of, moved, with_other_content
from PIL import Image

from dcml_tune import evaluate, train
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import ImageList, contents, open_or_build
from dcml_tune.data import __main__ as data_command
from dcml_tune.data.image_store import builder, copying, room
from dcml_tune.report.sections import pictures
from dcml_tune.runs.record import Record
from dcml_tune.runs.stores import Stores, scratch_directory
from dcml_tune.search import __main__ as search
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.plan import given_plan
from dcml_tune.search.resume import resumed_plan
from dcml_tune.training.trial_data import TrialData
from trainables import DivideAndConquer, Run, node_disk
from trainables.node_check import Needs, NodeFaultError, examine
from trainables.run import FAILED

SIZES = {"sz_resize": 24, "sz_crop": 20}


@pytest.fixture
def images(tmp_path):
    """Seven images."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(7):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number}.bmp")
    return list_of(root)


@pytest.fixture
def stores(tmp_path):
    """The directories of a node: its own, and that of the output directory."""
    return Stores.below(tmp_path / "runs", str(tmp_path / "local"))


@pytest.fixture
def copies(monkeypatch):
    """Whether a copy is said to take less time than decoding; it is."""
    monkeypatch.setattr(copying, "is_faster", lambda *_: True)


@pytest.fixture
def done(monkeypatch):
    """What was done to get a store: images whose bytes were read, stores that were built or copied."""
    found = []
    hashed, built, copied = contents._hash, builder._fill, copying._copied
    monkeypatch.setattr(contents, "_hash", lambda path: found.append("read") or hashed(path))
    monkeypatch.setattr(builder, "_fill", lambda *all: found.append("built") or built(*all))
    monkeypatch.setattr(copying, "_copied", lambda *all: found.append("copied") or copied(*all))
    return found


def store_of(images, stores, **more):
    return open_or_build(images, stores, kind="full", **SIZES, **more)


def assert_whole(store, images):
    assert [(store.image(i) == images.read(i)).all() for i in range(len(images))] == [True] * len(images)
    assert store.is_verified()
    assert left_in(store.directory.parent) == []


def left_in(directory):
    """What is there beside stores, locks and hashes."""
    return [path.name for path in directory.iterdir() if ".building-" in path.name or ".old-" in path.name]


# -- known by content ------------------------------------------------------------------------------------------------


def touched(images):
    for path in images.root.iterdir():
        os.utime(path, ns=(5, 5))
    return images


def other_content_at_the_same_time(images):
    """As above, and the time of the file is set back."""
    stat = (images.root / images.paths[0]).stat()
    with_other_content(images)
    os.utime(images.root / images.paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return images


@pytest.mark.parametrize(
    ("change", "read", "same"),
    [
        (touched, 7, True),
        (copied, 7, True),
        (moved, 0, True),
        (with_other_content, 1, False),
        (other_content_at_the_same_time, 0, True),  # docs/reliability.md: sizes and times decide what is read again
    ],
)
def test_a_store_is_known_by_the_content_of_its_images(images, stores, done, change, read, same):
    """A copy of the data with new times finds the store that is there, and each of its files is read once."""
    before = store_of(images, stores).key
    done.clear()
    assert (store_of(change(images), stores).key == before) == same
    assert done == ["read"] * read + ["built"] * (not same)


def test_nodes_with_the_same_images_read_them_once(images, stores, tmp_path, done):
    """The hashes of the first node serve the others, whose own disk has none; what differs is read there."""
    store_of(images, stores)
    assert done == ["read"] * 7 + ["built"]
    other = Stores.below(tmp_path / "runs", str(tmp_path / "local of another"))
    done.clear()
    store_of(images, other)
    assert done == ["built"]
    done.clear()
    assert contents.contents(touched(images), other) == contents.contents(images, tmp_path / "none")
    assert done == ["read"] * 14
    assert not (stores.common / "full").exists()
    assert [path.name for path in stores.common.iterdir()] == ["contents"]


# -- built or copied -------------------------------------------------------------------------------------------------


def test_a_store_of_the_output_directory_is_copied(images, stores, copies, done):
    """Nothing is decoded; a second call opens what is there."""
    store_of(images, stores.common)
    done.clear()
    told = []
    copy = store_of(images, stores, progress=lambda *all: told.append(all))
    assert (done, told) == (["copied"], [(7, 7)])
    assert copy.directory.parent == stores.directory
    assert_whole(copy, images)
    assert store_of(images, stores, verify=True).key == copy.key
    assert done == ["copied"]


@pytest.mark.parametrize("slow", ["reading", "decoding"])
def test_what_takes_less_time_is_done(images, stores, monkeypatch, done, slow):
    """By a sample of both on this node: here one of them is slowed down."""
    source = store_of(images, stores.common)
    place, name = (copying, "_reading") if slow == "reading" else (ImageList, "decode")
    real = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *all: time.sleep(0.5) or real(*all))
    done.clear()
    store = store_of(images, stores)
    assert done == (["copied", "built"] if slow == "reading" else ["copied"])
    assert store.key == source.key
    assert_whole(store, images)


def torn(store):
    """The end of the pixels is missing."""
    with (store / "pixels.npy").open("r+b") as file:
        file.truncate(3000)


def flipped(store):
    """A byte of a pixel is another one, without a trace in size and time."""
    path = store / "pixels.npy"
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def without_index(store):
    (store / "index.npy").unlink()


def without_description(store):
    (store / "meta.json").unlink()


def of_another_time(store):
    """Its description was written by hand."""
    (store / "meta.json").write_text((store / "meta.json").read_text().replace('"kind": "full"', '"kind": "small"'))


@pytest.mark.parametrize("damage", [torn, flipped, without_index, without_description, of_another_time])
def test_a_damaged_store_is_not_copied(images, stores, copies, caplog, damage):
    """The images are decoded instead, the log says why, and the damaged store is left to those who use it."""
    source = store_of(images, stores.common).directory
    damage(source)
    assert_whole(store_of(images, stores), images)
    assert f"{source}: no copy can be made (" in caplog.text
    assert source.exists()


@pytest.mark.parametrize("kind", [errno.EIO, errno.ESTALE])
def test_shared_storage_that_fails_while_it_is_read(images, stores, copies, monkeypatch, caplog, kind):
    """Says nothing about this node: the images are decoded."""
    store_of(images, stores.common)

    def fails(file, size):
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(copying.os, "read", fails)
    assert_whole(store_of(images, stores), images)
    assert f"no copy can be made ({os.strerror(kind)}); the images are decoded" in caplog.text


@pytest.mark.parametrize("damage", [torn, flipped, without_index, without_description, of_another_time])
def test_a_damaged_store_of_a_node_is_made_again(images, stores, damage, done):
    """Each node compares the pixels of its own store with their checksums: nobody else sees it."""
    damage(store_of(images, stores).directory)
    done.clear()
    assert_whole(store_of(images, stores), images)
    assert done == ["built"]


def _copy_and_die(images, stores):
    real = copying._next_block
    copying.is_faster = lambda *_: True
    copying._BLOCK = 4096
    count = iter(range(100))
    copying._next_block = lambda file: real(file) if next(count) < 2 else os.kill(os.getpid(), signal.SIGKILL)
    store_of(images, stores)


def test_a_copy_that_was_killed_is_not_taken_for_a_store(images, stores, copies, done):
    """The next process removes what was left, and copies it all."""
    store_of(images, stores.common)
    child = multiprocessing.get_context("fork").Process(target=_copy_and_die, args=(images, stores))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(left_in(stores.directory)) == 1
    done.clear()
    assert_whole(store_of(images, stores), images)
    assert done == ["copied"]


def _open_at_once(images, stores, barrier, results):
    copying.is_faster = lambda *_: True
    made = []
    copying._copied = lambda *all, copy=copying._copied: made.append("copied") or copy(*all)
    builder._fill = lambda *all, fill=builder._fill: made.append("built") or fill(*all)
    barrier.wait()
    store = store_of(images, stores)
    results.put((made, store.damaged()))


@pytest.mark.parametrize("shared", [True, False])
def test_processes_of_a_node_make_one_store(images, stores, shared):
    """Of three trials that begin at once one copies or builds it, and the others wait."""
    if shared:
        store_of(images, stores.common)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_open_at_once, args=(images, stores, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(made for made, _ in found) == [[], [], ["copied" if shared else "built"]]
    assert [damaged for _, damaged in found] == [[], [], []]
    assert left_in(stores.directory) == []


@pytest.mark.parametrize("shared", [True, False])
def test_a_scratch_directory_without_room_is_refused(images, stores, copies, monkeypatch, shared):
    """Before anything is copied or decoded."""
    if shared:
        store_of(images, stores.common)
    monkeypatch.setattr(room, "free_bytes", lambda place: 10**6)
    with pytest.raises(SettingError, match=f"{stores.directory}: the image store needs .* and 1.0 MB are free there"):
        store_of(images, stores)
    assert left_in(stores.directory) == []


# -- the directory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("", "--scratch '': an empty path"),
        ("s3://bucket/x", "--scratch s3://bucket/x: image stores are files that are memory-mapped; give a directory"),
        ("{data}", "it lies inside the data set .*; choose another directory"),
        ("{data}/below/it", "it lies inside the data set"),
        ("{data}/../data/below", "it lies inside the data set"),
        ("{link}/below", "it lies inside the data set"),
        ("{file}", r"it cannot be written \(File exists\); choose another directory"),
        ("{file}/below", r"it cannot be written \(Not a directory\)"),
        ("/proc/no", r"it cannot be written \(No such file or directory\)"),
        ("/sys/kernel", r"it cannot be written \("),
        ("{new}", None),
        ("{new}/and/below", None),
        ("~/local", None),
        ("local", None),
    ],
)
def test_the_directory_is_made_or_refused(tmp_path, monkeypatch, word, expected):
    """Missing ones are created; `~` is the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "file").touch()
    word = word.format(**{name: tmp_path / name for name in ("data", "link", "file", "new")})
    if expected is not None:
        with pytest.raises(SettingError, match=expected):
            scratch_directory(word, str(tmp_path / "data"))
        return
    made = Path(scratch_directory(word, str(tmp_path / "data")))
    assert made.is_dir()
    assert made.is_relative_to(tmp_path)
    assert list(made.iterdir()) == []


def test_the_store_of_the_output_directory_is_no_other_place(tmp_path):
    """So that a resume may go back to it."""
    assert Stores.below(tmp_path, str(tmp_path / "store")) == Stores.below(tmp_path, None) == Stores(tmp_path / "store")


# -- the check of a node ---------------------------------------------------------------------------------------------

SETTINGS = {
    "dataset": "folder", "train_classes": 16, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32,
    "sz_embedding": 8, "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 3, "force_full_embedding_epoch": 2, "mod_epoch": 1,
    "mod_epoch_freeze": 0, "nb_clusters": 2,
}  # fmt: skip


@pytest.fixture
def needs(folder, tmp_path):
    """What the driver needs of a node, with --scratch."""
    config = TrialConfig(**SETTINGS, dataset_dir=str(folder))
    stores = Stores.below(tmp_path / "runs", str(tmp_path / "local"))
    opened = TrialData.open(config, stores)
    needs = Needs(output=str(tmp_path / "runs"), scratch=str(tmp_path / "local"))
    needs.mark.write_text(needs.token)
    sizes = opened.store_bytes(config, tests=False)
    return needs.with_images(config.model_dump(), opened.identity(config).compared, sizes)


def on_a_node(needs, **changes):
    return examine(dataclasses.replace(needs, **changes).as_dict(), gpus=0)["reason"]


def test_a_node_needs_a_place_and_room_for_the_stores(needs, folder, tmp_path, monkeypatch):
    """The same directory as on the driver's node; only stores that are not there need room."""
    assert on_a_node(needs) is None
    (tmp_path / "file").touch()
    assert on_a_node(needs, scratch=str(tmp_path / "file")) == (
        f"--scratch {tmp_path}/file: it cannot be written (File exists) there; all nodes need the same path"
    )
    assert "it lies inside the data set" in on_a_node(needs, scratch=str(folder / "x"))
    assert not (folder / "x").exists()
    empty = tmp_path / "empty"
    assert on_a_node(needs, scratch=str(empty)) is None
    monkeypatch.setattr(node_disk, "free_bytes", lambda place: 10**5 if tmp_path in place.parents else 10**12)
    assert on_a_node(needs) is None
    reason = f"--scratch {empty}: the image stores need 0.8 MB and 0.1 MB are free there; free some space"
    assert on_a_node(needs, scratch=str(empty)) == reason
    for name in needs.store_bytes:
        (empty / f"{name}.building-1").mkdir()  # has taken its space
    assert on_a_node(needs, scratch=str(empty)) is None


@pytest.mark.parametrize("on_cluster", [True, False])
def test_a_trial_moves_from_a_node_whose_scratch_is_full(needs, folder, tmp_path, monkeypatch, on_cluster):
    """On a cluster it says nothing about its settings; on one machine the trial fails."""
    for module in (room, node_disk):
        monkeypatch.setattr(module, "free_bytes", lambda place: 10**5)
    how = Run(
        stores=str(tmp_path / "full"),
        shared_stores=str(needs.stores.common),
        images=needs.images,
        on_cluster=on_cluster,
    )
    config = {**SETTINGS, "dataset_dir": str(folder), "run": how.as_dict()}
    if on_cluster:
        with pytest.raises(NodeFaultError, match=f"--scratch {tmp_path}/full: the image stores need"):
            DivideAndConquer(config)
        return
    trial = DivideAndConquer(config)
    assert FAILED in trial.train()
    trial.stop()


# -- the commands ----------------------------------------------------------------------------------------------------


def flags(folder, tmp_path, *more):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "dataset"]
    return ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path / "runs"), *given, *map(str, more)]


def held(directory):
    """Names of the stores of a directory."""
    return sorted(path.name for path in directory.glob("*") if (path / "pixels.npy").exists())


def test_a_search_has_its_stores_there(folder, tmp_path, capsys):
    """It says what they take; a resume finds the directory in the record, and may have another one."""
    local, runs = tmp_path / "local", tmp_path / "runs"
    words = flags(folder, tmp_path, "--name", "s", "--scratch", local)
    assert search.main([*words, "--dry-run"]) == 0
    assert f"  image stores: 1.0 MB in {local}\n" in capsys.readouterr().out
    assert (len(held(local)), held(runs / "store")) == (3, [])
    plan = given_plan(read_command_line(words))
    assert plan.runs.run().places == Stores(local, runs / "store")
    plan.begin().release()
    for more, expected in [([], local), (["--scratch", tmp_path / "new"], tmp_path / "new"), ([], tmp_path / "new")]:
        plan = resumed_plan(read_command_line(["--resume", "s", "--output-dir", str(runs), *map(str, more)]))
        assert plan.runs.run().places == Stores(expected, runs / "store")
        plan.begin().release()
        assert held(expected) == held(local)
        assert Record.open(runs / "s").asked["flags"]["scratch"] == str(expected)
    back = ["--resume", "s", "--output-dir", str(runs), "--scratch", str(runs / "store")]
    plan = resumed_plan(read_command_line(back))
    plan.record.release()
    assert plan.runs.run().places == Stores(runs / "store")


def test_a_scratch_directory_that_is_gone_at_a_resume(folder, tmp_path):
    """The error names the flag, and another directory may be given."""
    given_plan(
        read_command_line(flags(folder, tmp_path, "--name", "s", "--scratch", tmp_path / "local"))
    ).begin().release()
    shutil.rmtree(tmp_path / "local")
    (tmp_path / "local").touch()
    resume = ["--resume", "s", "--output-dir", str(tmp_path / "runs"), "--dry-run"]
    with pytest.raises(SettingError, match=f"--scratch {tmp_path}/local: it cannot be written"):
        search.main(resume)
    assert search.main([*resume, "--scratch", str(tmp_path / "new")]) == 0


def test_the_output_directory_needs_no_room_for_stores_of_another_disk(folder, tmp_path, monkeypatch):
    """Each disk is asked for what lies there."""
    from dcml_tune.search import disk

    monkeypatch.setattr(disk, "_share_a_disk", lambda output, stores: False)
    local = tmp_path / "local"
    monkeypatch.setattr(disk, "free_bytes", lambda place: 10 if place == local else 10**12)
    with pytest.raises(
        SettingError, match=f"--scratch {local}: the image stores need 1.0 MB and 0.0 MB are free there"
    ):
        search.main(flags(folder, tmp_path, "--name", "s", "--scratch", local, "--dry-run"))
    monkeypatch.setattr(disk, "free_bytes", lambda place: 10**12 if place == local else 10)
    with pytest.raises(SettingError, match=r"--output-dir .* \(image store 0.0 MB, checkpoints"):
        search.main(flags(folder, tmp_path, "--name", "s", "--scratch", local, "--dry-run"))


def test_the_other_commands_have_their_stores_there(folder, tmp_path, capsys):
    """`data` builds them, train and evaluate use them; an interrupted training knows the directory."""
    local, store = tmp_path / "local", tmp_path / "runs" / "store"
    sizes = ["--sz-resize=32", "--sz-crop=32", "--train-classes=16"]
    where = ["--dataset-dir", str(folder), "--output-dir", str(tmp_path / "runs")]
    assert data_command.main(["folder", *where, *sizes, "--scratch", str(local)]) == 0
    assert f"image stores are in {local}" in capsys.readouterr().out
    before = held(local)
    assert len(before) == 3
    assert train.main(flags(folder, tmp_path, "--name", "t", "--scratch", local, "--score-test")) == 0
    said = capsys.readouterr().out
    assert f"--scratch {local}" in said.splitlines()[-1]
    model = next((tmp_path / "runs" / "t" / "checkpoint").glob("best-*"))
    with redirect_stdout(io.StringIO()):
        assert evaluate.main([str(model), *where, "--scratch", str(local), "--clusterings", "0"]) == 0
    assert (held(local), held(store)) == (before, [])
    assert len((tmp_path / "runs" / "test-ledger.jsonl").read_text().splitlines()) == 2


def test_a_training_that_is_resumed_keeps_the_directory(folder, tmp_path, monkeypatch):
    """Or takes the one that is given."""

    @contextmanager
    def stopped():
        yield
        raise train.SearchStopped("a test")

    monkeypatch.setattr(train, "signals_wait", stopped)
    local = tmp_path / "local"
    assert train.main(flags(folder, tmp_path, "--name", "t", "--scratch", local)) == 3
    shutil.rmtree(local)
    resume = ["--resume", "t", "--output-dir", str(tmp_path / "runs")]
    assert train.main(resume) == 3
    assert len(held(local)) == 2
    monkeypatch.undo()
    assert train.main([*resume, "--scratch", str(tmp_path / "new")]) == 0
    assert held(tmp_path / "new") == held(local)


def test_a_report_looks_for_the_images_there(tmp_path):
    """A report builds no store: it reads that of the record, and says where it looked."""
    search_data = type("Search", (), {})()
    search_data.output, search_data.model = tmp_path, object()
    search_data.record = type("R", (), {"asked": {"flags": {"scratch": str(tmp_path / "local")}}})
    search_data.best = type("B", (), {"config": TrialConfig(dataset="emoji")})
    section = pictures.pictures(search_data, None)
    assert f"{tmp_path / 'local'} does not hold the images of this search" in str(section.parts)
