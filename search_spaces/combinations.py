"""Which combinations of the values of some domains work: found by trying them, not by their ends alone.

The rules of `TrialConfig` and of a data set look at few settings. Which ones is observed, so that only the values of
those are combined, and what was found holds whatever the values of the others are. A range of fractions has no end of
values: it is tried at three of them, and nothing is excluded because of these.
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
"""Combinations that are tried; of more than that a part is, and nothing is excluded."""

Point = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Explored(Generic[T]):
    """What was found of each combination, those next to the point of departure first."""

    names: tuple[str, ...]
    """The settings on whose values it depends."""
    found: list[tuple[Point, T]]
    is_whole: bool
    """Whether these are all combinations there are, so that what is not found does not exist."""


def explore(settings: Point, domains: dict[str, Domain], look: Callable[[TrialConfig], T]) -> Explored[T]:
    """Look at the combinations of the values of some domains.

    Args:
        settings: all settings of a trial; those in `domains` are the point of departure.
        domains: what varies.
        look: reads settings, and says what there is to say.
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
    """A value as a trial has it: some texts are the original's names of another one."""
    return _meant_by_text(name, value) if isinstance(value, str) else value


@cache
def _meant_by_text(name: str, text: str) -> Any:
    return typed(name, text)


class _Observed:
    """The settings of a trial, which need not agree with each other; remembers which were read."""

    def __init__(self, settings: Point) -> None:
        self._settings, self.read = settings, set[str]()

    def __getattr__(self, name: str) -> Any:
        if name in self._settings:
            self.read.add(name)
            return self._settings[name]
        attribute = getattr(TrialConfig, name, None)
        if isinstance(attribute, property) and attribute.fget is not None:
            return attribute.fget(self)
        self.read.update(self._settings)  # a method may look at all of them
        return getattr(TrialConfig(**self._settings), name)


def _combinations(domains: dict[str, Domain], settings: Point) -> tuple[Iterator[Point], bool]:
    """The combinations, those with the fewest and smallest changes first; and whether they are all.

    A change of nb_clusters counts less than any other: it is lowered first.
    """
    most = MOST
    while True:
        values = {name: _values(domain, settings[name], most) for name, domain in domains.items()}
        if most <= 3 or math.prod(map(len, values.values())) <= MOST:
            break
        most //= 2  # long ranges are thinned out until there are few enough

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
    """How many values a domain has."""
    if isinstance(domain, Choice):
        return len(domain.values)
    return math.inf if isinstance(domain, Float) and domain.low < domain.high else domain.high - domain.low + 1


def _values(domain: Domain, middle: Any, most: int) -> list[Any]:
    """Values of a domain, those next to a value first: all, or of a long range as many as `most`."""
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
