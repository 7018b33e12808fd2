"""Does the division help other losses? The starts of `--space wide` on `emoji`, with the division and without.

    python benchmarks/division_of_losses.py [--seeds 3] [--epochs 6] [--processes 2] [--output runs/division-of-losses]

Each run trains on all training classes and scores the test classes once, after its last epoch. Nothing is selected on
them. Results are stored, so a benchmark that was stopped continues where it stopped.

With the division a recipe has two learners with learned masks, and the other settings of the published point of `emoji`: two
epochs between divisions, of which the first trains with a frozen backbone. "every epoch" trains the backbone in each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes import MEASURES, Runs, difference, mean_and_spread, percentages, tested, trained

STARTS = ("proxy-anchor", "multi-similarity")
DIVISIONS: dict[str, dict[str, Any]] = {
    "no division": {},
    "division": {"nb_clusters": 2},
    "division, every epoch": {"nb_clusters": 2, "mod_epoch_freeze": 0},
}
RECIPES = {f"{start}, {division}": (start, division) for start in STARTS for division in DIVISIONS}


def settings(recipe: str, seed: int, epochs: int) -> dict[str, Any]:
    """The settings of a run."""
    from search_spaces.emoji import WIDE

    start, division = RECIPES[recipe]
    of_start = next(each.settings for each in WIDE.starts if each.name == start)
    phase = {"nb_epochs": epochs, "force_full_embedding_epoch": epochs - max(1, epochs // 6)}
    return {**WIDE.published, **of_start, **phase, "val_share": 0.0, "seed": seed, **DIVISIONS[division]}


def train(recipe: str, seed: int, epochs: int, stores: Path) -> dict[str, Any]:
    """Train one recipe with one seed, and return its test measures."""
    return tested(settings(recipe, seed, epochs), stores)


def main() -> None:
    """Run what is missing, several runs at once, and print the table."""
    _print(trained(__file__, __doc__, RECIPES, epochs=6, output="runs/division-of-losses", train=train))


def _print(runs: Runs) -> None:
    values = percentages(runs)
    print(
        f"{runs.epochs} epochs, {len(runs.seeds)} seeds: mean and standard deviation, in percent; the difference from no"
    )
    print("division, paired by seed, with half of its 95 % interval (Student's t), in points\n")
    print("| recipe | test recall@1 | difference | test MAP@R | difference |\n|---|---|---|---|---|")
    for recipe, (start, division) in RECIPES.items():
        cells = []
        for name in MEASURES:
            found, plain = values[recipe, name], values[f"{start}, no division", name]
            cells.append(mean_and_spread(found))
            differs = division != "no division" and len(found) > 1
            cells.append(difference(found - plain) if differs else "")
        print(f"| {recipe} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
