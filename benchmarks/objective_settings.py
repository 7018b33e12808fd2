"""The settings that objective.py trains: the published point, a plain recipe, and random samples of the wide space.

The sampled settings are written to a file and read from it afterwards. If the space changes while the benchmark is
stopped, the settings therefore stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.config.unused import unused_reasons
from search_spaces.emoji import SPACE, WIDE
from search_spaces.space import SearchSpace

Settings = dict[str, Any]

PLAIN: Settings = {
    "init_method": "pca",
    "batch_size": 112,
    "num_samples_per_class": 4,
    "base_lr": 5e-5,
    "nb_clusters": 1,
    "mod_epoch_freeze": 0,
}
"""A recipe without the method: it starts from the pretrained features, and nothing is divided."""


def wide(epochs: int) -> SearchSpace:
    """The wide space of `emoji`, for trials of so many epochs."""
    return WIDE.restricted(_phases(epochs))


def _phases(epochs: int) -> Settings:
    """Full-embedding phase in the last sixth, as in the published point."""
    return {"nb_epochs": epochs, "force_full_embedding_epoch": epochs - max(1, epochs // 6)}


def draws(space: SearchSpace, seed: int = 0) -> Iterator[Settings]:
    """Random settings of a space, complete, each of which can work; without end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while True:
        try:
            yield space.whole(space.suggest(study.ask()))
        except SettingError:
            continue


class Drawn(NamedTuple):
    """A setting that is trained."""

    number: int
    name: str
    """published, plain or drawn."""
    settings: Settings
    """All that differ from the defaults of `TrialConfig`."""


def settings(file: Path, number: int, epochs: int) -> list[Drawn]:
    """The first settings of a file; those that it lacks are drawn and added to it."""
    found = [Drawn(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    if len(found) < number:
        new = [*_first(epochs), *_fitting(epochs, number)][len(found) : number]
        found += [Drawn(place, *each) for place, each in enumerate(new, len(found))]
        file.write_text("".join(f"{json.dumps(each)}\n" for each in found))
    return found[:number]


def _first(epochs: int) -> Iterator[tuple[str, Settings]]:
    published = {**SPACE.restricted(_phases(epochs)).published_point()[0], **_phases(epochs)}
    yield "published", {**SPACE.published, **published}
    yield "plain", {**SPACE.published, **_phases(epochs), **PLAIN}


def _fitting(epochs: int, number: int) -> Iterator[tuple[str, Settings]]:
    drawn = draws(wide(epochs))
    for _ in range(number):
        yield "drawn", next(drawn)


def acting(settings: Settings) -> Settings:
    """All settings of a trial that have an effect, those with their defaults included.

    Example:
        >>> "masking_lambda" in acting({"nb_clusters": 1})
        False
    """
    config = TrialConfig(**settings)
    idle = unused_reasons(config)
    return {name: value for name, value in config.model_dump().items() if name not in idle}
