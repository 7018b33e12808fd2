"""Share of the epochs of a search that are the same computation in several trials. Nothing is trained.

    python benchmarks/prefix.py [--trials 8 20 64] [--repeats 20] [--data-sets emoji cars sop]

The settings of the trials are the published point and random samples of the space of each data set. Epochs with the
same number and the same key (`dcml_tune.config.prefix`) are computed once; the program counts the different ones. In
the column with pruning, a trial ends at each rung (`trainables.schedulers.rungs`) with probability 1/3, as asha ends at
most trials of equal quality.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from statistics import fmean

import numpy as np
import optuna

from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import acting_settings
from dcml_tune.config.trial import TrialConfig
from search_spaces import SearchSpace, load_space
from trainables.schedulers import STOPPED, rungs


def draw(space: SearchSpace, number: int, seed: int) -> list[TrialConfig]:
    """The published point and settings from a random sampler."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    point, _ = space.published_point()
    found = [TrialConfig(**space.whole(point))]
    while len(found) < number:
        try:
            found.append(TrialConfig(**space.whole(space.suggest(study.ask()))))
        except SettingError:  # settings that cannot work together
            continue
    return found


def pruned(config: TrialConfig, rng: np.random.Generator) -> int:
    """Number of epochs after which a trial ends."""
    return next((epoch for epoch in rungs(config.nb_epochs) if rng.random() < STOPPED), config.nb_epochs)


def saved(configs: list[TrialConfig], ends: list[int], most: int) -> tuple[int, int]:
    """Numbers of all epochs, and of those that are not computed again.

    Args:
        configs: settings of the trials.
        ends: number of epochs of each trial.
        most: number of epochs after which no two trials have a key in common any more.
    """
    keys = set()
    epochs = 0
    for config, end in zip(configs, ends, strict=True):
        for epoch in range(1, min(end, most) + 1):
            text = json.dumps(acting_settings(config, epoch), sort_keys=True)
            keys.add((epoch, hashlib.sha256(text.encode()).digest()))
            epochs += 1
    return sum(ends), epochs - len(keys)


def first_different(configs: list[TrialConfig]) -> int:
    """Number of epochs after which all trials have keys of their own; the last epoch if some never have."""
    last = max(config.nb_epochs for config in configs)
    distinct = {json.dumps(config.model_dump(), sort_keys=True): config for config in configs}
    if len(distinct) < len(configs):
        return last
    for epoch in range(1, last):
        keys = {json.dumps(acting_settings(each, min(epoch, each.nb_epochs)), sort_keys=True) for each in configs}
        if len(keys) == len(configs):
            return epoch
    return last


def main() -> None:
    """Print a row for each data set and number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[8, 20, 64])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--data-sets", nargs="+", default=["emoji", "cars", "sop"])
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print("| data set | trials | epochs of a trial | saved | saved, with pruning |\n|---|---|---|---|---|")
    for name in given.data_sets:
        space = load_space(name, None).restricted({})
        for number in given.trials:
            full, early = [], []
            for seed in range(given.repeats):
                configs = draw(space, number, seed)
                most, rng = first_different(configs), np.random.default_rng(seed)
                total, shared = saved(configs, [config.nb_epochs for config in configs], most)
                full.append(shared / total)
                total, shared = saved(configs, [pruned(config, rng) for config in configs], most)
                early.append(shared / total)
            epochs = configs[0].nb_epochs
            print(f"| {name} | {number} | {epochs} | {fmean(full):.1%} | {fmean(early):.1%} |", flush=True)


if __name__ == "__main__":
    main()
