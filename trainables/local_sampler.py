"""LocalSampler: most trials are neighbours of the best trials so far; the wrapped sampler draws the others.

In a space of 30 settings and with 8 to 50 trials, independent draws are nearly all bad, and a model of the space has
nothing to learn from. A neighbour keeps a good recipe and changes one setting or two (`search_spaces.neighbours`). It also
keeps the epochs before that setting acts, which the search need not compute again.

The parent is one of the three best trials that have ended or run, the best one in four of seven cases, the second in two. Every
second neighbour is a cheap one: it keeps at least half of its parent's epochs, if there is such a neighbour that is new.
Until as many trials have ended as the wrapped sampler draws at random, all trials are neighbours; then every fourth is drawn
by the wrapped sampler, so that the search stays global. Trials that were queued are not drawn.

A neighbour of trial n is a function of the study, the seed and n: a sampler that is built again draws the same.

Sources: ParamILS (Hutter et al., JAIR 2009), SMAC (Hutter et al., LION 2011: neighbours of the best, interleaved with
global draws); parents from several good ones as in regularised evolution (Real et al., AAAI 2019).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import acting_settings
from dcml_tune.config.trial import TrialConfig
from search_spaces.neighbours import neighbour
from search_spaces.space import InfeasibleReason, SearchSpace
from trainables.known_trial import FAILURE_OF

_PARENTS = (4, 2, 1)  # weights of the best trials, the best one first
_GLOBAL = 0.25  # share of the trials that the wrapped sampler draws
_CHEAP = 1 / 2  # share of the neighbours that have to be cheap
_ATTEMPTS = 50  # neighbours that are drawn until one is new
_FIXED = "fixed_params"  # Optuna's attribute of a queued trial: its settings


class LocalSampler(BaseSampler):
    """Wraps a sampler with neighbours of the best trials."""

    def __init__(
        self,
        sampler: BaseSampler,
        space: SearchSpace,
        *,
        seed: int,
        startup: int = 6,
        infeasible_reason: InfeasibleReason | None = None,
    ) -> None:
        """Wrap a sampler.

        Args:
            sampler: draws the other trials.
            space: of the search.
            seed: seed of the neighbours.
            startup: number of ended trials before the wrapped sampler draws any.
            infeasible_reason: returns why a configuration cannot work on the data, or None.
        """
        self.sampler, self.space, self.seed, self.startup = sampler, space, seed, startup
        self._infeasible_reason = infeasible_reason
        self._points: dict[int, dict[str, Any]] = {}
        self._keys: dict[int, str | None] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return an empty space for a neighbour: its settings are returned independently."""
        point = None if _FIXED in trial.system_attrs else self._draw(study, trial)
        if point is None:
            return self.sampler.infer_relative_search_space(study, trial)
        self._points[trial._trial_id] = point
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Call the wrapped sampler, unless the trial is a neighbour."""
        return {} if trial._trial_id in self._points else self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the neighbour's value, or call the wrapped sampler."""
        point = self._points.get(trial._trial_id, {})
        if param_name in point and _holds(param_distribution, point[param_name]):
            return point[param_name]
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call the wrapped sampler."""
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Call the wrapped sampler."""
        self._points.pop(trial._trial_id, None)
        self.sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Call the wrapped sampler."""
        self.sampler.reseed_rng()

    # -- a neighbour -----------------------------------------------------------------------------------

    def _draw(self, study: Study, trial: FrozenTrial) -> dict[str, Any] | None:
        """Draw a neighbour that no trial of the study has; None where the wrapped sampler is to draw."""
        rng = np.random.default_rng([self.seed, trial.number])
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        ranked = _ranked(study, others)
        ended = sum(each.state.is_finished() and each.values is not None for each in others)
        if not ranked or (ended >= self.startup and rng.random() < _GLOBAL):
            return None
        known = {self._key_of(each) for each in others}
        cheap = rng.random() < _CHEAP
        for attempt in range(_ATTEMPTS):
            point = self._neighbour(_parent(ranked, rng), rng, cheap=cheap and attempt < _ATTEMPTS // 2)
            if point is not None and self._key(point) not in known:
                return point
        return None

    def _neighbour(self, parent: FrozenTrial, rng: np.random.Generator, *, cheap: bool) -> dict[str, Any] | None:
        settings = parent.params or parent.system_attrs[_FIXED]
        return neighbour(self.space, settings, rng, self._infeasible_reason, cheap=cheap)

    def _key_of(self, trial: FrozenTrial) -> str | None:
        """Return the key of a trial; those of ended trials are kept, because their settings do not change."""
        if trial._trial_id not in self._keys:
            key = self._key({**trial.system_attrs.get(_FIXED, {}), **trial.params})
            if not trial.state.is_finished():
                return key
            self._keys[trial._trial_id] = key
        return self._keys[trial._trial_id]

    def _key(self, params: Mapping[str, Any]) -> str | None:
        """Return a text that is the same for trials with the same computation; None for settings that cannot work."""
        try:
            config = TrialConfig(**self.space.whole(params))
        except SettingError:
            return None
        return json.dumps(acting_settings(config, config.nb_epochs), sort_keys=True)


def _ranked(study: Study, trials: list[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Return the trials that may be parents, the best first, those of equal value together.

    With several metrics they are the Pareto-optimal ones. A trial without a value comes last.
    """
    if len(study.directions) > 1:
        front = [trial for trial in study.best_trials if trial.params]
        if front:
            return [front]
    able = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    sign = -1.0 if study.directions[0] == StudyDirection.MINIMIZE else 1.0
    groups: dict[float, list[FrozenTrial]] = {}
    for trial in trials:
        if (
            trial.state in able
            and FAILURE_OF not in trial.user_attrs
            and (trial.params or _FIXED in trial.system_attrs)
        ):
            groups.setdefault(_value(trial, sign), []).append(trial)
    return [groups[value] for value in sorted(groups, reverse=True)]


def _value(trial: FrozenTrial, sign: float) -> float:
    """Return the value of a trial, or its best value so far, where larger is better."""
    values = trial.values[:1] if trial.values else trial.intermediate_values.values()
    return max((sign * value for value in values if value == value), default=-np.inf)


def _parent(ranked: list[list[FrozenTrial]], rng: np.random.Generator) -> FrozenTrial:
    """Draw one of the best few trials; among trials of equal value each is as likely."""
    weights = np.array(_PARENTS[: len(ranked)], dtype=float)
    group = ranked[rng.choice(len(weights), p=weights / weights.sum())]
    return group[rng.integers(len(group))]


def _holds(domain: BaseDistribution, value: Any) -> bool:
    return domain._contains(domain.to_internal_repr(value))
