"""A search goes on where its output directory and its images are now, if the images are those that it began with."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.moved import follow, output_before
from dcml_tune.runs.record import Record
from dcml_tune.search.__main__ import main
from dcml_tune.search.console import plan_text
from dcml_tune.search.data_identity import images_then_and_now
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.plan import given_plan
from dcml_tune.training.trial_data import TrialData
from dcml_tune.utils.files import read_checksummed, write_checksummed

TINY = [
    "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--nb-epochs", "2", "--mod-epoch", "1", "--mod-epoch-freeze", "0",
    "--batch-size", "8", "--num-samples-per-class", "2", "--train-classes", "16", "--val-share", "0.25", "--num-samples", "2",
]  # fmt: skip


@pytest.fixture
def images(folder, tmp_path):
    """A copy of the images below the output directory, where nobody keeps them, but may."""
    return shutil.copytree(folder, tmp_path / "runs" / "images")


@pytest.fixture
def begun(images, tmp_path):
    """A search that has begun, and whose process is gone."""
    begin(tmp_path / "runs", images)
    return tmp_path / "runs" / "s"


def begin(output, images, *more):
    words = ["folder", "--dataset-dir", str(images), "--output-dir", str(output), "--name", "s", *TINY, *more]
    given_plan(read_command_line(words)).begin().release()


def resume(output, *more):
    return main(["--resume", "s", "--output-dir", str(output), "--dry-run", *map(str, more)])


def of_0_1(search, dataset):
    """The record as version 0.1 wrote it."""
    asked = read_checksummed(search / "search.json")
    for name in ("test", "test_sizes", "output", "name"):
        del asked[name]
    write_checksummed(search / "search.json", {**asked, "data": dataset.fingerprint_by_time})


def test_images_that_were_moved_and_touched_are_the_same(begun, images, tmp_path, capsys):
    """With the new directory given; without, the remedy is."""
    elsewhere = images.rename(tmp_path / "elsewhere")
    os.utime(next(elsewhere.glob("*/*.png")))
    with pytest.raises(SettingError, match=r"search s: its images were in .*images, .* give --dataset-dir"):
        resume(begun.parent)
    assert resume(begun.parent, "--dataset-dir", elsewhere) == 0
    assert "resumed: 0 trials" in capsys.readouterr().out


def test_the_new_directory_is_written_down(begun, images, tmp_path):
    """So that the next resume needs not be told."""
    from dcml_tune.search.resume import resumed_plan

    elsewhere = images.rename(tmp_path / "elsewhere")
    words = ["--resume", "s", "--output-dir", str(begun.parent), "--dataset-dir", str(elsewhere)]
    plan = resumed_plan(read_command_line(words))
    plan.begin().release()
    asked = read_checksummed(begun / "search.json")
    assert asked["settings"]["dataset_dir"] == asked["space"]["published"]["dataset_dir"] == str(elsewhere)
    assert resume(begun.parent) == 0


def test_an_output_directory_that_was_moved(begun, tmp_path, capsys):
    """What lies below it is found at its new place: images, the file of the space, a database of one's own."""
    asked = read_checksummed(begun / "search.json")
    (begun.parent / "space.py").write_text("x")
    flags = {
        **asked["flags"],
        "space": str(begun.parent / "space.py"),
        "tracking_uri": f"sqlite:///{begun.parent}/own.db",
    }
    (begun.parent / "own.db").touch()
    write_checksummed(begun / "search.json", {**asked, "flags": flags})
    there = begun.parent.rename(tmp_path / "there")
    from dcml_tune.search.resume import resumed_plan

    words = ["--resume", "s", "--output-dir", str(there)]
    plan = resumed_plan(read_command_line(words))
    assert plan.uri == f"sqlite:///{there}/own.db"
    assert f"the output directory was {begun.parent}; the files of the search are read from its new place" in plan_text(
        plan
    )
    plan.begin().release()
    asked = read_checksummed(there / "s" / "search.json")
    assert asked["settings"]["dataset_dir"] == str(there / "images")
    assert asked["flags"]["space"] == str(there / "space.py")
    assert asked["output"] == str(there)


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_training_images_that_changed_are_refused(begun, images, change):
    """Trials would be compared on other images than those before."""
    image = images / "class 03" / "2.png"
    if change == "content":
        shutil.copy(images / "class 04" / "2.png", image)
    elif change == "added":
        shutil.copy(image, image.with_name("6.png"))
    elif change == "removed":
        image.unlink()
    else:
        image.rename(image.with_name("7.png"))
    with pytest.raises(SettingError, match=r"search s: the images have changed since it began .*put them back"):
        resume(begun.parent)


