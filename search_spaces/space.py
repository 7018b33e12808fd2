"""SearchSpace: the domains of a search on a data set, and the published point that trial 0 runs.

The module is slightly long because the class is one idea: a space, what is left of it in one search, and how it is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import optuna

from dcml_tune.cli.parser import typed
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.rules import broken_rule
from dcml_tune.config.trial import IMAGE_DEFAULTS, TrialConfig
from dcml_tune.config.unused import unused_reasons
from search_spaces.checks import SpaceError, check_domain, check_value
from search_spaces.combinations import Explored, explore
from search_spaces.constant import MAY_NOT_VARY
from search_spaces.domains import Choice, Domain, Float, Int

__all__ = ["Choice", "Domain", "Float", "InfeasibleReason", "Int", "SearchSpace"]

InfeasibleReason = Callable[[TrialConfig], str | None]
"""A function that returns why a configuration cannot work on a data set, or None."""


_FEW = 500  # combinations; if there are more, no remedy is searched for


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The domains of a search on a data set, the reasons for them, and the published point."""

    name: str
    """Name of the data set."""
    published: dict[str, Any]
    """Settings of the published point, which trial 0 runs."""
    domains: dict[str, Domain]
    """The settings that vary, in the order in which they are sampled."""
    why: dict[str, str] = field(default_factory=dict)
    """The reason for each domain."""
    references: str = ""
    """Published results on the data set, as text."""

    def __post_init__(self) -> None:
        known = list(TrialConfig.model_fields)
        for setting in [*self.published, *self.domains, *self.why]:
            if setting not in known:
                raise SpaceError(self.name, unknown_name("setting", str(setting), known), setting)
        for setting, value in self.published.items():
            check_value(self.name, setting, value)
        for setting, domain in self.domains.items():
            check_domain(self.name, setting, domain)

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
        return replace(self, domains=wider.domains, why=wider.why)

    def restricted(self, fixed: dict[str, Any], infeasible_reason: InfeasibleReason | None = None) -> SearchSpace:
        """The space of one search: without the settings that are fixed, and without choices that can never work.

        Raises:
            SettingError: if no setting is left to vary, or no combination of values can work.
        """
        domains = {name: domain for name, domain in self.domains.items() if name not in fixed}
        space = replace(self, published={**self.published, **fixed}, domains=domains)
        if not domains:
            raise SettingError(
                f"search space {self.name}: every setting that varies is fixed by a flag; leave one of them out, "
                "or use `python -m dcml_tune.train` for a single setting"
            )
        explored = space._explored(infeasible_reason)
        working = [point for point, reason in explored.found if reason is None]
        if not explored.is_whole:
            return space
        if not working:
            raise SettingError(space._why_nothing_works(explored, fixed, infeasible_reason))
        for name, domain in domains.items():
            if isinstance(domain, Choice) and name in explored.names:
                domains[name] = Choice(value for value in domain.values if any(p[name] == value for p in working))
        return replace(space, domains=domains)

    def suggest(self, trial: optuna.Trial, infeasible_reason: InfeasibleReason | None = None) -> dict[str, Any]:
        """Sample the settings that vary, mostly in combinations that can work.

        A whole number is sampled between the smallest and the largest that work with the settings sampled before it.

        Raises:
            SettingError: if the sampled settings cannot work together.
        """
        explored = self._explored(infeasible_reason)
        working = [point for point, reason in explored.found if reason is None and explored.is_whole]
        chosen: dict[str, Any] = {}
        for name, domain in self.domains.items():
            if isinstance(domain, Int) and name in explored.names:
                fitting = [
                    p[name] for p in working if all(p.get(other, value) == value for other, value in chosen.items())
                ]
                domain = Int(min(fitting), max(fitting), domain.log) if fitting else domain
            chosen[name] = domain.suggest(trial, name)
        if reason := self.refusal(chosen, infeasible_reason):
            raise SettingError(reason)
        return chosen

    def _explored(self, infeasible_reason: InfeasibleReason | None) -> Explored[str | None]:
        """For each combination of values why it cannot work, or None."""

        def look(config: TrialConfig) -> str | None:
            return broken_rule(config) or (infeasible_reason(config) if infeasible_reason is not None else None)

        return explore(self._settings(), self.domains, look)

    def _settings(self) -> dict[str, Any]:
        """All settings of the published point, which may break rules."""
        dataset = self.published.get("dataset", self.name)
        defaults = {name: setting.default for name, setting in TrialConfig.model_fields.items()}
        published = {name: typed(name, value) for name, value in self.published.items()}
        return {**defaults, **IMAGE_DEFAULTS.get(dataset, {}), "dataset": dataset, **published}

    def _why_nothing_works(
        self, explored: Explored[str | None], fixed: dict[str, Any], infeasible_reason: InfeasibleReason | None
    ) -> str:
        """The message if no combination works. If one change of a fixed setting would help, the smallest is the remedy."""
        by_data = [(point, reason) for point, reason in explored.found if self.refusal(point) is None]
        _, reason = min(by_data or explored.found, key=lambda each: each[0].get("nb_clusters", 0))
        remedy = ""
        for name, value in self._changes(fixed) if len(explored.found) <= _FEW else ():
            changed = replace(self, published={**self.published, name: value})
            point = next(
                (point for point, refused in changed._explored(infeasible_reason).found if refused is None), None
            )
            if point is not None:
                reason, remedy = self.refusal(point, infeasible_reason), f"; it works with {name}={value}"
                break
        if all(refused == reason for _, refused in explored.found):  # it holds for all values of the other settings
            return f"{reason}{remedy}"
        varied = ", ".join(f"{name} ({self.domains[name]})" for name in explored.names)
        return f"search space {self.name}: no combination of {varied} can work: {reason}{remedy}"

    def _changes(self, fixed: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Changes of one setting that does not vary: small changes first, and settings fixed by flags first."""
        settings = self._settings()
        names = [*fixed, *(name for name in self.published if name not in fixed)]
        for step in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128):
            for name in names:
                value = settings[name]
                if (
                    name in self.domains
                    or name in MAY_NOT_VARY
                    or not isinstance(value, int)
                    or isinstance(value, bool)
                ):
                    continue
                for changed in (value + step, value - step):
                    with suppress(SettingError):
                        yield name, typed(name, changed)

    def refusal(self, chosen: dict[str, Any], infeasible_reason: InfeasibleReason | None = None) -> str | None:
        """Why the published point with the chosen settings cannot work, or None."""
        try:
            config = TrialConfig(**{**self.published, **chosen, "dataset": self.published.get("dataset", self.name)})
        except SettingError as error:
            return str(error)
        return infeasible_reason(config) if infeasible_reason is not None else None

    def unvaried(self, name: str) -> Any:
        """The value of a setting if it does not vary: the published value, or the default."""
        return self.published.get(name, getattr(TrialConfig(dataset=self.published.get("dataset", self.name)), name))

    def published_point(self, infeasible_reason: InfeasibleReason | None = None) -> tuple[dict[str, Any], list[str]]:
        """The published values of the settings that vary, and a line for each value that had to be changed.

        A value outside of its domain is replaced by the nearest one inside. If the point still cannot work, the nearest
        point that can is taken; `nb_clusters` is changed before all other settings.

        Raises:
            SettingError: if no point can work.
        """
        point, lines = {}, []
        for name, domain in self.domains.items():
            published = self.unvaried(name)
            point[name] = domain.nearest(published)
            if point[name] != published:
                lines.append(
                    f"trial 0: {name} {published} of the published setting is outside {domain}; takes {point[name]}"
                )
        reason = self.refusal(point, infeasible_reason)
        if reason is None:
            return point, lines
        for found, refused in self._explored(infeasible_reason).found:
            if refused is None and self.refusal({**point, **found}, infeasible_reason) is None:
                moved = [
                    f"{name} from {point[name]} to {value}" for name, value in found.items() if value != point[name]
                ]
                return {**point, **found}, [*lines, f"trial 0: {', '.join(moved)}: {reason}"]
        raise SettingError(f"the published setting cannot work here: {reason}")

    def unused_settings(self) -> list[str]:
        """One line for each setting that varies but has no effect, for all values of the other settings."""

        def look(config: TrialConfig) -> dict[str, str] | None:
            return None if broken_rule(config) else unused_reasons(config)

        explored = explore(self._settings(), self.domains, look)
        found = [each for _, each in explored.found if each is not None]
        if not found or not explored.is_whole:
            return []
        return [
            f"{name} varies and has no effect: {found[0][name]}"
            for name in self.domains
            if all(name in each for each in found)
        ]

    def as_json(self) -> dict[str, Any]:
        """The space as plain data, which `from_json` reads."""
        domains = {name: {"kind": type(each).__name__, **vars(each)} for name, each in self.domains.items()}
        return {**vars(self), "domains": domains}

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
            return cls(**{**facts, "domains": domains})
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"the recorded search space is not valid ({type(error).__name__}: {error})") from None

    def describe(self) -> list[tuple[str, str, str]]:
        """For each setting that varies its name, its domain, and the reason."""
        return [(name, str(domain), self.why.get(name, "")) for name, domain in self.domains.items()]
