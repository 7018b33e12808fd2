"""Sequential halving: how the runs of a confirmation are spent on settings and units.

All settings run on the first units, then the better half of them on further ones, until two are left for the last units. Most
runs are spent on the settings that are hard to tell apart.

Source: Karnin et al., "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013. There each round has the same number of
runs. Here the units are divided evenly, and the first round has at least two: with one unit, the noise of one run decides
which half stays (docs/verdict.md has the simulation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST = 2  # units of the first round, if there are so many


@dataclass(frozen=True)
class Round:
    """A round: the best settings so far run on the next units."""

    settings: int
    """Number of settings that run."""
    units: range
    """Numbers of the units, from 0."""


def rounds(settings: int, units: int) -> list[Round]:
    """Return the rounds that choose one of several settings.

    Args:
        settings: number of settings.
        units: number of units on which the last settings are compared.

    Example:
        >>> rounds(4, 3)
        [Round(settings=4, units=range(0, 2)), Round(settings=2, units=range(2, 3))]
    """
    if settings < 1 or units < 1:
        return []
    count = max(1, math.ceil(math.log2(settings)))
    ends = [min(units, max(_FIRST, math.ceil(units * number / count))) for number in range(1, count + 1)]
    found, begin = [], 0
    for end in ends:
        if end > begin:
            found.append(Round(settings, range(begin, end)))
            settings, begin = math.ceil(settings / 2), end
    return found


def nb_runs(settings: int, units: int) -> int:
    """Return the number of runs of all rounds."""
    return sum(each.settings * len(each.units) for each in rounds(settings, units))
