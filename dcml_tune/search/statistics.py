"""Comparison of settings that were measured on the same blocks, with confidence intervals.

A block is a fold of held-out classes; on the test classes it is a seed. Seeds on one fold see the same classes, so they are
no independent evidence about other classes: they are averaged first (nested design). Blocks differ more than settings do, so
the model is value = setting + block + noise, fitted by least squares. The noise has the same standard deviation for all
settings. With two settings this is the paired t-test over blocks. With more, the standard deviation is estimated from more
values, and a setting that was eliminated early contributes the blocks that it has.

Where numbers of seeds differ, so do the variances of the averages. Their ratio is estimated from the spread of seeds within
folds, and the degrees of freedom are those of Satterthwaite.

Sources: two-way layout without interaction, such as Montgomery, "Design and Analysis of Experiments", section 4.1;
Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2, 1946; Stein, "A
Two-Sample Test for a Linear Hypothesis Whose Power is Independent of the Variance", Annals of Mathematical Statistics 16, 1945.

Above 250 lines because the estimates of a comparison and the questions that are asked of it are one class.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcml_tune.search.intervals import ALPHA, TIE, Difference, LowerEnd, Noise, t_bound
from dcml_tune.search.many_to_one import bound, exceedance

Values = Mapping[str, Mapping[Any, float]]
"""Setting -> unit -> value. A unit with an attribute `fold` belongs to this block; any other unit is a block of its own."""


class Comparison:
    """Settings that were measured on the same blocks. A setting need not have every block.

    Attributes:
        values: the values that are compared, setting -> unit -> value.
        left_out: a line for each setting or value that is not compared.
        noise: None if it cannot be estimated: fewer than two common blocks, or the same differences on all of them.

    Example:
        >>> values = {"a": {"seed 1": 0.50, "seed 2": 0.60}, "b": {"seed 1": 0.48, "seed 2": 0.57}}
        >>> round(Comparison(values).difference("a", "b").mean, 3)
        0.025
    """

    def __init__(self, values: Values) -> None:
        """Fit setting + block + noise.

        Args:
            values: setting -> unit -> value. Left out are settings without a value, values that are not finite, and
                settings outside the largest group that is connected by common blocks.
        """
        self.left_out: list[str] = []
        self.values = self._connected(self._finite(values))
        self._cells = {setting: _by_block(units) for setting, units in self.values.items()}
        blocks = list(dict.fromkeys(block for each in self._cells.values() for block in each))
        rows = [(s, block, cell) for s, each in self._cells.items() for block, cell in each.items()]
        self._at = {setting: place for place, setting in enumerate(self._cells)}
        places = {block: len(self._at) + place for place, block in enumerate(blocks)}
        design = np.zeros((len(rows), len(self._at) + len(blocks)))
        for row, (setting, block, _) in enumerate(rows):
            design[row, [self._at[setting], places[block]]] = 1
        self._inverse = np.linalg.pinv(design) if rows else np.zeros((0, 0))
        y = np.array([fmean(cell) for *_, cell in rows])
        self._effects = self._inverse @ y
        self._units = float(np.mean(self._effects[len(self._at) :])) if rows else 0.0
        self._residual = np.eye(len(rows)) - design @ self._inverse if rows else np.zeros((0, 0))
        self._ratios = self._relative_variances(y, [cell for *_, cell in rows])
        self.noise = self._estimate_noise(y)

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

    def _connected(self, values: dict[str, dict[Any, float]]) -> dict[str, dict[Any, float]]:
        """Return the largest group of settings connected by common blocks; of equal groups the first."""
        groups: list[tuple[set[str], set[Hashable]]] = []
        for setting, units in values.items():
            own = {_block(unit) for unit in units}
            joined = [group for group in groups if group[1] & own]
            groups = [group for group in groups if group not in joined]
            groups.append(({setting}.union(*(names for names, _ in joined)), own.union(*(of for _, of in joined))))
        places = list(values)
        largest = max(groups, key=lambda each: (len(each[0]), -min(map(places.index, each[0]))), default=(set(), set()))
        self.left_out += [
            f"{setting}: left out of the comparison, as no other setting was measured on the same units"
            for setting in values
            if setting not in largest[0]
        ]
        return {setting: units for setting, units in values.items() if setting in largest[0]}

    # -- the noise -------------------------------------------------------------------------------------

    def _relative_variances(self, y: NDArray[np.float64], cells: list[list[float]]) -> NDArray[np.float64]:
        """Variance of each block's average relative to that of one value; ones if numbers of seeds are equal.

        The variance of an average of n seeds is that of setting x block, plus that of seeds divided by n. The former
        is estimated from the residuals, the latter from the spread within blocks.
        """
        counts = np.array([len(cell) for cell in cells], dtype=float)
        if len(set(counts)) <= 1:
            return np.ones(len(cells))
        seeds = sum(float(np.var(cell)) * len(cell) for cell in cells) / float(np.sum(counts - 1))
        trace = float(np.trace(self._residual))
        shares = np.diag(self._residual)
        rest = float(y @ self._residual @ y) - seeds * float(shares @ (1 / counts))
        interaction = max(0.0, rest / trace) if trace > TIE else 0.0
        total = interaction + seeds
        return (interaction + seeds / counts) / total if total > TIE**2 else np.ones(len(cells))

    def _estimate_noise(self, y: NDArray[np.float64]) -> Noise | None:
        """Estimate the noise of one value from the residuals; its degrees of freedom are Satterthwaite's."""
        spread = self._residual * self._ratios
        trace = float(np.trace(spread))
        if trace < TIE:
            return None
        sd = math.sqrt(max(0.0, float(y @ self._residual @ y)) / trace)
        return None if sd < TIE else Noise(sd=sd, freedom=trace**2 / float(np.sum(spread * spread.T)))

    def noise_of(self, one: str, other: str) -> Noise | None:
        """Return the noise of two settings: halfway between that of their own differences and that of all settings.

        The noise of all settings has more degrees of freedom, but misleads where settings are differently noisy. Half of
        each keeps most of the former and little of the latter. The degrees of freedom are Satterthwaite's, of the pair's own
        sum of squares and the rest. After the idea of Smyth, "Linear Models and Empirical Bayes Methods for Assessing
        Differential Expression", Statistical Applications in Genetics and Molecular Biology 3, 2004.

        Returns:
            None without two common blocks or without spread; the noise of all settings if numbers of seeds differ.
        """
        cells, others = self._cells.get(one, {}), self._cells.get(other, {})
        own = [fmean(cells[block]) - fmean(others[block]) for block in cells if block in others]
        if self.noise is None or len(own) < 2:
            return None
        own_freedom, freedom = len(own) - 1, self.noise.freedom
        rest = freedom - own_freedom
        if rest < TIE or np.ptp(self._ratios) > 0:
            return self.noise
        variance = (float(np.var(own, ddof=1)) / 2 + self.noise.sd**2) / 2
        shares = (1 + own_freedom / freedom) / 2, rest / freedom / 2
        return Noise(sd=math.sqrt(variance), freedom=1 / (shares[0] ** 2 / own_freedom + shares[1] ** 2 / rest))

    # -- what is compared ------------------------------------------------------------------------------

    def pairs(self, one: str, other: str) -> int:
        """Return the number of blocks that both have; 0 for a setting that is left out."""
        return len(self._cells.get(one, {}).keys() & self._cells.get(other, {}).keys())

    def blocks(self, setting: str) -> int:
        """Return the number of blocks of a setting."""
        return len(self._cells.get(setting, {}))

    def mean(self, setting: str) -> float:
        """Return the mean of a setting, adjusted for missing blocks."""
        return float(self._effects[self._at[setting]]) + self._units

    def difference(self, one: str, other: str, noise: Noise | None = None) -> Difference:
        """Return the first minus the second, with its 95 % interval (Student's t).

        Args:
            one: a setting.
            other: another one.
            noise: instead of that of all settings; such as `noise_of` both, or an estimate of before some of the values
                were measured, on which the number of values may depend (Stein's two stages).

        Raises:
            ValueError: if there is no block that both have.
        """
        if self.pairs(one, other) == 0:
            raise ValueError(f"{one} and {other} have no unit in common; ask `pairs` before")
        noise = noise or self.noise
        mean, error = self._contrast(one, other, noise)
        if self._are_tied(one, other):
            error = None
        freedom = None if noise is None or error is None else noise.freedom
        half = None if error is None or freedom is None else t_bound(freedom, ALPHA / 2) * error
        return Difference(
            pairs=self.pairs(one, other),
            mean=mean,
            low=None if half is None else mean - half,
            high=None if half is None else mean + half,
            error=error,
            freedom=freedom,
        )

    def lower_end(self, one: str, control: str, level: float = ALPHA / 2) -> LowerEnd | None:
        """Return the least by which a setting is ahead of a control, whichever setting was chosen (Dunnett, 1955).

        The bound holds for all settings at the same time, and therefore for the one that these values made the winner.

        Args:
            one: a setting.
            control: another one.
            level: probability that the bound is too high for any of the settings.

        Returns:
            None if both have fewer than two blocks in common, or there is no spread.
        """
        if self.noise is None or self.pairs(one, control) < 2 or self._are_tied(one, control):
            return None
        mean, error = self._contrast(one, control, self.noise)
        if error is None:
            return None
        others, freedom = len(self._at) - 1, self.noise.freedom
        p = exceedance(mean / error, others, freedom)
        return LowerEnd(low=mean - bound(others, freedom, level) * error, p=p)

    def not_told_from(self, one: str) -> list[str]:
        """Return the other settings that may be as good as a setting (Hsu's multiple comparisons with the best).

        The probability that the truly best setting is neither `one` nor among them is at most 5 %, whichever setting
        was chosen. Source: Hsu, "Constrained Simultaneous Confidence Intervals for Multiple Comparisons with the Best",
        Annals of Statistics 12, 1984.
        """
        others = [each for each in self._at if each != one and self.pairs(one, each)]
        if self.noise is None or one not in self._at:
            return others
        limit = bound(max(1, len(self._at) - 1), self.noise.freedom, ALPHA)
        leads = {each: self._contrast(one, each, self.noise) for each in others}
        return [each for each, (mean, error) in leads.items() if error is None or mean <= limit * error]

    def _are_tied(self, one: str, other: str) -> bool:
        """Whether two settings have equal values in all common blocks: no evidence of how much they vary."""
        cells, others = self._cells[one], self._cells[other]
        return all(abs(fmean(cells[block]) - fmean(others[block])) < TIE for block in cells if block in others)

    def _contrast(self, one: str, other: str, noise: Noise | None) -> tuple[float, float | None]:
        """Return the difference of two settings and its standard error; None if the noise is not known."""
        weights = self._inverse[self._at[one]] - self._inverse[self._at[other]]
        mean = float(self._effects[self._at[one]] - self._effects[self._at[other]])
        error = None if noise is None else noise.sd * math.sqrt(float(weights**2 @ self._ratios))
        return (0.0 if abs(mean) < TIE else mean), error


def _block(unit: Any) -> Hashable:
    """The block that a unit belongs to."""
    found: Hashable = getattr(unit, "fold", unit)
    return found


def _by_block(units: Mapping[Any, float]) -> dict[Hashable, list[float]]:
    """Block -> values of its units."""
    found: dict[Hashable, list[float]] = {}
    for unit, value in units.items():
        found.setdefault(_block(unit), []).append(value)
    return found
