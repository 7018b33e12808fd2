"""What two differences from the original cost or bring: training on `emoji` with and without each, over several seeds.

    python benchmarks/fidelity.py [--seeds 3] [--epochs 10] [--processes 2] [--output runs/fidelity]

`as the original` is what the package does. The other recipes put back what version 0.1 did before: in a smaller cluster
the batches of an epoch were repeated instead of drawn anew, and an anchor had one triplet for each of its positives, so
that large classes had most of them. The setting is the published point of search_spaces/emoji.py with 8 clusters, the
full-embedding phase in the last fifth.

Each run trains on all training classes and **reads the test classes**: it scores them once, after its last epoch. Nothing
is chosen on them. A run that is there already is not run again, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

NOW = "as the original"
RECIPES = (NOW, "small clusters repeat batches", "one triplet a positive pair")
MEASURES = ("test/recall_at_1", "test/map_at_r")


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


def run(recipe: str, seed: int, epochs: int, output: Path) -> None:
    """Train one recipe with one seed, and write what it reached."""
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.data.samplers import _batches_of
    from dcml_tune.training.trainer import Trainer

    torch.set_num_threads(1)
    {RECIPES[0]: lambda: None, RECIPES[1]: repeat_batches, RECIPES[2]: triplet_a_pair}[recipe]()
    trainer = Trainer(TrialConfig(**settings(seed, epochs)), stores=output.parent / "store")
    start, again, steps = time.perf_counter(), 0, 0
    while trainer.epoch < epochs:
        steps += int(trainer.run_epoch()["train/batches"])
        labels = trainer.data.labels[trainer.data.train]
        partition = trainer.partition
        sizes = [_batches_of(labels[partition == k], trainer.config) for k in range(int(partition.max()) + 1)]
        again += sum(max(sizes) - size for size in sizes if size)
    facts = {"minutes": (time.perf_counter() - start) / 60, "again": again / steps, **trainer.test()}
    path(recipe, seed, epochs, output).write_text(json.dumps(facts))


def path(recipe: str, seed: int, epochs: int, output: Path) -> Path:
    """Where the result of a run lies."""
    return output / f"{recipe.replace(' ', '-')}-{epochs}-epochs-seed-{seed}.json"


def main() -> None:
    """Run what is missing, some at once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        run(arguments.one[0], int(arguments.one[1]), arguments.epochs, output)
        return
    print("this benchmark reads the test classes: each run scores them once, after its last epoch", flush=True)
    wanted = [(recipe, seed) for seed in range(1, arguments.seeds + 1) for recipe in RECIPES]
    _run_all([each for each in wanted if not path(*each, arguments.epochs, output).exists()], arguments, output)
    _print(arguments, output)


def _run_all(missing: list[tuple[str, int]], arguments: argparse.Namespace, output: Path) -> None:
    running: list[subprocess.Popen[bytes]] = []
    for number, (recipe, seed) in enumerate(missing, 1):
        while sum(process.poll() is None for process in running) >= arguments.processes:
            time.sleep(0.5)
        print(f"{number} of {len(missing)}: {recipe}, seed {seed}", file=sys.stderr, flush=True)
        words = ["--epochs", str(arguments.epochs), "--output", str(output), "--one", recipe, str(seed)]
        running.append(subprocess.Popen([sys.executable, __file__, *words]))
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise SystemExit("a run failed; what it said stands above")


def _print(arguments: argparse.Namespace, output: Path) -> None:
    from dcml_tune.search.statistics import Comparison

    seeds = range(1, arguments.seeds + 1)
    found = {
        recipe: {f"seed {seed}": json.loads(path(recipe, seed, arguments.epochs, output).read_text()) for seed in seeds}
        for recipe in RECIPES
    }
    again = np.mean([each["again"] for each in found[NOW].values()])
    print(
        f"{arguments.epochs} epochs, {arguments.seeds} seeds; {again:.0%} of the batches are those of smaller clusters"
    )
    print(
        "that start over. In percent, and in points with the 95 % interval, paired by seed (`dcml_tune.search.statistics`).\n"
    )
    print(
        "| recipe | test recall@1 | less `as the original` | test MAP@R | less `as the original` |\n|---|---|---|---|---|"
    )
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
