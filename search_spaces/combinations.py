"""Enumerates the combinations of values in a search space, to find those that can work.

The rules of `TrialConfig` and of a data set read only few settings. These are observed, and only their values are
combined; the result holds for all values of the other settings. A range of real numbers has infinitely many values: three
of them are tried, and no value is excluded because of the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast

from dcml_tune.cli.parser import typed
from dcml_tune.config.trial import TrialConfig
from search_spaces.domains import Choice, Domain, Float, Int

MOST = 20_000
"""Largest number of combinations to try. If there are more, some are tried, and no value is excluded."""

Point = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Explored(Generic[T]):
    """The result of each combination, in the order of distance from the starting point."""

    names: tuple[str, ...]
    """The settings on which the result depends."""
    found: list[tuple[Point, T]]
    is_whole: bool
    """Whether all combinations were tried."""


def explore(settings: Point, domains: dict[str, Domain], look: Callable[[TrialConfig], T]) -> Explored[T]:
    """Call a function for each combination of the values of the domains that it reads.

    Args:
        settings: all settings of a trial. Those in `domains` are the starting point.
        domains: the settings that vary.
        look: a function of the settings of a trial.
    """
    read: set[str] = set()
    while True:
        names = tuple(name for name in domains if name in read)
        found: list[tuple[Point, T]] = []
        combinations, is_whole = _combinations({name: domains[name] for name in names}, settings)
        for point in combinations:
            observed = _Observed({**settings, **{name: _meant(name, value) for name, value in point.items()}})
            found.append((point, look(cast(TrialConfig, observed))))
            if new := (observed.read & domains.keys()) - read:
                read |= new
                break
        else:
            return Explored(names=names, found=found, is_whole=is_whole)


def _meant(name: str, value: Any) -> Any:
    """A value as a trial has it: the original's names of choices are replaced by ours."""
    return _meant_by_text(name, value) if isinstance(value, str) else value


@cache
def _meant_by_text(name: str, text: str) -> Any:
    return typed(name, text)


class _Observed:
    """The settings of a trial, which may break rules. Records which settings are read."""

    def __init__(self, settings: Point) -> None:
        self._settings, self.read = settings, set[str]()

    def __getattr__(self, name: str) -> Any:
        if name in self._settings:
            self.read.add(name)
            return self._settings[name]
        attribute = getattr(TrialConfig, name, None)
        if isinstance(attribute, property) and attribute.fget is not None:
            return attribute.fget(self)
        self.read.update(self._settings)  # a method may read all of them
        return getattr(TrialConfig(**self._settings), name)


def _combinations(domains: dict[str, Domain], settings: Point) -> tuple[Iterator[Point], bool]:
    """The combinations, those with the fewest and smallest changes first, and whether these are all.

    A change of nb_clusters counts less than any other, so that it is lowered first.
    """
    most = MOST
    while True:
        values = {name: _values(domain, settings[name], most) for name, domain in domains.items()}
        if most <= 3 or math.prod(map(len, values.values())) <= MOST:
            break
        most //= 2  # long ranges are thinned until the combinations are few enough

    def cost(places: Sequence[int]) -> tuple[int, int, int]:
        of = dict(zip(values, places, strict=True))
        clusters = of.pop("nb_clusters", 0)
        return sum(place > 0 for place in of.values()), clusters, sum(of.values())

    ranked = itertools.islice(itertools.product(*(range(len(each)) for each in values.values())), MOST)
    points = (
        {name: values[name][place] for name, place in zip(values, places, strict=True)}
        for places in sorted(ranked, key=cost)
    )
    whole = math.prod(map(_count, domains.values())) == math.prod(map(len, values.values())) <= MOST
    return points, whole


def _count(domain: Domain) -> float:
    """Number of values of a domain."""
    if isinstance(domain, Choice):
        return len(domain.values)
    return math.inf if isinstance(domain, Float) and domain.low < domain.high else domain.high - domain.low + 1


def _values(domain: Domain, middle: Any, most: int) -> list[Any]:
    """Values of a domain, the nearest to `middle` first: all of them, or about `most` of a long range."""
    values: list[Any]
    if isinstance(domain, Choice):
        values = list(domain.values)
    elif isinstance(domain, Int):
        step = max(1, -(-(domain.high - domain.low) // most))
        values = [*range(domain.low, domain.high, step), domain.high]
    else:
        between = math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2
        values = list(dict.fromkeys([domain.low, between, domain.high]))
    if isinstance(middle, int | float) and all(isinstance(value, int | float) for value in values):
        return sorted(values, key=lambda value: abs(value - middle))
    return sorted(values, key=lambda value: bool(value != middle))
