"""Three answers to a difference: better (or worse) by at least so much, equivalent, or undecided; and what would decide.

Sources: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979;
Schuirmann, "A Comparison of the Two One-Sided Tests Procedure and the Power Approach for Assessing the Equivalence of Average
Bioavailability", Journal of Pharmacokinetics and Biopharmaceutics 15, 1987; Stein 1945 (see `statistics`); Browne, "On the Use
of a Pilot Sample for Sample Size Determination", Statistics in Medicine 14, 1995.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from scipy.special import chdtri, ndtri

from dcml_tune.search.intervals import ALPHA, TIE, Difference, Noise, t_bound

Answer = Literal["better", "worse", "equivalent", "undecided", "equal values", "no interval"]

DIFFERENCE = 0.005
"""The smallest difference that matters, unless the user gives another: half a point, what published methods differ by."""
POWER = 0.8
_MOST = 1000  # seeds; a larger number is reported as None


def level_at(look: int) -> float:
    """Return the level at which a look at the final seeds tests: 1 is the first, each extension by seeds is another.

    "Better" is the upper half of it. The first two looks have 5 % each, each further one half of the one before, so all
    looks together find one that is not better in at most 5 % (at the first two) or 7.5 % (however often a user looks).
    """
    return ALPHA if look <= 2 else ALPHA / 2 ** (look - 2)


def answers(found: Mapping[str, Difference], *, difference: float, level: float = ALPHA) -> dict[str, Answer]:
    """Answer each of several differences, so that false findings in all of them together stay below a level (Holm).

    Args:
        found: differences of one setting and each of several others.
        difference: within this, settings are equivalent.
        level: probability of any finding, if there is no difference anywhere.
    """
    certain = rejected({name: each.p for name, each in found.items()}, level)
    return {name: _answer(each, certain=name in certain, margin=difference) for name, each in found.items()}


def _answer(found: Difference, *, certain: bool, margin: float) -> Answer:
    if found.error is None:
        return "equal values" if found.pairs > 1 and abs(found.mean) < TIE else "no interval"
    if certain:
        return "better" if found.mean > 0 else "worse"
    return "equivalent" if is_equivalent(found, margin) else "undecided"


def rejected(p_values: Mapping[str, float | None], level: float) -> set[str]:
    """Return the hypotheses that Holm's procedure rejects, at a level for all of them together; None is no p-value."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    found = set()
    for number, (p, name) in enumerate(known):
        if p > level / (len(known) - number):
            break
        found.add(name)
    return found


def is_equivalent(found: Difference, margin: float, level: float = ALPHA) -> bool:
    """Return whether a difference lies within a margin on both sides (two one-sided tests)."""
    interval = found.interval(2 * level)
    return interval is not None and -margin < interval[0] and interval[1] < margin


def seeds_needed(noise: Noise, *, difference: float, level: float) -> int | None:
    """Return the number of seeds with which a two-sided test finds a difference with a power of 80 %.

    More seeds are tested with the first seeds' noise (Stein), so the number may depend on it. The power holds in 80 % of
    cases, because that part of the formula takes the upper 80 % limit of the noise (Browne).

    Args:
        noise: of a value.
        difference: the true one, above 0.
        level: of the test.

    Returns:
        None for more than a thousand.
    """
    critical = t_bound(noise.freedom, level / 2) * noise.sd
    return _seeds(critical + float(ndtri(POWER)) * upper_limit(noise), difference)


def seeds_for_equivalence(noise: Noise, *, difference: float, level: float = ALPHA) -> int | None:
    """Return the number of seeds with which equal settings are found equivalent with a power of 80 %.

    Arguments and result are those of `seeds_needed`.
    """
    critical = t_bound(noise.freedom, level) * noise.sd
    return _seeds(critical + float(ndtri((1 + POWER) / 2)) * upper_limit(noise), difference)


def _seeds(reach: float, difference: float) -> int | None:
    seeds = max(2, math.ceil(2 * (reach / difference) ** 2))
    return seeds if seeds <= _MOST else None


def upper_limit(noise: Noise) -> float:
    """Return the standard deviation that the true one exceeds in 20 % of cases."""
    return noise.sd * math.sqrt(noise.freedom / float(chdtri(noise.freedom, POWER)))
