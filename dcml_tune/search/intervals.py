"""A difference of two settings, its noise, and the interval of Student's t around it."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

ALPHA = 0.05
TIE = 1e-9
"""Values that differ by less are equal. Shares of fewer than a billion images differ by more, unless by rounding alone."""


def t_bound(freedom: float, level: float) -> float:
    """Return the value that Student's t exceeds with the probability `level`."""
    return -float(stdtrit(freedom, level))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviation of a value around setting + block, and how well it is known."""

    sd: float
    freedom: float
    """Degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting minus another."""

    pairs: int
    """Number of blocks that both have."""
    mean: float
    low: float | None
    """Lower end of the 95 % interval; None if the spread is not known: one block, or no spread over blocks."""
    high: float | None
    error: float | None
    """Standard error; None as for `low`."""
    freedom: float | None
    """Degrees of freedom of the standard error; None as for `low`."""

    @property
    def found(self) -> str:
        """The finding of this interval alone, in words."""
        if self.low is None or self.high is None:
            return "one pair: no interval" if self.pairs == 1 else "no spread: no interval"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference found"

    @property
    def p(self) -> float | None:
        """Two-sided p-value of no difference; None where there is no interval."""
        if self.error is None or self.freedom is None:
            return None
        return float(2 * stdtr(self.freedom, -abs(self.mean) / self.error))

    def interval(self, level: float) -> tuple[float, float] | None:
        """Return the interval that misses the true difference with the probability `level`; None where there is none."""
        if self.error is None or self.freedom is None:
            return None
        half = t_bound(self.freedom, level / 2) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True, kw_only=True)
class LowerEnd:
    """The least by which a setting that was chosen after the fact is ahead of a control (Dunnett)."""

    low: float
    p: float
    """Probability of so large a lead of any of the settings, if none were better than the control."""
