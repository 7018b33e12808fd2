"""Shared by division.py, division_of_losses.py and fidelity.py: recipes that are trained with several seeds, each run in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

MEASURES = ("test/recall_at_1", "test/map_at_r")

Train = Callable[[str, int, int, Path], dict[str, Any]]
"""Trains a recipe with a seed for so many epochs, with a directory of image stores; returns what was measured."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of all recipes with all seeds, whose results are files of a directory."""

    recipes: Sequence[str]
    seeds: Sequence[int]
    epochs: int
    output: Path

    def path(self, recipe: str, seed: int) -> Path:
        """The file of the result of a run."""
        return self.output / f"{recipe.replace(' ', '-').replace(',', '')}-{self.epochs}-epochs-seed-{seed}.json"

    def results(self, recipe: str) -> list[dict[str, Any]]:
        """The results of a recipe, in the order of the seeds."""
        return [json.loads(self.path(recipe, seed).read_text()) for seed in self.seeds]


def trained(
    script: str, description: str | None, recipes: Iterable[str], *, epochs: int, output: str, train: Train
) -> Runs:
    """Read the command line of a benchmark, and run what is missing, several runs at once.

    Args:
        script: path of the benchmark, which is called again for each run.
        description: of the benchmark.
        recipes: names of the recipes.
        epochs: default of --epochs.
        output: default of --output.
        train: trains one run.

    Raises:
        SystemExit: at the end of a process for a single run, or if a run failed.
    """
    arguments = _arguments(description, epochs, output)
    directory = arguments.output.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    runs = Runs(recipes=list(recipes), seeds=range(1, arguments.seeds + 1), epochs=arguments.epochs, output=directory)
    if arguments.one:
        recipe, seed = arguments.one[0], int(arguments.one[1])
        start = time.perf_counter()
        facts = train(recipe, seed, runs.epochs, directory.parent / "store")
        minutes = (time.perf_counter() - start) / 60
        runs.path(recipe, seed).write_text(json.dumps({"minutes": minutes, **facts}))
        raise SystemExit
    print("this benchmark reads the test classes: each run scores them once, after its last epoch", flush=True)
    _run(script, runs, arguments.processes)
    return runs


def _arguments(description: str | None, epochs: int, output: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(script: str, runs: Runs, processes: int) -> None:
    wanted = [(recipe, seed) for seed in runs.seeds for recipe in runs.recipes]
    missing = [each for each in wanted if not runs.path(*each).exists()]
    started: list[subprocess.Popen[bytes]] = []
    for number, (recipe, seed) in enumerate(missing, 1):
        while sum(process.poll() is None for process in started) >= processes:
            time.sleep(0.5)
        print(f"{number} of {len(missing)}: {recipe}, seed {seed}", file=sys.stderr, flush=True)
        words = ["--epochs", str(runs.epochs), "--output", str(runs.output), "--one", recipe, str(seed)]
        started.append(subprocess.Popen([sys.executable, script, *words]))
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise SystemExit("a run failed; its output is above")


def tested(settings: dict[str, Any], stores: Path) -> dict[str, Any]:
    """Train settings to their last epoch with one thread, and return the test measures."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer

    torch.set_num_threads(1)
    trainer = Trainer(TrialConfig(**settings), stores=stores)
    while trainer.epoch < trainer.config.nb_epochs:
        trainer.run_epoch()
    return trainer.test()


def percentages(runs: Runs) -> dict[tuple[str, str], np.ndarray]:
    """The test measures of each recipe in percent, in the order of the seeds, by recipe and name."""
    return {
        (recipe, name): 100 * np.array([each[name] for each in runs.results(recipe)])
        for recipe in runs.recipes
        for name in MEASURES
    }


def mean_and_spread(values: np.ndarray) -> str:
    """Mean, and the standard deviation of several values."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def difference(values: np.ndarray) -> str:
    """Mean of paired differences, and half of its 95 % interval (Student's t)."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} ± {half:.1f}"
