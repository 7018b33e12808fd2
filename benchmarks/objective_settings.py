"""The settings that objective.py trains: the published point, a plain recipe, and random draws from a wide space.

The drawn settings are written to a file when they are drawn and read from it afterwards: a space that changes while the
benchmark is stopped does not change what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import optuna

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import Criterion, TrialConfig
from dcml_tune.config.unused import unused_reasons
from search_spaces.domains import Choice, Domain, Float, Int
from search_spaces.emoji import SPACE
from search_spaces.reference_point import MASK_DOMAINS

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

_OLD_LOSSES = {"kantorov_margin", "triplet", "triplet_semihard", "triplet_all", "npairs"}


class Space(Protocol):
    """What is drawn from: `search_spaces.SearchSpace`, or the space below."""

    @property
    def published(self) -> Settings:
        """The settings that do not vary."""

    def suggest(self, trial: optuna.Trial) -> Settings:
        """Draw the settings that vary; raises SettingError if they cannot work together."""


def wide(epochs: int) -> Space:
    """The wide space of `emoji`, for trials of so many epochs."""
    return LocalWide({**SPACE.published, **_phases(epochs)})


class LocalWide:
    """A wide space whose settings vary only where they act."""

    def __init__(self, published: Settings) -> None:
        self.published = published
        self.domains = _known(
            {
                "nb_clusters": Choice([1, 2, 4]),
                "mod_epoch": Int(2, 4),
                "fixed_mask": Choice([False, True]),
                **MASK_DOMAINS,
                "criterion": Choice(name for name in get_args(Criterion) if name not in _OLD_LOSSES),
                "margin": Float(0.02, 0.3),
                "beta": Float(0.6, 1.4),
                "lr_beta": Float(1e-6, 1e-2, log=True),
                "ms_alpha": Float(0.01, 20.0, log=True),
                "ms_beta": Float(30.0, 160.0),
                "ms_base": Float(0.4, 0.9),
                "supcon_temperature": Float(0.01, 0.2, log=True),
                "contrastive_neg_margin": Float(0.4, 1.4),
                "pa_alpha": Float(16.0, 64.0),
                "pa_delta": Float(0.05, 0.2),
                "softmax_temperature": Float(0.02, 0.2, log=True),
                "arcface_margin": Float(15.0, 30.0),
                "arcface_scale": Float(16.0, 220.0, log=True),
                "proxy_lr_mult": Float(5.0, 100.0, log=True),
                "init_method": Choice([None, "pca"]),
                "features_pooling": Choice(get_args(TrialConfig.model_fields["features_pooling"].annotation)),
                "sz_embedding": Choice([128, 384, 512]),
                "bn_learnable": Choice([False, True]),
                "base_lr": Float(5e-6, 6e-4, log=True),
                "emb_lr_mult": Float(1.0, 100.0, log=True),
                "weight_decay": Float(1e-6, 1e-2, log=True),
                "batch_size": Choice([64, 112, 128, 256]),
                "num_samples_per_class": Choice([2, 4, 8]),
                "warmup_epochs": Int(0, 2),
                "lr_decay": Choice(["step", "cosine"]),
                "average_epochs": Int(1, 3),
                "pretrained_share": Choice([0.0, 0.2]),
            }
        )

    def suggest(self, trial: optuna.Trial) -> Settings:
        """Draw the settings in their order; one that the settings before it leave without effect is not drawn."""
        chosen: Settings = {}
        for name, domain in self.domains.items():
            if all(chosen.get(other) in values for other, values in _ONLY_WHEN.get(name, {}).items()):
                chosen[name] = domain.suggest(trial, name)
        TrialConfig(**{**self.published, **chosen})
        return chosen


_OF_LOSS = {
    "margin": ("margin", "beta", "lr_beta"),
    "multi_similarity": ("ms_alpha", "ms_beta", "ms_base"),
    "supcon": ("supcon_temperature",),
    "contrastive": ("contrastive_neg_margin",),
    "proxy_anchor": ("pa_alpha", "pa_delta"),
    "normalized_softmax": ("softmax_temperature",),
    "arcface": ("arcface_margin", "arcface_scale"),
}
_DIVIDED: dict[str, tuple[Any, ...]] = {"nb_clusters": (2, 4)}
_ONLY_WHEN: dict[str, dict[str, tuple[Any, ...]]] = {
    "mod_epoch": _DIVIDED,
    "fixed_mask": _DIVIDED,
    "masking_lambda": {**_DIVIDED, "fixed_mask": (False,)},
    "mask_lr_mult": {**_DIVIDED, "fixed_mask": (False,)},
    **{name: {"criterion": (loss,)} for loss, names in _OF_LOSS.items() for name in names},
    "proxy_lr_mult": {"criterion": ("proxy_anchor", "normalized_softmax", "arcface")},
}


def _known(domains: dict[str, Domain]) -> dict[str, Domain]:
    """The domains of settings that this version has, with the choices that it has."""
    found: dict[str, Domain] = {}
    for name, domain in domains.items():
        if name in TrialConfig.model_fields:
            found[name] = Choice(filter(_accepts(name), domain.values)) if isinstance(domain, Choice) else domain
    return found


def _accepts(name: str) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        try:
            TrialConfig(**{"dataset": "emoji", name: value})
        except SettingError:
            return False
        return True

    return accepts


def _phases(epochs: int) -> Settings:
    """Full-embedding phase in the last sixth, as in the published point."""
    return {"nb_epochs": epochs, "force_full_embedding_epoch": epochs - max(1, epochs // 6)}


def draws(space: Space, seed: int = 0) -> Iterator[Settings]:
    """Random settings of a space, complete, each of which can work; without end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while True:
        try:
            yield {**space.published, **space.suggest(study.ask())}
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
