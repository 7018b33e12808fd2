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

from recipes import MEASURES, Runs, difference, mean_and_spread, percentages, tested, trained

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
    return tested(settings(recipe, seed, epochs), stores)


def main() -> None:
    """Run what is missing, several runs at once, and print the table."""
    _print(trained(__file__, __doc__, RECIPES, epochs=12, output="runs/division", train=train))


def _print(runs: Runs) -> None:
    values = percentages(runs)
    print(f"{runs.epochs} epochs, {len(runs.seeds)} seeds: mean and standard deviation, in percent\n")
    print("| recipe | test recall@1 | test MAP@R |\n|---|---|---|")
    for recipe in RECIPES:
        cells = [mean_and_spread(values[recipe, name]) for name in MEASURES]
        print(f"| {recipe} | {' | '.join(cells)} |")
    if len(runs.seeds) < 2:
        return
    print("\npaired by seed: mean difference and half of its 95 % interval (Student's t), in points\n")
    print("| difference | test recall@1 | test MAP@R |\n|---|---|---|")
    for one, other in PAIRS:
        cells = [difference(values[one, name] - values[other, name]) for name in MEASURES]
        print(f"| {one} - {other} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
