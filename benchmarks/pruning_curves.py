"""The learning curves that pruning.py draws: a model whose shape is that of measured curves of `emoji`.

After t of T epochs a setting has, in points of recall@1,

    level - growth * (1 - g(t / T)) - gain * (before the full-embedding phase) + division * (while divided, before it)
    with g(u) = (1 - exp(-u / rate)) / (1 - exp(-1 / rate)),

and a training of it has in addition a difference of its seed, the same in all epochs, and the noise of each epoch. Level,
growth, rate, gain and division are drawn for each setting. `rate` is in shares of a training: **for schedules of 180 epochs
the measured shape is stretched**; nothing was measured on the published data sets.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import spearmanr

from dcml_tune.config.errors import SettingError
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig

Array = np.ndarray

PARTS = ("0.2, fold 0", "0.2, fold 1")
"""Which held-out classes of objective.py are read."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How curves differ between settings, epochs and trainings; in points, apart from the rates."""

    level: float
    """Standard deviation of the settings' values at the end."""
    growth: float = 12.0
    """Median growth from the first epoch's start to the end."""
    rate: float = 0.25
    """Median time constant of the growth, as a share of a training."""
    rate_spread: float = 0.4
    """Standard deviation of the rates' logarithm."""
    gain: float = 0.5
    """Mean gain at the beginning of the full-embedding phase."""
    gain_spread: float = 0.8
    """Its standard deviation over the settings."""
    division: float = 0.5
    """Standard deviation of the change at the first division."""
    seed: float = 0.6
    """Standard deviation of trainings of a setting."""
    noise: float = 1.0
    """Standard deviation of an epoch."""


FOUR = Shape(level=1.0)
"""The four settings of the division."""

WIDE = Shape(level=4.0, rate_spread=0.8)
"""Whole recipes."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A setting of a space."""

    config: TrialConfig
    full: Array
    """For each epoch, whether it is in the full-embedding phase."""
    divided: Array
    """For each epoch, whether several learners train, before that phase."""

    @classmethod
    def of(cls, config: TrialConfig) -> Setting:
        """The phases of a configuration."""
        plans = [EpochPlan.at(epoch, config) for epoch in range(config.nb_epochs)]
        full = np.array([plan.full_embedding for plan in plans])
        return cls(config, full, ~full & np.array([plan.nb_clusters > 1 for plan in plans]))


def draw_settings(name: str, *, wide: bool, number: int, seed: int = 0) -> list[Setting]:
    """Random settings of a published space, each of which can work."""
    module = importlib.import_module(f"search_spaces.{name}")
    space = (module.WIDE if wide else module.SPACE).restricted({})
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found: list[Setting] = []
    while len(found) < number:
        try:
            found.append(Setting.of(TrialConfig(**space.whole(space.suggest(study.ask())))))
        except SettingError:  # settings that cannot work together
            continue
    return found


@dataclass(frozen=True, eq=False)
class Curve:
    """One training of a setting."""

    true: float
    """The setting's value without the differences of seeds and epochs: its best over the epochs."""
    best: Array
    """The best measured value so far, after each epoch."""


def draw_curve(setting: Setting, shape: Shape, rng: np.random.Generator) -> Curve:
    """A training of a setting that is drawn, whose curve has the phases of its schedule."""
    value = _true_values(setting, shape, rng)
    return Curve(float(value.max()), np.maximum.accumulate(_measured(value, shape, rng)))


def _true_values(setting: Setting, shape: Shape, rng: np.random.Generator) -> Array:
    epochs = len(setting.full)
    share = np.arange(1, epochs + 1) / epochs
    rate = np.exp(rng.normal(np.log(shape.rate), shape.rate_spread))
    grown = (1 - np.exp(-share / rate)) / (1 - np.exp(-1 / rate))
    value: Array = rng.normal(0, shape.level) - shape.growth * np.exp(rng.normal(0, 0.2)) * (1 - grown)
    value -= rng.normal(shape.gain, shape.gain_spread) * ~setting.full
    value += rng.normal(0, shape.division) * setting.divided
    return value


def _measured(value: Array, shape: Shape, rng: np.random.Generator) -> Array:
    return value + rng.normal(0, shape.seed) + rng.normal(0, shape.noise, len(value))


# -- does the model have the shape of what was measured? -----------------------------------------------


def describe(settings: Sequence[Array]) -> dict[str, float]:
    """Figures of learning curves by which pruning succeeds or fails.

    Args:
        settings: for each setting its curves in points, trainings x epochs, with as many trainings for each.
    """
    curves = np.stack(settings)
    mean, half = curves.mean(1), math.ceil(curves.shape[2] / 2)
    best = np.maximum.accumulate(curves, 2)
    # What is left of the difference of two trainings of a setting, apart from its mean, is noise of epochs.
    apart = (curves[:, 0] - curves[:, 1]) if curves.shape[1] > 1 else np.full_like(mean, np.nan)
    return {
        "settings": len(curves),
        "standard deviation over settings, at the end": float(mean[:, -1].std(ddof=1)),
        "growth from the first epoch to the last, median": float(np.median(mean[:, -1] - mean[:, 0])),
        "share of it that is reached at half of the epochs": float(
            np.median((mean[:, half - 1] - mean[:, 0]) / (mean[:, -1] - mean[:, 0]))
        ),
        "gain in the last epoch, median": float(np.median(mean[:, -1] - mean[:, -2])),
        "noise of an epoch": float(apart.std(1, ddof=1).mean() / math.sqrt(2)),
        "rank correlation of half of the epochs and the end": float(
            np.mean([spearmanr(best[:, n, half - 1], best[:, n, -1])[0] for n in range(curves.shape[1])])
        ),
    }


def read_measured(file: Path, measure: str = "val/recall_at_1") -> list[Array]:
    """The curves that objective.py has written, of settings that were trained with two folds, in points."""
    found: dict[int, list[list[float]]] = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        if record["part"] in PARTS and not record["failed"] and record["seed"] == 1:
            found.setdefault(record["number"], []).append(record["curves"][measure])
    return [100 * np.array(curves) for curves in found.values() if len(curves) == len(PARTS)]


def main() -> None:
    """Print the figures of measured curves beside those of the model."""
    parser = argparse.ArgumentParser(description="Compare the model with the measured curves of objective.py.")
    parser.add_argument(
        "file", type=Path, nargs="?", help="such as runs/objective/6-epochs.jsonl; default: the model only"
    )
    given = parser.parse_args()
    columns = {"measured, wide": describe(read_measured(given.file))} if given.file else {}
    rng = np.random.default_rng(0)
    for wide, shape in ((True, WIDE), (False, FOUR)):
        settings = draw_settings("emoji", wide=wide, number=200)
        values = [_true_values(setting, shape, rng) for setting in settings]
        columns[f"model, {'wide' if wide else 'four'}"] = describe(
            [np.stack([_measured(value, shape, rng) for _ in PARTS]) for value in values]
        )
    print(f"| {' | '.join(['emoji', *columns])} |\n{'|---' * (len(columns) + 1)}|")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(f'{column[name]:.2f}' for column in columns.values())} |")


if __name__ == "__main__":
    main()