def test_a_test_image_may_be_repaired(begun, images, capsys):
    """Trials were not compared on it; one that was removed or added makes another test set."""
    image = images / "class 20" / "2.png"
    with image.open("ab") as file:
        file.write(b"\0")
    assert resume(begun.parent) == 0
    assert "test images have changed since it began; trials were compared on training images" in capsys.readouterr().out
    image.unlink()
    with pytest.raises(SettingError, match="search s: there are other test images than when it began"):
        resume(begun.parent)


def test_a_damaged_test_image_is_left_out_or_repaired(begun, images, capsys):
    """At a resume, too: it is found before anything runs."""
    image = images / "class 20" / "2.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    with pytest.raises(SettingError, match=r"1 of 48 images cannot be decoded: .*2\.png .*--skip-unreadable"):
        resume(begun.parent)
    assert resume(begun.parent, "--skip-unreadable") == 0
    assert "left out 1 of 48 test images: not decodable" in capsys.readouterr().out
    image.write_bytes(whole)
    assert resume(begun.parent) == 0
    (images / "class 02" / "2.png").write_bytes(b"")
    with pytest.raises(SettingError, match=r"images"):
        resume(begun.parent, "--skip-unreadable")


def test_with_the_papers_protocol_test_images_must_be_the_same(images, tmp_path):
    """There trials are compared on them."""
    begin(tmp_path / "runs", images, "--protocol", "paper")
    with (images / "class 20" / "2.png").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SettingError, match=r"search s: the images have changed since it began"):
        resume(tmp_path / "runs")


def test_a_search_of_version_0_1_goes_on_where_nothing_changed(begun, images, capsys):
    """It knew images by their times; from then on it knows them by content."""
    config = TrialConfig(dataset="folder", dataset_dir=str(images), train_classes=16)
    of_0_1(begun, data.load(config))
    assert resume(begun.parent) == 0
    os.utime(images / "class 03" / "2.png", ns=(5, 5))
    with pytest.raises(SettingError, match=r"search s: the images have changed since .*version 0\.1"):
        resume(begun.parent)


def test_files_that_version_0_1_wrote_are_read(tmp_path):
    """They were written by that version; the archive of the embedded images is known by its checksums."""
    directory = shutil.copytree(Path(__file__).parent / "version_0_1" / "old", tmp_path / "old")
    record = Record.open(directory)
    assert (record.state.status, record.state.planned, record.asked["data"]) == ("interrupted", 2, "0573b14a9b9f12ce")
    assert output_before(directory, record.asked) == Path("/data/runs")
    assert follow(record.asked, Path("/data/runs"), tmp_path) == record.asked
    dataset = data.load(TrialConfig())
    now = data.Identity.of(dataset, tmp_path, opens_test=False)
    assert images_then_and_now("old", record.asked, now, dataset) == []


def test_a_search_whose_directory_was_renamed_is_refused(begun):
    """Its study and its runs have its name."""
    begun.rename(begun.with_name("t"))
    with pytest.raises(SettingError, match=r"--resume t: this search began as s, .*rename .* back"):
        main(["--resume", "t", "--output-dir", str(begun.parent)])


def test_data_of_a_trial_are_not_read_again(begun, images, monkeypatch):
    """Each trial opens the stores by what was noted."""
    from dcml_tune.data import contents

    monkeypatch.setattr(contents, "_hash", lambda path: pytest.fail(f"{path} was read"))
    settings = read_checksummed(begun / "search.json")["space"]["published"]
    config = TrialConfig(**{**settings, "nb_clusters": 2})
    assert TrialData.open(config, begun.parent / "store").identity(config).compared
    assert sys.modules["dcml_tune.data.contents"] is contents
