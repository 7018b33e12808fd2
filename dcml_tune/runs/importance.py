"""The importance of the searched settings, from the trials of a search.

With twenty trials or more it is Optuna's PED-ANOVA: how much the values of the best trials differ from those of all trials
(Watanabe et al., IJCAI 2023, and its form for conditional settings). A setting that fewer than ten trials vary is not rated.
With fewer trials the best ones are too few for that. Then it is a difference of means: trials that have about the winner's
value of a setting, minus those that do not. In simulated searches of a wide space it found the settings that mattered more
often than PED-ANOVA up to 12 trials, as often at 20, and less often from 30 on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dcml_tune.runs.study import KEY

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

FEWEST, FEWEST_VARIED = 20, 10
"""Number of trials from which PED-ANOVA is used, and number of them that must vary a setting."""

_BEST_TRIALS = 5  # that PED-ANOVA compares with all; fewer are not stable, by Optuna's documentation
_SMALLEST_SHARE = 0.1  # of the trials that count as the best


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much each setting mattered."""

    of: dict[str, float]
    """Setting -> importance, the largest first. The unit depends on the method."""
    method: str
    """How it was computed, in words."""
    label: str
    """Title of an axis that shows the importance times `scale`."""
    scale: float


def importance(
    trials: Iterable[FrozenTrial],
    names: Sequence[str],
    *,
    settings: Callable[[FrozenTrial], Mapping[str, Any]],
    winner: Mapping[str, Any],
    published: Mapping[str, Any],
) -> Importance:
    """Rate settings by the trials of a search that ended with a value; a pruned one has the best value that it reached.

    Args:
        trials: of the study.
        names: the settings to rate.
        settings: returns all settings of a trial, those included that it did not vary.
        winner: settings of the best trial.
        published: settings of the published point.
    """
    ended = [(trial, value) for trial in trials if (value := _value(trial)) is not None]
    if len(ended) >= FEWEST and len({value for _, value in ended}) > 1:
        return Importance(
            of=_sorted(_ped_anova(ended, names)),
            method=f"PED-ANOVA of {len(ended)} trials",
            label="importance (PED-ANOVA, share of 1)",
            scale=1.0,
        )
    known = [(settings(trial), value) for trial, value in ended]
    scales = {name: _is_log([trial for trial, _ in ended], name) for name in names}
    found = {name: _advantage(known, name, winner, published, log=scales[name]) for name in names}
    return Importance(
        of=_sorted(found),
        method=f"difference of means of {len(ended)} trials",
        label="trials with the winner's value, minus others (points)",
        scale=100.0,
    )


def common_distribution(drawn: Sequence[BaseDistribution], values: Iterable[Any]) -> BaseDistribution:
    """Return a distribution that holds the values of several distributions of a setting, and further values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    last, given = drawn[-1], list(values)
    if isinstance(last, CategoricalDistribution):
        choices = [each for one in drawn if isinstance(one, CategoricalDistribution) for each in one.choices]
        return CategoricalDistribution(tuple(dict.fromkeys([*choices, *given])))
    ends = [end for one in drawn if isinstance(one, IntDistribution | FloatDistribution) for end in (one.low, one.high)]
    low, high = min([*ends, *given]), max([*ends, *given])
    if isinstance(last, IntDistribution):
        return IntDistribution(int(low), int(high), log=last.log and low > 0)
    assert isinstance(last, FloatDistribution)
    return FloatDistribution(low, high, log=last.log and low > 0)


def _value(trial: FrozenTrial) -> float | None:
    """The best value of a launched trial that has ended and has not failed."""
    if KEY not in trial.user_attrs or trial.state.name not in ("COMPLETE", "PRUNED"):
        return None
    curve = [value for epoch, value in trial.intermediate_values.items() if epoch > 0 and math.isfinite(value)]
    return max(curve, default=None)


def _sorted(found: dict[str, float]) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _ped_anova(ended: list[tuple[FrozenTrial, float]], names: Sequence[str]) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    drawn: dict[str, list[BaseDistribution]] = {}
    for trial, _ in ended:
        for name, each in trial.distributions.items():
            drawn.setdefault(name, []).append(each)
    whole = {name: common_distribution(each, ()) for name, each in drawn.items()}
    study = optuna.create_study(direction="maximize")
    for trial, value in ended:
        distributions = {name: whole[name] for name in trial.params}
        study.add_trial(optuna.create_trial(params=trial.params, distributions=distributions, value=value))
    rated = [name for name in names if len(drawn.get(name, ())) >= FEWEST_VARIED]
    share = max(_SMALLEST_SHARE, _BEST_TRIALS / len(ended))
    with warnings.catch_warnings():  # about settings that few trials vary
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        found = get_param_importances(study, evaluator=evaluator, params=rated)
    return {name: found.get(name, 0.0) for name in names}


def _is_log(trials: list[FrozenTrial], name: str) -> bool:
    return any(getattr(trial.distributions.get(name), "log", False) for trial in trials)


def _advantage(
    known: list[tuple[Mapping[str, Any], float]],
    name: str,
    winner: Mapping[str, Any],
    published: Mapping[str, Any],
    *,
    log: bool,
) -> float:
    """Mean of the trials whose value is nearer to the winner's than to the published one, minus that of the others."""
    ours, theirs = winner.get(name), published.get(name)
    sides: dict[bool, list[float]] = {True: [], False: []}
    for config, value in known:
        sides[_is_nearer(config.get(name), ours, theirs, log=log)].append(value)
    return fmean(sides[True]) - fmean(sides[False]) if sides[True] and sides[False] else 0.0


def _is_nearer(value: Any, one: Any, other: Any, *, log: bool) -> bool:
    numbers = [value, one, other]
    if one == other or any(isinstance(each, bool) or not isinstance(each, int | float) for each in numbers):
        return bool(value == one)
    if log and min(numbers) > 0:
        value, one, other = map(math.log, numbers)
    return bool(abs(value - one) < abs(value - other))
