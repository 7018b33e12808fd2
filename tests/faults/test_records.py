"""The files of a search are torn or tampered with; commands that do not fit a search are refused."""

import json
import shutil
import signal
import sqlite3

import pytest


@pytest.fixture
def interrupted(cheap):
    """A search that was interrupted after some epochs."""
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    process = cheap.start("--num-samples", 3, "--scheduler", "none")
    cheap.wait_for_hang("001", process)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return cheap


def test_commands_that_do_not_fit_are_refused_and_the_search_is_untouched(interrupted):
    """Changed flags by name, a name that is not there, one that is taken, a second process; repeated flags are fine."""
    scene = interrupted
    before = (scene.output / "s" / "search.json").read_bytes()
    for words, expected in [
        (["--resume", "s", "--num-samples", 5], "--num-samples 5: search s began with 3"),
        (["--resume", "s", "--nb-epochs", 5], "--nb-epochs 5: search s began with 4"),
        (["--resume", "s", "--scheduler", "asha"], "--scheduler asha: search s began with none"),
        (["--resume", "s", "--name", "t"], "--name t: search s began with s"),
        (["emoji", "--resume", "s"], "DATASET emoji: search s began with folder"),
        (["--resume", "t"], "holds no search"),
        (["--resume", "s", "--extend", "s"], "only one of them"),
        (["--output-dir", scene.output], "DATASET is not given"),
    ]:
        status, said = scene.search(*words, new=False)
        assert (status, expected in said) == (2, True), said
        assert len(said.splitlines()) == 1
    status, said = scene.search("--num-samples", 3)
    assert (status, "go on with it by --resume s" in said) == (2, True), said
    assert (scene.output / "s" / "search.json").read_bytes() == before
    # All that was given at the beginning may be given again.
    process = scene.start("--num-samples", 3, "--scheduler", "none", "--resume", "s")
    scene.wait_for("epoch", process)
    status, said = scene.resume()
    assert (status, "runs it; wait for its end" in said) == (4, True), said
    assert process.wait(120) == 0, process.log.read_text()
    scene.assert_sound(3)
    status, said = scene.resume()
    assert (status, "it is finished (3 of 3 trials); add trials to it by --extend s" in said) == (2, True)
    status, said = scene.search("--extend", "s", "--num-samples", 2, new=False)
    assert status == 0, said
    scene.assert_sound(5)
    status, said = scene.search("--resume", new=False)
    assert (status, "can be resumed; 1 are finished" in said) == (0, True)


def test_a_tampered_configuration_is_refused(interrupted):
    """Named; the listing says so, too, and goes on with the others: here a copy, which has the name of another search."""
    scene = interrupted
    shutil.copytree(scene.output / "s", scene.output / "t")
    file = scene.output / "s" / "search.json"
    facts = json.loads(file.read_text())
    facts["settings"]["base_lr"] = 1.0
    file.write_text(json.dumps(facts))
    status, said = scene.resume()
    assert (status, f"{file}: does not match its checksum" in said) == (2, True), said
    status, said = scene.search("--resume", new=False)
    assert (status, str(file) in said, "--resume t: this search began as s" in said) == (0, True, True), said


def test_a_torn_state_is_made_anew_and_a_torn_study_comes_from_its_copy(interrupted):
    """Neither costs an epoch; without the copy the study is refused, by name."""
    scene = interrupted
    (scene.output / "s" / "state.json").write_text('{"status": "fin')
    study = scene.output / "s" / "optuna.db"
    study.write_bytes(study.read_bytes()[: study.stat().st_size // 2])
    copy = study.with_suffix(".db.copy")
    hidden = copy.rename(copy.with_suffix(".hidden"))
    status, said = scene.resume()
    assert (status, f"{study}" in said, "damaged" in said) == (2, True, True), said
    hidden.rename(copy)
    status, said = scene.resume()
    assert status == 0, said
    assert "damaged" in said
    assert sqlite3.connect(study).execute("PRAGMA quick_check").fetchall() == [("ok",)]
    assert scene.lost() == []
    assert len(set(scene.trained())) == 12
    runs = scene.runs()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for key in ("000", "001", "002"):
        assert [step for step, _ in scene.curve(f"s/{key}")] == [0, 1, 2, 3, 4]


def test_changed_images_are_refused(interrupted, tmp_path):
    """A search does not go on with other data than it began with."""
    scene = interrupted
    moved = tmp_path / "moved"
    shutil.copytree(scene.images, moved)
    images = sorted(moved.glob("*/*.png"))  # the classes that train come first
    images[-1].unlink()
    status, said = scene.resume("--dataset-dir", moved)
    assert (status, "there are other test images" in said) == (2, True), said
    images[0].unlink()
    status, said = scene.resume("--dataset-dir", moved)
    assert (status, "the images have changed" in said) == (2, True), said


def test_two_searches_at_once_in_one_directory(cheap):
    """Both work, in one MLflow store, each with its own trials."""
    processes = [cheap.start("--num-samples", 2, "--max-concurrent", 1, name=name) for name in ("s", "t")]
    for process in processes:
        assert process.wait(240) == 0, process.log.read_text()
    for name in ("s", "t"):
        cheap.assert_sound(2, name)
    assert len(cheap.runs()) == 6
