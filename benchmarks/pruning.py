"""Does pruning keep the best setting, and how many epochs does it save? Schedulers, replayed over complete trainings.

    python benchmarks/pruning.py [--settings 16] [--epochs 12] [--processes 2] [--output runs/pruning]

Settings are sampled at random from the space below and trained in full, each with one seed. They are measured on the
held-out classes, as in a search. Each scheduler is then applied to their recorded values in many random orders, with
four trials at once, as in Ray. Results are stored, so a benchmark that was stopped continues where it stopped.

`kept`: how often the best setting was the one with the best value at the end. `lost`: the value of the best setting
minus that of the setting that was found, both after all epochs, in points. `random, same epochs`: the same for as many
complete trainings of random settings as the scheduler's epochs allow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

METRIC = "val/recall_at_1"
SCHEDULERS = ("none", "asha-epochs", "asha", "median")
CONCURRENT = 4


def settings(number: int, epochs: int) -> dict[str, Any]:
    """The settings of a trial: the first is the published point, the others are drawn."""
    import optuna

    from search_spaces import Choice, Float, Int
    from search_spaces.emoji import SPACE

    full = {"nb_epochs": epochs, "force_full_embedding_epoch": epochs - epochs // 4}
    space = SPACE.widened(
        nb_clusters=Choice([1, 2, 4, 8]), mod_epoch=Int(2, 4), base_lr=Float(2e-5, 5e-4, log=True)
    ).restricted(full)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    drawn = space.published_point()[0] if number == 0 else space.suggest(study.ask())
    return {**space.published, **drawn}


def run(number: int, epochs: int, output: Path) -> None:
    """Train one setting in full, and write its curve."""
    import torch

    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.training.trainer import Trainer

    torch.set_num_threads(1)
    chosen = settings(number, epochs)
    trainer = Trainer(TrialConfig(**chosen), stores=output.parent / "store")
    curve = [trainer.run_epoch()[METRIC] for _ in range(epochs)]
    path(number, epochs, output).write_text(json.dumps({"settings": chosen, "curve": curve}))


def path(number: int, epochs: int, output: Path) -> Path:
    """Where the curve of a setting lies."""
    return output / f"{epochs}-epochs-{number:03d}.json"


@dataclass(eq=False)
class _Trial:
    """What a scheduler asks of Ray's trial."""

    trial_id: str
    settings: dict[str, Any]
    curve: np.ndarray
    config: dict[str, Any] = field(init=False)
    epoch: int = 0

    def __post_init__(self) -> None:
        self.config = {**self.settings, "run": {"key": self.trial_id}}


def replay(name: str, found: list[dict[str, Any]], order: np.ndarray) -> tuple[int, int]:
    """Which setting comes out of a search that is given them in this order, and the epochs it runs."""
    from trainables.schedulers import scheduler

    pruner = scheduler(name, metric=f"{METRIC}_best", epochs=len(found[0]["curve"]))  # type: ignore[arg-type]
    waiting = [_Trial(str(n), found[n]["settings"], np.maximum.accumulate(found[n]["curve"])) for n in order]
    trials, running = list(waiting), list[_Trial]()
    while waiting or running:
        while waiting and len(running) < CONCURRENT:
            running.append(waiting.pop(0))
            pruner.on_trial_add(None, running[-1])  # type: ignore[arg-type]
        for trial in list(running):
            value = float(trial.curve[trial.epoch])
            trial.epoch += 1
            result = {"epoch": trial.epoch, f"{METRIC}_best": value, "time_total_s": trial.epoch}
            if trial.epoch == len(trial.curve):
                pruner.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
                running.remove(trial)
            elif pruner.on_trial_result(None, trial, result) == "STOP":  # type: ignore[arg-type]
                running.remove(trial)
    winner = max(trials, key=lambda trial: float(trial.curve[trial.epoch - 1]))
    return int(winner.trial_id), sum(trial.epoch for trial in trials)


def main() -> None:
    """Train what is missing, replay, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    if arguments.one is not None:
        run(arguments.one, arguments.epochs, output)
        return
    numbers = range(arguments.settings)
    _run_all([n for n in numbers if not path(n, arguments.epochs, output).exists()], arguments, output)
    _print([json.loads(path(n, arguments.epochs, output).read_text()) for n in numbers], arguments)


def _run_all(missing: list[int], arguments: argparse.Namespace, output: Path) -> None:
    running: list[subprocess.Popen[bytes]] = []
    for number in missing:
        while len(running) >= arguments.processes:
            running = [process for process in running if process.poll() is None]
            time.sleep(0.5)
        print(f"setting {number} of {arguments.settings}", file=sys.stderr, flush=True)
        words = ["--epochs", str(arguments.epochs), "--output", str(output), "--one", str(number)]
        running.append(subprocess.Popen([sys.executable, __file__, *words]))
    if any(process.wait() for process in running):
        raise SystemExit("a training failed; its output is above")


def _print(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    full = np.array([max(each["curve"]) for each in found])
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(found)) for _ in range(arguments.orders)]
    print(f"{len(found)} settings, {arguments.epochs} epochs each: best {100 * full.max():.1f} %, "
          f"median {100 * np.median(full):.1f} %, worst {100 * full.min():.1f} % of {METRIC}; {len(orders)} orders\n")  # fmt: skip
    print(
        "| scheduler | kept | lost, points | epochs | random, same epochs: kept | lost, points |\n|---|---|---|---|---|---|"
    )
    for name in SCHEDULERS:
        chosen, epochs = np.array([replay(name, found, order) for order in orders]).T
        share = epochs.mean() / (len(found) * arguments.epochs)
        alone = max(1, round(share * len(found)))
        drawn = np.array([full[order[:alone]].max() for order in orders])
        cells = [
            f"{100 * np.mean(chosen == full.argmax()):.0f} %",
            f"{100 * (full.max() - full[chosen]).mean():.2f}",
            f"{100 * share:.0f} %",
            f"{100 * np.mean(drawn == full.max()):.0f} %",
            f"{100 * (full.max() - drawn).mean():.2f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
