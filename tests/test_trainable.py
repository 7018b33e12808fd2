import subprocess
import sys

import pytest
import ray
import torch
from ray.tune.utils import validate_save_restore

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import load
from trainables import DivideAndConquer, Run
from trainables.node_check import NodeFaultError

SETTINGS = {
    "dataset": "folder", "train_classes": 16, "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16,
    "batch_size": 8, "num_samples_per_class": 2, "batch_sampler": "adaptbalanced", "sampler": "distanceweighted",
    "nb_epochs": 4, "nb_clusters": 4, "mod_epoch": 1, "force_full_embedding_epoch": 3, "base_lr": 1e-3,
}  # fmt: skip


@pytest.fixture
def config(folder, tmp_path):
    def dictionary(**run):
        where = {"stores": str(tmp_path / "store"), "directory": str(tmp_path / "trial"), "key": "000", **run}
        return {**SETTINGS, "dataset_dir": str(folder), "run": Run(**where).as_dict()}

    return dictionary


def measures(result):
    return {name: value for name, value in result.items() if name.startswith(("val/", "train/", "clusters/"))}


def test_ray_saves_and_restores_it(config):
    """Ray's own check of a class that can be saved, restored, and go on."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert validate_save_restore(DivideAndConquer, config=config(directory=None), num_gpus=0)
    finally:
        ray.shutdown()


def test_a_trial_goes_on_from_its_directory(config, tmp_path):
    """In a new process it reports its last epoch once more, and goes on with the very numbers of one that ran through."""
    through = DivideAndConquer(config(directory=None))
    expected = [measures(through.train()) for _ in range(4)]
    first = DivideAndConquer(config())
    reported = [first.train() for _ in range(2)]
    first.stop()
    second = DivideAndConquer(config())
    again = [second.train() for _ in range(3)]
    assert [measures(result) for result in (*reported, *again[1:])] == expected
    assert measures(again[0]) == measures(reported[1])
    assert (again[0]["epoch"], again[0]["time_ms"]) == (2, reported[1]["time_ms"])
    assert again[-1]["done"]
    model = load(tmp_path / "trial")
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 16)
    second.stop()


def test_a_configuration_that_cannot_work_fails_without_a_retry(config):
    """The first step says why, with the worst finite value."""
    trial = DivideAndConquer({**config(), "nb_clusters": 3})
    result = trial.train()
    assert "nb_clusters=3: must be a power of two" in result["failed_reason"]
    assert (result["val/map_at_r_best"], result["done"]) == (0.0, True)


def test_a_trial_of_another_setting_does_not_take_its_files(config):
    """A checkpoint of other settings is refused, not loaded."""
    first = DivideAndConquer(config())
    first.train()
    first.stop()
    other = DivideAndConquer({**config(), "base_lr": 1e-4})
    assert "base_lr=0.0001: the checkpoint was made with 0.001" in other.train()["failed_reason"]
    other.stop()


def test_a_directory_that_other_nodes_do_not_see_is_refused(config, tmp_path):
    """On a cluster without shared storage: the trial is moved to another node, and its failure says what is wrong."""
    with pytest.raises(NodeFaultError, match="--output-dir must be on storage that all nodes share"):
        DivideAndConquer(config(directory=str(tmp_path / "nowhere" / "trial")))


def test_what_is_shown_in_the_dashboard(config):
    """Data set and searched settings."""
    trial = DivideAndConquer(config(varied=("nb_clusters", "masking_lambda")))
    assert repr(trial) == f"folder nb_clusters=4 masking_lambda={TrialConfig().masking_lambda:.4g}"
    trial.stop()


def test_a_trial_starts_without_what_only_a_division_needs():
    """Faiss and scipy's solvers are half a second of import; and garbage is collected as before."""
    code = "import gc, sys, trainables; print(gc.isenabled(), {'faiss', 'scipy.optimize'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "True set()\n"
