"""Conditions: a setting of a search space varies only where another setting has certain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dcml_tune.cli.parser import typed
from dcml_tune.config.errors import SettingError, unknown_name
from dcml_tune.config.trial import TrialConfig
from search_spaces.checks import SpaceError, check_value
from search_spaces.domains import Choice, Domain, Float


@dataclass(frozen=True)
class When:
    """A condition on one setting. Give either `above` or `among`.

    Example:
        >>> print(When("nb_clusters", above=1))
        nb_clusters above 1
        >>> When("criterion", among=["margin", "triplet"]).holds("triplet")
        True
    """

    setting: str
    """Name of the setting that is looked at."""
    above: float | None = None
    """The condition holds where the setting is a number larger than this."""
    among: tuple[Any, ...] | None = None
    """The condition holds where the setting has one of these values."""

    def __post_init__(self) -> None:
        if (self.above is None) == (self.among is None):
            raise SettingError(f"When({self.setting!r}) must have either `above` or `among`; give one of them")
        if self.above is not None and (not isinstance(self.above, int | float) or isinstance(self.above, bool)):
            raise SettingError(f"When({self.setting!r}): `above` must be a number, but got {self.above!r}; give one")
        if self.among is not None:
            object.__setattr__(self, "among", Choice(self.among).values)

    def holds(self, value: Any) -> bool:
        """Whether the condition holds where the setting has a value."""
        if self.among is not None:
            return meant(self.setting, value) in [meant(self.setting, each) for each in self.among]
        return isinstance(value, int | float) and self.above is not None and value > self.above

    def can_hold(self, domain: Domain) -> bool:
        """Whether the condition holds for some value of a domain."""
        if isinstance(domain, Choice):
            return any(map(self.holds, domain.values))
        return any(map(self.holds, domain.ends() if self.among is None else filter(domain.holds, self.among)))

    def as_json(self) -> dict[str, Any]:
        """The condition as plain data, which are the arguments of `When`."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        values = f"above {self.above:g}" if self.above is not None else " or ".join(map(str, self.among or ()))
        return f"{self.setting} {values}"


Conditions = Mapping[str, tuple[When, ...]]
"""Setting -> conditions that must all hold where it varies."""


def meant(name: str, value: Any) -> Any:
    """A value as a trial has it: the original's names of choices are replaced by ours."""
    return _meant_by_text(name, value) if isinstance(value, str) else value


@cache
def _meant_by_text(name: str, text: str) -> Any:
    return typed(name, text)


def as_conditions(given: Mapping[str, When | Iterable[When]]) -> dict[str, tuple[When, ...]]:
    """Conditions as a user may write them, a single one without a tuple."""
    return {name: (each,) if isinstance(each, When) else tuple(each) for name, each in given.items()}


def check_conditions(space: str, conditions: Conditions, domains: dict[str, Domain], unvaried: Any) -> None:
    """Check that each condition looks at a known setting, which is sampled earlier or does not vary, and can hold.

    Args:
        space: name of the space.
        conditions: of the space.
        domains: of the space.
        unvaried: returns the value of a setting that does not vary.

    Raises:
        SpaceError: if one does not.
    """
    order = list(domains)
    for name, conditions_of_it in conditions.items():
        for condition in conditions_of_it:
            if not isinstance(condition, When):
                raise SpaceError(
                    space, f"a condition of {name} is {condition!r}; write When(SETTING, above=NUMBER)", name
                )
            looked_at = condition.setting
            if looked_at not in TrialConfig.model_fields:
                raise SpaceError(space, unknown_name("setting", str(looked_at), list(TrialConfig.model_fields)), name)
            for value in condition.among or ():
                check_value(space, looked_at, value)
            if looked_at in domains and order.index(looked_at) >= order.index(name):
                raise SpaceError(space, _wrong_order(name, looked_at, conditions), name)
            if isinstance(domains.get(looked_at), Float):
                raise SpaceError(
                    space,
                    f"{name} holds only with {condition}, and {looked_at} is a range of real numbers; a condition looks "
                    "at a Choice or an Int",
                    name,
                )
            possible = domains.get(looked_at) or Choice([unvaried(looked_at)])
            if not condition.can_hold(possible):
                raise SpaceError(
                    space,
                    f"{name} holds only with {condition}, and {looked_at} is {possible}; change one of them, "
                    f"or leave {name} out",
                    name,
                )


def _wrong_order(name: str, looked_at: str, conditions: Conditions) -> str:
    found = {looked_at}
    while more := {each.setting for one in found for each in conditions.get(one, ())} - found:
        found |= more
    if name in found:
        return f"the conditions of {name} and {looked_at} need each other; leave one of them out"
    return (
        f"{name} holds only with some values of {looked_at}, which is sampled after it; list {looked_at} before {name}"
    )


def ancestors(name: str, conditions: Conditions, domains: Mapping[str, Domain]) -> tuple[str, ...]:
    """The settings of the space that decide whether another one varies, in the order of the space."""
    found: set[str] = set()
    new = {name}
    while new:
        new = {each.setting for one in new for each in conditions.get(one, ())} & domains.keys() - found
        found |= new
    return tuple(each for each in domains if each in found)
