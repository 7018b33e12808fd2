"""The images of a node of a cluster are those of the search, or the search stops."""

import platform
import shutil

import pytest

from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.trial_data import TrialData
from trainables import DivideAndConquer, Run, node_check
from trainables.run import STOP_SEARCH

SETTINGS = {
    "dataset": "folder", "train_classes": 16, "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16,
    "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 3, "force_full_embedding_epoch": 2, "mod_epoch": 1, "nb_clusters": 2,
}  # fmt: skip


@pytest.fixture
def first_report(folder, tmp_path):
    """Runs the first step of a trial whose node has the images of a directory."""
    config = TrialConfig(**SETTINGS, dataset_dir=str(folder))
    known = TrialData.open(config, tmp_path / "store").identity(config).compared
    node_check._right.clear()

    def run(directory, checked_on="another node"):
        how = Run(stores=str(tmp_path / "store"), images=known, checked_on=checked_on)
        trial = DivideAndConquer({**SETTINGS, "dataset_dir": str(directory), "run": how.as_dict()})
        result = trial.train()
        trial.stop()
        return result

    return run


def test_a_copy_of_the_images_is_the_same(first_report, folder, tmp_path):
    """Wherever it lies, and whatever its times are."""
    assert first_report(shutil.copytree(folder, tmp_path / "copy"))["epoch"] == 1


@pytest.mark.parametrize("change", ["fewer", "other", "none"])
def test_other_images_stop_the_search(first_report, folder, tmp_path, change):
    """Before anything trains, with the name of the node; the value never reaches the sampler."""
    copy = tmp_path / "copy"
    if change != "none":
        shutil.copytree(folder, copy)
        files = sorted(copy.rglob("*.*"))
        files[0].unlink() if change == "fewer" else shutil.copyfile(files[-1], files[0])
    result = first_report(copy)
    assert platform.node() in result[STOP_SEARCH]
    assert "take the node away" in result[STOP_SEARCH]


def test_the_drivers_node_is_not_checked_again(first_report, folder, monkeypatch):
    """Reading the list of images takes seconds for large data sets."""
    monkeypatch.setattr(node_check, "data", None)
    assert first_report(folder, checked_on=None)["epoch"] == 1
