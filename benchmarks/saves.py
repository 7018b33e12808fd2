"""How long a trial waits for its saves: trained on meanwhile, against a trial that waits.

    python benchmarks/saves.py [--arch resnet50] [--epochs 5] [--repeats 3]

Trials of a part of `emoji` on one thread (or on the GPU) save the state and the best model of each epoch. What is compared
is the time of a trial outside of its epochs (`time/epoch_s`), for each epoch but the last one, whose save is always waited
for. Nothing is compared on test classes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import alternate, ratio_line, show

from trainables import DivideAndConquer, Run, trainable


def run(settings: dict[str, Any], stores: Path) -> tuple[float, float, int]:
    """Seconds of a trial outside of its epochs and in all, for each epoch; the bytes of a state and a best model."""
    with tempfile.TemporaryDirectory() as place:
        about = Run(stores=str(stores), directory=f"{place}/trial", key="000", threads=1)
        trial = DivideAndConquer({**settings, "run": about.as_dict()})
        epochs = settings["nb_epochs"]
        trial.trainer.evaluate = improving(trial.trainer.evaluate, trial.run.metric)
        begun, trained = time.perf_counter(), 0.0
        for epoch in range(1, epochs + 1):
            if epoch == epochs:
                size = sum(file.stat().st_size for file in Path(place).rglob("*.safetensors"))
                trial.trainer.save = lambda *_, **__: None
            trained += trial.train()["time/epoch_s"]
        whole = time.perf_counter() - begun
        trial.stop()
    return (whole - trained) / (epochs - 1), whole / epochs, size


def improving(evaluate: Callable[[], dict[str, float]], metric: str) -> Callable[[], dict[str, float]]:
    """Let each epoch be the best one so far, so that its model is saved, too."""
    values = iter(range(1, 1000))
    return lambda: {**evaluate(), metric: next(values) / 1000}


def main() -> None:
    """Run both ways alternately, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    settings = {
        "dataset": "emoji", "ratio_classes": 0.05, "arch": flags.arch, "weights": "none", "sz_resize": 64, "sz_crop": 64,
        "batch_size": 32, "num_samples_per_class": 2, "nb_clusters": 1, "nb_epochs": flags.epochs,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as stores:
        found: dict[str, list[tuple[float, float, int]]] = {"trains on": [], "waits": []}
        meanwhile = trainable.work_during

        def measured(way: str) -> None:
            trainable.work_during = meanwhile if way == "trains on" else lambda save, _: save()
            found[way].append(run(settings, Path(stores)))

        alternate({way: lambda way=way: measured(way) for way in found}, flags.repeats)
    (left, whole, sizes), (left_waiting, whole_waiting, _) = (zip(*each, strict=True) for each in found.values())
    rows = [
        ratio_line("outside of an epoch", left, left_waiting, goal="", unit="ms"),
        ratio_line("an epoch, in all", whole, whole_waiting, goal="", unit="ms"),
    ]
    show(f"trains on while it saves, against waits: {flags.arch}, {max(sizes) / 1e6:.0f} MB an epoch", rows)


if __name__ == "__main__":
    main()
