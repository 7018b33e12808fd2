"""Share of the network's own work in an epoch, and what a frozen backbone and rewrites of the network save: `make bench`.

    python benchmarks/epoch.py [--repeats 3] [--rewrites]

The network's own work consists of the forward and backward passes of the training batches, and of the forward passes of
the images that are clustered and evaluated. It is timed on synthetic images, right after the epoch with which it is
compared. The runs use `emoji` with 4 clusters and one thread. Each repeat is a new training.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from measure import Row, ratio_line, show
from torch import nn

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models import depthwise
from dcml_tune.models.backbones import Backbone, build
from dcml_tune.training.devices import keep_freed_memory
from dcml_tune.training.trainer import Trainer
from search_spaces import load_space

EPOCHS = 4


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

    trainer.train_step.set_trainable(plan)
    training = seconds(train) * count
    model.eval()
    images = len(trainer.data.validation) + (len(trainer.data.train) if plan.recluster else 0)
    return training + seconds(infer) * images / config.batch_size


def measured(repeats: int, stores: Path) -> list[Row]:
    config = TrialConfig(**{**load_space("emoji").published, "nb_clusters": 4})
    plans = [EpochPlan.at(epoch, config) for epoch in range(EPOCHS)]
    whole, own = defaultdict(list), defaultdict(list)
    for _ in range(repeats):
        trainer = Trainer(config, stores=stores)
        for plan in plans:
            measures = trainer.run_epoch()
            whole[plan.epoch].append(measures["time/epoch_s"])
            own[plan.epoch].append(own_work(trainer, plan, int(measures["train/batches"])))
    rows = []
    for plan in plans:
        part = f"epoch {plan.epoch}, {plan.phase}{', backbone frozen' if plan.backbone_frozen else ''}: own work of it"
        rows.append(ratio_line(part, whole[plan.epoch], own[plan.epoch], goal="0.90", unit="s"))
    for frozen, trained in ((0, 1), (2, 3)):
        part = f"{plans[frozen].phase}: backbone frozen against trained"
        rows.append(ratio_line(part, whole[frozen], whole[trained], goal="2.5", unit="s"))
    return rows


VARIANTS = {  # name: statistics folded, fast depthwise convolutions, ReLU6 from its output
    "plain": (False, False, False),
    "folded": (True, False, False),
    "depthwise": (False, True, False),
    "relu6": (False, False, True),
    "all": (True, True, True),
}


def network(folded: bool, relu6: bool) -> Backbone:
    backbone = build("tf_efficientnet_lite0", sz_crop=64, frozen_statistics=folded).eval()
    if not relu6:
        for module in backbone.modules():
            if isinstance(module, nn.ReLU6):
                module.__class__ = nn.ReLU6
    return backbone


def rewrites(repeats: int) -> list[Row]:
    """Forward and backward of 64 images, with the rewrites of `dcml_tune.models` and without."""
    images = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    networks = {name: network(folded, relu6) for name, (folded, _, relu6) in VARIANTS.items()}
    times = defaultdict(list)
    for _ in range(1 + 3 * repeats):
        for name, (_, fast, _) in VARIANTS.items():
            with nullcontext() if fast else patch.object(depthwise, "is_faster", return_value=False):
                start = time.perf_counter()
                networks[name](images).square().mean().backward()
                times[name].append(time.perf_counter() - start)
    rows = {
        "folded": "folding batch-norm",
        "depthwise": "weight gradients of depthwise convolutions",
        "relu6": "gradient of ReLU6 from its output",
        "all": "all three",
    }
    return [
        ratio_line(f"{part}, 64 images", times[ours][1:], times["plain"][1:], goal="") for ours, part in rows.items()
    ]


def steps_of_a_process(keep: bool) -> float:
    """Median seconds of a forward and backward pass of 112 images, with `keep_freed_memory` or without."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    images = torch.randn(112, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    backbone = network(folded=True, relu6=True)
    return seconds(lambda: backbone(images).square().mean().backward(), repeats=9)


def allocator(repeats: int) -> list[Row]:
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 + repeats):
        for keep, found in times.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found.append(process.submit(steps_of_a_process, keep).result())
    return [ratio_line("keeping freed memory, 112 images", times[True][1:], times[False][1:], goal="")]


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stores", type=Path, default=Path("runs/store"))
    parser.add_argument(
        "--rewrites", action="store_true", help="measure the rewrites of the network and the allocator alone"
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [] if given.rewrites else measured(given.repeats, given.stores)
    rows += allocator(given.repeats)
    keep_freed_memory()  # as trials do
    rows += rewrites(given.repeats)
    show("an epoch of emoji, one thread: medians, ours first", rows)
    return rows


if __name__ == "__main__":
    main()
