import os
import time

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is imported; see dcml_tune.utils.openmp

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A data set of 24 classes with 6 images each, a colour and a pattern a class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        directory = root / f"class {number:02d}"
        directory.mkdir()
        base = rng.integers(0, 256, (6, 6, 3))
        for image in range(6):
            pixels = np.clip(base + rng.normal(0, 40, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 40), Image.Resampling.NEAREST).save(directory / f"{image}.png")
    return root


@pytest.fixture
def small(folder):
    """Settings of a training of seconds, on the images of `folder`."""
    return {
        "dataset": "folder",
        "dataset_dir": str(folder),
        "train_classes": 16,
        "arch": "test_resnet",
        "weights": "none",
        "sz_resize": 32,
        "sz_crop": 32,
        "sz_embedding": 8,
        "batch_size": 8,
        "num_samples_per_class": 2,
        "base_lr": 1e-3,
    }


@pytest.fixture
def four_epochs(small):
    """Settings with a division, whose measures are those of averaged weights."""
    schedule = {"nb_clusters": 2, "mod_epoch": 1, "mod_epoch_freeze": 0, "force_full_embedding_epoch": 3}
    return {**small, "nb_epochs": 4, "average_epochs": 2, **schedule}


@pytest.fixture
def trial(four_epochs, tmp_path):
    """Starts the trial of a process, with fields of its `Run`: the directory stays."""
    from trainables import DivideAndConquer, Run

    def start(**run):
        where = {"stores": str(tmp_path / "store"), "directory": str(tmp_path / "trial"), "key": "000", **run}
        return DivideAndConquer({**four_epochs, "run": Run(**where).as_dict()})

    return start


@pytest.fixture
def clock(monkeypatch):
    """`time.monotonic` stands still until `now` is changed."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server of these tests; skipped where none is installed."""
    from postgresql import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture
def one_thread():
    """Threads that wait for each other on a busy machine take four times as long as one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
