"""A trial on synthetic images, for the GPU probe and benchmarks/gpu.py."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import torch

from dcml_tune.clustering import kmeans
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import EVALUATION_BATCH
from dcml_tune.metrics import retrieval_measures
from dcml_tune.search.gpu_probe import Measured
from dcml_tune.training.step import TrainStep
from dcml_tune.utils.machine import peak_memory_bytes

_WARM_UP = 5
_IMAGES_PER_CLASS = 50


class SyntheticTrial(TrainStep):
    """A trial that trains on random images, in the phase of the learners, with a trainable backbone."""

    def __init__(self, config: TrialConfig, device: torch.device, *, compiled: bool = False) -> None:
        """Build model, loss, optimiser and one batch in host memory, from which each step copies it to the device."""
        self.labels = np.arange(config.batch_size) // max(2, config.num_samples_per_class)
        super().__init__(config, int(self.labels.max()) + 1, device, compiled=compiled)
        shape = config.batch_size, config.sz_crop, config.sz_crop, 3
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.images = (images.pin_memory() if device.type == "cuda" else images).permute(0, 3, 1, 2)
        self.plan = replace(EpochPlan.at(0, config), backbone_frozen=False)
        self._generator = torch.Generator(device).manual_seed(0)
        self._steps = 0
        self.set_trainable(self.plan)

    def freeze(self, frozen: bool) -> None:
        """Freeze the backbone, or make it trainable again."""
        self.plan = replace(self.plan, backbone_frozen=frozen)
        self.set_trainable(self.plan)

    def step(self) -> None:
        """Make one update, round robin over the learners, without synchronising the device."""
        learner = self._steps % len(self.model.masks)
        self.gradients(self.images, self.labels, learner, self.plan, self._generator)
        self.optimizer.step()
        self._steps += 1

    def steps(self, count: int) -> None:
        """Make some updates, and synchronise the device."""
        for _ in range(count):
            self.step()
        self.wait()

    def wait(self) -> None:
        """Synchronise the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self, *, images: int = 0) -> None:
        """Embed, cluster and evaluate some images, which can need more memory than training, and make the first updates.

        Args:
            images: number of random images; at least one batch is embedded.
        """
        self._measure_images(images)
        self.set_trainable(self.plan)
        self.steps(_WARM_UP)

    def _measure_images(self, images: int) -> None:
        """Do what follows the updates of an epoch, with tensors as large as those of so many images."""
        self.model.eval()
        shape = EVALUATION_BATCH.get(self.device.type, 1), 3, self.config.sz_crop, self.config.sz_crop
        with torch.inference_mode():
            features = self.model.penultimate(torch.zeros(shape, dtype=torch.uint8, device=self.device))
            batches = [features + torch.rand_like(features) for _ in range(-(-images // len(features)))]
            if not batches:
                return
            features = torch.nn.functional.normalize(torch.cat(batches)[:images], dim=1)
            del batches
            embeddings = self.model.embed(features)
        if 1 < len(self.model.masks) <= images:
            kmeans(features, len(self.model.masks), seed=0, backend=self.config.backend)
        del features
        retrieval_measures(embeddings, np.arange(images) // _IMAGES_PER_CLASS, (1, 10))

    def measured(self, seconds: float) -> Measured:
        """Train for some seconds, and return throughput and memory."""
        start, before = time.perf_counter(), self._steps
        while time.perf_counter() - start < seconds:
            self.step()
        self.wait()
        images = (self._steps - before) * self.config.batch_size
        rate = images / (time.perf_counter() - start)
        return Measured(images_per_s=rate, **_memory(self.device))


def _memory(device: torch.device) -> dict[str, int]:
    """Memory of a GPU in bytes; on the CPU that of the process and of the machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"allocated": allocated, "reserved": reserved, "used": total - free, "total": total}
    taken = peak_memory_bytes()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"allocated": taken, "reserved": taken, "used": taken, "total": total}
