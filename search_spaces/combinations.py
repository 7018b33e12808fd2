"""Decides exactly which combinations of values in a search space can work, by a search with backjumping.

Each rule of `TrialConfig` and of a data set is a constraint. It is evaluated as soon as the settings that it reads have
values, and its result is remembered for these values. If a rule fails, only the settings that it read can be the reason:
the search goes back to the latest of them. So twelve settings cost what the rules cost that tie them together.

A range of real numbers has no values that could be enumerated: a rule that reads one is decided only if it has the same
result on the whole range. If not, it excludes nothing.

Source of backjumping by conflict sets: Prosser, "Hybrid Algorithms for the Constraint Satisfaction Problem", 1993.

Above 250 lines because the search, its memory of conflicts and the questions that are asked of it are one algorithm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from dcml_tune.config.trial import TrialConfig
from search_spaces.conditions import Conditions, ancestors, meant
from search_spaces.domains import Choice, Domain, Float, Int
from search_spaces.intervals import Interval, UndecidedError

Point = dict[str, Any]
Look = Callable[[TrialConfig], str | None]

MOST_NODES = 200_000
"""Number of partial combinations after which a question stays open. Nothing is excluded then."""


class OpenError(Exception):
    """A question has not been decided within `MOST_NODES`."""


class _NeededError(Exception):
    """A rule reads a setting that has no value yet."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True)
class _Result:
    """The result of a rule."""

    reason: str | None
    read: frozenset[str]
    """The settings of the space that it read."""
    fixed: frozenset[str]
    """The settings that it read and that do not vary."""


@dataclass
class _Branch:
    """A rule has read a setting; what follows depends on its value."""

    name: str
    next: dict[Any, _Branch | _Result] = field(default_factory=dict)


class _View:
    """The settings of a trial, of which some have no value yet. Records which are read."""

    def __init__(self, problem: Problem, assigned: Point) -> None:
        self._problem, self._assigned = problem, assigned
        self.read: dict[str, Any] = {}
        self.fixed = set[str]()
        self.met_range = False

    def __getattr__(self, name: str) -> Any:
        problem = self._problem
        if name in problem.domains:
            return self._varied(name)
        if name in problem.settings:
            self.fixed.add(name)
            return problem.settings[name]
        attribute = getattr(TrialConfig, name, None)
        if isinstance(attribute, property) and attribute.fget is not None:
            return attribute.fget(self)
        values = {each: getattr(self, each) for each in problem.settings}  # a method may read all of them
        if any(isinstance(value, Interval) for value in values.values()):
            raise UndecidedError
        return getattr(TrialConfig(**values), name)

    def _varied(self, name: str) -> Any:
        problem, assigned = self._problem, self._assigned
        for above in problem.ancestors[name]:
            if above not in assigned:
                raise _NeededError(above)
            self.read[above] = assigned[above]
        domain = problem.domains[name]
        is_range = isinstance(domain, Float) and domain.low < domain.high
        self.met_range |= is_range
        if name not in assigned:
            if isinstance(domain, Float) and is_range and problem.varies(name, assigned):
                return Interval(domain.low, domain.high)
            raise _NeededError(name)
        self.read[name] = assigned[name]
        return assigned[name]


