"""The learning-rate rule of several ranks: recall at equal numbers of images seen, on the embedded data set.

`python benchmarks/ranks.py [--ranks 2 4] [--rules none sqrt linear] [--seeds 3] [--epochs 5]` trains the published setting of
`emoji` with 1 rank and with each number of ranks and rule, on the CPU, and prints a table for docs/scale.md. Ranks are processes of
this machine, with a thread each. Images, batches and their augmentation are the same in all of them; a training on N ranks makes a
N-th of the updates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dcml_tune import Trainer, TrialConfig
from search_spaces.emoji import SPACE

RULES = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
"""Name of a rule -> exponent of the number of ranks in the factor of the learning rates."""

SMALL = {"ratio_classes": 0.15, "val_share": 0.3, "batch_size": 32, "nb_clusters": 2, "mod_epoch": 2}


def best(stores: Path, *, ranks: int, exponent: float, seed: int, epochs: int) -> tuple[float, float]:
    """Train once; returns the best recall@1 on the held-out classes in per cent, and the seconds."""
    config = TrialConfig(
        **{**SPACE.published, **SMALL, "nb_epochs": epochs, "force_full_embedding_epoch": epochs - 1, "seed": seed}
    )
    start = time.perf_counter()
    trainer = Trainer(config, stores=stores, metric="val/recall_at_1", device="cpu", ranks=ranks)
    try:
        trainer.train_step.lr_scale = ranks**exponent
        while trainer.epoch < epochs:
            measures = trainer.run_epoch()
    finally:
        trainer.close()
    return 100 * measures["val/recall_at_1_best"], time.perf_counter() - start


def main(argv: list[str]) -> None:
    """Train all of them, and print a row for each number of ranks and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| ranks | learning rates | recall@1 of each seed, % | mean | s |\n|---|---|---|---|---|", flush=True)
    cells = [(1, "none"), *((ranks, rule) for ranks in flags.ranks for rule in flags.rules)]
    with TemporaryDirectory() as stores:
        for ranks, rule in cells:
            found = [
                best(Path(stores), ranks=ranks, exponent=RULES[rule], seed=seed, epochs=flags.epochs)
                for seed in range(flags.seeds)
            ]
            values = [value for value, _ in found]
            each, mean = ", ".join(f"{value:.1f}" for value in values), statistics.mean(values)
            print(f"| {ranks} | {rule} | {each} | {mean:.1f} | {sum(s for _, s in found):.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
