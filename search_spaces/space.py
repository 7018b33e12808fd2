"""SearchSpace: what is left of a space in one search, its first trials, and how the others are sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna

from dcml_tune.config.errors import SettingError
from search_spaces.base import BaseSpace, InfeasibleReason, Start
from search_spaces.combinations import OpenError, Problem
from search_spaces.conditions import When
from search_spaces.domains import Choice, Domain, Float, Int
from search_spaces.points import nearest_point, start_points
from search_spaces.rules import unused_lines, why_nothing_works

__all__ = ["Choice", "Domain", "Float", "InfeasibleReason", "Int", "SearchSpace", "Start", "When"]


@dataclass(frozen=True, kw_only=True)
class SearchSpace(BaseSpace):
    """The domains of a search on a data set, the reasons for them, and the published point.

    `search_spaces.base.BaseSpace` describes the fields.

    Example:
        >>> SearchSpace(
        ...     name="emoji",
        ...     published={"nb_clusters": 4, "mod_epoch": 1, "masking_lambda": 0.01},
        ...     domains={"nb_clusters": Choice([1, 2, 4]), "masking_lambda": Float(0.001, 1, log=True)},
        ...     conditions={"masking_lambda": When("nb_clusters", above=1)},
        ... ).active({"nb_clusters": 1})
        ['nb_clusters']
    """

    def widened(self, **domains: Domain) -> SearchSpace:
        """A copy with other or additional domains."""
        return replace(self, domains={**self.domains, **domains})

    def extended(self, wider: SearchSpace) -> SearchSpace:
        """The space of a search that continues in a wider one.

        Raises:
            SettingError: if the wider space lacks a part of this one, or fixes a setting at another value.
        """
        for name, domain in self.domains.items():
            new = wider.domains.get(name)
            gone = domain.ends() if new is None else [value for value in domain.ends() if not new.holds(value)]
            if gone:
                there = "does not vary" if new is None else str(new)
                raise SettingError(
                    f"--space: {name} was {domain} and {there} now; a search is only widened, so keep {gone[0]}"
                )
        both = {name: value for name, value in wider.published.items() if name not in wider.domains}
        for name, value in both.items():
            if self.published.get(name, value) != value:
                raise SettingError(
                    f"--space: {name} of every trial was {self.published[name]} and is {value} now; put it back, or start a new search"
                )
        return replace(self, domains=wider.domains, why=wider.why, conditions=wider.conditions)

    def restricted(self, fixed: dict[str, Any], infeasible_reason: InfeasibleReason | None = None) -> SearchSpace:
        """The space of one search: without the settings that are fixed, and without choices that can never work.

        A setting whose conditions never hold does not vary, either.

        Raises:
            SettingError: if no setting is left to vary, or no combination of values can work.
        """
        space = self._with_fixed(fixed)
        if not space.domains:
            raise SettingError(
                f"search space {self.name}: every setting that varies is fixed by a flag, or has no effect with those that are; leave one out, "
                "or use `python -m dcml_tune.train` for a single setting"
            )
        problem = space.problem(infeasible_reason)
        try:
            point = problem.solution()
        except OpenError:
            return space
        if point is None:
            changed = partial(self._changed, fixed)
            raise SettingError(why_nothing_works(space, problem, fixed, infeasible_reason, changed))
        domains = dict[str, Domain]()
        for name, domain in space.domains.items():
            if (left := _what_works(problem, name, point)) is not None:
                domains[name] = left
            elif space._may_vary(name, domains):
                domains[name] = domain  # no trial that varies it works: without it, some would, at another value
            elif space._is_for_other_criteria(name, domains):
                space = replace(space, published={k: v for k, v in space.published.items() if k != name})
        return replace(space, domains=domains)

    def _may_vary(self, name: str, domains: dict[str, Domain]) -> bool:
        """Whether each condition of a setting holds for some value of what is left of the others."""
        return all(
            each.can_hold(domains.get(each.setting) or Choice([self.unvaried(each.setting)]))
            for each in self.conditions.get(name, ())
        )

    def _is_for_other_criteria(self, name: str, domains: dict[str, Domain]) -> bool:
        """Whether the published value of a setting is for another criterion than each of those that are left."""
        criteria = domains.get("criterion")
        return criteria is not None and all(
            self.is_for_another_criterion(name, {"criterion": each}) for each in criteria.ends()
        )

    def _changed(self, fixed: dict[str, Any], name: str, value: Any) -> SearchSpace:
        """The space of one search, with one more setting that is fixed."""
        return self._with_fixed({**fixed, name: value})

    def _with_fixed(self, fixed: dict[str, Any]) -> SearchSpace:
        """The space without the settings that are fixed, and without those whose conditions they break."""
        published, domains = {**self.published, **fixed}, dict[str, Domain]()
        conditions: dict[str, tuple[When, ...]] = {}
        for name, domain in self.domains.items():
            if name in fixed:
                continue
            left = [each for each in self.conditions.get(name, ()) if each.setting in domains]
            resolved = [each for each in self.conditions.get(name, ()) if each.setting not in domains]
            values = {each.setting: published.get(each.setting, self.unvaried(each.setting)) for each in resolved}
            if all(each.holds(values[each.setting]) for each in resolved):
                domains[name] = domain
                conditions[name] = tuple(left)
            elif self.is_for_another_criterion(name, values):
                published.pop(name, None)
        return replace(self, published=published, domains=domains, conditions=conditions)

    # -- trials ----------------------------------------------------------------------------------------

    def suggest(self, trial: optuna.Trial, infeasible_reason: InfeasibleReason | None = None) -> dict[str, Any]:
        """Sample the settings that vary in a trial, mostly in combinations that can work.

        A whole number is sampled between the smallest and the largest that work with the settings sampled before it.

        Raises:
            SettingError: if the sampled settings cannot work together.
        """
        problem = self.problem(infeasible_reason)
        chosen: dict[str, Any] = {}
        for name, domain in self.domains.items():
            if not self.varies(name, chosen):
                continue
            if isinstance(domain, Int):
                domain = _narrowed(problem, name, domain, chosen)
            chosen[name] = domain.suggest(trial, name)
        if reason := self.refusal(chosen, infeasible_reason):
            raise SettingError(reason)
        return chosen

    def published_point(self, infeasible_reason: InfeasibleReason | None = None) -> tuple[dict[str, Any], list[str]]:
        """The published values of the settings that vary, and a line for each value that had to be changed.

        A value outside of its domain is replaced by the nearest one inside. If the point still cannot work, the nearest
        point that can is taken; `nb_clusters` is changed before all other settings.

        Raises:
            SettingError: if no point can work.
        """
        return nearest_point(self, "trial 0", {}, infeasible_reason)

    def start_points(
        self, published: dict[str, Any], infeasible_reason: InfeasibleReason | None = None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The points of `starts`, moved to settings that can work, and lines about them.

        Args:
            published: the point of trial 0.
            infeasible_reason: returns why a configuration cannot work on the data, or None.
        """
        return start_points(self, published, infeasible_reason)

    def unused_settings(self) -> list[str]:
        """One line for each setting that varies but has no effect, for all values of the other settings."""
        return unused_lines(self)

    def as_json(self) -> dict[str, Any]:
        """The space as plain data, which `from_json` reads."""
        domains = {name: {"kind": type(each).__name__, **vars(each)} for name, each in self.domains.items()}
        conditions = {name: [when.as_json() for when in each] for name, each in self.conditions.items()}
        starts = [{**vars(each), "settings": dict(each.settings)} for each in self.starts]
        return {**vars(self), "domains": domains, "conditions": conditions, "starts": starts}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> SearchSpace:
        """The space from the data of `as_json`.

        Raises:
            SettingError: if the data does not describe a space.
        """
        kinds: dict[str, Callable[..., Domain]] = {"Choice": Choice, "Int": Int, "Float": Float}
        try:
            domains = {
                name: kinds[each["kind"]](**{key: value for key, value in each.items() if key != "kind"})
                for name, each in facts["domains"].items()
            }
            conditions = {
                name: tuple(When(**when) for when in each) for name, each in facts.get("conditions", {}).items()
            }
            starts = tuple(Start(**each) for each in facts.get("starts", ()))
            return cls(**{**facts, "domains": domains, "conditions": conditions, "starts": starts})
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"the recorded search space is not valid ({type(error).__name__}: {error})") from None

    def describe(self) -> list[tuple[str, str, str]]:
        """For each setting that varies its name, its domain with its conditions, and the reason."""
        return [
            (name, str(domain) + self._only_when(name), self.why.get(name, "")) for name, domain in self.domains.items()
        ]

    def _only_when(self, name: str) -> str:
        found = " and ".join(map(str, self.conditions.get(name, ())))
        return f", with {found}" if found else ""


def _what_works(problem: Problem, name: str, known: dict[str, Any]) -> Domain | None:
    """What is left of a domain: choices that can work; None if it never varies.

    Args:
        problem: of the space.
        name: of the setting.
        known: a combination that works.
    """
    domain = problem.domains[name]
    if not isinstance(domain, Choice):
        return domain if name in known or _works(problem, {}, (name,)) else None
    unknown = object()  # None is a value
    left = [value for value in domain.values if known.get(name, unknown) == value or _works(problem, {name: value})]
    return Choice(left) if left else None


def _works(problem: Problem, given: dict[str, Any], must_vary: tuple[str, ...] = ()) -> bool:
    """Whether a combination can work; also true where that was not decided."""
    try:
        return problem.solution(given, must_vary) is not None
    except OpenError:
        return True


def _narrowed(problem: Problem, name: str, domain: Int, chosen: dict[str, Any]) -> Int:
    """The whole numbers from the smallest to the largest that work with what was chosen; all of them if none does."""
    try:
        ends = problem.ends(name, chosen)
    except OpenError:
        return domain
    return domain if ends is None else Int(*ends, domain.log)
