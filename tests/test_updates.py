"""A step waits for nothing: counted on the CPU, and by tensors that only pretend to lie on a GPU."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import ToDevice
from dcml_tune.losses import functional, miners
from dcml_tune.losses import pairs as pairs_module
from dcml_tune.search.gpu_probe.trial import SyntheticTrial
from dcml_tune.training.optimizer import build_optimizer

# What the host asks of a device: values, numbers of entries, draws whose number is one of them.
WAITS = {"aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.multinomial", "aten.masked_select"}
ON_THE_HOST = {"prim.device", "aten.lift_fresh", "aten.detach"}
LOSSES = [
    {"sampler": "distanceweighted", "lr_beta": 0.1, "nu": 0.1},
    {"sampler": "easypeasy"},
    {"sampler": "RPSHN", "criterion": "triplet"},
    {"criterion": "triplet_semihard"},
    {"criterion": "triplet_all"},
    {"criterion": "npairs"},
    {"criterion": "kantorov_margin"},
    {"criterion": "multi_similarity"},
    {"criterion": "supcon"},
    {"criterion": "contrastive"},
    {"criterion": "proxy_anchor"},
    {"criterion": "normalized_softmax"},
    {"criterion": "arcface"},
]


class Calls(TorchDispatchMode):
    """Lists the operators that are called, with their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append((str(func).rsplit(".", 1)[0], args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def names(self):
        return {name for name, _, _ in self.found}


def trial(device="cpu", **settings):
    config = TrialConfig(
        arch="test_resnet", weights="none", sz_resize=32, sz_crop=32, batch_size=8, num_samples_per_class=2,
        sz_embedding=16, nb_clusters=4, hierarchy_method="none", **settings,
    )  # fmt: skip
    return SyntheticTrial(config, torch.device(device))


@pytest.mark.parametrize("settings", LOSSES, ids=lambda each: " ".join(map(str, each.values())))
def test_a_step_asks_the_device_for_nothing(settings):
    """Forward, backward and update call no operator whose result the host has to wait for."""
    made = trial(**settings)
    made.step()
    with Calls() as calls:
        made.step()
    assert {"aten.convolution", "aten.convolution_backward", "aten._fused_adam_"} <= calls.names()
    assert not WAITS & calls.names()


@pytest.mark.parametrize("settings", LOSSES, ids=lambda each: " ".join(map(str, each.values())))
def test_what_a_step_copies_to_a_gpu_is_page_locked(settings, monkeypatch):
    """With model and loss on a pretended GPU, all that is copied there comes from page-locked memory, without waiting.

    Only forward: torch's backward pass and update need a real one.
    """
    made, gpu = trial(**settings, amp=False), torch.device("cuda")
    pairs, locked = pairs_module.positive_pairs(torch.from_numpy(made.labels)), []

    def pin_memory(tensor):
        locked.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    for module in (miners, functional):  # pretended tensors have no numbers for numpy
        monkeypatch.setattr(module, "positive_pairs", lambda labels: pairs)
    monkeypatch.setattr(miners, "_gumbel_like", lambda weights, generator: torch.zeros_like(weights))
    with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
        for module in (*made.model.modules(), *made.criterion.modules()):
            for name, parameter in [*module.named_parameters(recurse=False)]:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device=gpu))
            for name, buffer in [*module.named_buffers(recurse=False)]:
                module._buffers[name] = torch.empty_like(buffer, device=gpu)
        made.device, made._to_device = gpu, lambda images: pairs_module.move(images, gpu)
        made.optimizer = build_optimizer(made.model, made.criterion, made.config)
        made.set_trainable(made.plan)
        calls.found.clear()
        made.step()
    assert not WAITS & calls.names()
    for name, args, how in calls.found:
        sources = [each for each in args if isinstance(each, torch.Tensor) and each.device.type == "cpu"]
        if not sources or name in ON_THE_HOST:
            continue
        assert name == "aten._to_copy"  # others would copy by themselves, and wait
        assert how["device"].type == "cuda"
        assert how["non_blocking"]
        assert any(sources[0] is each for each in locked)
    assert len(locked) >= 2  # images, labels


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("settings", LOSSES, ids=lambda each: " ".join(map(str, each.values())))
def test_a_step_on_a_gpu_waits_for_nothing(settings):
    """As torch itself sees it."""
    made = trial("cuda", **settings)
    made.warm_up()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.step()
        made.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_on_the_cpu_a_batch_is_not_copied():
    """It is where it is to be."""
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert ToDevice(torch.device("cpu"))(images) is images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_arrive_on_a_gpu_as_they_were():
    """In their memory format, also when many are under way."""
    to_gpu, rng = ToDevice(torch.device("cuda")), np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, 256, (64, 64, 64, 3), np.uint8)).permute(0, 3, 1, 2) for _ in range(20)]
    for batch, there in zip(batches, [to_gpu(batch) for batch in batches], strict=True):
        assert there.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(there.cpu(), batch)
