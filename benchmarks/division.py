"""What does the division bring? Four recipes on `emoji`, at equal epochs, over several seeds.

    python benchmarks/division.py [--seeds 3] [--epochs 12] [--processes 2] [--output runs/division]

Each run trains on all training classes and scores the test classes once, after its last epoch: nothing is chosen on them.
A run that is there already is not run again, so that a stopped benchmark goes on. The recipes differ in the division alone:
the setting is the published point of search_spaces/emoji.py with 4 clusters (the most that two epochs a division leave
room for in so few epochs), the full-embedding phase in the last sixth.
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
from scipy.stats import t

RECIPES: dict[str, dict[str, Any]] = {
    "no division": {"nb_clusters": 1, "mod_epoch_freeze": 0},
    "no division, same freeze": {"nb_clusters": 1, "freeze_without_division": True},
    "fixed masks": {"fixed_mask": True},
    "learned masks": {},
}
MEASURES = ("test/recall_at_1", "test/map_at_r")
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


def run(recipe: str, seed: int, epochs: int, output: Path) -> None:
    """Train one recipe with one seed, and write what it reached."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer

    torch.set_num_threads(1)
    trainer = Trainer(TrialConfig(**settings(recipe, seed, epochs)), stores=output.parent / "store")
    start = time.perf_counter()
    while trainer.epoch < epochs:
        trainer.run_epoch()
    facts = {"minutes": (time.perf_counter() - start) / 60, **trainer.test()}
    path(recipe, seed, epochs, output).write_text(json.dumps(facts))


def path(recipe: str, seed: int, epochs: int, output: Path) -> Path:
    """Where the result of a run lies."""
    return output / f"{recipe.replace(' ', '-').replace(',', '')}-{epochs}-epochs-seed-{seed}.json"


def main() -> None:
    """Run what is missing, some at once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/division"))
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        run(arguments.one[0], int(arguments.one[1]), arguments.epochs, output)
        return
    wanted = [(recipe, seed) for seed in range(1, arguments.seeds + 1) for recipe in RECIPES]
    _run_all([each for each in wanted if not path(*each, arguments.epochs, output).exists()], arguments, output)
    _print(arguments, output)


def _run_all(missing: list[tuple[str, int]], arguments: argparse.Namespace, output: Path) -> None:
    running: list[subprocess.Popen[bytes]] = []
    for number, (recipe, seed) in enumerate(missing, 1):
        while len(running) >= arguments.processes:
            running = [process for process in running if process.poll() is None]
            time.sleep(0.5)
        print(f"{number} of {len(missing)}: {recipe}, seed {seed}", file=sys.stderr, flush=True)
        words = ["--epochs", str(arguments.epochs), "--output", str(output), "--one", recipe, str(seed)]
        running.append(subprocess.Popen([sys.executable, __file__, *words]))
    if any(process.wait() for process in running):
        raise SystemExit("a run failed; what it said stands above")


def _print(arguments: argparse.Namespace, output: Path) -> None:
    seeds = range(1, arguments.seeds + 1)
    found = {
        recipe: [json.loads(path(recipe, seed, arguments.epochs, output).read_text()) for seed in seeds]
        for recipe in RECIPES
    }
    values = {
        (recipe, name): 100 * np.array([each[name] for each in runs])
        for recipe, runs in found.items()
        for name in MEASURES
    }
    print(f"{arguments.epochs} epochs, {arguments.seeds} seeds: mean and standard deviation, in percent\n")
    print("| recipe | test recall@1 | test MAP@R |\n|---|---|---|")
    for recipe in RECIPES:
        cells = [f"{values[recipe, name].mean():.1f}{_spread(values[recipe, name])}" for name in MEASURES]
        print(f"| {recipe} | {' | '.join(cells)} |")
    if arguments.seeds < 2:
        return
    print("\npaired by seed: mean difference and half its 95 % interval (Student's t), in points\n")
    print("| difference | test recall@1 | test MAP@R |\n|---|---|---|")
    for one, other in PAIRS:
        cells = [_difference(values[one, name] - values[other, name]) for name in MEASURES]
        print(f"| {one} - {other} | {' | '.join(cells)} |")


def _spread(values: np.ndarray) -> str:
    return f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""


def _difference(values: np.ndarray) -> str:
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
