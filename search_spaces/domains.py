"""Domains: the values that a setting can take in a search."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna

from dcml_tune.config.errors import SettingError

Plain = bool | int | float | str | None
"""Types of choices that Optuna stores unchanged."""


@dataclass(frozen=True)
class Choice:
    """A categorical domain: one of the listed values."""

    values: tuple[Any, ...]

    def __init__(self, values: Iterable[Any]) -> None:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise SettingError(f"a Choice must have a list of values, but got {values!r}; write Choice([{values!r}])")
        found = tuple(values)
        if not found:
            raise SettingError("a Choice must have values, but got none; list them")
        for value in found:
            if not isinstance(value, Plain) or (isinstance(value, float) and not math.isfinite(value)):
                raise SettingError(f"a Choice must have numbers, texts, truth values or None, but got {value!r}")
        object.__setattr__(self, "values", tuple(dict.fromkeys(found)))

    def ends(self) -> tuple[Any, ...]:
        """Its values, or both ends of its range. A wider domain must contain them."""
        return self.values

    def nearest(self, value: Any) -> Any:
        """The value of the domain that is nearest to `value`."""
        if value in self.values or not isinstance(value, int | float):
            return value if value in self.values else self.values[0]
        return min(self.values, key=lambda each: abs(each - value))

    def holds(self, value: Any) -> bool:
        """Whether `value` is in the domain."""
        return value in self.values

    def distribution(self) -> optuna.distributions.CategoricalDistribution:
        """The domain as a distribution of Optuna."""
        return optuna.distributions.CategoricalDistribution(self.values)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Sample a value by an Optuna trial."""
        return trial.suggest_categorical(name, self.values)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Int:
    """A whole number from low to high, inclusive."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if not isinstance(end, int) or isinstance(end, bool):
                raise SettingError(
                    f"an Int must have whole numbers as its ends, but got {end!r}; give one, or use Float"
                )
        _check_range(self.low, self.high, self.log)

    def ends(self) -> tuple[int, ...]:
        """Its values, or both ends of its range. A wider domain must contain them."""
        return tuple(dict.fromkeys((self.low, self.high)))

    def nearest(self, value: float) -> int:
        """The value of the domain that is nearest to `value`."""
        return int(min(max(value, self.low), self.high))

    def holds(self, value: Any) -> bool:
        """Whether `value` is in the domain."""
        return isinstance(value, int) and self.low <= value <= self.high

    def position(self, value: float) -> float:
        """Where `value` lies between both ends, from 0 to 1, on the scale of the domain."""
        return _position(value, *_half_wider(self.low, self.high), self.log)

    def at(self, position: float) -> int:
        """The value at a position from 0 to 1. Each whole number covers the same width, on a scale that is not a log scale."""
        return self.nearest(round(_at(position, *_half_wider(self.low, self.high), self.log)))

    def distribution(self) -> optuna.distributions.IntDistribution:
        """The domain as a distribution of Optuna."""
        return optuna.distributions.IntDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, name: str) -> int:
        """Sample a value by an Optuna trial."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{', log scale' if self.log else ''}"


@dataclass(frozen=True)
class Float:
    """A number from low to high, inclusive."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if not isinstance(end, int | float) or isinstance(end, bool):
                raise SettingError(f"a Float must have numbers as its ends, but got {end!r}; give one")
        _check_range(self.low, self.high, self.log)

    def ends(self) -> tuple[float, ...]:
        """Its values, or both ends of its range. A wider domain must contain them."""
        return tuple(dict.fromkeys((self.low, self.high)))

    def nearest(self, value: float) -> float:
        """The value of the domain that is nearest to `value`."""
        return min(max(value, self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Whether `value` is in the domain."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def position(self, value: float) -> float:
        """Where `value` lies between both ends, from 0 to 1, on the scale of the domain."""
        return _position(value, self.low, self.high, self.log)

    def at(self, position: float) -> float:
        """The value at a position from 0 to 1."""
        return self.nearest(_at(position, self.low, self.high, self.log))

    def distribution(self) -> optuna.distributions.FloatDistribution:
        """The domain as a distribution of Optuna."""
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Sample a value by an Optuna trial."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log scale' if self.log else ''}"


Domain = Choice | Int | Float


def _check_range(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise SettingError(f"`low <= high` must hold, but got (low={low}, high={high}); swap them")
    if log and low <= 0:
        raise SettingError(f"`low > 0` must hold on a log scale, but got low={low}; raise it or leave log out")


def _half_wider(low: int, high: int) -> tuple[float, float]:
    return low - 0.5, high + 0.5


def _position(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return 0.0 if low == high else (value - low) / (high - low)


def _at(position: float, low: float, high: float, log: bool) -> float:
    return math.exp(_at(position, math.log(low), math.log(high), False)) if log else low + position * (high - low)
