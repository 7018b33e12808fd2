"""Paired comparison of settings that were measured on the same units, with confidence intervals.

A unit is one fold of held-out classes with one seed; on the test classes it is a seed. Units differ more than settings do,
so the model is value = setting + unit + noise, fitted by least squares. The noise has the same standard deviation for all
settings. With two settings this is the paired t-test. With more, the standard deviation is estimated from more values, and
a setting that was eliminated early contributes the units that it has.

Source: two-way layout without interaction, such as Montgomery, "Design and Analysis of Experiments", section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import nct, t

Values = Mapping[str, Mapping[Any, float]]
"""Setting -> unit -> value."""

ALPHA = 0.05
POWER = 0.8
_MOST = 10_000  # pairs; a larger number is reported as None
TIE = 1e-9
"""Values that differ by less are equal. Shares of fewer than a billion images differ by more, unless by rounding alone."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting minus another."""

    pairs: int
    """Number of units that both have."""
    mean: float
    low: float | None
    """Lower end of the 95 % interval; None if there is only one unit."""
    high: float | None
    needed: int | None
    """Pairs with which a difference of this size is found with a power of 80 %; None: more than ten thousand."""

    @property
    def found(self) -> str:
        """The finding in words."""
        if self.low is None or self.high is None:
            return "one pair: no interval"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference found"


class Comparison:
    """Settings that were measured on the same units. A setting need not have every unit.

    Attributes:
        values: the values that are compared.
        left_out: a line for each setting or value that is not compared.

    Example:
        >>> values = {"a": {"seed 1": 0.50, "seed 2": 0.60}, "b": {"seed 1": 0.48, "seed 2": 0.57}}
        >>> round(Comparison(values).difference("a", "b").mean, 3)
        0.025
    """

    def __init__(self, values: Values) -> None:
        """Fit setting + unit + noise.

        Args:
            values: setting -> unit -> value. Left out are settings without a value, values that are not finite, and
                settings outside the largest group that is connected by common units.
        """
        self.left_out: list[str] = []
        self.values = self._connected(self._finite(values))
        settings, units = list(self.values), list(dict.fromkeys(u for each in self.values.values() for u in each))
        rows = [(s, u, value) for s, each in self.values.items() for u, value in each.items()]
        design = np.zeros((len(rows), len(settings) + len(units)))
        for row, (setting, unit, _) in enumerate(rows):
            design[row, settings.index(setting)] = design[row, len(settings) + units.index(unit)] = 1
        y = np.array([value for *_, value in rows])
        inverse = np.linalg.pinv(design.T @ design)
        fitted = inverse @ design.T @ y
        self._at = {setting: place for place, setting in enumerate(settings)}
        self._effects, self._inverse = fitted, inverse
        self._freedom = len(rows) - int(np.linalg.matrix_rank(design)) if rows else 0
        rest = float(np.sum((y - design @ fitted) ** 2))
        self._noise = _exact(math.sqrt(rest / self._freedom)) if self._freedom > 0 else None
        self._units = float(np.mean(fitted[len(settings) :])) if rows else 0.0

    def _finite(self, values: Values) -> dict[str, dict[Any, float]]:
        """Return the finite values."""
        for setting, units in values.items():
            self.left_out += [
                f"{setting}, {unit}: left out of the comparison, as its value is {value}"
                for unit, value in units.items()
                if not math.isfinite(value)
            ]
        finite = {s: {u: value for u, value in each.items() if math.isfinite(value)} for s, each in values.items()}
        return {setting: units for setting, units in finite.items() if units}

    def _connected(self, values: dict[str, dict[Any, float]]) -> dict[str, dict[str, float]]:
        """Return the largest group of settings connected by common units; of equal groups the first."""
        groups: list[tuple[set[str], set[str]]] = []
        for setting, units in values.items():
            joined = [group for group in groups if group[1] & units.keys()]
            groups = [group for group in groups if group not in joined]
            groups.append(
                ({setting}.union(*(names for names, _ in joined)), set(units).union(*(of for _, of in joined)))
            )
        places = list(values)
        largest = max(groups, key=lambda each: (len(each[0]), -min(map(places.index, each[0]))), default=(set(), set()))
        self.left_out += [
            f"{setting}: left out of the comparison, as no other setting was measured on the same units"
            for setting in values
            if setting not in largest[0]
        ]
        return {setting: units for setting, units in values.items() if setting in largest[0]}

    @property
    def best(self) -> str | None:
        """The setting with the highest mean, adjusted for missing units; of equal ones the first."""
        highest = max(map(self.mean, self._at), default=0.0)
        return next((setting for setting in self._at if highest - self.mean(setting) < TIE), None)

    def pairs(self, one: str, other: str) -> int:
        """Return the number of units that both have; 0 for a setting that is left out."""
        return len(self.values.get(one, {}).keys() & self.values.get(other, {}).keys())

    def mean(self, setting: str) -> float:
        """Return the mean of a setting, adjusted for missing units."""
        return float(self._effects[self._at[setting]]) + self._units

    def difference(self, one: str, other: str) -> Difference:
        """Return the first minus the second, with its 95 % interval (Student's t).

        Raises:
            ValueError: if there is no unit that both have.
        """
        if self.pairs(one, other) == 0:
            raise ValueError(f"{one} and {other} have no unit in common; ask `pairs` before")
        mean, error = self._contrast(one, other)
        half = None if error is None else float(t.ppf(1 - ALPHA / 2, self._freedom)) * error
        return Difference(
            pairs=self.pairs(one, other),
            mean=mean,
            low=None if half is None else mean - half,
            high=None if half is None else mean + half,
            needed=None if self._noise is None else pairs_needed(mean, math.sqrt(2) * self._noise),
        )

    def beaten(self, looks: int) -> list[str]:
        """Return the settings that are significantly worse than the best one.

        The probability that the truly best setting is among them is at most 5 % over all looks together (Bonferroni, over
        the other settings and the looks).

        Args:
            looks: number of times that this is tested in the course of a race.
        """
        best = self.best
        if best is None or self._noise is None or len(self._at) < 2:
            return []
        bound = float(t.ppf(1 - ALPHA / looks / (len(self._at) - 1), self._freedom))
        lost = []
        for setting in self._at:
            mean, error = self._contrast(best, setting)
            if self.pairs(best, setting) and error is not None and setting != best and mean > bound * error:
                lost.append(setting)
        return lost

    def _contrast(self, one: str, other: str) -> tuple[float, float | None]:
        """Return the difference of two settings and its standard error; None if the noise cannot be estimated."""
        contrast = np.zeros(len(self._effects))
        contrast[self._at[one]], contrast[self._at[other]] = 1, -1
        variance = max(0.0, float(contrast @ self._inverse @ contrast))
        error = None if self._noise is None else self._noise * math.sqrt(variance)
        return _exact(float(contrast @ self._effects)), error


def _exact(value: float) -> float:
    """Return a difference, or 0 if it is within rounding."""
    return 0.0 if abs(value) < TIE else value


def pairs_needed(mean: float, spread: float) -> int | None:
    """Return the number of pairs with which a paired t-test at 5 % has a power of 80 %.

    Args:
        mean: of the differences.
        spread: standard deviation of the differences.

    Returns:
        2 or more; None for more than ten thousand.
    """
    if mean == 0:
        return None
    if spread <= abs(mean) * 1e-9:
        return 2

    def is_enough(pairs: int) -> bool:
        shift = abs(mean) / spread * math.sqrt(pairs)
        return bool(nct.sf(t.ppf(1 - ALPHA / 2, pairs - 1), pairs - 1, shift) >= POWER)

    high = 2
    while not is_enough(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
