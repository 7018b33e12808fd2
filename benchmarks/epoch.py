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
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from measure import Row, ratio_line, show

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models import depthwise
from dcml_tune.models.backbones import build
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


def rewrites(repeats: int) -> list[Row]:
    """Forward and backward of 64 images, with the two rewrites of `dcml_tune.models` and without."""
    images = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    plain, folded = (
        build("tf_efficientnet_lite0", sz_crop=64, frozen_statistics=frozen).eval() for frozen in (False, True)
    )
    times = defaultdict(list)
    for _ in range(1 + 3 * repeats):
        for name, backbone, fast in (
            ("plain", plain, False),
            ("fast depthwise", plain, True),
            ("folded", folded, False),
            ("both", folded, True),
        ):
            with nullcontext() if fast else patch.object(depthwise, "is_faster", return_value=False):
                start = time.perf_counter()
                backbone(images).square().mean().backward()
                times[name].append(time.perf_counter() - start)
    pairs = {
        "folding batch-norm, 64 images": ("folded", "plain"),
        "depthwise convolutions, 64 images": ("fast depthwise", "plain"),
        "depthwise convolutions after folding, 64 images": ("both", "folded"),
        "both rewrites, 64 images": ("both", "plain"),
    }
    return [ratio_line(part, times[ours][1:], times[theirs][1:], goal="") for part, (ours, theirs) in pairs.items()]


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stores", type=Path, default=Path("runs/store"))
    parser.add_argument("--rewrites", action="store_true", help="measure the rewrites of the network alone")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [*([] if given.rewrites else measured(given.repeats, given.stores)), *rewrites(given.repeats)]
    show("an epoch of emoji, one thread: medians, ours first", rows)
    return rows


if __name__ == "__main__":
    main()
