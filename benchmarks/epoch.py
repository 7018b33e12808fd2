"""How much of an epoch is the network's own work; and what folding is worth: `make bench`.

The network's own work is forward and backward of the training batches, and forward of the clustering and evaluation
images, timed alone on synthetic images right after the epoch that they are compared with.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dcml_tune.backbones import build
from dcml_tune.config import TrialConfig
from dcml_tune.schedule import EpochPlan
from dcml_tune.trainer import Trainer
from search_spaces import load_space


def seconds(work, repeats=5):
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def own_work(trainer, plan, count):
    """Seconds of the network's own work in an epoch of `count` batches."""
    config, model = trainer.config, trainer.model
    batch = torch.randint(0, 256, (config.batch_size, 3, config.sz_crop, config.sz_crop), dtype=torch.uint8)

    def train():
        model(batch, 0).square().sum().backward()

    def infer():
        with torch.inference_mode():
            model(batch)

    trainer._set_trainable(plan)
    training = seconds(train) * count
    model.eval()
    images = len(trainer.data.validation) + (len(trainer.data.train) if plan.recluster else 0)
    return training + seconds(infer) * images / config.batch_size


def main():
    torch.set_num_threads(1)
    space = load_space("emoji")
    trainer = Trainer(
        TrialConfig(**{**space.published, "nb_clusters": 4}),
        stores=Path("runs/store"),
    )
    table = Table("epoch", "phase", "frozen", "epoch s", "own work s", "share", title="emoji, one thread")
    for epoch in range(4):
        plan = EpochPlan.at(epoch, trainer.config)
        measures = trainer.run_epoch()
        own = own_work(trainer, plan, int(measures["train/batches"]))
        total = measures["time/epoch_s"]
        table.add_row(
            str(epoch), plan.phase, str(plan.backbone_frozen), f"{total:.1f}", f"{own:.1f}", f"{own / total:.0%}"
        )
    Console().print(table)
    images = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    times = []
    for frozen in (False, True):
        backbone = build("tf_efficientnet_lite0", sz_crop=64, frozen_statistics=frozen).eval()
        times.append(seconds(lambda backbone=backbone: backbone(images).square().mean().backward()))
    print(
        f"folding: forward and backward of 64 images {times[0]:.2f} s -> {times[1]:.2f} s, {times[0] / times[1]:.2f} times"
    )


if __name__ == "__main__":
    main()
