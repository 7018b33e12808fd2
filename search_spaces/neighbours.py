"""One-exchange neighbours of a point: the same recipe with one setting changed, or two.

A number takes a step around its value: a normal distribution with a standard deviation of a fifth of the range, truncated to
the range, over the logarithm where the range is logarithmic; now and then any value of the range. A choice takes another
value. A setting that varies only since the change begins at or around its published value.

Which setting changes: each neighbour is as likely, a number having 4 of them, but for its cost. A change that leaves more
epochs in common with the point costs fewer epochs to try, so it is drawn more often, in inverse proportion to that cost:
about as many epochs are spent on each setting. Early settings (loss, rates, batches) are tried as well. On request only cheap
changes are drawn: those that keep at least half of the epochs.

Sources: the one-exchange neighbourhood of ParamILS (Hutter et al., JAIR 2009) and the random neighbours of SMAC (Hutter
et al., LION 2011), which have the standard deviation of 0.2. The weight by cost is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import SHORT, as_trained, common_epochs
from dcml_tune.config.trial import TrialConfig
from search_spaces.base import InfeasibleReason
from search_spaces.domains import Choice, Domain, Int
from search_spaces.space import SearchSpace

Point = dict[str, Any]

_SPREAD = 0.2  # standard deviation of a step, as a fraction of the range
_LEAST = 0.05  # smallest step: a smaller one is lost in the noise of a trial
_STEPS = 4  # neighbours of a number
_ANYWHERE = 0.1  # probability of a uniform draw instead of a step
_TWO = 0.4  # probability of two changes
_EXACT = 0.5  # probability of the published value, for a setting that varies only since the change


def neighbour(
    space: SearchSpace,
    point: Mapping[str, Any],
    rng: np.random.Generator,
    infeasible: InfeasibleReason | None = None,
    *,
    cheap: bool = False,
) -> Point | None:
    """Draw a neighbour that can work.

    Args:
        space: of the search.
        point: values of the settings that vary; one that it lacks has its published value.
        rng: random numbers.
        infeasible: returns why a configuration cannot work on the data, or None.
        cheap: keep at least half of the epochs.

    Returns:
        The values of the settings that vary in it; None if no change can work.
    """
    found, changed = completed(space, point), set[str]()
    start = _config(space, found, None)
    for _ in range(2 if rng.random() < _TWO else 1):
        moved = list(_changes(space, found, changed, rng, infeasible))
        costs = np.array([1 if start is None else max(1, _own_epochs(start, config)) for *_, config in moved])
        sizes = np.array([_number_of_neighbours(space.domains[name]) for name, *_ in moved])
        weights = sizes / costs
        if cheap and start is not None:
            weights = weights * (costs <= start.nb_epochs // 2)
        if not weights.sum():
            break
        name, found, _ = moved[rng.choice(len(moved), p=weights / weights.sum())]
        changed.add(name)
    return found if changed else None


def _own_epochs(point: TrialConfig, other: TrialConfig) -> int:
    """Number of epochs of `other` that are not the same computation in `point`.

    In a short training, epochs that are trained alike and measured in another way count as the same, but for the last one.
    """
    common = common_epochs(point, other)
    if other.nb_epochs <= SHORT and common < other.nb_epochs:
        common = max(common, min(common_epochs(as_trained(point), as_trained(other)), other.nb_epochs - 1))
    return other.nb_epochs - common


def completed(space: SearchSpace, point: Mapping[str, Any]) -> Point:
    """The point with exactly the settings that vary in it, each with a value of its domain, in the order of sampling."""
    found: Point = {}
    for name, domain in space.domains.items():
        if space.varies(name, found):
            found[name] = domain.nearest(point[name] if name in point else space.fallback(name, found))
    return found


def _changes(
    space: SearchSpace, point: Point, changed: set[str], rng: np.random.Generator, infeasible: InfeasibleReason | None
) -> Iterator[tuple[str, Point, TrialConfig]]:
    """Yield for each setting that can change its name, the point with a new value of it, and its configuration.

    A change without any effect is left out, such as a warm-up of epochs in which the backbone is frozen anyway.
    """
    own = _config(space, point, None)
    for name in point:
        domain = space.domains[name]
        if name in changed or len(domain.ends()) < 2:
            continue
        other = _changed(space, point, name, _other_value(domain, point[name], rng), rng)
        config = _config(space, other, infeasible)
        if config is not None and (own is None or _own_epochs(own, config)):
            yield name, other, config


def _number_of_neighbours(domain: Domain) -> int:
    """Number of neighbours that a setting has: each other value, and of a range 4 random ones as in SMAC."""
    others = len(domain.values) - 1 if isinstance(domain, Choice) else _STEPS
    return min(others, domain.high - domain.low) if isinstance(domain, Int) else others


def _config(space: SearchSpace, point: Point, infeasible: InfeasibleReason | None) -> TrialConfig | None:
    """The configuration of a point; None if it cannot work."""
    try:
        config = TrialConfig(**space.whole(point))
    except SettingError:
        return None
    return None if infeasible is not None and infeasible(config) else config


def _changed(space: SearchSpace, point: Point, changed: str, value: Any, rng: np.random.Generator) -> Point:
    """The point with another value of one setting; settings begin and cease to vary as their conditions say."""
    found: Point = {}
    for name, domain in space.domains.items():
        if not space.varies(name, found):
            continue
        if name == changed:
            found[name] = value
        elif name in point:
            found[name] = point[name]
        else:
            published = domain.nearest(_published(space, name, found))
            is_exact = len(domain.ends()) < 2 or rng.random() < _EXACT
            found[name] = published if is_exact else _other_value(domain, published, rng)
    return found


def _published(space: SearchSpace, name: str, chosen: Mapping[str, Any]) -> Any:
    """The value of a setting in the first start for which its conditions hold as chosen; else the published value."""
    looked_at = {each.setting for each in space.conditions.get(name, ())}
    for start in space.starts:
        same = all(start.settings.get(each, space.unvaried(each)) == chosen.get(each) for each in looked_at)
        if name in start.settings and same:
            return start.settings[name]
    return space.fallback(name, chosen)


def _other_value(domain: Domain, value: Any, rng: np.random.Generator) -> Any:
    """Draw a value of a domain that differs from `value`."""
    if isinstance(domain, Choice):
        others = [each for each in domain.values if each != value]
        return others[rng.integers(len(others))]
    at, found = domain.position(value), value
    least = 0.0 if isinstance(domain, Int) else _LEAST
    while found == value or abs(domain.position(found) - at) < least:
        position = rng.random() if rng.random() < _ANYWHERE else rng.normal(at, _SPREAD)
        if 0 <= position <= 1:  # the normal distribution is truncated
            found = domain.at(float(position))
    return found
