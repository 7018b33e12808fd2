"""Effect of the division: four recipes on `emoji` with the same number of epochs, over several seeds.

    python benchmarks/division.py [--seeds 3] [--epochs 12] [--processes 2] [--output runs/division]

Each run trains on all training classes and scores the test classes once, after its last epoch. Nothing is selected on
them. Results are stored, so a benchmark that was stopped continues where it stopped.

The recipes differ only in the division. Their settings are the published point of search_spaces/emoji.py with 4
clusters, the largest number that so few epochs allow with two epochs between divisions. The full-embedding phase is the
last sixth of the epochs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from recipes import MEASURES, Runs, trained
from scipy.stats import t

RECIPES: dict[str, dict[str, Any]] = {
    "no division": {"nb_clusters": 1, "mod_epoch_freeze": 0},
    "no division, same freeze": {"nb_clusters": 1, "freeze_without_division": True},
    "fixed masks": {"fixed_mask": True},
    "learned masks": {},
}
PAIRS = [
    ("learned masks", "no division"),
    ("learned masks", "no division, same freeze"),
    ("fixed masks", "no division"),
    ("learned masks", "fixed masks"),
    ("no division", "no division, same freeze"),
]


def settings(recipe: str, seed: int, epochs: int) -> dict[str, Any]:
    """The settings of a run."""
    from search_spaces.emoji import SPACE

    phase = {"nb_epochs": epochs, "force_full_embedding_epoch": epochs - max(1, epochs // 6)}
    return {**SPACE.published, **phase, "nb_clusters": 4, "val_share": 0.0, "seed": seed, **RECIPES[recipe]}


def train(recipe: str, seed: int, epochs: int, stores: Path) -> dict[str, Any]:
    """Train one recipe with one seed, and return its test measures."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer

    torch.set_num_threads(1)
    trainer = Trainer(TrialConfig(**settings(recipe, seed, epochs)), stores=stores)
    while trainer.epoch < epochs:
        trainer.run_epoch()
    return trainer.test()


def main() -> None:
    """Run what is missing, several runs at once, and print the table."""
    _print(trained(__file__, __doc__, RECIPES, epochs=12, output="runs/division", train=train))


def _print(runs: Runs) -> None:
    values = {
        (recipe, name): 100 * np.array([each[name] for each in runs.results(recipe)])
        for recipe in RECIPES
        for name in MEASURES
    }
    print(f"{runs.epochs} epochs, {len(runs.seeds)} seeds: mean and standard deviation, in percent\n")
    print("| recipe | test recall@1 | test MAP@R |\n|---|---|---|")
    for recipe in RECIPES:
        cells = [f"{values[recipe, name].mean():.1f}{spread(values[recipe, name])}" for name in MEASURES]
        print(f"| {recipe} | {' | '.join(cells)} |")
    if len(runs.seeds) < 2:
        return
    print("\npaired by seed: mean difference and half of its 95 % interval (Student's t), in points\n")
    print("| difference | test recall@1 | test MAP@R |\n|---|---|---|")
    for one, other in PAIRS:
        cells = [difference(values[one, name] - values[other, name]) for name in MEASURES]
        print(f"| {one} - {other} | {' | '.join(cells)} |")


def spread(values: np.ndarray) -> str:
    """The standard deviation of several values, as a part of a cell."""
    return f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""


def difference(values: np.ndarray) -> str:
    """Mean of paired differences and half of its 95 % interval (Student's t)."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
