"""`python -m dcml_tune.data`: what it says of copies, and the stores that it builds."""

import json
import os
import subprocess
import sys

import pytest
import trees

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.__main__ import main
from dcml_tune.training.trial_data import TrialData

SIZES = ["--sz-resize", "36", "--sz-crop", "32"]


@pytest.fixture
def check(tmp_path, capsys):
    """Runs the command on a small copy; gives status, output and errors."""

    def run(name, *words):
        if not (tmp_path / name).exists():
            trees.MAKERS[name](tmp_path / name)
        words = [name, "--dataset-dir", str(tmp_path / name), "--output-dir", str(tmp_path / "runs"), *SIZES, *words]
        status = main(words)
        return (status, *capsys.readouterr())

    return run


def test_a_partial_copy_is_said_and_nothing_is_built(check, tmp_path):
    """Each count beside the published one; status 2, and the flag to go on."""
    status, said, errors = check("cars")
    assert status == 2
    assert [line.split() for line in said.splitlines() if "train images" in line and "differs" in line] == [
        ["train", "images", "72", "8,054", "differs"]
    ]
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "test images: found 48, published 8,131" in line
    assert "--allow-partial" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", list(trees.MAKERS))
def test_a_search_finds_the_stores_and_builds_nothing(name, check, tmp_path):
    """They are those that search and train look for, test images included."""
    status, said, errors = check(name, "--allow-partial")
    assert (status, errors.count("error")) == (0, 0)
    assert str(tmp_path / "runs" / "store") in said
    config = TrialConfig(
        dataset=name, dataset_dir=str(tmp_path / name), allow_partial=True, sz_resize=36, sz_crop=32, weights="none"
    )
    assert TrialData.needed_bytes(config, tmp_path / "runs" / "store") == 0
    before = sorted((tmp_path / "runs" / "store").iterdir())
    TrialData.open(config, tmp_path / "runs" / "store")
    assert sorted((tmp_path / "runs" / "store").iterdir()) == before


def test_images_that_cannot_be_decoded_are_named(check, tmp_path):
    """Of training and test classes; refused, unless they are to be left out; with --check-only, too."""
    trees.make_cub(tmp_path / "cub")
    base = tmp_path / "cub" / "cub-200-2011" / "images"
    torn = [base / "002.Bird_Number_2" / "Bird_0001_2.jpg", base / "101.Bird_Number_101" / "Bird_0003_101.jpg"]
    for image in torn:
        image.write_bytes(image.read_bytes()[:200])
    for words in (["--check-only"], []):
        status, said, errors = check("cub", "--allow-partial", *words)
        assert status == 2
        assert all(f"cannot be decoded: {image}" in said for image in torn)
        assert "2 of 120 images cannot be decoded" in errors
        assert "--skip-unreadable" in errors
    assert check("cub", "--allow-partial", "--skip-unreadable")[0] == 0


def test_the_copy_that_was_found_is_said(tmp_path, capsys):
    """With its layout."""
    trees.cars_kaggle(trees.make_cars(tmp_path / "made"), tmp_path / "there")
    assert main(["cars", "--dataset-dir", str(tmp_path / "there"), "--allow-partial", "--check-only"]) == 0
    said = capsys.readouterr().out
    assert f"cars is read from {tmp_path / 'there' / 'stanford_cars'} (cars_train/*.jpg" in said


def test_check_only_builds_nothing(check, tmp_path):
    """And says what there is, as JSON when asked."""
    status, said, _ = check("vid", "--allow-partial", "--check-only", "--json")
    found = json.loads(said)
    assert status == 0
    assert {"what": "2400 classes", "found": 8, "published": 2400} in found["counts"]
    assert (found["stores"], found["unreadable"], found["problems"]) == (None, [], [])
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_images_is_checked_too(folder, tmp_path, capsys):
    """It has no published counts; the embedded data set needs no directory."""
    words = ["--output-dir", str(tmp_path / "runs"), *SIZES]
    assert main(["folder", "--dataset-dir", str(folder), *words]) == 0
    assert "train classes   12" in capsys.readouterr().out
    assert main(["emoji", *words, "--check-only"]) == 0
    assert "train images    3,320" in capsys.readouterr().out


def test_as_a_user_runs_it(tmp_path):
    """Bad input is one line and status 2."""
    for words, said in [(["carz"], "did you mean 'cars'"), (["cars", "--dataset-dir", "/no/where"], "does not exist")]:
        done = subprocess.run(
            [sys.executable, "-m", "dcml_tune.data", *words, "--output-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert said in done.stderr
