"""Loader processes of a trial: as many as its cores and /dev/shm allow."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dcml_tune.config.trial import TrialConfig
from dcml_tune.search import __main__ as search
from dcml_tune.training import loading
from dcml_tune.training.loading import LoaderProcesses

MB = 10**6
BATCH = 3 * 80 * 224**2
"""Bytes of a batch of 80 images of 224 pixels: 12 MB."""

# Wanted processes, trials at once, bytes of shared memory (None: no such directory), processes that are started.
CASES = [
    (4, 1, 64 * MB, 2),  # Docker's default: five batches, which are 60 MB
    (4, 1, 200 * MB, 4),
    (4, 1, 9 * BATCH, 4),
    (4, 1, 9 * BATCH - 4096, 3),
    (4, 4, 200 * MB, 1),
    (4, 8, 64 * MB, 0),
    (1, 1, 30 * MB, 0),
    (0, 1, 0, 0),
    (4, 1, None, 4),
]


def shared_memory(monkeypatch, size, free=None):
    """A machine whose shared memory has a size, and free space."""

    def statvfs(path):
        if size is None:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_frsize=4096, f_blocks=size // 4096, f_bavail=(size if free is None else free) // 4096)

    monkeypatch.setattr(os, "statvfs", statvfs)


@pytest.mark.parametrize(("wanted", "at_once", "size", "count"), CASES)
def test_processes_that_fit_are_started(wanted, at_once, size, count, monkeypatch):
    """Each has prepared two batches; one is read. Trials that run at once share the memory. Fewer come with the remedy."""
    shared_memory(monkeypatch, size)
    monkeypatch.setattr(loading, "usable_cores", lambda: 2 * at_once)
    config = TrialConfig(num_workers=wanted, batch_size=80, sz_resize=256, sz_crop=224)
    found = LoaderProcesses.of(config, on_gpu=True, threads=2)
    assert found.count == count
    if count == wanted:
        assert found.note is None
    else:
        assert f"{count} are started" in found.note
        assert "--shm-size" in found.note
        assert "\n" not in found.note


def test_what_others_have_taken_counts(monkeypatch):
    """The space that is free, where it is less than the trial's part."""
    shared_memory(monkeypatch, 1000 * MB, free=64 * MB)
    found = LoaderProcesses.of(
        TrialConfig(num_workers=4, batch_size=80, sz_resize=256, sz_crop=224), on_gpu=True, threads=10**6
    )
    assert found.count == 2


@pytest.mark.parametrize(("threads", "wanted"), [(1, 1), (2, 1), (4, 3), (16, 4)])
def test_the_default_follows_the_cores(threads, wanted):
    """One is left for the process that drives the GPU; without a GPU there are none."""
    config = TrialConfig()
    assert LoaderProcesses.of(config, on_gpu=True, threads=threads).wanted == wanted
    assert LoaderProcesses.of(config, on_gpu=False, threads=threads).wanted == 0


def test_a_search_says_it_before_it_runs(folder, tmp_path, capsys, monkeypatch):
    """One line, with the remedy."""
    monkeypatch.setattr(loading, "_room", lambda at_once: 1000)
    words = ["folder", "--dataset-dir", folder, "--output-dir", tmp_path, "--train-classes", 16, "--weights", "none",
             "--sz-resize", 32, "--sz-crop", 32, "--batch-size", 8, "--num-samples-per-class", 2, "--dry-run"]  # fmt: skip
    for workers, lines in ((2, 1), (0, 0)):
        assert search.main([*map(str, words), "--num-workers", str(workers)]) == 0
        assert capsys.readouterr().out.count("/dev/shm has") == lines


TRAINING = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"], check=True)
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.trainer import Trainer
config = TrialConfig(
    dataset="folder", dataset_dir=sys.argv[1], train_classes=16, arch="test_resnet", weights="none", sz_resize=32,
    sz_crop=32, sz_embedding=8, batch_size=8, num_samples_per_class=2, nb_epochs=1, num_workers=2,
)
trainer = Trainer(config, stores=sys.argv[2], device="cpu")
print(trainer.run_epoch()["train/batches"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")
@pytest.mark.slow
def test_a_trial_trains_with_a_small_shared_memory(folder, tmp_path):
    """A real one of 64 kB, in a mount namespace of its own: five batches of 24 kB do not fit."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    words = [*unshare, sys.executable, "-c", TRAINING, str(folder), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
    assert "/dev/shm has" in done.stderr
