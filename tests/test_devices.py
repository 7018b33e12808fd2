"""The device of a trial, and errors of memory that is exhausted."""

import subprocess
import sys
from functools import cache

import pytest
import torch

from dcml_tune.clustering.faiss_backend import FAISS_GPU_BYTES
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import loader
from dcml_tune.data.loader import ToDevice
from dcml_tune.training.devices import cap_gpu_memory, exhausted_memory
from dcml_tune.training.trainer import Trainer
from trainables import DivideAndConquer, Run
from trainables.node_check import NodeFaultError

MESSAGES = [
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "gpu"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), "gpu"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "gpu"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "gpu"),
    (RuntimeError("Error in void* faiss::gpu::allocMemory: StandardGpuResources: alloc fail type TemporaryMemoryBuffer "
                  "(cudaMalloc error out of memory [2])"), "gpu"),
    (MemoryError(), "host"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "host"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), "host"),
    (RuntimeError("std::bad_alloc"), "host"),
    (RuntimeError("CUDA error: device-side assert triggered"), None),
    (ValueError("out of range"), None),
]  # fmt: skip


@pytest.mark.parametrize(("error", "memory"), MESSAGES)
def test_which_memory_is_exhausted(error, memory):
    """Each library says it in its own words."""
    assert exhausted_memory(error) == memory


@pytest.mark.parametrize(
    ("error", "memory"), [each for each in MESSAGES if each[1] and isinstance(each[0], RuntimeError)]
)
def test_a_trial_says_the_remedy(error, memory, monkeypatch):
    """Without a useless retry."""

    def fails(*_args, **_named):
        raise error

    monkeypatch.setattr(DivideAndConquer, "make_trainer", fails)
    result = DivideAndConquer({"dataset": "emoji", "run": Run(gpu_fraction=0.25).as_dict()}).train()
    remedy = "0.25 of the GPU; raise --gpus-per-trial" if memory == "gpu" else "lower --max-concurrent"
    assert remedy in result["failed_reason"]
    assert result["done"]


@pytest.mark.parametrize(("there", "largest", "moves"), [(24, 80, True), (80, 80, False), (24, 0, False)])
def test_a_gpu_that_is_smaller_than_others_is_not_the_fault_of_the_setting(there, largest, moves, monkeypatch):
    """The trial moves to another node; on the largest GPU, and where no other is known, its setting fails."""

    def fails(*_args, **_named):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(DivideAndConquer, "make_trainer", fails)
    monkeypatch.setattr("trainables.trainable.gpu_memory", lambda: there * 2**30)
    run = Run(key="003", on_cluster=True, largest_gpu=largest * 2**30).as_dict()
    if moves:
        with pytest.raises(
            NodeFaultError, match="its GPU has 24 GiB, too little for trial 003, and others have 80 GiB"
        ):
            DivideAndConquer({"dataset": "emoji", "run": run})
    else:
        assert "out of GPU memory" in DivideAndConquer({"dataset": "emoji", "run": run}).train()["failed_reason"]


GB = 10**9
CONTEXT = 512 << 20


@pytest.mark.parametrize("backend", ["auto", "faiss-gpu"])
@pytest.mark.parametrize(("total", "trials"), [(80 * GB, 2), (80 * GB, 8), (16 * GB, 4)])
def test_the_processes_of_a_gpu_fit_on_it(total, trials, backend, monkeypatch):
    """What torch may take, the CUDA context and Faiss: in sum at most 95 % of the GPU where the shares sum to 1."""
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (total, total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    cap_gpu_memory(1 / trials, backend)
    beside = CONTEXT + (FAISS_GPU_BYTES if backend == "faiss-gpu" else 0)
    assert trials * (given[0] * total + beside) == pytest.approx(0.95 * total)
    cap_gpu_memory(1.0)
    assert len(given) == 1, "a trial with a GPU of its own has no limit"


def test_a_share_of_a_small_gpu_is_not_all_context(monkeypatch):
    """Half of the share is left to torch, at least."""
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 * GB, 4 * GB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    cap_gpu_memory(0.2)
    assert given == [0.1]


def test_a_trial_without_a_share_of_a_gpu_trains_on_the_cpu(small, tmp_path, monkeypatch):
    """Also where the machine has a GPU, which Ray does not hide from it."""
    devices = []

    def trainer(config, *, device=None, **named):
        devices.append(device)
        return Trainer(config, device="cpu", **named)

    monkeypatch.setattr("trainables.trainable.Trainer", trainer)
    for device in ("cpu", "cuda"):
        DivideAndConquer({**small, "run": Run(stores=str(tmp_path), device=device).as_dict()})
    assert devices == ["cpu", "cuda"]


def test_copies_to_a_gpu_share_one_stream(monkeypatch):
    """Blocks of memory belong to a stream, so each further stream would keep its own."""
    made = []
    monkeypatch.setattr(loader, "_copy_stream", cache(loader._copy_stream.__wrapped__))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or device)
    for device in (torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cuda", 0), torch.device("cpu")):
        ToDevice(device)
    assert made == [torch.device("cuda", 0), torch.device("cuda", 1)]


class FirstUseError(Exception):
    """Something of the GPU was used."""


def test_the_gpu_of_a_training_is_the_current_one_before_anything_uses_it(small, tmp_path, monkeypatch):
    """Libraries such as Faiss take memory of the current GPU; the number may be left out."""
    chosen = []

    def build(*_, **__):
        raise FirstUseError

    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("dcml_tune.training.trainer.TrainStep", build)
    for device in ("cuda:1", "cuda"):
        with pytest.raises(FirstUseError):
            Trainer(TrialConfig(**small), stores=tmp_path, device=device)
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_freed_memory_is_not_taken_again_page_by_page():
    faults = """
import ctypes, resource, sys, torch
from dcml_tune.training.devices import keep_freed_memory
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # no huge pages, which some machines use for all memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(1 << 24)  # 64 MiB: 16,384 pages
before = faults()
for _ in range(40):
    torch.zeros(1 << 24)
print((faults() - before) / 16384)
"""
    found = {
        how: float(
            subprocess.run([sys.executable, "-c", faults, how], capture_output=True, text=True, check=True).stdout
        )
        for how in ("keep", "default")
    }
    # Memory is taken again where another object has come to lie in the freed memory: a few times, not each time.
    assert found["keep"] < 10
    assert found["default"] > 39


def test_k_means_stays_on_the_device_of_the_features(monkeypatch):
    """`auto` is torch, also where Faiss has a GPU."""
    module = sys.modules["dcml_tune.clustering.kmeans"]
    monkeypatch.setattr(module, "faiss_gpus", lambda: 1)
    assert module._backend("auto") is module._backend("torch")
