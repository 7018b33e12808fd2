"""The epochs after which trials of a search space can have a state in common, from the domains of the space alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.config.prefix import CONDITIONAL, MEASURING, SHORT, acting_settings, common_epochs
from dcml_tune.config.trial import TrialConfig
from search_spaces.domains import Choice, Domain, Float, Int

_MOST = 256
"""Largest number of other points that a configuration is compared with."""

_MOST_COUNTED = 32
"""Largest number of points whose states are counted."""


def shared_epochs(config: TrialConfig, domains: Mapping[str, Domain], *, local: bool = False) -> tuple[int, ...]:
    """Return the numbers of epochs after which another trial of a search may need the state of this one.

    These are the epochs at which some other point of the space leaves the common path. Two values of a range of real
    numbers are never equal, unless one trial took the value from the other: once such a setting has acted, no other trial
    has the same state.

    Args:
        config: settings of a trial.
        domains: of the settings that vary.
        local: trials are neighbours of others, so each may leave the path of another one by one setting.

    Example:
        >>> config = TrialConfig(nb_epochs=9, nb_clusters=2, mod_epoch=4)
        >>> shared_epochs(config, {"mod_epoch": Int(2, 4), "masking_lambda": Float(0.1, 1.0)})
        (2, 3, 4)
    """
    if not local and _differ_from_the_start(domains):
        return ()
    if (
        local
        and config.nb_epochs <= SHORT
        and any(len(domains[name].ends()) > 1 for name in MEASURING & domains.keys())
    ):
        return tuple(range(1, config.nb_epochs))  # a neighbour that is measured in another way takes over all epochs
    others = _neighbours(config, domains) if local else _others(config, domains)
    found = {common_epochs(config, other) for other in others}
    return tuple(sorted(found - {0, config.nb_epochs}))


def shared_with(config: TrialConfig, others: list[TrialConfig]) -> tuple[int, ...]:
    """Return the numbers of epochs after which one of the other configurations leaves the common path.

    Configurations that are equal to `config` do not count.
    """
    found = {common_epochs(config, other) for other in others if other != config}
    return tuple(sorted(found - {0, config.nb_epochs}))


def count_states(config: TrialConfig, domains: Mapping[str, Domain], most: int, *, local: bool = False) -> int:
    """Return the number of different states that trials of a search share, at most `most`.

    Args:
        config: a point of the space.
        domains: of the settings that vary.
        most: number at which counting stops.
        local: as `shared_epochs`; each trial may then have states of its own.
    """
    if local:
        return most if shared_epochs(config, domains, local=True) else 0
    if _differ_from_the_start(domains):
        return 0
    found: set[str] = set()
    points = [config, *_others(config, domains)]
    for point in points[:: -(-len(points) // _MOST_COUNTED)]:
        for epoch in shared_epochs(point, domains):
            found.add(json.dumps(acting_settings(point, epoch), sort_keys=True))
        if len(found) >= most:
            return most
    return len(found)


def _others(config: TrialConfig, domains: Mapping[str, Domain]) -> Iterator[TrialConfig]:
    """Yield the points that differ from a configuration in settings which may not have acted at first."""
    varied = {name: domain for name, domain in domains.items() if name in CONDITIONAL}
    moved = {name: _other_value(domain, getattr(config, name)) for name, domain in varied.items() if _is_real(domain)}
    finite = {name: _values(domain) for name, domain in varied.items() if not _is_real(domain)}
    while math.prod(map(len, finite.values())) > _MOST:
        longest = max(finite, key=lambda name: len(finite[name]))
        finite[longest] = finite[longest][::2]
    for values in itertools.product(*finite.values()):
        with suppress(SettingError):  # settings that cannot work together
            yield config.changed(**moved, **dict(zip(finite, values, strict=True)))


def _neighbours(config: TrialConfig, domains: Mapping[str, Domain]) -> Iterator[TrialConfig]:
    """Yield the points that differ from a configuration in one setting which may not have acted at first."""
    for name, domain in domains.items():
        if name not in CONDITIONAL:
            continue
        own = getattr(config, name)
        values = [_other_value(domain, own)] if _is_real(domain) else _values(domain)
        for value in values:
            with suppress(SettingError):  # settings that cannot work together
                if value != own:
                    yield config.changed(**{name: value})


def _differ_from_the_start(domains: Mapping[str, Domain]) -> bool:
    """Return whether no two trials have an epoch in common, because of a real number that acts in all epochs."""
    return any(_is_real(domain) and name not in CONDITIONAL for name, domain in domains.items())


def _is_real(domain: Domain) -> bool:
    return isinstance(domain, Float) and domain.low < domain.high


def _values(domain: Domain) -> list[Any]:
    if isinstance(domain, Choice):
        return list(domain.values)
    return list(range(domain.low, domain.high + 1)) if isinstance(domain, Int) else [domain.low]


def _other_value(domain: Domain, value: Any) -> Any:
    """Return a value of a range of real numbers that is not `value`."""
    return next(end for end in domain.ends() if end != value)
