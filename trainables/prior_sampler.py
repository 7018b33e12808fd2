"""PriorSampler: draws around a given point at first, and less often with each trial.

Trial n, counted from 0, is drawn from the prior with probability k / (k + n), and from the wrapped sampler otherwise. The
prior of a number is a normal distribution around the point, truncated to the range (over the logarithm where the range is
logarithmic). The prior of a choice prefers the point's value over all others.

Source: the prior of PriorBand (Mallik et al., "PriorBand: Practical Hyperparameter Optimization in the Age of Deep
Learning", NeurIPS 2023: a normal distribution with a standard deviation of 0.25 of the range). Its decay with the
number of trials follows Hvarfner et al., "PiBO", ICLR 2022; the rule k / (k + n) is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import truncnorm

STRENGTH = 6.0
"""k: after this number of trials, every second trial is drawn from the prior."""
_SPREAD = 0.25  # fraction of a range; for a choice, the probability of all other values together
BELIEVED = "dcml.prior"
"""Attribute of a trial that was drawn from the prior."""


class PriorSampler(BaseSampler):
    """Wraps a sampler with a prior whose weight decays."""

    def __init__(self, sampler: BaseSampler, point: dict[str, Any], *, seed: int, strength: float = STRENGTH) -> None:
        """Wrap a sampler.

        Args:
            sampler: draws the trials that the prior does not draw.
            point: settings around which the prior draws; other settings are drawn by the sampler.
            seed: seed of the prior's draws.
            strength: k, as defined at the top of this module.
        """
        self.sampler, self.point, self.strength = sampler, point, strength
        self._rng = np.random.default_rng(seed)
        self._believes: dict[int, bool] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return an empty space for a trial of the prior: its settings are drawn independently."""
        is_believed = self._rng.random() < self.strength / (self.strength + self._launched(study, trial))
        self._believes[trial._trial_id] = is_believed
        return {} if is_believed else self.sampler.infer_relative_search_space(study, trial)

    @staticmethod
    def _launched(study: Study, trial: FrozenTrial) -> int:
        """Return the number of feasible trials before this one."""
        trials = study.get_trials(deepcopy=False)
        return sum(each.number < trial.number and each.state != TrialState.FAIL for each in trials)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Call the wrapped sampler."""
        return {} if self._believes[trial._trial_id] else self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw from the prior, or from the wrapped sampler."""
        if not self._believes[trial._trial_id] or param_name not in self.point:
            return self.sampler.sample_independent(study, trial, param_name, param_distribution)
        study._storage.set_trial_user_attr(trial._trial_id, BELIEVED, True)
        return draw_around(self.point[param_name], param_distribution, self._rng)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call the wrapped sampler."""
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Call the wrapped sampler."""
        self._believes.pop(trial._trial_id, None)
        self.sampler.after_trial(study, trial, state, values)


def draw_around(value: Any, domain: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw a value of a domain from the prior around a value."""
    if isinstance(domain, CategoricalDistribution):
        others = [each for each in domain.choices if each != value]
        if value not in domain.choices or (others and rng.random() < _SPREAD):
            return others[rng.integers(len(others))]
        return value
    if not isinstance(domain, FloatDistribution | IntDistribution):
        raise TypeError(f"domain: {type(domain).__name__} is none of Optuna's; use one that it suggests from")
    low, high, middle = (float(each) for each in (domain.low, domain.high, value))
    if isinstance(domain, IntDistribution):  # so that each integer covers the same width
        low, high = low - 0.5, high + 0.5
    if domain.log:
        low, high, middle = math.log(low), math.log(high), math.log(max(middle, domain.low))
    if low == high:
        return domain.low
    spread = _SPREAD * (high - low)
    middle = min(max(middle, low), high)
    drawn = truncnorm.rvs((low - middle) / spread, (high - middle) / spread, middle, spread, random_state=rng)
    drawn = math.exp(drawn) if domain.log else float(drawn)
    drawn = min(max(drawn, domain.low), domain.high)
    return round(drawn) if isinstance(domain, IntDistribution) else drawn
