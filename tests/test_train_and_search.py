"""What `train` accepts, `search` accepts, and what one refuses the other refuses, for the same reason."""

import pytest
import timm
import torch

from dcml_tune import train
from dcml_tune.cli.parser import given_settings, settings_to_flags
from dcml_tune.config.errors import SettingError
from dcml_tune.search import __main__ as search

# Everything but the two settings of the masks is fixed, so that both commands are asked the same.
BASE = {
    "train_classes": 20, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 8,
    "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 12, "nb_clusters": 2, "mod_epoch": 2, "mod_epoch_freeze": 0,
    "force_full_embedding_epoch": None, "batch_sampler": "adaptbalanced",
}  # fmt: skip

ACCEPTED = [
    {}, {"val_share": 0.7}, {"protocol": "paper"}, {"fold": 4}, {"sz_crop": 8}, {"hierarchy_method": "none"},
    {"init_method": "pt_splitted"}, {"nb_clusters": 8, "mod_epoch": 1}, {"seed": 2**32 - 1},
    {"init_method": "pca"}, {"ratio_classes": 0.3}, {"force_full_embedding_epoch": 3}, {"small_class_action": "smaller_batch", "batch_size": 40},
]  # fmt: skip
REFUSED = [
    {"dataset_dir": "/nowhere"}, {"train_classes": 1}, {"train_classes": 3}, {"train_classes": 5}, {"train_classes": 1000},
    {"val_share": 0.9}, {"ratio_classes": 0.01}, {"ratio_classes": 0.1}, {"fold": 5}, {"sz_resize": 31}, {"album": "x"},
    {"arch": "nope"}, {"arch": "alexnet"}, {"weights": "/missing.pth"}, {"weights": "missing.pth"}, {"init_method": "x"},
    {"init_method": "pca", "sz_embedding": 4096}, {"batch_size": 7}, {"num_samples_per_class": 1}, {"nb_epochs": 2}, {"nb_clusters": 3}, {"nb_clusters": 16, "mod_epoch": 1},
    {"mod_epoch_freeze": 2}, {"force_full_embedding_epoch": 0}, {"force_full_embedding_epoch": 2}, {"backend": "faiss-gpu"},
    {"masks_normalize_before_sum": "l1"}, {"fixed_mask": True, "sz_embedding": 2, "nb_clusters": 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def outcomes(folder, output):
    """Why each of the two commands refuses some settings; None where it does not."""

    def ask(settings):
        flags = settings_to_flags({**BASE, "dataset_dir": str(folder), **settings})
        words = ["folder", "--output-dir", str(output), *flags]
        asked = train.Flags.read([*words, "--name", "x"])
        return refusal(lambda: train._Run.new(asked, output)), refusal(lambda: search.main([*words, "--dry-run"]))

    return ask


def refusal(call):
    try:
        call()
    except SettingError as error:
        return str(error)
    return None


@pytest.mark.parametrize("settings", ACCEPTED, ids=str)
def test_both_accept(settings, outcomes):
    """A dry run of one, and the other until its first epoch."""
    assert outcomes(settings) == (None, None)


@pytest.mark.parametrize("settings", REFUSED, ids=str)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one case is of a machine without a GPU")
def test_both_refuse_for_the_same_reason(settings, outcomes):
    """The search may add what it would work with."""
    by_train, by_search = outcomes(settings)
    assert by_train is not None
    assert by_search is not None
    assert by_search.startswith(by_train)


def test_only_a_search_needs_settings_that_vary(outcomes):
    """With one cluster no setting of the masks acts, so that all trials would be the same."""
    by_train, by_search = outcomes({"nb_clusters": 1})
    assert by_train is None
    assert "every setting that varies is fixed by a flag, or has no effect" in by_search


def test_only_a_search_needs_classes_to_compare_on(outcomes):
    """Training alone compares nothing."""
    by_train, by_search = outcomes({"val_share": 0})
    assert by_train is None
    assert "val_share=0: trials are compared on training classes that are held out" in by_search


def test_a_file_of_weights_is_that_of_the_working_directory(tmp_path, monkeypatch, outcomes):
    """Both take a relative path; it is a whole one from then on, as trials run in other directories."""
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("test_resnet").state_dict(), "mine.pth")
    asked = train.Flags.read(["folder", "--weights", "mine.pth"])
    assert given_settings(asked.settings)["weights"] == str(tmp_path / "mine.pth")
    assert outcomes({"weights": "mine.pth"}) == (None, None)
