"""Does a search find a better setting than the published one, or than random search with the same number of epochs?

    python benchmarks/search.py [--seeds 3] [--epoch-budget 48] [--output runs/search-benchmark]

For each seed, two searches of `emoji` run until their trials have trained for the given number of epochs: TPE with
ASHA, and random search without pruning. Their winners, selected on held-out classes, and the published setting are then
trained in the same way: on all training classes, for all epochs, with this seed. The test classes are scored once,
after the last epoch. Results are stored, so a benchmark that was stopped continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import t

from search_spaces.emoji import SPACE

SEARCHES = {"search": ["optuna", "asha"], "random": ["random", "none"]}
PAIRS = [("search", "published"), ("random", "published"), ("search", "random")]
MEASURE = "test/recall_at_1"


def search(kind: str, seed: int, budget: int, output: Path) -> dict[str, Any]:
    """Run a search, or take the one that is there; returns its winner's settings, value and the number of trials."""
    name = f"{kind}-{budget}-epochs-seed-{seed}"
    searcher, scheduler = SEARCHES[kind]
    begin = ["emoji", "--name", name, "--num-samples", str(budget), "--epoch-budget", str(budget), "--seed", str(seed),
             "--searcher", searcher, "--scheduler", scheduler, "--confirm", "0", "--final", "none", "--quiet"]  # fmt: skip
    state = output / name / "state.json"
    if not state.exists() or '"finished"' not in state.read_text():
        words = ["--resume", name, "--quiet"] if state.exists() else begin
        with (output / f"{name}.log").open("a") as log:
            command = [sys.executable, "-m", "dcml_tune.search", *words, "--output-dir", str(output)]
            subprocess.run(command, stdout=log, stderr=log, check=True)
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{output / name / 'optuna.db'}")
    values = [trial.value or 0.0 for trial in study.trials]
    best = study.trials[int(np.argmax(values))]
    trials = sum(value > 0 for value in values)  # not those that failed
    return {"settings": {**SPACE.published, **best.params, "seed": seed}, "value": max(values), "trials": trials}


def score(name: str, settings: dict[str, Any], output: Path) -> dict[str, float]:
    """Train a setting on all training classes, and score the test classes once."""
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer

    file = output / f"{name}.json"
    if not file.exists():
        trainer = Trainer(TrialConfig(**{**settings, "val_share": 0.0}), stores=output / "store")
        while trainer.epoch < trainer.config.nb_epochs:
            trainer.run_epoch()
        file.write_text(json.dumps(trainer.test()))
    found: dict[str, float] = json.loads(file.read_text())
    return found


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epoch-budget", type=int, default=48)
    parser.add_argument("--output", type=Path, default=Path("runs/search-benchmark"))
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    published = SPACE.published_point()[0]
    values: dict[str, list[float]] = {"published": [], **{kind: [] for kind in SEARCHES}}
    print("| seed | recipe | trials | val recall@1 | test recall@1 | settings |\n|---|---|---|---|---|---|")
    for seed in range(1, arguments.seeds + 1):
        found = {kind: search(kind, seed, arguments.epoch_budget, output) for kind in SEARCHES}
        found["published"] = {"settings": {**SPACE.published, **published, "seed": seed}}
        for kind, each in found.items():
            reached = 100 * score(f"{kind}-{arguments.epoch_budget}-final-{seed}", each["settings"], output)[MEASURE]
            values[kind].append(reached)
            varied = ", ".join(
                f"{n} {v if isinstance(v := each['settings'][n], int) else f'{v:.3g}'}" for n in published
            )
            own = f"{each['trials']} | {100 * each['value']:.1f}" if kind in SEARCHES else " | "
            print(f"| {seed} | {kind} | {own} | {reached:.1f} | {varied} |", flush=True)
    print("\n| recipe | test recall@1: mean, 95 % interval of the mean |\n|---|---|")
    for kind, scores in values.items():
        print(f"| {kind} | {_interval(np.array(scores), '')} |")
    for one, other in PAIRS:
        print(
            f"| {one} - {other}, paired by seed | {_interval(np.array(values[one]) - np.array(values[other]), '+')} |"
        )


def _interval(values: np.ndarray, sign: str) -> str:
    if len(values) < 2:
        return f"{values.mean():{sign}.1f}"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{sign}.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
