"""What a node of a cluster must have: each lack is found, with the remedy, and says nothing about a trial's settings."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.stores import Stores
from dcml_tune.training.trial_data import TrialData
from trainables import DivideAndConquer, Run, node_disk
from trainables.node_check import Needs, NodeFaultError, NodeReport, examine, wrong_images
from trainables.node_pool import NodePool, _State
from trainables.nodes import Node
from trainables.run import FAILED

SETTINGS = {
    "dataset": "folder", "train_classes": 16, "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16,
    "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 3, "force_full_embedding_epoch": 2, "mod_epoch": 1, "nb_clusters": 2,
}  # fmt: skip


@pytest.fixture
def needs(folder, tmp_path):
    """What the driver needs, on whose machine this test runs, too."""
    config = TrialConfig(**SETTINGS, dataset_dir=str(folder))
    images = TrialData.open(config, tmp_path / "store").identity(config).compared
    found = Needs(output=str(tmp_path)).with_images(config.model_dump(), images, {})
    found.mark.write_text(found.token)
    return found


def reason(needs):
    return examine(needs.as_dict(), gpus=0)["reason"]


def test_the_same_machine_is_fit(needs, tmp_path):
    """And the check leaves no file."""
    before = sorted(tmp_path.iterdir())
    assert reason(needs) is None
    assert sorted(tmp_path.iterdir()) == before


def test_other_software(needs):
    """A version, a package that is missing, the code."""
    other = dataclasses.replace(needs, versions={**needs.versions, "torch": "2.0.0"})
    assert "has torch 2.14" in reason(other)
    assert "the driver 2.0.0; install the same version there" in reason(other)
    assert "has mxnet not installed" in reason(dataclasses.replace(needs, versions={"mxnet": "1"}))
    assert "its code of dcml_tune is not that of the driver" in reason(dataclasses.replace(needs, code="another"))


@pytest.mark.parametrize("change", ["missing", "another"])
def test_another_output_directory(needs, change):
    """It does not exist there, or it is one of the same name on another disk."""
    needs.mark.unlink() if change == "missing" else needs.mark.write_text("another")
    assert "is not the directory of the driver; --output-dir must be on storage that all nodes share" in reason(needs)


def test_a_read_only_output_directory(needs, tmp_path, monkeypatch):
    """Such as a mount without the right to write."""
    own = Path.write_text

    def refused(self, *arguments):
        if self.name != needs.mark.name:
            raise OSError(30, "Read-only file system")
        return own(self, *arguments)

    monkeypatch.setattr(Path, "write_text", refused)
    assert f"{tmp_path} cannot be written there (Read-only file system)" in reason(needs)


def test_a_full_disk(needs, monkeypatch):
    """Ray ends the processes of such a node."""
    monkeypatch.setattr(node_disk, "_TEMPORARY", 10**18)
    assert "left there; free 1 EB" in reason(needs) or "left there; free" in reason(needs)


def test_a_gpu_that_is_not_there(needs):
    """By its registration the node has more GPUs than torch finds."""
    found = examine(dataclasses.replace(needs, gpus=True).as_dict(), gpus=99)["reason"]
    assert "of its 99 GPUs; check its driver" in found


@pytest.mark.parametrize("change", ["copied", "fewer", "other", "none"])
def test_images(folder, tmp_path, needs, change):
    """A copy is the same wherever it lies; others are named with both fingerprints."""
    copy = tmp_path / "copy"
    if change != "none":
        shutil.copytree(folder, copy)
        files = sorted(copy.rglob("*.*"))
        if change == "fewer":
            files[0].unlink()
        elif change == "other":
            shutil.copyfile(files[-1], files[0])
    there = dataclasses.replace(needs, settings={**needs.settings, "dataset_dir": str(copy)})
    found = reason(there)
    if change == "copied":
        assert found is None
    else:
        assert "images" in found
        assert "copy them" in found


@pytest.mark.parametrize("on_cluster", [True, False])
def test_a_trial_whose_node_lost_the_images_is_moved(folder, tmp_path, needs, on_cluster):
    """On a cluster it says nothing about its settings, and another node has them; on one machine the trial fails."""
    how = Run(stores=str(tmp_path / "other store"), images=needs.images, on_cluster=on_cluster)
    config = {**SETTINGS, "dataset_dir": str(tmp_path / "gone"), "run": how.as_dict()}
    if on_cluster:
        with pytest.raises(NodeFaultError, match="the images cannot be used there"):
            DivideAndConquer(config)
        return
    trial = DivideAndConquer(config)
    assert FAILED in trial.train()
    trial.stop()


def test_a_trial_that_cannot_work_is_not_moved(folder, tmp_path, needs):
    """Its images are right: no other node would help."""
    how = Run(stores=str(tmp_path / "store"), images=needs.images, on_cluster=True)
    trial = DivideAndConquer({**SETTINGS, "dataset_dir": str(folder), "sz_crop": 9999, "run": how.as_dict()})
    assert FAILED in trial.train()
    trial.stop()


def test_nothing_is_compared_without_a_fingerprint(tmp_path):
    """Users of the trainable need no search."""
    assert wrong_images(TrialConfig(**SETTINGS, dataset_dir=str(tmp_path / "gone")), Stores(tmp_path), None) is None


def test_the_largest_gpu_is_one_of_a_node_that_may_run_trials(tmp_path):
    pool = NodePool(Needs(output=str(tmp_path)), gpus_per_trial=None, autoscales=False)
    assert pool.largest_gpu() == 0
    for name, memory, reason in (("a", 24, None), ("b", 40, None), ("c", 80, "its images are not those")):
        node = Node(id=name, host=name, cpus=8, gpus=2)
        pool._states[name] = _State(node=node, report=NodeReport(reason=reason, gpu_bytes=memory * 2**30))
    assert pool.largest_gpu() == 40 * 2**30
    pool.close()


def test_the_memory_of_a_node_is_that_of_its_smallest_gpu(needs, monkeypatch):
    class Gpu:
        def __init__(self, name, gib):
            self.name, self.total_memory = name, gib * 2**30

    gpus = [Gpu("H100", 80), Gpu("L4", 24)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(8))
    found = examine(dataclasses.replace(needs, gpus=True, settings=None).as_dict(), gpus=2)
    assert found == {"reason": None, "gpu": "H100 (80 GiB)", "gpu_bytes": 24 * 2**30}
