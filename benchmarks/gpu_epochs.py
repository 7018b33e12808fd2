"""Rows of gpu.py: training epochs from an image store, and the passes for clustering and evaluation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from gpu_table import Memory, Table
from measure import alternate, median
from PIL import Image

from dcml_tune.config.trial import TrialConfig
from dcml_tune.data.loader import EVALUATION_BATCH
from dcml_tune.training.embedding import embed
from dcml_tune.training.trainer import Trainer

REPEATS = 5
EPOCHS = 3  # of each kind that are timed, after one
JPEG = 500, 375
GOAL = 0.9


def write_images(root: Path, images: int) -> int:
    """JPEGs in folders of classes; returns the number of classes."""
    per_class = min(20, images // 12)
    rng, classes = np.random.default_rng(0), images // per_class
    for label in range(classes):
        (root / f"{label:05d}").mkdir(parents=True)
        base = rng.integers(0, 256, (12, 16, 3))
        for number in range(per_class):
            pixels = np.clip(base + rng.normal(0, 30, base.shape), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).resize(JPEG, Image.Resampling.BICUBIC)
            image.save(root / f"{label:05d}" / f"{number}.jpg", quality=90)
    return classes


def epochs(
    config: TrialConfig, images: int, device: torch.device, table: Table, synthetic: dict[str, list[float]]
) -> None:
    """Training epochs and passes of a trainer, whose images come from its stores."""
    with tempfile.TemporaryDirectory() as place:
        classes = write_images(Path(place) / "images", images)
        config = config.changed(dataset="folder", dataset_dir=f"{place}/images", train_classes=classes - 2)
        trainer, taken = Trainer(config, stores=Path(place) / "store", device=device), Memory(device)
        measured = [trainer.run_epoch() for _ in range(2 + 2 * EPOCHS)][2:]
        peak = taken.peak()
        for number, name in enumerate(("backbone frozen", "backbone trained")):
            each = measured[number::2]
            rates = [epoch["train/batches"] * config.batch_size / epoch["time/train_s"] for epoch in each]
            alone = [median(synthetic[name])] * len(rates)
            table.rates(f"epoch from the store, {name}", rates, alone, memory=peak, goal=f"{GOAL:.0%} of the step")
        passes(trainer, table)
        trainer.loader.close()


def passes(trainer: Trainer, table: Table) -> None:
    """Images a second of the passes that clustering and evaluation make, beside the network's own on one batch."""
    size = EVALUATION_BATCH[trainer.device.type]
    batch = torch.zeros((size, 3, *[trainer.config.sz_crop] * 2), dtype=torch.uint8, device=trainer.device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    rows = np.resize(trainer.data.train, max(len(trainer.data.train), size) // size * size)

    def network() -> None:
        trainer.model.eval()
        with torch.inference_mode():
            for _ in range(len(rows) // size):
                trainer.model(batch)
        table.wait()

    def embedded(**how: bool) -> None:
        embed(trainer.model, trainer.data.views, rows, **how)
        table.wait()

    works = {
        "clustering": lambda: embedded(penultimate=True), "evaluation": embedded, "network": network,
    }  # fmt: skip
    alternate(works, 1)
    taken = Memory(trainer.device)
    rates = {name: [len(rows) / each for each in seconds] for name, seconds in alternate(works, REPEATS).items()}
    for name in ("clustering", "evaluation"):
        goal = f"{GOAL:.0%} of the network"
        table.rates(f"pass of the {name}", rates[name], rates["network"], memory=taken.peak(), goal=goal)
