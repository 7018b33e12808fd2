"""The domains and the published point of a search space, and the settings of each trial in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dcml_tune.cli.parser import typed
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.rules import RULES
from dcml_tune.config.trial import IMAGE_DEFAULTS, TrialConfig
from search_spaces.checks import SpaceError, check_domain, check_value
from search_spaces.combinations import Look, Problem
from search_spaces.conditions import Conditions, as_conditions, check_conditions, meant
from search_spaces.domains import Domain

InfeasibleReason = Callable[[TrialConfig], str | None]
"""A function that returns why a configuration cannot work on a data set, or None."""


def feasibility_rules(infeasible_reason: InfeasibleReason | None) -> list[Look]:
    """All rules that a trial must keep."""
    return [*RULES, *([] if infeasible_reason is None else [infeasible_reason])]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A recipe to try after the published point. Settings that it does not name are those of the published point."""

    name: str
    """Name of the recipe."""
    source: str
    """Where it was published, and what of it is ours."""
    settings: Mapping[str, Any]
    """Its settings. Those that do not vary in a search have the value of the search."""


@dataclass(frozen=True, kw_only=True)
class BaseSpace:
    """What a search space consists of, and which settings a trial in it has."""

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
    conditions: Conditions = field(default_factory=dict)
    """Settings that vary only where a condition holds, with a condition or a tuple of conditions that must all hold. A
    condition looks at a setting that is sampled earlier, or that does not vary. Where it does not hold, a trial has the
    published value; if the published value is for another criterion, it has the default."""
    starts: tuple[Start, ...] = ()
    """Further recipes, which a search tries after the published point."""

    def __post_init__(self) -> None:
        known = list(TrialConfig.model_fields)
        conditions = as_conditions(self.conditions)
        for setting in [*self.published, *self.domains, *self.why, *conditions]:
            if setting not in known:
                raise SpaceError(self.name, unknown_name("setting", str(setting), known), setting)
        for setting, value in [
            *self.published.items(),
            *(pair for each in self.starts for pair in each.settings.items()),
        ]:
            if setting not in known:
                raise SpaceError(self.name, unknown_name("setting", str(setting), known), setting)
            check_value(self.name, setting, value)
        for setting, domain in self.domains.items():
            check_domain(self.name, setting, domain)
        conditions = {setting: each for setting, each in conditions.items() if setting in self.domains and each}
        object.__setattr__(self, "conditions", conditions)
        check_conditions(self.name, conditions, self.domains, self.unvaried)

    def varies(self, name: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a setting varies in a trial with the chosen settings: all its conditions hold."""
        conditions = self.conditions.get(name, ())
        return all(
            each.holds(chosen[each.setting] if each.setting in chosen else self.fallback(each.setting, chosen))
            for each in conditions
        )

    def active(self, settings: Mapping[str, Any]) -> list[str]:
        """The settings that vary in a trial with these settings, in the order of sampling."""
        return [name for name in self.domains if self.varies(name, settings)]

    def whole(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial: published ones, chosen ones, and those that do not vary with the chosen ones."""
        others = {name: self.fallback(name, chosen) for name in self.domains if name not in chosen}
        return {**self.published, **others, **chosen}

    def fallback(self, name: str, chosen: Mapping[str, Any]) -> Any:
        """The value of a setting in a trial that does not vary it: the published value, or the default."""
        if self.is_for_another_criterion(name, chosen):
            return _default(self._dataset, name)
        return self.unvaried(name)

    def is_for_another_criterion(self, name: str, chosen: Mapping[str, Any]) -> bool:
        """Whether the published value of a setting is for another criterion than that of a trial."""
        if "criterion" not in chosen:
            return False
        return meant("criterion", chosen["criterion"]) != meant("criterion", self.unvaried("criterion")) and any(
            each.setting == "criterion" and not each.holds(chosen["criterion"])
            for each in self.conditions.get(name, ())
        )

    def unvaried(self, name: str) -> Any:
        """The value of a setting if it does not vary: the published value, or the default."""
        return self.published[name] if name in self.published else _default(self._dataset, name)

    @property
    def _dataset(self) -> str:
        return str(self.published.get("dataset", self.name))

    def problem(self, infeasible_reason: InfeasibleReason | None = None, **changes: Any) -> Problem:
        """The combinations that can work, as a constraint satisfaction problem.

        Args:
            infeasible_reason: returns why a configuration cannot work on the data, or None.
            changes: other values of settings that do not vary.
        """
        settings = {**self.settings(), **changes}
        rules = feasibility_rules(infeasible_reason)
        return Problem(settings, self.domains, self.conditions, self.fallback, rules)

    def settings(self) -> dict[str, Any]:
        """All settings of the published point, which may break rules."""
        defaults = {name: setting.default for name, setting in TrialConfig.model_fields.items()}
        published = {name: typed(name, value) for name, value in self.published.items()}
        return {**defaults, **IMAGE_DEFAULTS.get(self._dataset, {}), "dataset": self._dataset, **published}

    def refusal(self, chosen: dict[str, Any], infeasible_reason: InfeasibleReason | None = None) -> str | None:
        """Why the published point with the chosen settings cannot work, or None."""
        try:
            config = TrialConfig(**{**self.whole(chosen), "dataset": self._dataset})
        except SettingError as error:
            return str(error)
        return infeasible_reason(config) if infeasible_reason is not None else None


@cache
def _default(dataset: str, name: str) -> Any:
    return getattr(TrialConfig(dataset=dataset), name)
