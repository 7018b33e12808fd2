"""Effect of two differences of version 0.1 from the original, on `emoji` and over several seeds.

    python benchmarks/fidelity.py [--seeds 3] [--epochs 10] [--processes 2] [--output runs/fidelity]

The recipe `as the original` is what the package does now. Each other recipe restores one rule of version 0.1: smaller
clusters repeated their batches within an epoch instead of drawing new ones; or each anchor had one triplet for each of
its positives, so that large classes had most of the triplets. The settings are the published point of
search_spaces/emoji.py with 8 clusters. The full-embedding phase is the last fifth of the epochs.

Each run trains on all training classes and **reads the test classes**: it scores them once, after its last epoch.
Nothing is selected on them. Results are stored, so a benchmark that was stopped continues where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import MEASURES, Runs, trained

NOW = "as the original"
RECIPES = (NOW, "small clusters repeat batches", "one triplet a positive pair")


def settings(seed: int, epochs: int) -> dict[str, Any]:
    """The settings of a run."""
    from search_spaces.emoji import SPACE

    phase = {"nb_epochs": epochs, "force_full_embedding_epoch": epochs - max(1, epochs // 5)}
    return {**SPACE.published, **phase, "nb_clusters": 8, "val_share": 0.0, "seed": seed}


def repeat_batches() -> None:
    """Put back: a smaller cluster starts over with the batches that it had."""
    from dcml_tune.data import samplers

    draw = samplers._draw

    def repeated(*args: Any, rounds: int) -> list[Any]:
        size: int = args[4]
        once = draw(*args, rounds=size)
        return [once[number % size] for number in range(rounds)] if size else []

    samplers._draw = repeated  # type: ignore[assignment]


def triplet_a_pair() -> None:
    """Put back: as many triplets an anchor as it has positives, whatever the size of its class."""
    from dcml_tune.losses import miners
    from dcml_tune.losses.pairs import to_device

    def deal(pairs: Any, scores: torch.Tensor, wanted: Any, generator: torch.Generator) -> miners.Triplets:
        del generator
        starts = np.cumsum(pairs.positives_of) - pairs.positives_of
        taken = np.minimum(np.where(pairs.positives_of > 0, wanted.max(), 0), pairs.negatives_of)[pairs.anchors]
        turns = (np.arange(len(pairs.anchors)) - starts[pairs.anchors]) % taken
        anchors, positives, turn = to_device([pairs.anchors, pairs.positives, turns], scores.device)
        return anchors, positives, scores.topk(int(taken.max()), dim=1).indices[anchors, turn]

    miners._deal = deal


def train(recipe: str, seed: int, epochs: int, stores: Path) -> dict[str, Any]:
    """Train one recipe with one seed, and return its test measures and the share of further batches of smaller clusters."""
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.data.samplers import _batches_of
    from dcml_tune.training.trainer import Trainer

    torch.set_num_threads(1)
    {RECIPES[0]: lambda: None, RECIPES[1]: repeat_batches, RECIPES[2]: triplet_a_pair}[recipe]()
    trainer = Trainer(TrialConfig(**settings(seed, epochs)), stores=stores)
    again, steps = 0, 0
    while trainer.epoch < epochs:
        steps += int(trainer.run_epoch()["train/batches"])
        labels = trainer.data.labels[trainer.data.train]
        partition = trainer.partition
        sizes = [_batches_of(labels[partition == k], trainer.config) for k in range(int(partition.max()) + 1)]
        again += sum(max(sizes) - size for size in sizes if size)
    return {"again": again / steps, **trainer.test()}


def main() -> None:
    """Run what is missing, several runs at once, and print the table."""
    _print(trained(__file__, __doc__, RECIPES, epochs=10, output="runs/fidelity", train=train))


def _print(runs: Runs) -> None:
    from dcml_tune.search.statistics import Comparison

    found = {
        recipe: {f"seed {seed}": facts for seed, facts in zip(runs.seeds, runs.results(recipe), strict=True)}
        for recipe in RECIPES
    }
    again = np.mean([each["again"] for each in found[NOW].values()])
    print(
        f"{runs.epochs} epochs, {len(runs.seeds)} seeds. {again:.0%} of the batches are further batches of smaller clusters.\n"
        "Values in percent; differences in points with their 95 % interval, paired by seed (`dcml_tune.search.statistics`).\n"
    )
    head = ("recipe", "test recall@1", f"difference from `{NOW}`", "test MAP@R", f"difference from `{NOW}`")
    print(f"| {' | '.join(head)} |\n|---|---|---|---|---|")
    for recipe in RECIPES:
        cells = []
        for name in MEASURES:
            values = {each: {u: 100 * facts[name] for u, facts in runs.items()} for each, runs in found.items()}
            own = np.array(list(values[recipe].values()))
            cells.append(f"{own.mean():.1f}" + (f" ± {own.std(ddof=1):.1f}" if len(own) > 1 else ""))
            cells.append("" if recipe == NOW else _difference(Comparison(values), recipe))
        print(f"| {recipe} | {' | '.join(cells)} |")


def _difference(comparison: Any, recipe: str) -> str:
    found = comparison.difference(recipe, NOW)
    interval = "" if found.low is None else f" ({found.low:+.1f} to {found.high:+.1f})"
    return f"{found.mean:+.1f}{interval}"


if __name__ == "__main__":
    main()
