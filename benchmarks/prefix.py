"""Share of the epochs of a search that are the same computation in several trials. Nothing is trained.

    python benchmarks/prefix.py [--trials 8 20 64] [--repeats 20] [--data-sets emoji cars sop] [--local]

The settings of the trials are the published point and random samples of the space of each data set. Epochs with the
same number and the same key (`dcml_tune.config.prefix`) are computed once; the program counts the different ones. In
the column with pruning, a trial ends at each rung (`trainables.schedulers.rungs`) with probability 1/4, as asha ends at
most trials of equal quality.

With `--local` settings are drawn from `--space wide` by `--searcher local`, after the published point and the starts, and each
trial has a random value: which trials are the best is left to chance. Epochs that are trained alike and measured in another
way count as saved where the search would measure them anew. The number of states that a search keeps is not bounded here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import partial
from statistics import fmean

import numpy as np
import optuna

from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import SHORT, acting_settings, training_settings
from dcml_tune.config.trial import TrialConfig
from search_spaces import SearchSpace, load_space
from trainables.schedulers import STOPPED, rungs
from trainables.searcher import Sampling


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


def draw_local(space: SearchSpace, number: int, seed: int) -> list[TrialConfig]:
    """The published point, the starts and neighbours of the best trials by random values."""
    study = optuna.create_study(direction="maximize", sampler=Sampling(sampler="local", seed=seed).build(0, space))
    point, _ = space.published_point()
    for each in [point, *space.start_points(point)[0]]:
        study.enqueue_trial(each)
    rng, found = np.random.default_rng(seed), list[TrialConfig]()
    while len(found) < number:
        trial = study.ask()
        try:
            found.append(TrialConfig(**space.whole(space.suggest(trial))))
            study.tell(trial, rng.normal())
        except SettingError:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return found


def saved_locally(configs: list[TrialConfig], ends: list[int]) -> tuple[int, int]:
    """Numbers of all epochs, and of those that a local search takes over from earlier trials."""
    keys, count = set[str](), 0
    for config, end in zip(configs, ends, strict=True):
        acting = training_settings if config.nb_epochs <= SHORT else acting_settings
        own = [json.dumps([epoch, acting(config, epoch)], sort_keys=True) for epoch in range(1, end + 1)]
        count += sum(key in keys for key in own[: config.nb_epochs - 1])  # the last epoch is always the trial's own
        keys |= set(own)
    return sum(ends), count


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
    parser.add_argument("--local", action="store_true")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print("| data set | trials | epochs of a trial | saved | saved, with pruning |\n|---|---|---|---|---|")
    for name in given.data_sets:
        space = load_space(name, "wide" if given.local else None).restricted({})
        for number in given.trials:
            full, early = [], []
            for seed in range(given.repeats):
                configs = (draw_local if given.local else draw)(space, number, seed)
                rng = np.random.default_rng(seed)
                count = saved_locally if given.local else partial(saved, most=first_different(configs))
                total, shared = count(configs, [config.nb_epochs for config in configs])
                full.append(shared / total)
                total, shared = count(configs, [pruned(config, rng) for config in configs])
                early.append(shared / total)
            epochs = configs[0].nb_epochs
            print(f"| {name} | {number} | {epochs} | {fmean(full):.1%} | {fmean(early):.1%} |", flush=True)


if __name__ == "__main__":
    main()