class _Rule:
    """A rule with its results so far, as a tree over the values that it read, in the order of reading."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._root: _Branch | _Result | None = None

    def at(self, problem: Problem, assigned: Point) -> _Result:
        """The result for the settings that have values.

        Raises:
            _NeededError: if it reads a setting that has none.
        """
        node = self._root
        while isinstance(node, _Branch):
            if node.name not in assigned:
                raise _NeededError(node.name)
            node = node.next.get(assigned[node.name])
        return node if node is not None else self._evaluated(problem, assigned)

    def _evaluated(self, problem: Problem, assigned: Point) -> _Result:
        view = _View(problem, assigned)
        try:
            reason = self._look(cast(TrialConfig, view))
        except UndecidedError:
            reason = None
        except TypeError:  # an interval is no number to calculate with
            if not view.met_range:
                raise
            reason = None
        found = _Result(reason, frozenset(view.read), frozenset(view.fixed))
        if not view.met_range:
            self._remember(list(view.read.items()), found)
        return found

    def _remember(self, read: list[tuple[str, Any]], found: _Result) -> None:
        if not read:
            self._root = found
            return
        if self._root is None:
            self._root = _Branch(read[0][0])
        node = self._root
        for (_, value), (following, _) in itertools.pairwise(read):
            assert isinstance(node, _Branch)
            node = node.next.setdefault(value, _Branch(following))
        assert isinstance(node, _Branch)
        node.next[read[-1][1]] = found


@dataclass
class _Limits:
    """How far a solution may be from the starting point."""

    changes: int
    """Number of settings other than nb_clusters that differ."""
    clusters: int
    """Place of nb_clusters among its values, by distance."""
    places: int
    """Sum of the places of the others."""


class Problem:
    """The combinations of a space as a constraint satisfaction problem.

    Attributes:
        settings: all settings of a trial; those that vary have the starting point's values.
        domains: the settings that vary, in the order of sampling.
        ancestors: setting -> those that decide whether it varies.
        blamed: the settings that failing rules have read: only these can be the reason why nothing works.
    """

    def __init__(
        self,
        settings: Point,
        domains: Mapping[str, Domain],
        conditions: Conditions,
        fallback: Callable[[str, Mapping[str, Any]], Any],
        rules: list[Look],
    ) -> None:
        """Set up the problem.

        Args:
            settings: all settings of the starting point, which may break rules.
            domains: the settings that vary.
            conditions: of the space.
            fallback: returns the value of a setting in a trial where it does not vary.
            rules: return why settings cannot work, or None.
        """
        self.settings, self.domains, self._conditions = settings, domains, conditions
        self._fallback = fallback
        self._rules = [_Rule(look) for look in rules]
        self.ancestors = {name: ancestors(name, conditions, domains) for name in domains}
        self.blamed: set[str] = set()
        self._values = {name: _values(name, domain, settings[name]) for name, domain in domains.items()}
        self._places = {name: {each: place for place, each in enumerate(self._values[name])} for name in domains}
        self._given: Point = {}
        self._must_vary: tuple[str, ...] = ()
        self._limits: _Limits | None = None
        self._nodes = 0

    def varies(self, name: str, assigned: Mapping[str, Any]) -> bool:
        """Whether all conditions of a setting hold."""
        return all(
            each.holds(assigned[each.setting] if each.setting in assigned else self.settings[each.setting])
            for each in self._conditions.get(name, ())
        )

    def solution(self, given: Point | None = None, must_vary: tuple[str, ...] = ()) -> Point | None:
        """A combination that can work, or None. Settings without a rule have the values of the starting point.

        Args:
            given: settings that vary in it, and their values.
            must_vary: further settings that vary in it.

        Raises:
            OpenError: if it was not decided.
        """
        self._given = {name: meant(name, value) for name, value in (given or {}).items()}
        self._must_vary = tuple(name for name in self.domains if name in self._given or name in must_vary)
        self._nodes = 0
        found = self._search({}, self._rules)
        return None if isinstance(found, frozenset) else self._completed(found)

    def nearest(self) -> Point | None:
        """The solution with the fewest changes of the starting point, and of these the smallest.

        A change of nb_clusters counts less than any other, so that it is lowered first.

        Raises:
            OpenError: if none was found in time.
        """
        most = sum(map(len, self._values.values()))
        places = len(self._values.get("nb_clusters", [0]))
        for changes in range(len(self.domains) + 1):
            for clusters in range(places):
                self._limits = _Limits(changes, clusters, most)
                try:
                    found = self._with_smallest_sum()
                finally:
                    self._limits = None
                if found is not None:
                    return found
        return None

    def _with_smallest_sum(self) -> Point | None:
        best, limits = self.solution(), self._limits
        assert limits is not None
        found = best
        while found is not None and limits.changes:
            best = found
            limits.places = self._cost(found)[2] - 1
            try:
                found = self.solution()
            except OpenError:
                break
        return best

    def ends(self, name: str, given: Point) -> tuple[int, int] | None:
        """The smallest and the largest value of a whole number that work with given settings; None if none does."""
        domain = self.domains[name]
        assert isinstance(domain, Int)
        low = self._first(name, given, iter(range(domain.low, domain.high + 1)))
        high = None if low is None else self._first(name, given, iter(range(domain.high, low - 1, -1)))
        return None if low is None or high is None else (low, high)

    def _first(self, name: str, given: Point, values: Iterator[int]) -> int | None:
        for value in values:
            if self.solution({**given, name: value}) is not None:
                return value
        return None

    def _search(self, assigned: Point, rules: list[_Rule]) -> Point | frozenset[str]:
        """A solution that extends the values, or the settings because of which there is none."""
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise OpenError
        if self._limits is not None and self._exceeds(assigned, self._limits):
            return frozenset(name for name in assigned if self._place(name, assigned))
        open_rules, needed = [], self._first_needed(assigned)
        for rule in rules:
            try:
                found = rule.at(self, assigned)
            except _NeededError as error:
                open_rules.append(rule)
                needed = needed or error.name
                continue
            if found.reason is not None:
                self.blamed |= found.read | found.fixed
                return found.read
        if needed is None:
            return assigned
        needed = next((each for each in self.ancestors[needed] if each not in assigned), needed)
        return self._branch(needed, assigned, open_rules)

    def _branch(self, name: str, assigned: Point, rules: list[_Rule]) -> Point | frozenset[str]:
        varies, why = self.varies(name, assigned), frozenset(self.ancestors[name])
        if not varies and name in self._must_vary:
            return why
        blamed: frozenset[str] = frozenset()
        for value in self._candidates(name, assigned, varies=varies):
            found = self._search({**assigned, name: value}, rules)
            if not isinstance(found, frozenset):
                return found
            if name not in found:
                return found  # whatever its value is
            blamed |= found - {name}
        return blamed | why

    def _candidates(self, name: str, assigned: Point, *, varies: bool) -> list[Any]:
        if not varies:
            return [meant(name, self._fallback(name, assigned))]
        return [self._given[name]] if name in self._given else self._values[name]

    def _first_needed(self, assigned: Point) -> str | None:
        """The first setting that must vary and has no value yet."""
        return next((name for name in self._must_vary if name not in assigned), None)

    def _completed(self, assigned: Point) -> Point:
        """The settings that vary in a solution, all with a value, in the order of sampling."""
        whole: Point = dict(assigned)
        chosen: Point = {}
        for name, domain in self.domains.items():
            varies = self.varies(name, whole)
            if name not in whole:
                whole[name] = self._candidates(name, whole, varies=varies)[0]
            if varies:
                chosen[name] = as_written(domain, name, whole[name])
        return chosen

    # -- distance from the starting point --------------------------------------------------------------

    def _place(self, name: str, assigned: Point) -> int:
        """The place of a value among those of its domain, by distance from the starting point; 0 if it does not vary."""
        place = self._places[name].get(meant(name, assigned[name]), 0)
        return place if place and self.varies(name, assigned) else 0

    def _cost(self, assigned: Point) -> tuple[int, int, int]:
        """Number of changes, place of nb_clusters, sum of the places of the others."""
        of = {name: self._place(name, assigned) for name in assigned}
        clusters = of.pop("nb_clusters", 0)
        return sum(place > 0 for place in of.values()), clusters, sum(of.values())

    def _exceeds(self, assigned: Point, limits: _Limits) -> bool:
        changes, clusters, places = self._cost(assigned)
        return changes > limits.changes or clusters > limits.clusters or places > limits.places


def _values(name: str, domain: Domain, start: Any) -> list[Any]:
    """The values of a domain as a trial has them, those nearest to the starting point first; of reals the nearest one."""
    if isinstance(domain, Float):
        return [domain.nearest(start) if isinstance(start, int | float) else domain.low]
    if isinstance(domain, Int):
        values: list[Any] = list(range(domain.low, domain.high + 1))
    else:
        values = list(dict.fromkeys(meant(name, value) for value in domain.values))
    if isinstance(start, int | float) and all(isinstance(value, int | float) for value in values):
        return sorted(values, key=lambda value: abs(value - start))
    return sorted(values, key=lambda value: value != start)


def as_written(domain: Domain, name: str, value: Any) -> Any:
    """A value as the domain has it, which may be the original's name of a choice."""
    if not isinstance(domain, Choice) or value in domain.values:
        return value
    return next((each for each in domain.values if meant(name, each) == meant(name, value)), value)
